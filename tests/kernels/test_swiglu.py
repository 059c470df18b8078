"""The gated product: value and gradients against plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from ift_scale_kernels.swiglu.reference import swiglu

ACTIVATIONS = {"silu": F.silu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 5), (1, 2, 7)])
def test_gradients_by_finite_differences(activation: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda gate, up: swiglu(gate, up, activation), (gate, up))
    torch.testing.assert_close(swiglu(gate, up, activation), ACTIVATIONS[activation](gate) * up)


def test_the_activation_is_not_kept() -> None:
    gate, up = (torch.randn(3, 5, requires_grad=True) for _ in range(2))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        swiglu(gate, up)
    assert {x.data_ptr() for x in kept} == {gate.data_ptr(), up.data_ptr()}
