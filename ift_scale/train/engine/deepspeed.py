"""A DeepSpeed engine around the packed model, its learning-rate schedule, and its optimizer step.

The loss of a step is exact: the mean over all N supervised tokens of the step, independent of how
they are split into ranks and micro-batches. Each row's weight contains the 1 / N of the whole step
(`packing.loss_scales`), so the step's loss is the plain sum of all partial losses. DeepSpeed
averages gradients over the W ranks; multiplying the loss by W makes that average a sum.
"""

import ctypes
import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from ift_scale.config.train import TrainConfig
from ift_scale.ranks import activity
from ift_scale.ranks.environment import Ranks
from ift_scale.train.data import packing
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import zero_config
from ift_scale.train.kl.parts import Divergence, StepPenalty
from ift_scale.train.model import buffers, freeze, kernels
from ift_scale.train.model import packed as models
from ift_scale.train.model.experts import expert_modules
from ift_scale.train.model.path import PRUNED, TrainingPath

# What to check if a rank hangs there.
_DATA = "the file system with the run's folder, and this rank's host (dmesg)"
_DEVICE = "this rank's device and host (nvidia-smi, dmesg) and the model's own code"


@dataclass
class TrainEngine:
    """Trains one arm. `deepspeed`: optimizer and sharded states; `packed`: the model in it."""

    deepspeed: Any
    packed: models.PackedCausalLM
    config: TrainConfig
    device: torch.device
    ranks: Ranks
    held_for_zero3: Any
    """transformers has only a weak reference to this object, which must live as long as the model.
    """

    @property
    def trained_parameters(self) -> dict[str, Any]:
        """The parameters that are not frozen, by name, in the optimizer's order."""
        named = self.packed.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def release(self) -> None:
        """Free all memory before the next arm's engine is built."""
        self.deepspeed.destroy()
        for name in ("optimizer", "module", "lr_scheduler"):
            setattr(self.deepspeed, name, None)
        self.packed = self.held_for_zero3 = None  # type: ignore[assignment]
        gc.collect()
        _return_freed_memory()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _return_freed_memory() -> None:
    """Returns what glibc's malloc keeps of freed memory, which grows over hundreds of arms."""
    with suppress(AttributeError):  # other C libraries
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class StepResult:
    """Result of one optimizer step on one rank, on the device.

    `loss`: this rank's part of the step's loss. `row_losses`: examples and losses of the supervised
    rows of each micro-batch.
    """

    loss: Tensor
    row_losses: list[tuple[list[int], Tensor]]
    grad_norm: Any
    learning_rate: float
    applied: bool
    """False if the gradient was non-finite; weights and optimizer state are then unchanged."""
    divergences: dict[str, Tensor] = field(default_factory=dict)
    """This rank's part of the mean divergence from the base model in nats: `kl` over the set's
    rows, `kl_text` over those of general text, as far as they are in the loss."""


def build(
    folder: Path,
    weights: dict[str, Tensor],
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks,
    num_micro: int,
    path: TrainingPath = PRUNED,
    trust_remote_code: bool = False,
) -> TrainEngine:
    """Returns an engine with the base model's weights and a fresh optimizer.

    `weights`: in host memory, left unchanged. `num_micro`: largest number of micro-batches in a
    step. `path`: exact for this model, as `train.proof` finds it.
    """
    figures = kernels.stored_figures()
    settings = zero_config.deepspeed_config(config, device, ranks.world_size, num_micro, figures)
    dtype = zero_config.precision_of(config, device)
    kind, model_config = models.class_and_config(folder, trust_remote_code)
    # Before HfDeepSpeedConfig exists, under which ZeRO-3 would round these buffers.
    exact = buffers.computed(kind, model_config, dtype)
    zero_config.release_hpz_group()
    # Before HfDeepSpeedConfig exists, under which it would be partitioned.
    base = None
    if config.kl.copies_base:
        base = models.build(kind, deepcopy(model_config), weights, config, dtype, path.attention)
        base = base.to(device).requires_grad_(False)
        kernel_loss = _apply_kernels(base, config, device, figures, None)
        buffers.restore(base, exact, device)
        base = models.PackedCausalLM(base, config, device, kernel_loss, path).eval()
    held = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    bare = models.build(kind, model_config, weights, config, dtype, path.attention)
    freeze.apply(bare, config.freeze)
    loss = _apply_kernels(bare, config, device, figures, ranks)
    if config.zero_stage == 0:
        # transformers uses weights of the right dtype without a copy, and stage 0 updates them in
        # place. The next arm needs the base model's.
        for parameter in bare.parameters():
            parameter.data = parameter.data.clone()
    if experts := expert_modules(bare):
        # ZeRO-3 then gathers a layer's experts together, whichever of them a rank's tokens need.
        set_z3_leaf_modules(bare, list({type(module) for module in experts}))
    packed = models.PackedCausalLM(bare, config, device, loss, path)
    packed.keep_base(base)
    trained = [parameter for parameter in packed.parameters() if parameter.requires_grad]
    client = None
    if "optimizer" not in settings:
        betas = (config.beta1, config.beta2)
        client = torch.optim.AdamW(
            trained, config.learning_rate, betas, weight_decay=config.weight_decay
        )
    engine, *_ = deepspeed.initialize(
        model=packed, config=settings, optimizer=client, model_parameters=trained
    )
    buffers.restore(bare, exact, device)
    return TrainEngine(engine, packed, config, device, ranks, held)


def _apply_kernels(
    bare: Any,
    config: TrainConfig,
    device: torch.device,
    figures: list[dict[str, Any]],
    ranks: Ranks | None,
) -> models.LossFunction:
    """Put the chosen kernels into the model and return the loss function; rank 0 logs the choice.
    `ranks`: None to log nothing.

    A compiled model gets the loss only: the compiler fuses the model's own code, and it cannot
    trace our operations in a pruned layer.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    chosen = kernels.choose(config.kernels, name, figures, kernels.available(device.type))
    own: list[str] = []
    if not config.compile:
        kernels.check(config.kernels, bare)
        own = kernels.apply(bare, chosen)
    if ranks is not None and ranks.is_rank_zero:
        ops = ["linear_cross_entropy"] if config.compile else list(chosen)
        lines = [f"{op}: {chosen[op].implementation}, {chosen[op].reason}" for op in ops]
        if own:
            lines.append(f"left to the model's own code: {', '.join(own)}")
        print(*lines, sep="\n", flush=True)
    return kernels.loss_function(chosen)


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Returns the rate of optimizer step `step` (from 0): linear warm-up, then half a cosine.

    Never 0: the warm-up counts steps from 1, so that the first step learns. transformers' schedule
    is the same except that it counts from 0.
    """
    warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class _Rows:
    """The examples of one token file in a step. `scales`: factors of their cross-entropies,
    `divergence`: factors and targets of their divergences, `name`: of these in the result."""

    step: packing.Step
    tokens: TokenizedSet
    scales: np.ndarray
    divergence: Divergence | None
    weight: float
    name: str


def _rows_of(
    engine: TrainEngine, step: packing.Step, tokens: TokenizedSet, penalty: StepPenalty | None
) -> list[_Rows]:
    """Returns the set's examples of a step, and those of general text."""

    def scales_of(step: packing.Step, tokens: TokenizedSet) -> np.ndarray:
        # The weights of all ranks' examples, so that they add up to the mean over the step.
        examples = [i for micro in step for assigned in micro for i in assigned]
        return packing.loss_scales(
            examples, tokens.supervised_counts, tokens.weights, engine.config.loss_average
        )

    scales, weight = scales_of(step, tokens), penalty.weight if penalty else 0.0
    divergence = Divergence(weight * scales, penalty.targets) if penalty and weight else None
    rows = [_Rows(step, tokens, scales, divergence, weight, "kl")]
    if penalty and (text := penalty.text):
        means = scales_of(text.step, text.tokens)
        divergence = Divergence(text.weight * means, text.targets)
        nothing = np.zeros(len(means))
        rows.append(_Rows(text.step, text.tokens, nothing, divergence, text.weight, "kl_text"))
    return rows


def run_step(
    engine: TrainEngine,
    step: packing.Step,
    tokens: TokenizedSet,
    rate: float,
    penalty: StepPenalty | None = None,
) -> StepResult:
    """Run one optimizer step over all micro-batches of `step`, with the learning rate `rate`.

    `penalty`: the divergence from the base model in this step, with micro-batches of its own for
    general text.
    """
    num_examples = sum(len(assigned) for micro in step for assigned in micro)
    parts = [
        (micro, rows) for rows in _rows_of(engine, step, tokens, penalty) for micro in rows.step
    ]
    inner, packed = engine.deepspeed, engine.packed
    divergences: dict[str, Tensor] = {}
    total = torch.zeros((), device=engine.device)
    row_losses = []
    for number, (micro, rows) in enumerate(parts):
        # The update follows the last micro-batch. Their number varies from step to step.
        inner.set_gradient_accumulation_boundary(number + 1 == len(parts))
        which = f"micro-batch {number + 1} of {len(parts)}"
        activity.begin(f"loading {which}", _DATA)
        batch = collate(
            micro[engine.ranks.rank],
            rows.tokens,
            rows.scales,
            engine.device,
            packed.shares_prefix,
            packed.whole,
        )
        if rows.divergence is not None:
            found = rows.divergence.rows(batch.examples, rows.tokens, engine.device)
            batch = replace(batch, kl=found)
        activity.begin(f"computing {which}", _DEVICE)
        is_text = rows.name == "kl_text"
        loss, losses_R = inner(batch, example_weight=0.0 if is_text else 1 / num_examples)
        # W undoes the average over ranks; without scale_wrt_gas, micro-batches are summed as well.
        inner.backward(loss * engine.ranks.world_size, scale_wrt_gas=False)
        # No `.item()` here: it would wait for the device in every micro-batch.
        if batch.kl is None:
            total += loss.detach()
        else:  # the logged loss is the cross-entropy alone
            mean = batch.kl.weights_R @ packed.divergences_R.float() / rows.weight
            divergences[rows.name] = divergences.get(rows.name, 0.0) + mean
            total += batch.weights_R @ losses_R.float()
        if not is_text:
            row_losses.append((batch.examples, losses_R))
    activity.begin("updating the weights", _DEVICE)
    for group in inner.optimizer.param_groups:
        group["lr"] = rate
    norm, applied = _update(engine)
    return StepResult(total, row_losses, norm, rate, applied, divergences)


def _update(engine: TrainEngine) -> tuple[Any, bool]:
    """Returns (norm of the gradient, True if the update was applied).

    DeepSpeed's ZeRO skips an update with a non-finite norm by itself; stage 0 does not.
    """
    inner = engine.deepspeed
    if engine.config.zero_stage > 0:  # type: ignore[operator]
        inner.step()
        return inner.get_global_grad_norm(), not inner.optimizer.overflow
    norm = torch.nn.utils.get_total_norm(
        [p.grad for p in engine.packed.parameters() if p.grad is not None]
    )
    applied = bool(torch.isfinite(norm))
    if applied:
        inner.step()
    else:
        engine.packed.zero_grad(set_to_none=True)
    return norm, applied


def non_finite_examples(result: StepResult, counts: np.ndarray) -> list[int]:
    """Returns this rank's examples with a non-finite loss, for a step that was not applied.

    `counts`: number of supervised tokens of each example of the set.
    """
    non_finite = []
    for examples, losses_R in result.row_losses:
        if examples:
            parts = losses_R.cpu().split([int(counts[i]) for i in examples])
            non_finite += [
                i for i, part in zip(examples, parts, strict=True) if not torch.isfinite(part).all()
            ]
    return non_finite


@contextmanager
def evaluation_mode(engine: TrainEngine) -> Iterator[None]:
    """Forward passes in this block compute no gradient and no dropout."""
    packed = engine.packed
    packed.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        packed.train()
    if engine.config.zero_stage == 3:
        # A forward pass without a backward pass leaves weights gathered and prefetched.
        engine.deepspeed.optimizer.empty_partition_cache()


def assigned(
    engine: TrainEngine,
    tokens: TokenizedSet,
    examples: Sequence[int],
    cap: int,
    hidden_size: int,
) -> packing.Step:
    """Returns the examples in micro-batches of about `cap` tokens for every rank.

    A longer example is computed nevertheless: without gradients it needs much less memory than a
    training example of the same length.
    """
    lengths = tokens.computed_lengths
    return packing.assign_to_ranks(
        examples,
        lengths,
        engine.ranks.world_size,
        max(cap, int(lengths[list(examples)].max())),
        hidden_size,
        engine.packed.path.layout,
    )
