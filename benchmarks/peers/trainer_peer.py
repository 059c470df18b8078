"""The common parts of the peers based on HF Trainer: workload, ZeRO-2, clock, result file.

Imports nothing from ift_scale: the peers run without it, in the virtual environment of
install_trl.sh. Started by torchrun with one process per rank; `ready` must be called before
anything else of DeepSpeed.
"""

import json
import math
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

PACKAGES = ("torch", "transformers", "accelerate", "deepspeed", "trl")


def ready(threads: int) -> None:
    """Lets the Trainer run DeepSpeed on CPU ranks; nothing here slows a step.

    accelerate supports DeepSpeed on accelerators only: with `use_cpu` it silently uses DDP, and
    otherwise it finds no backend, assumes a single rank, and the Trainer rejects bf16. So gloo and
    bf16 support are set here. DeepSpeed's shared-memory op would be compiled here for half a
    minute.
    """
    import deepspeed
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)
    training_args.is_torch_bf16_gpu_available = lambda: True
    torch.set_num_threads(threads)


def read_rows(folder: Path, num_steps: int, by_length: bool) -> list[dict[str, Any]]:
    """Returns the first `num_steps` steps' examples in order, or sorted by length inside steps."""
    rows = [
        json.loads(line)
        for line in (folder / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = [row for row in rows if row["step"] < num_steps]
    if by_length:
        rows.sort(key=lambda row: (row["step"], len(row["input_ids"])))
    return rows


def of_steps(rows: list[dict[str, Any]]) -> list[dict[str, int]]:
    """Returns examples, tokens and supervised tokens of each step."""
    found = [{"examples": 0, "tokens": 0, "supervised": 0} for _ in range(rows[-1]["step"] + 1)]
    for row in rows:
        step = found[row["step"]]
        step["examples"] += 1
        step["tokens"] += len(row["input_ids"])
        step["supervised"] += sum(label != -100 for label in row["labels"])
    return found


def load(folder: Path, dtype: str) -> tuple[Any, Any]:
    """Returns (model, tokenizer); the weights are loaded in the training dtype, as in ours."""
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=getattr(torch, dtype), local_files_only=True
    )
    return model, AutoTokenizer.from_pretrained(folder / "model", local_files_only=True)


def zero_2(dtype: str, optimizer: str) -> dict[str, Any]:
    """Returns DeepSpeed's configuration, whose `auto` values the Trainer sets.

    `optimizer` is `torch` (the Trainer's own AdamW) or `cpu_adam`.
    """
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": dtype == "bfloat16", "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": 2,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": 200_000_000,
        },
    }
    if optimizer == "cpu_adam":
        parameters = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
        found["optimizer"] = {"type": "AdamW", "params": parameters}
    return found


def arguments(
    output: Path,
    config: dict[str, Any],
    settings: dict[str, Any],
    num_steps: int,
    learning_rate: float,
) -> dict[str, Any]:
    """Returns the peers' common TrainingArguments; nothing is saved, evaluated or reported."""
    world_size = int(os.environ["WORLD_SIZE"])
    accumulation, rest = divmod(settings["batch"], settings["micro_batch"] * world_size)
    assert not rest, "the micro-batch must divide the rank's share of a step"
    return {
        "output_dir": str(output.parent / "trainer"),
        "deepspeed": config,
        "bf16": settings["dtype"] == "bfloat16",
        "per_device_train_batch_size": settings["micro_batch"],
        "gradient_accumulation_steps": accumulation,
        "max_steps": num_steps,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",  # `Clock` sets the rate
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch",
        "gradient_checkpointing": settings.get("gradient_checkpointing", False),
        "train_sampling_strategy": "sequential",
        "average_tokens_across_devices": True,
        "dataloader_num_workers": settings.get("workers", 0),
        "dataloader_pin_memory": False,
        "remove_unused_columns": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def rate(step: int, num_steps: int) -> float:
    """Returns our schedule's factor in step `step` (from 0); transformers' starts with rate 0."""
    warmup = math.ceil(0.03 * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (num_steps - warmup)))


class Clock(TrainerCallback):  # type: ignore[misc]
    """Measures seconds between the ends of optimizer steps, data included; keeps losses and norms.

    Before each step it sets the learning rate.
    """

    def __init__(self, stop_after: int) -> None:
        self._stop_after = stop_after
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.losses: list[float] = []
        self.gradient_norms: list[float] = []
        self._last = self._last_cpu = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        dist.barrier()
        self.start()

    def start(self) -> None:
        self._last, self._last_cpu = time.perf_counter(), time.process_time()

    def on_step_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * rate(state.global_step, args.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.seconds.append(now - self._last)
        self.cpu_seconds.append(cpu - self._last_cpu)
        self._last, self._last_cpu = now, cpu
        control.should_training_stop = (
            control.should_training_stop or len(self.seconds) == self._stop_after
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])
            self.gradient_norms.append(float(logs.get("grad_norm", 0.0)))


def write(
    output: Path,
    peer: str,
    trainer: Any,
    settings: dict[str, Any],
    clock: Clock,
    rows: list[dict[str, Any]],
    total: float,
) -> None:
    """Writes the result on rank 0 after all ranks have left the group together.

    gloo may abort a rank that ends first. `cpu_seconds` are this rank's own, independent of other
    load. `total` are the seconds since the script's start without imports.
    """
    kind = str(trainer.accelerator.distributed_type)
    assert (
        kind.endswith("DEEPSPEED") and trainer.accelerator.num_processes == dist.get_world_size()
    ), kind
    leads = dist.get_rank() == 0
    dist.barrier()
    dist.destroy_process_group()
    if leads:
        _write(output, peer, settings, clock, rows, total)


def _write(
    output: Path,
    peer: str,
    settings: dict[str, Any],
    clock: Clock,
    rows: list[dict[str, Any]],
    total: float,
) -> None:
    steps = [
        {**step, "loss": loss, "gradient_norm": norm, "seconds": seconds, "cpu_seconds": cpu}
        for step, loss, norm, seconds, cpu in zip(
            of_steps(rows),
            clock.losses,
            clock.gradient_norms,
            clock.seconds,
            clock.cpu_seconds,
            strict=True,
        )
    ]
    result = {
        "peer": peer,
        "settings": settings,
        "steps": steps,
        "losses": clock.losses,
        "total_seconds": total,
        "versions": {name: version(name) for name in PACKAGES},
    }
    output.write_text(json.dumps(result, indent=1), encoding="utf-8")
