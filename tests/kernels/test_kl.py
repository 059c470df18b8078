"""Divergence from a base model next to the cross-entropy: values, gradients, and top-k's bound."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ift_scale_kernels.linear_cross_entropy import kl
from torch import Tensor

ROWS, VOCABULARY, SIZE = 11, 50, 6


def _inputs(dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    weights, kl_weights = draw(ROWS).abs(), draw(ROWS).abs()
    weights[2], kl_weights[4] = 0, 0  # a row of general text, and one of cross-entropy alone
    return {
        "hidden": draw(ROWS, SIZE).requires_grad_(),
        "weight": draw(VOCABULARY, SIZE).requires_grad_(),
        "bias": draw(VOCABULARY).requires_grad_(),
        "labels": torch.randint(VOCABULARY, (ROWS,), generator=generator),
        "weights": weights,
        "kl_weights": kl_weights,
        "base": kl.HiddenRows(draw(ROWS, SIZE), 2 * draw(VOCABULARY, SIZE), draw(VOCABULARY)),
    }


def _base_logits(base: kl.HiddenRows, softcap: float | None) -> Tensor:
    logits = base.hidden_RD @ base.weight_VD.T + base.bias_V
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def _lumped(logprobs_RV: Tensor, ids_RK: Tensor) -> Tensor:
    """Probabilities of the K tokens and of all others, (R, K + 1)."""
    probs = logprobs_RV.exp()
    top = probs.gather(1, ids_RK)
    others = torch.ones_like(probs).scatter(1, ids_RK, 0.0)
    return torch.cat([top, (probs * others).sum(-1, keepdim=True)], 1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("k", [None, 1, 7, VOCABULARY - 1, VOCABULARY])
@pytest.mark.parametrize("chunk_rows", [4, 100])
def test_values_and_gradients_are_those_of_autograd(
    softcap: float | None, k: int | None, chunk_rows: int
) -> None:
    x = _inputs()
    base_RV = _base_logits(x["base"], softcap)
    base = x["base"] if k is None else kl.top_k_of(base_RV.clone(), k)
    loss, losses_R, divergences_R = kl.linear_cross_entropy_kl(
        x["hidden"], x["weight"], x["labels"], x["weights"], x["kl_weights"], base,
        bias_V=x["bias"], softcap=softcap, chunk_rows=chunk_rows,
    )  # fmt: skip
    names = ("hidden", "weight", "bias")
    found = torch.autograd.grad(2 * loss, [x[name] for name in names])
    logits = x["hidden"] @ x["weight"].T + x["bias"]
    logits = logits if softcap is None else softcap * (logits / softcap).tanh()
    logprobs, p = logits.log_softmax(-1), base_RV.log_softmax(-1)
    ce = F.cross_entropy(logits, x["labels"], reduction="none")
    if isinstance(base, kl.TopK) and k != VOCABULARY:
        right = _kl(_lumped(p, base.ids_RK), _lumped(logprobs, base.ids_RK))
        torch.testing.assert_close(kl.divergence(logits, base), right, rtol=1e-9, atol=1e-12)
    else:
        right = _kl(p.exp(), logprobs.exp())
    torch.testing.assert_close(divergences_R, right.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses_R, ce.detach(), rtol=1e-9, atol=1e-12)
    expected = (x["weights"] * ce + x["kl_weights"] * right).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    gradients = torch.autograd.grad(2 * expected, [x[name] for name in names])
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_base_itself_has_no_divergence_and_no_gradient_of_it() -> None:
    x = _inputs()
    hidden = x["base"].hidden_RD.clone().requires_grad_()
    nothing, ones = torch.zeros(ROWS), torch.ones(ROWS)
    top = kl.linear_top_k(x["base"].hidden_RD, x["base"].weight_VD, x["base"].bias_V, None, 5)
    for base in (x["base"], top):
        loss, _, divergences_R = kl.linear_cross_entropy_kl(
            hidden, x["base"].weight_VD, x["labels"], nothing, ones, base, bias_V=x["base"].bias_V
        )
        (gradient,) = torch.autograd.grad(loss, hidden)
        assert float(divergences_R.abs().max()) < 1e-12 and float(gradient.abs().max()) < 1e-12


@pytest.mark.parametrize("k", [1, 3, 10, 40])
@pytest.mark.parametrize("drift", [0.05, 0.5, 3.0])
def test_lumping_lowers_the_divergence_by_at_most_the_bound(k: int, drift: float) -> None:
    """0 <= KL - lumped KL = p_r KL(p' || q') <= p_r W^2 / 8, on 2,000 random rows."""
    generator = torch.Generator().manual_seed(k)
    base_RV = 3 * torch.randn(2000, 80, generator=generator, dtype=torch.float64)
    moved = torch.randn(base_RV.shape, generator=generator, dtype=torch.float64)
    logits_RV = base_RV + drift * moved
    top = kl.top_k_of(base_RV.clone(), k)
    log_p, log_q = base_RV.log_softmax(-1), logits_RV.log_softmax(-1)
    gap = _kl(log_p.exp(), log_q.exp()) - kl.divergence(logits_RV, top)
    rest = torch.ones_like(log_p, dtype=torch.bool).scatter(1, top.ids_RK, False)
    p_r = (log_p.exp() * rest).sum(-1)
    inside = [one.exp() * rest for one in (log_p, log_q)]
    within = [one / one.sum(-1, keepdim=True) for one in inside]
    ratio, out = log_p - log_q, torch.inf
    width = ratio.masked_fill(~rest, -out).amax(-1) - ratio.masked_fill(~rest, out).amin(-1)
    torch.testing.assert_close(gap, p_r * _kl(*within), rtol=1e-7, atol=1e-12)
    assert float(gap.min()) >= -1e-12 and bool((gap <= p_r * width**2 / 8 + 1e-12).all())
    assert float(gap.max()) > 0


def test_very_sure_models_have_finite_divergences_in_float32() -> None:
    base_RV = torch.tensor([[200.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -300.0]])
    top = kl.top_k_of(base_RV.clone(), 2)
    hidden = torch.tensor([[0.0, 0, 0, 300.0], [0.0, 400.0, 0, 0]]).requires_grad_()
    loss, _, divergences_R = kl.linear_cross_entropy_kl(
        hidden, torch.eye(4), torch.tensor([0, 1]), torch.ones(2), torch.ones(2), top
    )
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert divergences_R.isfinite().all() and gradient.isfinite().all()
    assert float(divergences_R[0]) == pytest.approx(300, rel=1e-3)
