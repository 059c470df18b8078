"""Compares every training path with the model's own forward and backward pass on a tiny model.

The reference is the class itself, untouched, with its eager attention: one whole example per
forward pass, all logits, and the gradient of every parameter. A path is exact if the logits of
every supervised row and all gradients agree (`compare`), also with the examples in another order
without a shared prefix and with each example alone, and if changing one example leaves all others
as they were. The paths run the trainer's own code (`kernels.apply` with PyTorch's ops, `collate`,
`PackedCausalLM`), in training mode and float32 on a CPU.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ift_scale.config.train import TrainConfig
from ift_scale.engines.rope import RopeLimits
from ift_scale.estimate import host
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.model import kernels
from ift_scale.train.model.attention import recorded_terms
from ift_scale.train.model.decoder import decoder_of
from ift_scale.train.model.packed import (
    UNSUPPORTED,
    PackedCausalLM,
    keep_scale,
    without_cache,
)
from ift_scale.train.model.path import PATHS, Head, Recomputed, TrainingPath
from ift_scale.train.model.recompute import checkpoint_activations
from ift_scale.train.proof import examples, shrink
from ift_scale.train.proof.compare import (
    LARGEST_ROUNDING,
    TOLERANCE,
    Expected,
    Results,
    difference,
    logits_differ,
)
from ift_scale.train.proof.failure import in_words
from ift_scale.train.proof.verdict import Proof, Verdict

_PERTURBATIONS = 2
_MOST_TOKENS = 4096
"""Length in tokens up to which unknown lengths are compared; longer rows take minutes."""
_MEMORY_SHARE = 0.5
"""Share of the free memory that layers of real size may take."""
_CPU = torch.device("cpu")
_KERNELS = {op: kernels.Choice("pytorch", "for comparison") for op in kernels.OPS}


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
    beyond = [length for length in lengths if length > _MOST_TOKENS]
    compared = [length for length in lengths if length <= _MOST_TOKENS]
    tokens = examples.build(vocabulary, [*shrink.limits(model.config), *compared])
    _check_causal(model, tokens, vocabulary)
    expected = _expected(model, tokens)
    # The small model has no dropout, because random results cannot be compared.
    dropout = frozenset({"dropout"} if shrink.has_dropout(settings) else ())
    verdicts = []
    for path in _candidates(model, _head_of(model, tokens), dropout):
        if beyond and not _is_reference(path):
            reason = f"{max(beyond)} in its config may be a length, too long to be compared"
            verdicts.append(Verdict(path=path, is_exact=False, reason=reason))
            continue
        verdicts.append(_verdict(model, path, tokens, vocabulary, expected))
        # The settings may exclude pruning, and then the next one is taken, but no other path.
        if verdicts[-1].is_exact and path.name != "pruned":
            break
    if not verdicts[-1].is_exact:
        raise NotTrainable(f"no training path is exact: {verdicts[-1].reason}")
    return Proof(
        kind=kind.__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tolerance=expected.tolerance,
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


def _is_reference(path: TrainingPath) -> bool:
    return path.name == "single" and path.attention == "eager" and path.head is None


def _verdict(
    model: Any, path: TrainingPath, tokens: TokenizedSet, vocabulary: int, expected: Expected
) -> Verdict:
    try:
        with recorded_terms() as terms:
            differences = _differences(model, path, tokens, vocabulary, expected)
    except UNSUPPORTED as error:
        if _is_reference(path):
            raise
        return Verdict(path=path, is_exact=False, reason=f"not possible: {in_words(error)}")
    path = path.model_copy(update={"terms": path.terms | terms})
    worst, largest = max(differences.items(), key=lambda item: item[1])
    if largest > expected.tolerance:
        reason = f"{worst} by {largest:.1e}"
        return Verdict(path=path, is_exact=False, difference=largest, reason=reason)
    kept = frozenset(_recomputed(model, path, tokens, expected))
    path = path.model_copy(
        update={"recomputes": kept, "evaluates": _evaluates(model, path, tokens, expected)}
    )
    return Verdict(path=path, is_exact=True, difference=largest)


def _differences(
    model: Any, path: TrainingPath, tokens: TokenizedSet, vocabulary: int, expected: Expected
) -> dict[str, float]:
    """Returns the largest differences of the ways to lay out the examples, by description.

    Ends with the first way that differs by more than the tolerance.
    """
    differences: dict[str, float] = {}
    for found in _ways(model, path, tokens, vocabulary, expected):
        differences |= found
        if max(found.values()) > expected.tolerance:
            break
    return differences


def _ways(
    model: Any, path: TrainingPath, tokens: TokenizedSet, vocabulary: int, expected: Expected
) -> Iterator[dict[str, float]]:
    numbers = list(range(len(tokens.lengths)))
    yield expected.differences(_run(model, path, tokens, [numbers]), "")
    other = examples.changed(tokens, vocabulary)
    leaking = _run(model, path, other, [numbers], with_gradients=False)
    others = [number for number in numbers if number != examples.CHANGED]
    yield {
        "changing one example changes another": logits_differ(
            leaking.logits, expected.logits, others
        )
    }
    # As without `share_prefix`, with the load-balancing loss, and for examples without a common
    # beginning; by the model's own norms and products, as with `compile`.
    backwards = _run(model, path, tokens, [numbers[::-1]], share_prefix=False, with_kernels=False)
    yield expected.differences(
        backwards, " with the examples in another order and no shared prefix"
    )
    if path.layout != "single":
        alone = _run(model, path, tokens, [[number] for number in numbers])
        yield expected.differences(alone, " with one example per micro-batch")


def _recomputed(
    model: Any, path: TrainingPath, tokens: TokenizedSet, expected: Expected
) -> Iterator[Recomputed]:
    """Yields the kinds of activation checkpointing under which the gradients are the same."""
    everything = [list(range(len(tokens.lengths)))]
    for kind in get_args(Recomputed):
        try:
            found = _run(model, path, tokens, everything, checkpointing=kind)
        except UNSUPPORTED:
            continue
        if max(expected.differences(found, "").values()) <= expected.tolerance:
            yield kind


def _evaluates(model: Any, path: TrainingPath, tokens: TokenizedSet, expected: Expected) -> bool:
    """True if evaluation mode gives the same logits and leaves the weights as they are."""
    if expected.evaluated is None:
        return False
    numbers = range(len(tokens.lengths))
    try:
        found = _run(model, path, tokens, [list(numbers)], with_gradients=False, training=False)
    except UNSUPPORTED:
        return False
    return logits_differ(found.logits, expected.evaluated, numbers) <= expected.tolerance


@torch.no_grad()
def _evaluated(model: Any, tokens: TokenizedSet) -> list[Tensor] | None:
    """Returns the plain passes' logits in evaluation mode; None if that changes the weights."""
    twin = _twin(model, "eager").eval()
    twin.fresh_rope = RopeLimits(twin)
    logits = [
        _plain(twin, ids)[0, np.flatnonzero(learnt) - 1].float()
        for ids, learnt in zip(tokens.examples(), _supervised(tokens), strict=True)
    ]
    weights = model.state_dict()
    same = all(torch.equal(weights[name], value) for name, value in twin.state_dict().items())
    return logits if same else None


def _run(
    model: Any,
    path: TrainingPath,
    tokens: TokenizedSet,
    micro_batches: Sequence[Sequence[int]],
    *,
    with_gradients: bool = True,
    checkpointing: str = "none",
    share_prefix: bool = True,
    with_kernels: bool = True,
    training: bool = True,
) -> Results:
    """Computes micro-batches of examples by a path. Returns the logits in the set's order.

    In the layout `single`, an example is a micro-batch of its own.
    """
    config = TrainConfig(
        attention="sdpa",
        activation_checkpointing=checkpointing,  # type: ignore[arg-type]
        share_prefix=share_prefix,
    )
    twin = _twin(model, path.attention)
    checkpoint_activations(twin, config)
    with kernels.restored(twin):
        if with_kernels:
            kernels.apply(twin, _KERNELS)
        packed = PackedCausalLM(twin, config, _CPU, kernels.loss_function(_KERNELS), path)
        packed.train(training)
        factors, logits = examples.scales(tokens), dict[int, Tensor]()
        if packed.whole:
            micro_batches = [[number] for numbers in micro_batches for number in numbers]
        for numbers in micro_batches:
            batch = collate(numbers, tokens, factors, _CPU, packed.shares_prefix, packed.whole)
            counts = tokens.supervised_counts[list(numbers)].tolist()
            logits |= dict(zip(numbers, packed(batch, logits=True).split(counts), strict=True))
            if with_gradients:
                packed(batch)[0].backward()
    return Results([logits[number] for number in sorted(logits)], _gradients(packed.model))


def _twin(model: Any, attention: str | None) -> Any:
    """Returns a copy of the model with another attention implementation, built as for training."""
    settings = copy.deepcopy(model.config)
    settings._attn_implementation = attention
    twin = type(model)._from_config(settings, dtype=torch.float32).train()
    twin.load_state_dict(model.state_dict())
    keep_scale(twin)
    return twin


def _plain(model: Any, ids_L: np.ndarray, copies: int = 1) -> Tensor:
    """Returns all logits of a row by the model's own forward pass, (copies, L, V).

    With the rotary frequencies of a new model: some types keep those of earlier, longer rows.
    """
    model.fresh_rope.reset()
    return model(_ids(ids_L).expand(copies, -1), **without_cache(model)).logits


def _ids(ids_L: np.ndarray) -> Tensor:
    return torch.tensor(ids_L.astype(np.int64))[None]


def _reference(model: Any, tokens: TokenizedSet, copies: int = 1) -> Results:
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
    return Results(logits, gradients)


def _supervised(tokens: TokenizedSet) -> list[np.ndarray]:
    return np.split(tokens.supervised, tokens.offsets[1:-1])


def _gradients(model: Any) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


@torch.no_grad()
def _check_causal(model: Any, tokens: TokenizedSet, vocabulary: int) -> None:
    ids, shortest = tokens.example(0), tokens.example(int(tokens.lengths.argmin()))
    before = _plain(model, ids)[0, :-1]
    _plain(model, shortest)  # BigBird changes its attention for good after a short row
    if difference(_plain(model, ids)[0, :-1], before) > LARGEST_ROUNDING:
        raise NotTrainable("the logits of a row depend on the forward passes before")
    later = ids.copy()
    later[-1] = (later[-1] + 1) % vocabulary
    if difference(_plain(model, later)[0, :-1], before) > LARGEST_ROUNDING:
        raise NotTrainable("a token's logits depend on later tokens")


def _expected(model: Any, tokens: TokenizedSet) -> Expected:
    """Returns the plain passes' results and their rounding.

    Rounding is measured with the batch doubled, and with every weight changed by up to its last
    bit, which changes the rounding of all that is computed from it.
    """
    reference = _reference(model, tokens)
    weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    again = [_reference(model, tokens, copies=2)]
    for seed in range(_PERTURBATIONS):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                sign = torch.rand(weight.shape, generator=generator) * 2 - 1
                weight.copy_(weights[name] * (1 + torch.finfo(torch.float32).eps * sign))
        again.append(_reference(model, tokens))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    return Expected.of(reference, again, _evaluated(model, tokens))


@torch.no_grad()
def _head_of(model: Any, tokens: TokenizedSet) -> Head | None:
    """Returns what follows the head's matrix, or None if it is more than a soft cap.

    A scale is left to the model: it may depend on the width, and this model is small (MiniCPM3).
    """
    head, ids = model.get_output_embeddings(), tokens.example(0)
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
        if difference(rule.logits(raw), logits) <= TOLERANCE:
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
