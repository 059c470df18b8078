"""RMSNorm: value, gradients and rounding against plain PyTorch."""

import pytest
import torch
from ift_scale_kernels.rms_norm.reference import rms_norm
from torch import Tensor

EPS = 1e-5


def plain(x: Tensor, weight: Tensor, offset: float) -> Tensor:
    """With the rounding of Hugging Face's Llama (offset 0) and Gemma (offset 1)."""
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + EPS)
    return (
        weight * exact.to(x.dtype)
        if offset == 0
        else (exact * (offset + weight.to(exact.dtype))).to(x.dtype)
    )


def inputs(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, residual, weight = torch.randn(shape), torch.randn(shape), torch.randn(shape[-1])
    return tuple(t.to(dtype).requires_grad_() for t in (x, residual, weight))  # type: ignore[return-value]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(5, 7), (1, 3, 2, 9)])
def test_gradients_by_finite_differences(offset: float, shape: tuple[int, ...]) -> None:
    x, residual, weight = inputs(*shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, EPS, offset=offset), (x, weight))
    added = lambda x, r, w: rms_norm(x, w, EPS, residual_TD=r, offset=offset)  # noqa: E731
    assert torch.autograd.gradcheck(added, (x, residual, weight))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_equals_plain_pytorch(offset: float) -> None:
    x, residual, weight = inputs(13, 37, dtype=torch.float32)
    torch.testing.assert_close(rms_norm(x, weight, EPS, offset=offset), plain(x, weight, offset))
    y, total = rms_norm(x, weight, EPS, residual_TD=residual, offset=offset)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(y, plain(x + residual, weight, offset))
    expected = torch.autograd.grad(
        (plain(x + residual, weight, offset) * 3 + (x + residual)).sin().sum(),
        (x, residual, weight),
    )
    actual = torch.autograd.grad((y * 3 + total).sin().sum(), (x, residual, weight))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_bfloat16_rounds_as_the_models_do(offset: float) -> None:
    x, _, weight = inputs(50, 64, dtype=torch.bfloat16)
    y = rms_norm(x, weight, EPS, offset=offset)
    assert y.dtype == torch.bfloat16
    same = (y == plain(x, weight, offset)).float().mean()
    assert same > 0.999  # the root mean square itself may differ in its last bit


def test_no_rows() -> None:
    x, _, weight = inputs(0, 8, dtype=torch.float32)
    rms_norm(x, weight, EPS).sum().backward()
    assert weight.grad is not None and not weight.grad.any()
