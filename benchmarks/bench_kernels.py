"""Our kernels, plain PyTorch, torch.compile and Liger-Kernel: forward and backward.

    python -m benchmarks.bench_kernels

On a GPU: the kernels at shapes of 7B models in bfloat16, and the update by torch's and DeepSpeed's
AdamW. Those figures are also written to kernels/figures.json, which the trainer reads. On a CPU:
our references and plain PyTorch on one thread.

No time is stored for an implementation whose outputs or gradients differ from float64 by more than
2% (float32: 0.01%) of their largest value. `compile` is torch.compile of `plain`; `pytorch` is our
reference, uncompiled. `liger_sum` is Liger's loss in its fastest form, which does not return
per-row losses; the trainer would use `liger`.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from ift_scale_kernels import figures
from torch import Tensor
from torch.utils.cpp_extension import CUDA_HOME

from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale.io.files import write_json
from ift_scale.io.progress import say

QUANTILES = (0.2, 0.5, 0.8)
SIZES = {True: (200, 400, [2000], 64, 128), False: (2000, 4000, [32000], 384, 1024)}
"""On a CPU: rows, tokens, vocabularies, hidden and inner size."""
PARAMETERS = 100_000_000
"""Parameters of an update: the size of a ZeRO-3 sub-group (estimate/memory.py)."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.02}
Call = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An op at a shape. `make(checked)` returns (leaves with gradients, other tensors).

    `checked` asks for fewer rows, for the comparison with float64.
    """

    op: str
    shape: dict[str, int]
    make: Callable[[bool], tuple[list[Tensor], list[Tensor]]]


def plain_linear_cross_entropy(hidden_RD: Tensor, weight_VD: Tensor, labels_R: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_RD, weight_VD).float(), labels_R, reduction="sum")


def plain_rms_norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    exact = x_TD.float()
    return weight_D * (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-5)).to(
        x_TD.dtype
    )


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


def plain_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos[:, None], sin[:, None]
    turned = [
        torch.cat((-x[..., x.shape[-1] // 2 :], x[..., : x.shape[-1] // 2]), -1) for x in (q, k)
    ]
    return q * cos + turned[0] * sin, k * cos + turned[1] * sin


PLAIN: dict[str, Call] = {
    "linear_cross_entropy": plain_linear_cross_entropy,
    "rms_norm": plain_rms_norm,
    "swiglu": plain_swiglu,
    "rotary": plain_rotary,
}


def cases(
    device: str,
    dtype: torch.dtype,
    rows: int,
    tokens: int,
    vocabularies: list[int],
    hidden: int,
    inner: int,
) -> list[Case]:
    """Returns the cases to time. Heads have size 128; there are 4 query heads per key head."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def head(vocabulary: int) -> Callable[[bool], tuple[list[Tensor], list[Tensor]]]:
        def make(checked: bool) -> tuple[list[Tensor], list[Tensor]]:
            num_rows = min(rows, 1024) if checked else rows
            weight = (
                (torch.randn(vocabulary, hidden, device=device) * hidden**-0.5)
                .to(dtype)
                .requires_grad_()
            )
            return [draw(num_rows, hidden), weight], [
                torch.randint(0, vocabulary, (num_rows,), device=device)
            ]

        return make

    def rotary(checked: bool) -> tuple[list[Tensor], list[Tensor]]:
        heads = max(4, hidden // 128)
        size = hidden // heads
        angles = torch.rand(1, tokens, size // 2, device=device).mul_(6.28).repeat(1, 1, 2)
        q, k = (
            torch.randn(1, tokens, n, size, device=device).to(dtype).transpose(1, 2)
            for n in (heads, heads // 4)
        )
        return [q.requires_grad_(), k.requires_grad_()], [
            angles.cos().to(dtype),
            angles.sin().to(dtype),
        ]

    heads = [
        Case("linear_cross_entropy", {"rows": rows, "vocabulary": v, "hidden": hidden}, head(v))
        for v in vocabularies
    ]
    shape = {"tokens": tokens, "hidden": hidden}
    return [
        *heads,
        Case("rms_norm", shape, lambda checked: ([draw(tokens, hidden), draw(hidden)], [])),
        Case(
            "swiglu",
            {"tokens": tokens, "inner": inner},
            lambda checked: ([draw(1, tokens, inner), draw(1, tokens, inner)], []),
        ),
        Case("rotary", shape, rotary),
    ]


def implementations(op: str, on_gpu: bool) -> dict[str, Call]:
    """Returns the implementations of an op, called with the tensors of `Case.make`."""

    def ours(module: str) -> Call:
        function: Call = getattr(importlib.import_module(module), op)
        if op == "linear_cross_entropy":
            return lambda *tensors: function(*tensors)[0]
        return (lambda x, weight: function(x, weight, 1e-5)) if op == "rms_norm" else function

    found = {"plain": PLAIN[op], "pytorch": ours(f"ift_scale_kernels.{op}.reference")}
    if not on_gpu:
        return found
    found |= {
        "compile": torch.compile(PLAIN[op]),
        "triton": ours(f"ift_scale_kernels.{op}.triton_kernel"),
    }
    if importlib.util.find_spec("liger_kernel"):
        found["liger"] = ours("ift_scale_kernels.liger")
        if op == "linear_cross_entropy":
            liger = importlib.import_module(
                "liger_kernel.transformers.functional"
            ).liger_fused_linear_cross_entropy
            found["liger_sum"] = lambda *tensors: liger(
                *tensors, reduction="sum", accum_dtype=torch.float32
            )
    return found


def forward_backward(call: Call, leaves: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    """Returns outputs and gradients of the leaves, for output gradients of ones."""
    outputs = call(*leaves, *others)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [
        *outputs,
        *torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs]),
    ]


def largest_error(call: Call, case: Case) -> float:
    """Returns the largest relative error of outputs and gradients compared with float64."""
    found = []
    for function, exact in ((call, False), (implementations(case.op, False)["pytorch"], True)):
        torch.manual_seed(0)
        leaves, others = case.make(True)  # new tensors: Liger's rotation overwrites its inputs
        if exact:
            leaves = [x.detach().double().requires_grad_() for x in leaves]
            others = [x.double() if x.is_floating_point() else x for x in others]
        found.append(forward_backward(function, leaves, others))
    errors = [
        ((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(*found, strict=True)
    ]
    return max(errors)


def milliseconds_on_gpu(call: Call, case: Case) -> list[float]:
    """Returns the time of every repeat; triton's timer clears the cache before each."""
    from triton.testing import do_bench

    torch.manual_seed(0)
    leaves, others = case.make(False)
    found: list[float] = do_bench(
        lambda: forward_backward(call, leaves, others), warmup=50, rep=300, return_mode="all"
    )
    return found


def adamw_steps() -> dict[str, Callable[[], Any]]:
    """Returns updates of PARAMETERS float32 values by torch's fused and by DeepSpeed's AdamW.

    DeepSpeed's is compiled at its first use. An implementation whose first update differs from
    torch's plain AdamW is left out.
    """
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "torch_fused": partial(torch.optim.AdamW, fused=True)
    }
    if CUDA_HOME:
        kinds["fused_adam"] = importlib.import_module("deepspeed.ops.adam").FusedAdam
    found: dict[str, Callable[[], Any]] = {}
    for name, kind in kinds.items():
        torch.manual_seed(0)
        start, gradient = torch.randn(2, PARAMETERS, device="cuda")
        values = [torch.nn.Parameter(start.clone()) for _ in range(2)]
        for value in values:
            value.grad = gradient
        try:
            optimizers = (
                kind([values[0]], lr=1e-3, weight_decay=0.1),
                torch.optim.AdamW([values[1]], lr=1e-3, weight_decay=0.1),
            )
            for optimizer in optimizers:
                optimizer.step()
        except Exception as failure:  # any error of the compiler
            reason = f"{type(failure).__name__}: {str(failure).splitlines()[:1]}"
            say(f"adamw {name}: does not run here: {reason}")
            continue
        error = (values[0] - values[1]).abs().max() / (values[1] - start).abs().max()
        if error > TOLERANCE[torch.float32]:
            say(f"adamw {name}: off by {error:.1e}, not stored")
            continue
        found[name] = optimizers[0].step
    return found


def adamw(device: str, versions: dict[str, str]) -> dict[str, Any] | None:
    """Returns the figure for `train.optimizer: auto`, or None without a comparison."""
    from triton.testing import do_bench

    times = {
        name: do_bench(step, warmup=50, rep=300, return_mode="all")
        for name, step in adamw_steps().items()
    }
    shown = {name: round(float(np.median(t)), 3) for name, t in times.items()}
    say(f"adamw over {PARAMETERS:,} parameters, ms: {shown}")
    if len(times) < 2:
        return None
    shape = {"parameters": PARAMETERS}
    return figure("adamw", device, "float32", shape, times, versions)


def figure(
    op: str,
    device: str,
    dtype: str,
    shape: dict[str, int],
    times: dict[str, list[float]],
    versions: dict[str, str],
) -> dict[str, Any]:
    """Returns a row of kernels/figures.json."""
    quantiles = {
        name: dict(zip(("p20", "p50", "p80"), np.quantile(t, QUANTILES).tolist(), strict=True))
        for name, t in times.items()
    }
    row = {"op": op, "device": device, "dtype": dtype, "shape": shape, "milliseconds": quantiles}
    return {**row, "date": datetime.now(UTC).date().isoformat(), "versions": versions}


def case_name(case: Case, dtype: str) -> str:
    return f"{case.op} {dtype} " + "x".join(str(size) for size in case.shape.values())


def gpu(quick: bool) -> None:
    device = torch.cuda.get_device_name()
    names = ("torch", "triton", "liger-kernel")
    versions = {
        n: importlib.metadata.version(n)
        for n in names
        if n != "liger-kernel" or importlib.util.find_spec("liger_kernel")
    }
    sheet, figured = Sheet("kernels", quick, device), []
    for case in cases(
        "cuda", torch.bfloat16, 4096, 8192, [32000] if quick else [32000, 128256], 4096, 11008
    ):
        times: dict[str, list[float]] = {}
        errors: dict[str, float] = {}
        for name, call in implementations(case.op, True).items():
            try:
                errors[name] = largest_error(call, case)
            except Exception as failure:  # any error of a library: continue with the others
                reason = f"{type(failure).__name__}: {str(failure).splitlines()[:1]}"
                say(f"{case.op} {case.shape} {name}: does not run here: {reason}")
                continue
            torch.cuda.empty_cache()
            if errors[name] > TOLERANCE[torch.bfloat16]:
                say(f"{case.op} {case.shape} {name}: off by {errors[name]:.1%}, not stored")
                continue
            times[name] = milliseconds_on_gpu(call, case)
            torch.cuda.empty_cache()
            time, error = np.median(times[name]), errors[name]
            say(f"{case.op} {case.shape} {name}: {time:.3f} ms (error {error:.2%})")
        add(
            sheet,
            case,
            "bfloat16",
            "triton",
            times,
            errors,
            {"versions": versions, "shape": case.shape},
        )
        figured.append(figure(case.op, device, "bfloat16", case.shape, times, versions))
        write_json(
            figures.PATH, figures.merged(figures.read(), figured)
        )  # stored after each case: a time limit may end a later one
        stored = sheet.store()
    found = adamw(device, versions)
    if found is not None:
        write_json(figures.PATH, figures.merged(figures.read(), [found]))
    say(f"stored: {stored} and {figures.PATH}")


def add(
    sheet: Sheet,
    case: Case,
    dtype: str,
    mine: str,
    times: dict[str, list[float]],
    errors: dict[str, float],
    about: dict[str, Any],
) -> None:
    """Adds rows of all implementations; `mine` is compared with the others, repeat by repeat."""
    for name, values in times.items():
        error = Gate(
            checked="error of outputs and gradients against float64",
            gap=errors[name],
            tolerance=TOLERANCE[DTYPES[dtype]],
        )
        others = {other: times[other] for other in times if other != mine} if name == mine else {}
        against = ratios(values, others, "lower")
        kept = values if len(values) <= 20 else list(np.quantile(values, np.linspace(0, 1, 21)))
        sheet.add(
            case_name(case, dtype),
            "milliseconds",
            "ms",
            kept,
            error,
            name,
            ratios=against,
            about=about,
        )


def cpu(repeats: int, quick: bool) -> None:
    """Measures CPU time, which other load affects least, in turn; ratios are taken pair by pair."""
    torch.set_num_threads(1)
    sheet = Sheet("kernels", quick)
    for dtype, type_ in DTYPES.items():
        for case in cases("cpu", type_, *SIZES[quick]):
            calls = implementations(case.op, False)
            errors = {name: largest_error(call, case) for name, call in calls.items()}
            if wrong := {name: error for name, error in errors.items() if error > TOLERANCE[type_]}:
                say(f"{case.op} {case.shape}: off by {wrong}, not stored")
                continue
            leaves, others = case.make(False)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(repeats + 1):
                for name, call in calls.items():
                    started = time.process_time()
                    forward_backward(call, leaves, others)
                    times[name].append(1000 * (time.process_time() - started))
            timed = {name: values[1:] for name, values in times.items()}  # without the warm-up
            add(sheet, case, dtype, "pytorch", timed, errors, {"shape": case.shape, "threads": 1})
            shown = {n: round(float(np.median(t)), 1) for n, t in timed.items()}
            say(f"{case_name(case, dtype)}: {json.dumps(shown)} ms")
    say(f"stored: {sheet.store()}")


@click.command()
@click.option("--repeats", default=7, show_default=True, help="Pairs of measurements on a CPU.")
@click.option("--quick", is_flag=True, help="Small shapes on a CPU, one vocabulary on a GPU.")
def main(repeats: int, quick: bool) -> None:
    """Measure and store this device's rows of `kernels`."""
    if torch.cuda.is_available():
        gpu(quick)
    else:
        cpu(max(repeats, 1), quick)


if __name__ == "__main__":
    main()
