"""Computes a step's tokens and model FLOPs and, from its seconds, its throughput and MFU.

MFU = model FLOPs of the step / (seconds * ranks * the device's peak), after Chowdhery et al. 2022
(arXiv 2204.02311, appendix B), with attention's FLOPs and without recomputation
(`shape.train_flops`), for the tokens and rows that are computed.
"""

import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ift_scale.config.train import TrainConfig
from ift_scale.estimate.memory import GIB
from ift_scale.estimate.shape import ModelShape, train_flops
from ift_scale.train.data import packing
from ift_scale.train.data.collate import num_saved, shared_prefixes
from ift_scale.train.data.dataset import TokenizedSet

# Peak of dense bfloat16 matrix products in TFLOPS, by part of the device's name; the first match
# counts. Most of NVIDIA's data sheets print twice that, with sparsity:
# nvidia.com/en-us/data-center/{a100,h100,h200,gb200-nvl72,hgx,l40s},
# nvidia.com/en-us/data-center/grace-hopper-superchip;
# amd.com/en/products/accelerators/instinct/mi300/mi300x.html.
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
    """Returns the dense bfloat16 TFLOPS of a device by torch's name of it; None if unknown.

    A MIG slice has no known peak.
    """
    if "MIG" in device_name:
        return None
    return next((peak for name, peak in PEAK_TFLOPS if name in device_name), None)


def peak_flops(
    config: TrainConfig, device: torch.device, dtype: torch.dtype
) -> tuple[float | None, str | None]:
    """Returns (peak of the device in FLOPs per second, reason if a GPU's peak is unknown).

    A CPU has a peak only if `train.peak_tflops` is set.
    """
    if config.peak_tflops is not None:
        return config.peak_tflops * 1e12, None
    if device.type != "cuda":
        return None, None
    name = torch.cuda.get_device_name(device)
    peak = known_peak(name)
    if peak is None:
        return None, f"no MFU: the peak of {name} is not known; set train.peak_tflops"
    if dtype is not torch.bfloat16:
        reason = f"the known peak of {name} is for bfloat16, and this is {dtype}"
        return None, f"no MFU: {reason}; set train.peak_tflops"
    return peak * 1e12, None


def peak_memory_gib(device: torch.device) -> float:
    """Returns the peak memory: allocated by torch since the last reset on a GPU, RSS on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


@dataclass(frozen=True)
class Meter:
    """Computes the figures of a step. `peak_flops`: per second and device; None if unknown."""

    tokens: TokenizedSet
    hidden_size: int
    num_ranks: int
    shape: ModelShape | None
    pruned: bool
    share_prefix: bool
    peak_flops: float | None

    def counts(self, step: packing.Step) -> dict[str, Any]:
        """Returns the counts of all ranks together.

        `tokens` counts whole examples, for comparison with trainers that compute all of them.
        `imbalance`: see `packing.imbalance`.
        """
        examples = [i for micro in step for assigned in micro for i in assigned]
        lengths, rows = (
            self.tokens.computed_lengths[examples],
            self.tokens.supervised_counts[examples],
        )
        shared = shared_prefixes(step, self.tokens) if self.share_prefix else []
        tokens, supervised = int(self.tokens.lengths[examples].sum()), int(rows.sum())
        flops = (
            None
            if self.shape is None
            else train_flops(self.shape, lengths.tolist(), rows.tolist(), self.pruned, shared)
        )
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
        """Returns the throughput in tokens and `mfu` as a fraction of 1."""
        flops, peak = counts["model_flops"], self.peak_flops
        device_seconds = seconds * self.num_ranks
        return {
            "tokens_per_second_per_gpu": counts["tokens"] / device_seconds,
            "mfu": None if peak is None or flops is None else flops / (device_seconds * peak),
        }
