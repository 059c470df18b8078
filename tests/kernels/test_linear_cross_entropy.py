"""Linear cross-entropy: value and gradients against plain PyTorch."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ift_scale_kernels.linear_cross_entropy import chunked
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy
from torch import Tensor

OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 3.0},
    "scale": {"logit_scale": 0.3},
    "both": {"softcap": 2.0, "logit_scale": 1.7},
}


def inputs(
    num_rows: int, vocabulary: int, size: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, ...]:
    """hidden_RD, weight_VD, bias_V with gradients; labels_R, weights_R."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    hidden, weight, bias = (
        x.to(dtype).requires_grad_()
        for x in (draw(num_rows, size), draw(vocabulary, size), draw(vocabulary))
    )
    labels = torch.randint(0, vocabulary, (num_rows,), generator=generator)
    return (
        hidden,
        weight,
        bias,
        labels,
        torch.rand(num_rows, generator=generator, dtype=torch.float64),
    )


def plain(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    bias: Tensor,
    softcap: float | None = None,
    logit_scale: float = 1,
) -> Tensor:
    logits = F.linear(hidden, weight, bias) * logit_scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, labels, reduction="none") @ weights


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gradients_by_finite_differences(options: dict[str, Any]) -> None:
    hidden, weight, bias, labels, weights = inputs(5, 7, 3, torch.float64)

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden, weight, labels, weights, bias_V=bias, chunk_rows=2, **options
        )[0]

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


@pytest.mark.parametrize("chunk_rows", [None, 1, 4, 13, 50])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_plain_pytorch(chunk_rows: int | None, options: dict[str, Any]) -> None:
    hidden, weight, bias, labels, weights = inputs(13, 37, 11, torch.float64)
    expected = torch.autograd.grad(
        3 * plain(hidden, weight, labels, weights, bias, **options), (hidden, weight, bias)
    )
    loss, losses = linear_cross_entropy(
        hidden, weight, labels, weights, bias_V=bias, chunk_rows=chunk_rows, **options
    )
    assert not losses.requires_grad
    torch.testing.assert_close(loss, plain(hidden, weight, labels, weights, bias, **options))
    torch.testing.assert_close(loss, losses @ weights)
    for actual, wanted in zip(
        torch.autograd.grad(3 * loss, (hidden, weight, bias)), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_of_the_results(dtype: torch.dtype) -> None:
    hidden, weight, bias, labels, weights = inputs(9, 21, 6, dtype)
    loss, losses = linear_cross_entropy(hidden, weight, labels, weights, bias_V=bias, chunk_rows=4)
    loss.backward()
    assert loss.dtype == losses.dtype == torch.float32 and loss.shape == () and losses.shape == (9,)
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight, bias)]
    expected = plain(exact[0], exact[1], labels, weights, exact[2])
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    for actual, wanted in zip((hidden, weight, bias), exact, strict=True):
        assert actual.grad is not None and actual.grad.dtype == dtype
        # Up to one rounding of the result.
        torch.testing.assert_close(actual.grad, wanted.grad.to(dtype), rtol=1e-2, atol=1e-5)


def test_a_sum_over_many_chunks_keeps_float32() -> None:
    hidden, weight, _, labels, _ = inputs(600, 5, 4, torch.bfloat16)
    whole, split = (
        torch.autograd.grad(
            linear_cross_entropy(hidden, weight, labels, chunk_rows=rows)[0], weight
        )[0]
        for rows in (600, 1)
    )
    torch.testing.assert_close(whole, split, rtol=1e-2, atol=1e-3)


def test_no_rows_still_reach_every_parameter() -> None:
    hidden, weight, bias, labels, _ = inputs(0, 7, 3, torch.float32)
    loss, losses = linear_cross_entropy(hidden, weight, labels, bias_V=bias)
    loss.backward()
    assert loss.item() == 0 and losses.shape == (0,)
    assert weight.grad is not None and bias.grad is not None and hidden.grad is not None
    assert not weight.grad.any() and not bias.grad.any()


def test_gradients_are_computed_only_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, labels, _ = inputs(5, 7, 3, torch.float32)
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels)[0], hidden)[0]
    loss, _ = linear_cross_entropy(hidden, weight.detach(), labels)
    torch.testing.assert_close(torch.autograd.grad(loss, hidden)[0], expected)
    with torch.no_grad():
        monkeypatch.setattr(chunked, "_add_product", None)  # calling it would raise
        assert not linear_cross_entropy(hidden, weight, labels)[0].requires_grad
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, labels)[0], loss.detach())


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, _, labels, _ = inputs(4, 9, 3, torch.float32)
    loss, losses = linear_cross_entropy(hidden * 1e4, weight, labels)
    exact = F.cross_entropy((hidden.double() * 1e4) @ weight.double().t(), labels, reduction="none")
    torch.testing.assert_close(losses.double(), exact.detach(), rtol=1e-5, atol=1e-2)
    assert loss.isfinite()


def test_the_chunks_obey_the_byte_bound() -> None:
    cpu = torch.device("cpu")
    for rows, vocabulary in [(4000, 32000), (1, 10), (5000, 256000), (3, 10**9)]:
        chunk = chunked.default_chunk_rows(rows, vocabulary, cpu)
        assert chunk == 1 or 4 * chunk * vocabulary <= chunked.CPU_BYTES
    assert chunked.default_chunk_rows(0, 10, cpu) == 1
    # Eight equal chunks rather than seven and a small one.
    assert chunked.default_chunk_rows(4000, 32000, cpu) == 500
