"""The rotation: value and gradients against Hugging Face's."""

import torch
from ift_scale_kernels.rotary.reference import rotary
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


def inputs(
    dtype: torch.dtype, heads: int = 6, groups: int = 2, tokens: int = 5, size: int = 8
) -> tuple[Tensor, ...]:
    """q (1, H, T, D) and k (1, K, T, D) in the layout of projections, cos and sin (1, T, D)."""
    torch.manual_seed(0)
    q, k = (
        torch.randn(1, tokens, n, size, dtype=dtype).transpose(1, 2).requires_grad_()
        for n in (heads, groups)
    )
    angles = torch.randn(1, tokens, size // 2, dtype=dtype).repeat(1, 1, 2)
    return q, k, angles.cos(), angles.sin()


def test_gradients_by_finite_differences() -> None:
    q, k, cos, sin = inputs(torch.float64, heads=2, groups=1, tokens=3, size=4)
    assert torch.autograd.gradcheck(lambda q, k: rotary(q, k, cos, sin), (q, k))


def test_equals_hugging_face() -> None:
    q_in, k_in, cos, sin = inputs(torch.float32)
    actual, expected = rotary(q_in, k_in, cos, sin), apply_rotary_pos_emb(q_in, k_in, cos, sin)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(q.sin().sum() + k.cos().sum(), (q_in, k_in))
        for q, k in (actual, expected)
    ]
    torch.testing.assert_close(*gradients)


def test_rotating_back_restores_the_inputs() -> None:
    q, k, cos, sin = inputs(torch.float64)
    before = q.detach().clone()
    turned = rotary(q, k, cos, sin)
    torch.testing.assert_close(rotary(*turned, cos, -sin), (q, k))
    assert torch.equal(q, before)
