"""Bytes of a training step and of its export, against what the memory model predicts.

    python benchmarks/bench_memory.py

One rank on a CPU, ZeRO-2, float32, random Llamas. Measured: bytes of all storages that the step's operations made and something
still holds, at their most (torch's allocator, by the profiler). The memory model gives the same from the model's shape and the
number of tokens alone, to decide what fits: it shall bound what is held. It knows nothing of prefixes that are computed once, so
sharing is off, and its chunks of logits are a GPU's. ZeRO's buckets are as large as the model, since a CPU takes pages when they
are written. The export's bytes are its own count of what the process took beside the model; those of one this small may be none.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from random_llama import build, one_rank, random_set, settings

from ift_scale.bench.rows import MEASURED, PREDICTED, Gate, Sheet
from ift_scale.inference.model_folder import resolve
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.progress import say
from ift_scale.train import engine as engines
from ift_scale.train import memory
from ift_scale.train.export import export
from ift_scale.train.shape import ModelShape

SHAPES = {"small": (128, 352, 4, 4096), "larger": (256, 704, 8, 16_384)}
"""Hidden, intermediate, layers, vocabulary."""
CHECKPOINTING = ("none", "selective", "full")
MOST_OVER, MOST_UNDER = 1.0, 0.10
"""How far the prediction may be above what is held, which it shall bound, and below, as a share of it."""


def llama(hidden: int, intermediate: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


def measure(shape: dict[str, Any], checkpointing: str, device: torch.device) -> dict[str, float]:
    """Most bytes held in a step beside what stays between steps, the prediction of that, and the export's bytes."""
    tokens = random_set(8, shape["vocab_size"])
    memory.BUCKET = ModelShape.from_config({"model_type": "llama", **shape}).parameters
    cap = int(tokens.computed_lengths.sum())
    config = settings("float32", 8, cap, 2, checkpointing, share_prefix=False, prune_last_layer=False, kernels="pytorch")
    engine, steps = build(shape, config, device, tokens)
    engines.run_step(engine, steps[0], tokens, 1e-5)
    with torch.profiler.profile(profile_memory=True) as profile:
        engines.run_step(engine, steps[0], tokens, 1e-5)
    held = np.cumsum([event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"])
    sizes = ModelShape.from_config(engine.packed.model.config.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        base = resolve("world")
        out = Path(folder) / "model"
        taken = export(engine.packed.model, False, out, base, PromptTokenizer(base).tokenizer, torch.float32)
    engine.release()
    expected = predicted(sizes, cap, int(tokens.supervised_counts.sum()), checkpointing)
    return {MEASURED: float(held.max()), PREDICTED: expected, "export": float(taken), "weights": 4.0 * sizes.parameters}


def predicted(shape: ModelShape, tokens: int, rows: int, checkpointing: Any) -> float:
    """Activations, head, gradients and buffers of a step, as `memory.estimate` adds them up."""
    work = memory.Workload(shape, 1, False, True, tokens, rows, on_gpu=False)
    found = memory.estimate(work, memory.Setting(2, "none", checkpointing))
    return found.activations + found.head + found.gradients + found.buffers


@click.command()
@click.option("--repeats", default=1, show_default=True, help="Taken once: nothing here varies.")
@click.option("--quick", is_flag=True, help="The small model alone, without checkpointing.")
def main(repeats: int, quick: bool) -> None:
    """Measure, and store the rows of `memory`."""
    device = one_rank()
    torch.set_num_threads(1)
    sheet = Sheet("memory", quick)
    for name, sizes in list(SHAPES.items())[: 1 if quick else None]:
        for checkpointing in CHECKPOINTING[: 1 if quick else None]:
            found = measure(llama(*sizes), checkpointing, device)
            gap = found[PREDICTED] / found[MEASURED] - 1
            say(f"{name}, {checkpointing}: {found}, the prediction is {gap:+.1%} of it")
            if not -MOST_UNDER <= gap <= MOST_OVER:
                raise SystemExit("the memory model is further off than is allowed: nothing is stored")
            gate = Gate(checked="how far the memory model's prediction is above what is held", gap=gap, tolerance=MOST_OVER)
            case = f"{name}, checkpointing {checkpointing}"
            about = {"weights_bytes": found["weights"]}
            for who in (MEASURED, PREDICTED):
                sheet.add(case, "most bytes held in a step", "MiB", [found[who] / 2**20], gate, who, about=about)
            sheet.add(case, "taken by the export", "MiB", [found["export"] / 2**20], gate, MEASURED, about=about)
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
