"""Compares each Triton kernel with its reference in float64, on the given device (cpu, cuda).

A program of its own, because Triton decides at import whether it interprets (TRITON_INTERPRET=1,
float32) or compiles (bfloat16). torch.empty is filled with NaN, so that an element that a kernel
does not write is detected.
"""

import importlib
import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

DEVICE = sys.argv[1]
DTYPE, TOLERANCE = (torch.float32, 2e-5) if DEVICE == "cpu" else (torch.bfloat16, 2e-2)
OPS = ("linear_cross_entropy", "rms_norm", "swiglu", "rotary")
KERNELS, REFERENCES = (
    {op: importlib.import_module(f"ift_scale_kernels.{op}.{name}") for op in OPS}
    for name in ("triton_kernel", "reference")
)


def poisoned(make: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    made = make(*args, **kwargs)
    return made.fill_(torch.nan) if made.is_floating_point() else made


torch.empty, torch.empty_like = partial(poisoned, torch.empty), partial(poisoned, torch.empty_like)  # type: ignore[assignment]
torch.manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape).to(DEVICE, DTYPE).requires_grad_()


def uneven(like: Tensor) -> Tensor:
    """Upstream gradients that differ by element."""
    return torch.linspace(0.5, 1.5, like.numel(), device=DEVICE, dtype=torch.float64).view(
        like.shape
    )


def agree(
    op: str, call: Callable[[Any, list[Tensor]], Any], inputs: list[Tensor], what: object
) -> None:
    """Outputs and gradients of `call(module, inputs)`, errors relative to the largest value."""
    results = []
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for module, given in ((KERNELS[op], inputs), (REFERENCES[op], exact)):
        outputs = call(module, given)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        total = sum((out.double() * uneven(out)).sum() for out in outputs if out.requires_grad)
        gradients = torch.autograd.grad(total, given) if torch.is_tensor(total) else ()
        results.append([*outputs, *gradients])
    for number, (actual, expected) in enumerate(zip(*results, strict=True)):
        error = (actual.double() - expected).abs().max() if actual.numel() else torch.tensor(0.0)
        scale = expected.abs().max().clamp_min(1e-2) if actual.numel() else torch.tensor(1.0)
        assert error <= TOLERANCE * scale, (
            f"{op} {what}: result {number} is off by {error:.2e} of {scale:.2e}"
        )


def linear_cross_entropy() -> None:
    op, kernel = "linear_cross_entropy", KERNELS["linear_cross_entropy"]
    kernel.BLOCK = 16  # several blocks per row, the last one partial
    for rows, vocabulary, size in [(0, 9, 3), (1, 1, 3), (5, 37, 7), (13, 16, 9), (4, 131, 33)]:
        labels = torch.randint(0, vocabulary, (rows,), device=DEVICE)
        weights = torch.rand(rows, device=DEVICE)
        tensors = [draw(rows, size), draw(vocabulary, size), draw(vocabulary)]
        for softcap, scale, chunk in [(None, 1.0, None), (3.0, 0.7, 4), (None, 0.5, 1)]:

            def call(
                module: Any,
                x: list[Tensor],
                softcap=softcap,
                scale=scale,
                chunk=chunk,
                labels=labels,
                weights=weights,
            ) -> Any:
                options = {
                    "bias_V": x[2],
                    "softcap": softcap,
                    "logit_scale": scale,
                    "chunk_rows": chunk,
                }
                return module.linear_cross_entropy(
                    x[0], x[1], labels, weights.to(x[0].dtype), **options
                )

            agree(op, call, tensors, (rows, vocabulary, size, softcap, scale, chunk))
            with torch.no_grad():
                agree(op, call, tensors, "without gradients")
    unknown = torch.tensor([2, 7], device=DEVICE)
    losses = kernel.linear_cross_entropy(draw(2, 3), draw(5, 3), unknown)[1]
    assert losses.isnan().tolist() == [False, True], (
        "a label outside the vocabulary must not pass as a number"
    )


def rms_norm() -> None:
    for shape, offset in itertools.product(
        [(1, 2), (0, 5), (3, 5), (13, 130), (2, 3, 4, 37)], [0.0, 1.0]
    ):
        inputs = [draw(*shape), draw(shape[-1]), draw(*shape)]

        def norm(module: Any, x: Any, offset: float = offset) -> Any:
            residual_TD = x[2] if len(x) > 2 else None
            return module.rms_norm(x[0], x[1], 1e-5, residual_TD=residual_TD, offset=offset)

        agree("rms_norm", norm, inputs[:2], (shape, offset))
        agree("rms_norm", norm, inputs, (shape, offset, "residual"))


def swiglu() -> None:
    for shape, activation in itertools.product(
        [(1,), (0, 5), (3, 7), (1, 5, 997)], ["silu", "gelu_tanh"]
    ):
        call = lambda module, x: module.swiglu(*x, activation)  # noqa: B023, E731
        agree("swiglu", call, [draw(*shape), draw(*shape)], (shape, activation))
    agree(
        "swiglu",
        lambda module, x: module.swiglu(x[0].t(), x[1].t()),
        [draw(3, 7), draw(3, 7)],
        "transposed",
    )


def rotary() -> None:
    for batch, heads, groups, tokens, size in [
        (1, 1, 1, 1, 2),
        (1, 7, 3, 5, 6),
        (2, 20, 4, 3, 64),
        (1, 2, 1, 0, 4),
    ]:
        angles = torch.randn(1, tokens, size // 2, device=DEVICE, dtype=torch.float64).repeat(
            1, 1, 2
        )
        for transposed in (False, True):

            def call(
                module: Any, x: list[Tensor], angles: Tensor = angles, transposed: bool = transposed
            ) -> Any:
                q, k = (t.transpose(1, 2) if transposed else t for t in x)
                return module.rotary(q, k, angles.cos().to(q.dtype), angles.sin().to(q.dtype))

            shapes = [
                (batch, n, tokens, size) if not transposed else (batch, tokens, n, size)
                for n in (heads, groups)
            ]
            agree("rotary", call, [draw(*shape) for shape in shapes], (shapes, transposed))


linear_cross_entropy()
rms_norm()
swiglu()
rotary()
