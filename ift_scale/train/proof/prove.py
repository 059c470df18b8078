"""Compares every training path with the model's own forward and backward pass on a tiny model.

The reference is the class itself, untouched, with its eager attention: one whole example per
forward pass, all logits, and the gradient of every parameter. A path is exact if the logits of
every supervised row and all gradients agree, also with the examples in another order, and if
changing one example leaves all others as they were. The paths run the trainer's own code
(`collate`, `PackedCausalLM`), in training mode and float32 on a CPU.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy
from torch import Tensor

from ift_scale.config.train import TrainConfig
from ift_scale.engines.rope import RopeLimits
from ift_scale.estimate import host
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.model.attention import recorded_terms
from ift_scale.train.model.packed import (
    UNSUPPORTED,
    PackedCausalLM,
    checkpoint_activations,
    decoder_of,
    without_cache,
)
from ift_scale.train.model.path import PATHS, Head, Recomputed, TrainingPath
from ift_scale.train.proof import examples, shrink
from ift_scale.train.proof.verdict import Proof, Verdict

TOLERANCE = 1e-5
"""Largest difference, relative to the largest number of the row of logits or of the gradient."""
# A class whose own pass changes by more than the tolerance when the batch is doubled is compared
# to this many times that change, up to the limit.
_ROUNDINGS, _LARGEST_ROUNDING = 3.0, 1e-4
# Gradients below this share of the largest gradient of all parameters are compared to it: they are
# rounding themselves.
_SMALL_GRADIENT = 5e-2
_MEMORY_SHARE = 0.5
"""Share of the free memory that layers of real size may take."""
_CPU = torch.device("cpu")


class NotTrainable(Exception):
    """The model's logits depend on later tokens or on the passes before, or no path is exact."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread: the model is so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Pass(NamedTuple):
    """The logits of each example's supervised rows, and all gradients by parameter name."""

    logits: list[Tensor]
    gradients: dict[str, Tensor]


def prove(kind: Any, settings: Any, max_length: int | None = None, seed: int = 0) -> Proof:
    """Returns the proof of a class and its config; takes seconds.

    `max_length`: length in tokens that no example exceeds; rotary frequencies that change at
    greater lengths then stay the same. Raises NotTrainable for a model that cannot be trained to
    predict the next token, and shrink.CannotShrink if no small model of it can be built.
    """
    started = time.monotonic()
    model = _small_model(kind, settings, max_length, seed)
    model.fresh_rope = RopeLimits(model)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    lengths = shrink.unknown_lengths(settings, model.config, max_length)
    tokens = examples.build(vocabulary, [*shrink.limits(model.config), *lengths])
    _check_causal(model, tokens, vocabulary)
    reference = _reference(model, tokens)
    tolerance = _tolerance(model, tokens, reference)
    # The small model has no dropout, because random results cannot be compared.
    dropout = frozenset({"dropout"} if shrink.has_dropout(settings) else ())
    verdicts = [
        _verdict(model, path, tokens, vocabulary, reference, tolerance)
        for path in _candidates(model, _head_of(model, tokens), dropout)
    ]
    if not any(verdict.is_exact for verdict in verdicts):
        raise NotTrainable(f"no training path is exact: {verdicts[-1].reason}")
    return Proof(
        kind=kind.__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tolerance=tolerance,
        verdicts=verdicts,
        seconds=time.monotonic() - started,
    )


def _small_model(kind: Any, settings: Any, max_length: int | None, seed: int) -> Any:
    """Returns a small model of the class in training mode, with eager attention.

    If the class cannot be made small, it has as few of its real layers as show every kind.
    """
    try:
        small = shrink.shrink(settings, max_length)
        small._attn_implementation = "eager"
        return shrink.tiny_model(kind, small, seed).train()
    except (shrink.CannotShrink, *UNSUPPORTED):
        small = shrink.two_layers(settings)
        small._attn_implementation = "eager"
        # Held at once: weights and gradients of the reference and of a path.
        most = int(host.available() * _MEMORY_SHARE / (4 * 4))
        return shrink.tiny_model(kind, small, seed, most).train()


def _candidates(model: Any, head: Head | None, dropout: frozenset[str]) -> Iterator[TrainingPath]:
    """Yields paths from the fastest; the last is the model's own way."""
    own = ["sdpa", "eager"] if getattr(model, "_supports_sdpa", False) else ["eager"]
    for name in PATHS:
        for attention in [None] if name in ("pruned", "packed") else own:
            yield TrainingPath(name=name, head=head, attention=attention, terms=dropout)
    if head is not None:
        yield TrainingPath(name="single", head=None, attention="eager", terms=dropout)


def _verdict(
    model: Any,
    path: TrainingPath,
    tokens: TokenizedSet,
    vocabulary: int,
    reference: _Pass,
    tolerance: float,
) -> Verdict:
    is_reference = path.name == "single" and path.attention == "eager" and path.head is None
    count = len(tokens.lengths)
    try:
        with recorded_terms() as terms:
            found = _run(model, path, tokens, range(count))
            again = _run(model, path, tokens, range(count)[::-1], with_gradients=False)
            other = examples.changed(tokens, vocabulary)
            leaking = _run(model, path, other, range(count), with_gradients=False)
    except UNSUPPORTED as error:
        if is_reference:
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return Verdict(path=path, is_exact=False, reason=f"not possible: {reason}")
    path = path.model_copy(update={"terms": path.terms | terms})
    others = [i for i in range(count) if i != examples.CHANGED]
    differences = {
        "the logits differ": _logits_differ(found.logits, reference.logits, range(count)),
        "the logits differ with the examples in another order": _logits_differ(
            again.logits, reference.logits, range(count)
        ),
        "changing one example changes another": _logits_differ(
            leaking.logits, reference.logits, others
        ),
    }
    name, gradient = _gradients_differ(found.gradients, reference.gradients)
    differences[f"the gradient of {name} differs"] = gradient
    worst = max(differences, key=lambda what: differences[what])
    largest = differences[worst]
    is_exact = largest <= tolerance
    reason = "" if is_exact else f"{worst} by {largest:.1e}"
    if is_exact:
        kept = _recomputed(model, path, tokens, reference, tolerance)
        path = path.model_copy(update={"recomputes": frozenset(kept)})
    return Verdict(path=path, is_exact=is_exact, difference=largest, reason=reason)


def _recomputed(
    model: Any, path: TrainingPath, tokens: TokenizedSet, reference: _Pass, tolerance: float
) -> Iterator[Recomputed]:
    """Yields the kinds of activation checkpointing under which the gradients are the same."""
    for kind in get_args(Recomputed):
        try:
            found = _run(model, path, tokens, range(len(tokens.lengths)), checkpointing=kind)
        except UNSUPPORTED:
            continue
        if _gradients_differ(found.gradients, reference.gradients)[1] <= tolerance:
            yield kind


def _run(
    model: Any,
    path: TrainingPath,
    tokens: TokenizedSet,
    order: Sequence[int],
    with_gradients: bool = True,
    checkpointing: str = "none",
) -> _Pass:
    """Computes the examples by a path. Returns the logits in the set's order."""
    config = TrainConfig(attention="sdpa", activation_checkpointing=checkpointing)  # type: ignore[arg-type]
    twin = _twin(model, path.attention)
    checkpoint_activations(twin, config)
    packed = PackedCausalLM(twin, config, _CPU, linear_cross_entropy, path)
    factors, logits = examples.scales(tokens), dict[int, Tensor]()
    micro_batches = [[number] for number in order] if path.layout == "single" else [list(order)]
    for numbers in micro_batches:
        batch = collate(numbers, tokens, factors, _CPU, packed.shares_prefix, packed.whole)
        counts = tokens.supervised_counts[numbers].tolist()
        logits |= dict(zip(numbers, packed(batch, logits=True).split(counts), strict=True))
        if with_gradients:
            packed(batch)[0].backward()
    return _Pass([logits[number] for number in sorted(logits)], _gradients(packed.model))


def _twin(model: Any, attention: str | None) -> Any:
    """Returns a copy of the model with another attention implementation, built as for training."""
    settings = copy.deepcopy(model.config)
    settings._attn_implementation = attention
    twin = type(model)._from_config(settings, dtype=torch.float32).train()
    twin.load_state_dict(model.state_dict())
    return twin


def _plain(model: Any, ids_L: np.ndarray, copies: int = 1) -> Tensor:
    """Returns all logits of a row by the model's own forward pass, (copies, L, V).

    With the rotary frequencies of a new model: some types keep those of earlier, longer rows.
    """
    model.fresh_rope.reset()
    return model(_ids(ids_L).expand(copies, -1), **without_cache(model)).logits


def _ids(ids_L: np.ndarray) -> Tensor:
    return torch.tensor(ids_L.astype(np.int64))[None]


def _reference(model: Any, tokens: TokenizedSet, copies: int = 1) -> _Pass:
    """Returns the plain passes' results. `copies` of an example in a batch change only rounding."""
    logits = []
    for ids, learnt, scale in zip(
        tokens.examples(), _supervised(tokens), examples.scales(tokens), strict=True
    ):
        rows_BRV = _plain(model, ids, copies)[:, np.flatnonzero(learnt) - 1].float()
        labels = _ids(ids[learnt]).expand(copies, -1)
        loss = F.cross_entropy(rows_BRV.flatten(0, 1), labels.flatten(), reduction="sum")
        (loss * scale / copies).backward()
        logits.append(rows_BRV[0].detach())
    gradients = _gradients(model)
    model.zero_grad()
    return _Pass(logits, gradients)


def _supervised(tokens: TokenizedSet) -> list[np.ndarray]:
    return np.split(tokens.supervised, tokens.offsets[1:-1])


def _gradients(model: Any) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def _check_causal(model: Any, tokens: TokenizedSet, vocabulary: int) -> None:
    ids, shortest = tokens.examples()[0], tokens.examples()[int(tokens.lengths.argmin())]
    before = _plain(model, ids)[0, :-1]
    _plain(model, shortest)  # BigBird changes its attention for good after a short row
    if _difference(_plain(model, ids)[0, :-1], before) > _LARGEST_ROUNDING:
        raise NotTrainable("the logits of a row depend on the forward passes before")
    later = ids.copy()
    later[-1] = (later[-1] + 1) % vocabulary
    if _difference(_plain(model, later)[0, :-1], before) > _LARGEST_ROUNDING:
        raise NotTrainable("a token's logits depend on later tokens")


def _tolerance(model: Any, tokens: TokenizedSet, reference: _Pass) -> float:
    """Returns the tolerance, raised for a class that rounds more than it by itself."""
    again = _reference(model, tokens, copies=2)
    rounding = max(
        _logits_differ(again.logits, reference.logits, range(len(tokens.lengths))),
        _gradients_differ(again.gradients, reference.gradients)[1],
    )
    return max(TOLERANCE, min(_ROUNDINGS * rounding, _LARGEST_ROUNDING))


@torch.no_grad()
def _head_of(model: Any, tokens: TokenizedSet) -> Head | None:
    """Returns what follows the head's matrix, or None if it is more than a soft cap.

    A scale is left to the model: it may depend on the width, and this model is small (MiniCPM3).
    """
    head, ids = model.get_output_embeddings(), tokens.examples()[0]
    if not isinstance(head, torch.nn.Linear):
        return None
    try:
        inputs = {"input_ids": _ids(ids)} | without_cache(model)
        states = decoder_of(model)(**inputs).last_hidden_state
        raw, logits = head(states)[0].double(), _plain(model, ids)[0].double()
    except UNSUPPORTED:
        return None
    if raw.shape != logits.shape:
        return None
    for softcap in (None, *_caps(model.config)):
        rule = Head(softcap=softcap)
        if _difference(rule.logits(raw), logits) <= TOLERANCE:
            return rule
    return None


def _caps(settings: Any) -> list[float]:
    """Returns the config's numbers that may cap the logits; their names vary."""
    fields = settings.to_dict().items()
    return [
        value
        for name, value in fields
        if isinstance(value, float) and "cap" in name and "logit" in name and value > 0
    ]


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Returns the largest difference of a row, relative to the row's largest number."""
    size = expected.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny)
    gap = ((actual - expected).abs().amax(-1) / size).max()
    return float(gap.nan_to_num(torch.inf, torch.inf))


def _logits_differ(
    actual: Sequence[Tensor], expected: Sequence[Tensor], numbers: Sequence[int]
) -> float:
    return max(_difference(actual[number], expected[number]) for number in numbers)


def _gradients_differ(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[str, float]:
    """Returns (parameter, difference) where gradients differ most, relative to their largest."""
    floor = _SMALL_GRADIENT * max(float(g.abs().max()) for g in expected.values())
    gaps = {
        name: float(
            (
                (actual[name] - gradient).abs().max() / max(floor, float(gradient.abs().max()))
            ).nan_to_num(torch.inf, torch.inf)
        )
        for name, gradient in expected.items()
    }
    worst = max(gaps, key=lambda name: gaps[name])
    return worst, gaps[worst]
