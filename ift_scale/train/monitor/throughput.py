"""What a step amounts to: its tokens, its model FLOPs, and with its seconds the rates. Pure, but for the look at this machine.

MFU = model FLOPs of the step / (seconds * ranks * the device's peak), after Chowdhery et al. 2022 (2204.02311, appendix B), with
attention's FLOPs and without recomputation (`shape.train_flops`), on the tokens and rows that are computed.
"""

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ift_scale.config import TrainConfig
from ift_scale.estimate.memory import GIB
from ift_scale.estimate.shape import ModelShape, train_flops
from ift_scale.train.data import packing
from ift_scale.train.data.collate import num_saved, shared_prefixes
from ift_scale.train.data.dataset import TokenizedSet

# Peaks of dense bfloat16 products in TFLOPS, by what stands in the device's name; the first that matches counts. Most of NVIDIA's
# data sheets print twice that, with sparsity: nvidia.com/en-us/data-center/{a100,h100,h200,gb200-nvl72,hgx,l40s},
# nvidia.com/en-us/data-center/grace-hopper-superchip; amd.com/en/products/accelerators/instinct/mi300/mi300x.html.
PEAK_TFLOPS = (
    ("A100", 312.0),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.4),
    ("H200 NVL", 835.5),
    ("H200", 989.4),  # GH200 too
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("L40S", 362.05),
    ("MI300X", 1307.4),
)


def known_peak(device_name: str) -> float | None:
    """Dense bfloat16 TFLOPS of a device by its name, as torch.cuda.get_device_name gives it; None for a part of one (MIG)."""
    if "MIG" in device_name:
        return None
    return next((peak for name, peak in PEAK_TFLOPS if name in device_name), None)


def peak_of(
    config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> tuple[float | None, str | None]:
    """(the device's peak in FLOPs a second, why a GPU's is not known). A CPU has none of its own, and nobody misses it."""
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12, None
    if device.type != "cuda":
        return None, None
    remedy = "set train.peak_tflops"
    name = torch.cuda.get_device_name(device)
    peak = known_peak(name)
    if peak is None:
        return None, f"no MFU: the peak of {name} is not known; {remedy}"
    if dtype is not torch.bfloat16:
        return (
            None,
            f"no MFU: the known peak of {name} is that of bfloat16, and this is {dtype}; {remedy}",
        )
    return peak * 1e12, None


def peak_memory_gib(device: torch.device) -> float:
    """Most memory held so far: what torch has allocated on a GPU since the last reset, the whole process's RSS on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


@dataclass(frozen=True)
class Meter:
    """What turns a step into numbers. `peak_flops` (a second, of one device) is None where it is not known."""

    tokens: TokenizedSet
    hidden_size: int
    num_ranks: int
    shape: ModelShape
    pruned: bool
    share_prefix: bool
    peak_flops: float | None

    def counts(self, step: packing.Step) -> dict[str, Any]:
        """Of all ranks together. `tokens`: of the examples, as trainers that compute all of them count; `imbalance`: 1 is none."""
        examples = [i for micro in step for place in micro for i in place]
        lengths, rows = (
            self.tokens.computed_lengths[examples],
            self.tokens.supervised_counts[examples],
        )
        shared = shared_prefixes(step, self.tokens) if self.share_prefix else []
        tokens, supervised = int(self.tokens.lengths[examples].sum()), int(rows.sum())
        flops = train_flops(self.shape, lengths.tolist(), rows.tolist(), self.pruned, shared)
        return {
            "examples": len(examples),
            "tokens": tokens,
            "computed_tokens": int(lengths.sum()) - num_saved(shared),
            "supervised_tokens": supervised,
            "supervised_share": supervised / tokens,
            "micro_batches": len(step),
            "imbalance": packing.imbalance(step, self.tokens.computed_lengths, self.hidden_size),
            "model_flops": flops,
        }

    def rates(self, counts: Mapping[str, Any], seconds: float) -> dict[str, float | None]:
        """`mfu` is a share of 1."""
        flops, peak = counts["model_flops"], self.peak_flops
        device_seconds = seconds * self.num_ranks
        return {
            "tokens_per_second_per_gpu": counts["tokens"] / device_seconds,
            "mfu": None if peak is None else flops / (device_seconds * peak),
        }
