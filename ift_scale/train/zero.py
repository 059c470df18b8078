"""DeepSpeed's configuration and optimizer for our settings, whose stage and offload are values, no longer `auto`.

Defaults that DeepSpeed would choose against the intent (clipping, accumulation dtype, overflow checks) are set by hand, and so are
the sizes that decide about memory: `memory` holds them.
"""

from typing import Any

import torch

from ift_scale.config import TrainConfig
from ift_scale.train import memory


def precision_of(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.precision)


def deepspeed_config(config: TrainConfig, device: torch.device, world_size: int, num_micro_batches: int) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`. `num_micro_batches`: most that a step of this arm has."""
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
        # A torch optimizer, which we give on a CPU, may work on offloaded states too.
        "zero_force_ds_cpu_optimizer": device.type == "cuda",
    }
    if device.type == "cuda":
        parameters = {"lr": config.learning_rate, "betas": [config.beta1, config.beta2], "weight_decay": config.weight_decay}
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
    if config.offload != "none":
        result["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if config.offload == "all":
        result["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    return result
