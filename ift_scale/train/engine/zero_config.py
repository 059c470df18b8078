"""DeepSpeed's configuration and optimizer for settings in which every `auto` is resolved.

Sets explicitly what DeepSpeed's defaults would get wrong (clipping, accumulation dtype, overflow
checks) and the buffer sizes that determine memory use (from `estimate.memory`).
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from deepspeed import comm
from deepspeed.utils import groups
from torch.utils.cpp_extension import CUDA_HOME

from ift_scale.config.train import TrainConfig
from ift_scale.errors import ConfigError, EnvironmentProblem
from ift_scale.estimate import memory


def precision_of(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.precision)


def optimizer_of(
    setting: str, device: torch.device, device_name: str, figures: Sequence[dict[str, Any]]
) -> Literal["client", "torch_fused", "fused_adam"]:
    """Returns the AdamW implementation to use.

    `client` is torch's plain AdamW, which we create ourselves; `auto` takes it on a CPU. `figures`:
    rows of kernels/figures.json. Raises ConfigError or EnvironmentProblem if the implementation set
    by name cannot run here.
    """
    on_gpu = device.type == "cuda"
    if setting == "auto":
        if not on_gpu:
            return "client"
        # A figure may come from another machine with the same card, which had a CUDA compiler.
        faster = _fused_adam_is_faster(device_name, figures)
        return "fused_adam" if faster and CUDA_HOME else "torch_fused"
    if setting == "fused_adam" and not on_gpu:
        problem = f"train.optimizer: fused_adam needs a CUDA device (device: {device.type})"
        raise ConfigError("training", [f"{problem}; set it to auto"])
    if setting == "fused_adam" and CUDA_HOME is None:
        raise EnvironmentProblem(
            "train.optimizer: fused_adam is compiled at its first use, and no CUDA toolkit (nvcc)"
            " was found. Install the one that matches torch, or set train.optimizer to auto."
        )
    return setting  # type: ignore[return-value]


def _fused_adam_is_faster(device_name: str, figures: Sequence[dict[str, Any]]) -> bool:
    times = [
        row["milliseconds"]
        for row in figures
        if row["op"] == "adamw" and row["device"] == device_name
    ]
    both = [t for t in times if {"torch_fused", "fused_adam"} <= set(t)]
    return bool(both) and sum(t["fused_adam"]["p50"] - t["torch_fused"]["p50"] for t in both) < 0


def deepspeed_config(
    config: TrainConfig,
    device: torch.device,
    world_size: int,
    num_micro_batches: int,
    figures: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Returns the config for `deepspeed.initialize`.

    `num_micro_batches`: the largest number in a step of this arm. `figures`: see `optimizer_of`.
    If the result has no section `optimizer`, the caller must pass a torch.optim.AdamW.
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
        # Costs one reduction and one read per step. Without it, ZeRO-1 and 2 would apply a
        # non-finite gradient to bfloat16 weights.
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero_settings(config, device, world_size),
        # torch's optimizers also work on offloaded states, on the host.
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
    """Returns the section `zero_optimization`. Host memory is pinned if a GPU copies from it."""
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
    """Destroy the last engine's secondary partition group (hpZ). All ranks must call this.

    DeepSpeed 0.19.8 keeps it in a global and cannot create another for the next arm's engine.
    """
    group = groups._get_zero_param_intra_parallel_group()
    if group is not None:
        comm.destroy_process_group(group)


def optimizer_name(optimizer: Any) -> str:
    """Returns the class of the AdamW in DeepSpeed's optimizer, with `fused` for torch's fused one.

    Checkpoints can be loaded directly only into an optimizer of the same name.
    """
    base = getattr(optimizer, "optimizer", optimizer)
    return f"{type(base).__name__}{', fused' if base.defaults.get('fused') else ''}"
