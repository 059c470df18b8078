"""The kernels against plain PyTorch, torch.compile and Liger-Kernel, forward and backward, at the shapes of 7B models in bfloat16.

    python benchmarks/bench_kernels.py            on a GPU: results/kernels.json and kernels/figures.json, which the trainer reads
    python benchmarks/bench_kernels.py --cpu      the references against plain PyTorch on one thread: results/kernels_cpu.json

No time is stored of an implementation whose outputs or gradients are off from float64 by more than 2% (float32: 0.01%) of their
largest value. `compile` is torch.compile of `plain`; `pytorch` is our reference, uncompiled. `liger_sum` is Liger's loss in its own
fastest form, which gives no losses of the rows; the trainer would use `liger`.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from ift_scale_kernels import figures
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from rows import quantiles, store

from ift_scale.artifacts import write_json
from ift_scale.progress import say

QUANTILES = (0.2, 0.5, 0.8)
Call = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An op at a shape. `make(checked)` gives tensors with gradients, then those without; fewer rows where they are for a check."""

    op: str
    shape: dict[str, int]
    make: Callable[[bool], tuple[list[Tensor], list[Tensor]]]


def plain_linear_cross_entropy(hidden_RD: Tensor, weight_VD: Tensor, labels_R: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_RD, weight_VD).float(), labels_R, reduction="sum")


def plain_rms_norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    exact = x_TD.float()
    return weight_D * (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x_TD.dtype)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def plain_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos[:, None], sin[:, None]
    turned = [torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1) for x in (q, k)]
    return q * cos + turned[0] * sin, k * cos + turned[1] * sin


PLAIN: dict[str, Call] = {
    "linear_cross_entropy": plain_linear_cross_entropy,
    "rms_norm": plain_rms_norm,
    "swiglu": plain_swiglu,
    "rotary": plain_rotary,
}


def cases(device: str, dtype: torch.dtype, rows: int, tokens: int, vocabularies: list[int], hidden: int, inner: int) -> list[Case]:
    """What is timed. Heads have 128 values, keys and values a quarter of the queries' heads."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def head(vocabulary: int) -> Callable[[bool], tuple[list[Tensor], list[Tensor]]]:
        def make(checked: bool) -> tuple[list[Tensor], list[Tensor]]:
            num_rows = min(rows, 1024) if checked else rows
            weight = (torch.randn(vocabulary, hidden, device=device) * hidden**-0.5).to(dtype).requires_grad_()
            return [draw(num_rows, hidden), weight], [torch.randint(0, vocabulary, (num_rows,), device=device)]

        return make

    def rotary(checked: bool) -> tuple[list[Tensor], list[Tensor]]:
        heads = max(4, hidden // 128)
        size = hidden // heads
        angles = torch.rand(1, tokens, size // 2, device=device).mul_(6.28).repeat(1, 1, 2)
        q, k = (torch.randn(1, tokens, n, size, device=device).to(dtype).transpose(1, 2) for n in (heads, heads // 4))
        return [q.requires_grad_(), k.requires_grad_()], [angles.cos().to(dtype), angles.sin().to(dtype)]

    heads = [Case("linear_cross_entropy", {"rows": rows, "vocabulary": v, "hidden": hidden}, head(v)) for v in vocabularies]
    shape = {"tokens": tokens, "hidden": hidden}
    return [
        *heads,
        Case("rms_norm", shape, lambda checked: ([draw(tokens, hidden), draw(hidden)], [])),
        Case("swiglu", {"tokens": tokens, "inner": inner}, lambda checked: ([draw(1, tokens, inner), draw(1, tokens, inner)], [])),
        Case("rotary", shape, rotary),
    ]


def implementations(op: str, on_gpu: bool) -> dict[str, Call]:
    """The op by implementation, each called with the tensors that `Case.make` gives."""

    def ours(module: str) -> Call:
        function: Call = getattr(importlib.import_module(module), op)
        if op == "linear_cross_entropy":
            return lambda *tensors: function(*tensors)[0]
        return (lambda x, weight: function(x, weight, 1e-5)) if op == "rms_norm" else function

    found = {"plain": PLAIN[op], "pytorch": ours(f"ift_scale_kernels.{op}.reference")}
    if not on_gpu:
        return found
    found |= {"compile": torch.compile(PLAIN[op]), "triton": ours(f"ift_scale_kernels.{op}.triton_kernel")}
    if importlib.util.find_spec("liger_kernel"):
        found["liger"] = ours("ift_scale_kernels.liger")
        if op == "linear_cross_entropy":
            liger = importlib.import_module("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
            found["liger_sum"] = lambda *tensors: liger(*tensors, reduction="sum", accum_dtype=torch.float32)
    return found


def forward_backward(call: Call, leaves: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Outputs and the leaves' gradients, the outputs' own gradients being ones."""
    outputs = call(*leaves, *others)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs])]


def largest_error(call: Call, case: Case) -> float:
    """Against the reference in float64: the largest error of outputs and gradients, relative to the largest value of each."""
    found = []
    for function, exact in ((call, False), (implementations(case.op, False)["pytorch"], True)):
        torch.manual_seed(0)
        leaves, others = case.make(True)  # anew for each: Liger's rotation writes over its inputs
        if exact:
            leaves = [x.detach().double().requires_grad_() for x in leaves]
            others = [x.double() if x.is_floating_point() else x for x in others]
        found.append(forward_backward(function, leaves, others))
    errors = [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True)]
    return max(errors)


def milliseconds_on_gpu(call: Call, case: Case) -> dict[str, float]:
    from triton.testing import do_bench

    torch.manual_seed(0)
    leaves, others = case.make(False)
    values = do_bench(lambda: forward_backward(call, leaves, others), warmup=50, rep=300, quantiles=list(QUANTILES))
    return {f"p{round(100 * q)}": value for q, value in zip(QUANTILES, values, strict=True)}


def gpu() -> None:
    device = torch.cuda.get_device_name()
    names = ("torch", "triton", "liger-kernel")
    versions = {n: importlib.metadata.version(n) for n in names if n != "liger-kernel" or importlib.util.find_spec("liger_kernel")}
    rows = []
    for case in cases("cuda", torch.bfloat16, 4096, 8192, [32000, 128256], 4096, 11008):
        times = {}
        for name, call in implementations(case.op, True).items():
            try:
                error = largest_error(call, case)
            except Exception as failure:  # a library's, of any kind: the others are timed all the same
                say(f"{case.op} {case.shape} {name}: does not run here: {type(failure).__name__}: {str(failure).splitlines()[:1]}")
                continue
            torch.cuda.empty_cache()
            if error > 0.02:
                say(f"{case.op} {case.shape} {name}: off by {error:.1%}, not stored")
                continue
            times[name] = milliseconds_on_gpu(call, case)
            torch.cuda.empty_cache()
            say(f"{case.op} {case.shape} {name}: {times[name]['p50']:.3f} ms (error {error:.2%})")
        today = datetime.now(UTC).date().isoformat()
        row = {"op": case.op, "device": device, "dtype": "bfloat16", "shape": case.shape, "milliseconds": times}
        rows.append({**row, "date": today, "versions": versions})
        write_json(figures.PATH, figures.merged(figures.read(), rows))  # after each: a later one may not end in time
        stored = store("kernels", {"figures": rows})
    say(f"stored: {stored} and {figures.PATH}")


def cpu(repeats: int) -> None:
    """CPU time, which a busy machine changes least, in turn; the ratio is taken pair by pair."""
    torch.set_num_threads(1)
    stored: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for case in cases("cpu", dtype, 2000, 4000, [32000], 384, 1024):
            calls = implementations(case.op, False)
            error = largest_error(calls["pytorch"], case)
            if error > (1e-4 if dtype == torch.float32 else 0.02):
                say(f"{case.op} {case.shape}: off by {error:.1%}, not stored")
                continue
            leaves, others = case.make(False)
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(repeats + 1):
                for name, call in calls.items():
                    started = time.process_time()
                    forward_backward(call, leaves, others)
                    seconds[name].append(time.process_time() - started)
            timed = {name: values[1:] for name, values in seconds.items()}  # the first warms up
            ratios = [p / o for p, o in zip(timed["plain"], timed["pytorch"], strict=True)]
            name = f"{case.op} {str(dtype).removeprefix('torch.')}"
            times = {n: quantiles([1000 * s for s in values]) for n, values in timed.items()}
            stored[name] = {"shape": case.shape, "threads": 1, "milliseconds": times, "plain_over_ours": quantiles(ratios)}
            say(f"{name}: {json.dumps({n: round(t['median'], 1) for n, t in times.items()})} ms, error {error:.1e}")
    say(f"stored: {store('kernels_cpu', stored)}")


@click.command()
@click.option("--cpu", "on_cpu", is_flag=True, help="The references against plain PyTorch, on one thread.")
@click.option("--repeats", default=7, help="Pairs of measurements on a CPU.")
def main(on_cpu: bool, repeats: int) -> None:
    if on_cpu:
        cpu(repeats)
    elif torch.cuda.is_available():
        gpu()
    else:
        raise click.ClickException(
            "no CUDA device: the kernels are timed on a GPU; --cpu times the references against plain PyTorch"
        )


if __name__ == "__main__":
    main()
