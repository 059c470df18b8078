"""DeepSpeed's configuration and optimizer for our settings.

Defaults that DeepSpeed would choose against the intent (clipping, accumulation dtype, overflow checks) are set by hand.
"""

from typing import Any

import torch

from ift_scale.config import TrainConfig

_BUCKET_ELEMENTS = 200_000_000


def precision_of(config: TrainConfig, device: torch.device) -> torch.dtype:
    if config.precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.precision)


def deepspeed_config(config: TrainConfig, device: torch.device, num_micro_batches: int) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`. `num_micro_batches`: most that a step of this arm has."""
    bf16 = precision_of(config, device) is torch.bfloat16
    result: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": config.gradient_clipping,
        "steps_per_print": 1 << 30,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": device.type == "cuda",
            "contiguous_gradients": True,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "use_multi_rank_bucket_allreduce": False,
        },
    }
    if device.type == "cuda":
        parameters = {"lr": config.learning_rate, "betas": [config.beta1, config.beta2], "weight_decay": config.weight_decay}
        result["optimizer"] = {"type": "AdamW", "params": parameters}
    return result
