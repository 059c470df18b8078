"""DeepSpeed's configuration and optimizer for our settings, whose stage and offload are values, no longer `auto`.

Defaults that DeepSpeed would choose against the intent (clipping, accumulation dtype, overflow checks) are set by hand, and so are
the sizes that decide about memory: `memory` holds them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from deepspeed import comm
from deepspeed.utils import groups
from torch.utils.cpp_extension import CUDA_HOME

from ift_scale.config import TrainConfig
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.estimate import memory


def precision_of(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.precision)


def optimizer_of(
    setting: str, device: torch.device, device_name: str, figures: Sequence[dict[str, Any]]
) -> Literal["client", "torch_fused", "fused_adam"]:
    """Whose AdamW computes the update; `client` is the plain one of torch that we build ourselves, which `auto` takes on a CPU.

    `figures`: rows of kernels/figures.json, of which those of the op `adamw` count. Raises ConfigError or EnvironmentProblem if
    the set one cannot run here.
    """
    on_gpu = device.type == "cuda"
    if setting == "auto":
        times = [
            row["milliseconds"]
            for row in figures
            if row["op"] == "adamw" and row["device"] == device_name
        ]
        both = [t for t in times if {"torch_fused", "fused_adam"} <= set(t)]
        quicker = (
            bool(both) and sum(t["fused_adam"]["p50"] - t["torch_fused"]["p50"] for t in both) < 0
        )
        # A stored figure may come from another machine with such a card: without a compiler here it decides nothing.
        return "client" if not on_gpu else "fused_adam" if quicker and CUDA_HOME else "torch_fused"
    if setting == "fused_adam" and not on_gpu:
        raise ConfigError(
            "training",
            [
                f"train.optimizer: fused_adam needs a CUDA device (device: {device.type}); set it to auto"
            ],
        )
    if setting == "fused_adam" and CUDA_HOME is None:
        problem = "train.optimizer: fused_adam is compiled at its first use, and no CUDA toolkit (nvcc) was found"
        raise EnvironmentProblem(
            f"{problem}. Install the one that matches torch, or set train.optimizer to auto."
        )
    return setting  # type: ignore[return-value]


def deepspeed_config(
    config: TrainConfig,
    device: torch.device,
    world_size: int,
    num_micro_batches: int,
    figures: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`. `num_micro_batches`: most that a step of this arm has; `figures`: see `optimizer_of`.

    Without a section `optimizer` the caller gives a torch.optim.AdamW of its own.
    """
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda" and torch.cuda.is_available()
        else device.type
    )
    optimizer = optimizer_of(config.optimizer, device, name, figures)
    bf16 = precision_of(config, device) is torch.bfloat16
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": config.gradient_clipping,
        "steps_per_print": 1 << 30,
        "zero_allow_untested_optimizer": True,
        # One reduction and one read a step: without it ZeRO-1 and 2 would put a gradient that is no number into bfloat16 weights.
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero_settings(config, device, world_size),
        # A torch optimizer works on offloaded states too, on the host.
        "zero_force_ds_cpu_optimizer": optimizer == "fused_adam",
    }
    if optimizer != "client":
        parameters = {
            "lr": config.learning_rate,
            "betas": [config.beta1, config.beta2],
            "weight_decay": config.weight_decay,
        }
        if optimizer == "torch_fused":
            parameters |= {"torch_adam": True, "fused": True}
        result["optimizer"] = {"type": "AdamW", "params": parameters}
    return result


def zero_settings(config: TrainConfig, device: torch.device, world_size: int) -> dict[str, Any]:
    """The section `zero_optimization`. Host memory is page-locked where a GPU copies from it."""
    on_gpu = device.type == "cuda"
    result: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": memory.BUCKET,
        "use_multi_rank_bucket_allreduce": memory.whole_buckets(world_size),
    }
    if config.zero_stage == 3:
        result |= {
            "sub_group_size": memory.SUB_GROUP,
            "stage3_max_live_parameters": memory.LIVE,
            "stage3_max_reuse_distance": memory.LIVE,
            "stage3_prefetch_bucket_size": memory.PREFETCH,
        }
        if isinstance(config.hpz, int):
            result["zero_hpz_partition_size"] = config.hpz
    if config.offload != "none":
        result["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if config.offload == "all":
        result["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return result


def release_hpz_group() -> None:
    """Drop the last engine's group of ranks that holds a copy of the weights. All ranks must call.

    DeepSpeed 0.19.8 keeps it in a global, and cannot make a second for the next arm's engine.
    """
    group = groups._get_zero_param_intra_parallel_group()
    if group is not None:
        comm.destroy_process_group(group)


def optimizer_name(optimizer: Any) -> str:
    """The AdamW inside DeepSpeed's optimizer by class, with `fused` for torch's fused one: states pass as they are among equals."""
    base = getattr(optimizer, "optimizer", optimizer)
    return f"{type(base).__name__}{', fused' if base.defaults.get('fused') else ''}"
