"""Train one arm with DeepSpeed: steps of fixed examples, the exact mean loss over supervised tokens, no Trainer between.

With N the supervised tokens of a step over all ranks and micro-batches and W the number of ranks, DeepSpeed's average over ranks
of `sum_of_losses * W / N` is the gradient of the mean over N, whatever the split.
"""

import gc
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup
from transformers.integrations import HfDeepSpeedConfig

from ift_scale.config import TrainConfig
from ift_scale.distributed import Ranks
from ift_scale.train import packing, zero
from ift_scale.train.batch import MicroBatch, collate
from ift_scale.train.data import TokenizedSet
from ift_scale.train.job import Events, Job

_STEPS_BETWEEN_LOGS = 5


@dataclass
class Trained:
    """What an arm cost: seconds by part, tokens, steps."""

    seconds: dict[str, float]
    counts: dict[str, float]


def planned_steps(tokens: TokenizedSet, config: TrainConfig, world_size: int, hidden_size: int, seed: int) -> list[packing.Step]:
    """Every optimizer step of an arm, dealt to ranks and micro-batches."""
    examples = packing.step_examples(len(tokens.lengths), config.global_batch_size, config.epochs, seed)
    return [packing.deal(e, tokens.lengths, world_size, config.tokens_per_micro_batch, hidden_size) for e in examples]


def attention_implementation(device: torch.device) -> str:
    """flash-attn's variable-length kernels where they are installed, else SDPA with a block-causal mask."""
    from transformers.utils import is_flash_attn_2_available

    return "flash_attention_2" if device.type == "cuda" and is_flash_attn_2_available() else "sdpa"


def build_engine(model_path: str, config: TrainConfig, device: torch.device, num_micro: int, num_steps: int) -> Any:
    """A DeepSpeed engine around the base model, with optimizer and schedule."""
    settings = zero.deepspeed_config(config, device, num_micro)
    # Under ZeRO-3 transformers must know while it loads, so that no rank ever holds the whole model; the object must live on.
    held = HfDeepSpeedConfig(settings) if config.zero_stage == 3 else None
    model: Any = AutoModelForCausalLM.from_pretrained(
        model_path,
        dtype=zero.precision_of(config, device),
        attn_implementation=attention_implementation(device),
        local_files_only=True,
    )
    model.train()
    if config.activation_checkpointing:
        model.gradient_checkpointing_enable()
    client = None
    if "optimizer" not in settings:
        betas = (config.beta1, config.beta2)
        client = torch.optim.AdamW(model.parameters(), config.learning_rate, betas, weight_decay=config.weight_decay)
    warmup = math.ceil(config.warmup_ratio * num_steps)  # as HF Trainer does
    engine, *_ = deepspeed.initialize(
        model=model,
        config=settings,
        optimizer=client,
        model_parameters=list(model.parameters()),
        lr_scheduler=lambda optimizer: get_cosine_schedule_with_warmup(optimizer, warmup, num_steps),
    )
    engine.held_for_zero3 = held
    return engine


def loss_sum(engine: Any, batch: MicroBatch) -> Tensor:
    """Cross-entropy summed over the supervised tokens, in nats, float32. The head runs on the R supervised rows only."""
    logits_1RV = engine(
        input_ids=batch.ids_1T, position_ids=batch.positions_1T, logits_to_keep=batch.rows_R, use_cache=False
    ).logits
    return F.cross_entropy(logits_1RV[0].float(), batch.labels_R, reduction="sum")


def train(
    job: Job, tokens: TokenizedSet, seed: int, ranks: Ranks, device: torch.device, metrics: Path | None, events: Events
) -> tuple[Any, Trained]:
    """Train one arm and return (engine, costs). A row a step goes to `metrics`, on the rank that names it."""
    started = time.monotonic()
    torch.manual_seed(seed)
    config, hidden_size = job.train, job.hidden_size
    steps = planned_steps(tokens, config, ranks.world_size, hidden_size, seed)
    engine = build_engine(job.model_path, config, device, max(map(len, steps)), len(steps))
    built = time.monotonic()
    log = StepLog(metrics, events, len(steps))
    first_step = 0.0
    for number, step in enumerate(steps):
        run_step(engine, step, tokens, ranks, device, log)
        if number == 0:
            first_step = time.monotonic() - built
        if (number + 1) % _STEPS_BETWEEN_LOGS == 0 or number + 1 == len(steps):
            log.flush(device)
    ended = time.monotonic()
    log.close()
    num_tokens = int(tokens.lengths.sum()) * config.epochs
    imbalances = [packing.imbalance(step, tokens.lengths, hidden_size) for step in steps]
    counts = {
        "steps": len(steps),
        "examples": len(tokens.lengths),
        "tokens": num_tokens,
        "supervised_tokens": int(tokens.supervised_counts.sum()) * config.epochs,
        "truncated": tokens.num_truncated,
        "mean_imbalance": sum(imbalances) / len(imbalances),
    }
    return engine, Trained({"build": built - started, "first_step": first_step, "steps": ended - built}, counts)


def run_step(engine: Any, step: packing.Step, tokens: TokenizedSet, ranks: Ranks, device: torch.device, log: "StepLog") -> None:
    """One optimizer step; its loss stays on the device until the log is flushed."""
    started = time.monotonic()
    supervised = tokens.supervised_counts
    num_supervised = int(sum(supervised[i] for micro in step for place in micro for i in place))
    total = torch.zeros((), device=device)
    for number, micro in enumerate(step):
        engine.set_gradient_accumulation_boundary(number + 1 == len(step))
        loss = loss_sum(engine, collate(micro[ranks.rank], tokens, device))
        engine.backward(loss * (ranks.world_size / num_supervised), scale_wrt_gas=False)
        total += loss.detach() / num_supervised
    learning_rate = engine.optimizer.param_groups[0]["lr"]
    engine.step()
    num_tokens = int(sum(tokens.lengths[i] for micro in step for place in micro for i in place))
    log.add(total, engine.get_global_grad_norm(), learning_rate, num_tokens, num_supervised, started)


class StepLog:
    """Keeps losses on the device and reduces them together now and then, so that no step waits for a number."""

    def __init__(self, path: Path | None, events: Events, num_steps: int):
        self._file = path.open("w", encoding="utf-8") if path else None
        self._events = events
        self._num_steps = num_steps
        self._step = 0
        self._losses: list[Tensor] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, loss: Tensor, norm: Any, learning_rate: float, num_tokens: int, num_supervised: int, started: float) -> None:
        self._step += 1
        self._losses.append(loss)
        self._rows.append(
            {
                "step": self._step,
                "grad_norm": norm,
                "learning_rate": learning_rate,
                "tokens": num_tokens,
                "supervised_tokens": num_supervised,
                "started": started,
            }
        )

    def flush(self, device: torch.device) -> None:
        losses = torch.stack(self._losses)
        dist.all_reduce(losses)
        now = time.monotonic()
        ends = [row["started"] for row in self._rows[1:]] + [now]
        for row, loss, end in zip(self._rows, losses.tolist(), ends, strict=True):
            norm = row["grad_norm"]
            row |= {"loss": loss, "grad_norm": None if norm is None else float(norm), "seconds": end - row.pop("started")}
            if self._file is not None:
                self._file.write(json.dumps(row) + "\n")
        if self._file is not None:
            self._file.flush()
        self._events.emit("step", step=self._step, of=self._num_steps, loss=losses[-1].item())
        self._losses, self._rows = [], []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def release(engine: Any) -> None:
    """Give back everything that an engine holds, before the next arm's is built."""
    engine.destroy()
    engine.held_for_zero3 = None
    for name in ("optimizer", "module", "lr_scheduler"):
        setattr(engine, name, None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
