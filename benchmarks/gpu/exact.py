"""Packed training compared with plain transformers: losses of single tokens and whole gradients.

    python -m benchmarks.gpu.exact            (on any machine; a small model; seconds per setting)

One optimizer step of packed examples with a common prefix, under each ZeRO stage, attention
implementation, checkpointing, compilation and kernel implementation, is compared with one example
at a time through the model's own code. The weights are large, so that attention affects the losses.
Writes rows of `train` on this device; the exit code is 1 if a setting is off.
"""

import copy
import sys
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.gpu.shapes import TINY
from benchmarks.random_llama import build, one_rank, random_set, settings
from benchmarks.suite.rows import Gate, Sheet
from ift_scale.config.train import Precision
from ift_scale.io.progress import say
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines
from ift_scale.train.model import kernels

# Losses: mean difference per token over their standard deviation. Gradient: norm of the difference
# over the gradient's norm.
TOLERANCE: dict[Precision, tuple[float, float]] = {"float32": (1e-3, 5e-3), "bfloat16": (0.05, 0.2)}
EXAMPLES, TOKENS = 8, 2048


@dataclass(frozen=True)
class Plain:
    """The result of transformers: losses by example in nats, and the gradient of their mean."""

    losses: dict[int, torch.Tensor]
    gradient: dict[str, torch.Tensor]


def plain(model: Any, tokens: TokenizedSet, device: torch.device) -> Plain:
    config = LlamaConfig.from_dict(
        copy.deepcopy(model.config.to_dict())
    )  # the engine's own names our attention
    exact = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).to(device)
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    losses = {}
    for example in range(EXAMPLES):
        span = slice(tokens.offsets[example], tokens.offsets[example + 1])
        ids = torch.from_numpy(tokens.ids[span].astype(np.int64)).to(device)
        rows = torch.from_numpy(tokens.supervised[span][1:]).to(device)
        logits_LV = exact(ids[None]).logits[0, :-1]
        found = torch.nn.functional.cross_entropy(logits_LV, ids[1:], reduction="none")[rows]
        (found.sum() / int(tokens.supervised_counts[:EXAMPLES].sum())).backward()
        losses[example] = found.detach()
    return Plain(
        losses, {name: p.grad for name, p in exact.named_parameters() if p.grad is not None}
    )


def difference(
    device: torch.device, precision: Precision, reference: list[Plain], **changes: Any
) -> tuple[float, float]:
    """Returns (of losses, of gradient) relative to plain transformers, cached in `reference`."""
    tokens = random_set(EXAMPLES, TINY["vocab_size"])
    values = {"stage": 2, "checkpointing": "none"} | changes
    engine, steps = build(
        TINY, settings(precision, EXAMPLES, TOKENS, **values), device, tokens, std=0.25
    )
    if not reference:
        reference.append(plain(engine.packed.model, tokens, device))
    gradient: dict[str, torch.Tensor] = {}
    update = engines._update

    def looked_at(one: engines.TrainEngine) -> tuple[Any, bool]:
        named = one.packed.model.named_parameters()
        gradient.update(
            {name: safe_get_full_grad(parameter).float().clone() for name, parameter in named}
        )
        return update(one)

    with patch.object(engines, "_update", looked_at):
        rows = engines.run_step(engine, steps[0], tokens, 0.0).row_losses
    found, expected = [], []
    for examples, losses_R in rows:
        found += losses_R.split([int(tokens.supervised_counts[i]) for i in examples])
        expected += [reference[0].losses[i] for i in examples]
    engine.release()
    right = torch.cat(expected)
    squares = [
        (gradient[name].to(device) - g).square().sum() for name, g in reference[0].gradient.items()
    ]
    norm = torch.stack([g.square().sum() for g in reference[0].gradient.values()]).sum().sqrt()
    return float((torch.cat(found) - right).abs().mean() / right.std()), float(
        torch.stack(squares).sum().sqrt() / norm
    )


def cases(device: torch.device) -> list[dict[str, Any]]:
    """Returns one change at a time from ZeRO-2 with this device's defaults and kernels."""
    found: list[dict[str, Any]] = [
        {},
        {"stage": 1},
        {"stage": 3},
        {"checkpointing": "selective"},
        {"checkpointing": "full"},
    ]
    found += [{"attention": "sdpa"}, {"optimizer": "torch_fused"}]
    found += [{"kernels": name} for name in sorted(kernels.available(device.type))]
    return [*found, {"compile": True}]  # last, because it takes longest


def label(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in changes.items()) or "as chosen"


def run(device: torch.device, chosen: list[dict[str, Any]], sheet: Sheet, stored: bool) -> bool:
    """Compares every case in both types; True if none is off. Rows are stored after each case."""
    right = True
    for precision, (losses, gradient) in TOLERANCE.items():
        reference: list[Plain] = []
        for changes in chosen:
            try:
                gaps = difference(device, precision, reference, **changes)
            except Exception as failure:  # any error of a library or compiler: try the next case
                reason = " ".join(str(failure).split())[:300]
                what = f"{precision}, {label(changes)}"
                say(f"{what}: FAILED: {type(failure).__name__}: {reason}")
                right = False
                continue
            fine = gaps[0] <= losses and gaps[1] <= gradient
            right = right and fine
            say(
                f"{precision}, {label(changes)}: losses {gaps[0]:.1e}, gradient {gaps[1]:.1e}"
                f"{'' if fine else ' OFF'}"
            )
            if fine:
                for name, gap, most in (
                    ("losses", gaps[0], losses),
                    ("gradient", gaps[1], gradient),
                ):
                    gate = Gate(
                        checked="against plain transformers in float32", gap=gap, tolerance=most
                    )
                    about = {"changes": changes}
                    sheet.add(
                        f"exact {precision}, {label(changes)}",
                        f"difference of {name}",
                        "share",
                        [gap],
                        gate,
                        about=about,
                    )
            if stored and sheet.rows:
                sheet.store()
    return right


@click.command()
@click.option("--quick", is_flag=True, help="Three of the settings, nothing stored.")
def main(quick: bool) -> None:
    """Compare, and store this device's rows of `train`."""
    device = one_rank()
    sheet = Sheet(
        "train", quick, "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
    )
    quick_ones: list[dict[str, Any]] = [{}, {"stage": 3}, {"compile": True}]
    chosen = quick_ones if quick else cases(device)
    sys.exit(0 if run(device, chosen, sheet, device.type == "cuda" and not quick) else 1)


if __name__ == "__main__":
    main()
