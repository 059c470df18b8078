"""A DeepSpeed engine around the packed model, its learning-rate schedule, and its optimizer step.

The loss of a step is exact: the mean over all N supervised tokens of the step, independent of how
they are split into ranks and micro-batches. Each row's weight contains the 1 / N of the whole step
(`packing.loss_scales`), so the step's loss is the plain sum of all partial losses. DeepSpeed
averages gradients over the W ranks; multiplying the loss by W makes that average a sum.
"""

import gc
import math
from dataclasses import dataclass
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
from ift_scale.train.model import buffers, freeze, kernels
from ift_scale.train.model import packed as models
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
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
    held = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    bare = models.build(kind, model_config, weights, config, dtype, path.attention)
    freeze.apply(bare, config.freeze)
    loss = _apply_kernels(bare, config, device, figures, ranks)
    if config.zero_stage == 0:
        # transformers uses weights of the right dtype without a copy, and stage 0 updates them in
        # place. The next arm needs the base model's.
        for parameter in bare.parameters():
            parameter.data = parameter.data.clone()
    if experts := models.expert_modules(bare):
        # ZeRO-3 then gathers a layer's experts together, whichever of them a rank's tokens need.
        set_z3_leaf_modules(bare, list({type(module) for module in experts}))
    packed = models.PackedCausalLM(bare, config, device, loss, path)
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
    ranks: Ranks,
) -> models.LossFunction:
    """Put the chosen kernels into the model and return the loss function; rank 0 logs the choice.

    A compiled model gets the loss only: the compiler fuses the model's own code, and it cannot
    trace our operations in a pruned layer.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    chosen = kernels.choose(config.kernels, name, figures, kernels.available(device.type))
    own: list[str] = []
    if not config.compile:
        kernels.check(config.kernels, bare)
        own = kernels.apply(bare, chosen)
    if ranks.is_rank_zero:
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


def run_step(
    engine: TrainEngine, step: packing.Step, tokens: TokenizedSet, rate: float
) -> StepResult:
    """Run one optimizer step over all micro-batches of `step`, with the learning rate `rate`."""
    # The loss weights of all ranks' examples, so that they add up to the mean over the step.
    examples = [i for micro in step for assigned in micro for i in assigned]
    scales = packing.loss_scales(
        examples, tokens.supervised_counts, tokens.weights, engine.config.loss_average
    )
    inner = engine.deepspeed
    total = torch.zeros((), device=engine.device)
    row_losses = []
    for number, micro in enumerate(step):
        # The update follows the last micro-batch. Their number varies from step to step.
        inner.set_gradient_accumulation_boundary(number + 1 == len(step))
        which = f"micro-batch {number + 1} of {len(step)}"
        activity.begin(f"loading {which}", _DATA)
        batch = collate(
            micro[engine.ranks.rank],
            tokens,
            scales,
            engine.device,
            engine.packed.shares_prefix,
            engine.packed.whole,
        )
        activity.begin(f"computing {which}", _DEVICE)
        loss, losses_R = inner(batch, example_weight=1 / len(examples))
        # W undoes the average over ranks; without scale_wrt_gas, micro-batches are summed as well.
        inner.backward(loss * engine.ranks.world_size, scale_wrt_gas=False)
        # No `.item()` here: it would wait for the device in every micro-batch.
        total += loss.detach()
        row_losses.append((batch.examples, losses_R))
    activity.begin("updating the weights", _DEVICE)
    for group in inner.optimizer.param_groups:
        group["lr"] = rate
    norm, applied = _update(engine)
    return StepResult(total, row_losses, norm, rate, applied)


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
