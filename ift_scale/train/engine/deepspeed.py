"""A DeepSpeed engine around the packed model, the schedule of its learning rate, and one optimizer step of it.

With W ranks, DeepSpeed's average over ranks of `loss * W` is the gradient of the sum of the ranks' losses, whatever the split; the
rows' weights make that sum the mean over the whole step (`packing.loss_scales`).
"""

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from ift_scale.config import TrainConfig
from ift_scale.ranks.environment import Ranks
from ift_scale.train.data import packing
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import zero_config
from ift_scale.train.model import buffers, kernels
from ift_scale.train.model import packed as models


@dataclass
class Engine:
    """What trains one arm. `deepspeed` holds the optimizer and the sharded states, `packed` is the model in it."""

    deepspeed: Any
    packed: models.PackedCausalLM
    config: TrainConfig
    device: torch.device
    ranks: Ranks
    held_for_zero3: Any
    """transformers looks at this object, by a weak reference, for as long as the model lives."""

    def release(self) -> None:
        """Give back everything, before the next arm's engine is built."""
        self.deepspeed.destroy()
        for name in ("optimizer", "module", "lr_scheduler"):
            setattr(self.deepspeed, name, None)
        self.packed = self.held_for_zero3 = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass
class StepResult:
    """One optimizer step of one rank: its part of the loss, on the device, and of each micro-batch the rows' losses."""

    loss: Tensor
    row_losses: list[tuple[list[int], Tensor]]
    grad_norm: Any
    learning_rate: float
    applied: bool
    """False where the gradient was no number: the weights and the optimizer's state are as before."""


def build(
    folder: Path,
    weights: dict[str, Tensor],
    config: TrainConfig,
    device: torch.device,
    ranks: Ranks,
    num_micro: int,
) -> Engine:
    """The engine with the base model's weights and a fresh optimizer. `num_micro`: most micro-batches that a step has."""
    figures = kernels.stored_figures()
    settings = zero_config.deepspeed_config(config, device, ranks.world_size, num_micro, figures)
    dtype = zero_config.precision_of(config, device)
    described = models.described(folder)
    exact = buffers.computed(*described, dtype)
    zero_config.release_hpz_group()
    held = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    bare = models.build(*described, weights, config, dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    chosen = kernels.choose(config.kernels, name, figures, kernels.available(device.type))
    if ranks.rank == 0:
        shown = (
            {"linear_cross_entropy": chosen["linear_cross_entropy"]} if config.compile else chosen
        )
        print(
            *(f"{op}: {choice.implementation}, {choice.reason}" for op, choice in shown.items()),
            sep="\n",
            flush=True,
        )
    if (
        not config.compile
    ):  # the compiler fuses the model's own code, and cannot trace our operations in a pruned layer
        kernels.check(config.kernels, bare)
        own = kernels.apply(bare, chosen)
        if own and ranks.rank == 0:
            print(f"left to the model's own code: {', '.join(own)}", flush=True)
    if config.zero_stage == 0:
        # transformers takes weights of the right type as they are, and stage 0 updates them in place: host memory keeps its own.
        for parameter in bare.parameters():
            parameter.data = parameter.data.clone()
    packed = models.PackedCausalLM(bare, config, device, kernels.loss_function(chosen))
    client = None
    if "optimizer" not in settings:
        betas = (config.beta1, config.beta2)
        client = torch.optim.AdamW(
            packed.parameters(), config.learning_rate, betas, weight_decay=config.weight_decay
        )
    engine, *_ = deepspeed.initialize(
        model=packed, config=settings, optimizer=client, model_parameters=list(packed.parameters())
    )
    buffers.restore(bare, exact, device)
    return Engine(engine, packed, config, device, ranks, held)


def learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    """Of optimizer step `step` (from 0): linear warm-up, then half a cosine towards 0; above 0 in every step.

    The warm-up's step counts from 1, so the first step learns too. transformers' schedule, otherwise the same, counts from 0.
    """
    warmup = math.ceil(config.warmup_ratio * num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def run_step(engine: Engine, step: packing.Step, tokens: TokenizedSet, rate: float) -> StepResult:
    """One optimizer step over the dealt examples, all micro-batches."""
    examples = [i for micro in step for place in micro for i in place]
    scales = packing.loss_scales(
        examples, tokens.supervised_counts, tokens.weights, engine.config.loss_average
    )
    inner = engine.deepspeed
    total = torch.zeros((), device=engine.device)
    row_losses = []
    for number, micro in enumerate(step):
        inner.set_gradient_accumulation_boundary(number + 1 == len(step))
        batch = collate(
            micro[engine.ranks.rank], tokens, scales, engine.device, engine.config.share_prefix
        )
        loss, losses_R = inner(batch)
        inner.backward(loss * engine.ranks.world_size, scale_wrt_gas=False)
        total += loss.detach()
        row_losses.append((batch.examples, losses_R))
    for group in inner.optimizer.param_groups:
        group["lr"] = rate
    norm, applied = _update(engine)
    return StepResult(total, row_losses, norm, rate, applied)


def _update(engine: Engine) -> tuple[Any, bool]:
    """(norm of the gradient, whether the update was made). DeepSpeed's ZeRO skips one whose norm is no number; stage 0 does not."""
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


def bad_examples(result: StepResult, counts: np.ndarray) -> list[int]:
    """Of this rank, the examples of a step that was not applied whose own loss is no number."""
    found = []
    for examples, losses_R in result.row_losses:
        if examples:
            parts = losses_R.cpu().split([int(counts[i]) for i in examples])
            found += [
                i for i, part in zip(examples, parts, strict=True) if not torch.isfinite(part).all()
            ]
    return found
