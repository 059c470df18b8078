"""Peak bytes in each phase of a training step, and of its export, against the memory model.

    python -m benchmarks.bench_memory

One rank on a CPU, ZeRO-2, float32, random Llamas, steps of two micro-batches. Measured: in each
phase, the peak of bytes allocated since the start of the step and not yet freed (torch's allocator,
by the profiler). The memory model predicts the same from the model's shape and the tokens of the
largest micro-batch. It does not model shared prefixes, so sharing is off. ZeRO's bucket is an
eighth of the model, as for a model of 1.6e9 parameters. The export's bytes are its own count of
what the process used in addition to the model; they may be 0 for such small models.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.random_llama import build, one_rank, random_set, settings
from benchmarks.suite.rows import MEASURED, PREDICTED, Gate, Sheet
from ift_scale.engines.model_folder import resolve
from ift_scale.estimate import memory
from ift_scale.estimate.shape import ModelShape
from ift_scale.estimate.shape_of import shape_of
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import packing
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines
from ift_scale.train.engine.export import export

SHAPES = {
    "small": (128, 352, 4, 4096, False),
    "tied": (128, 352, 4, 32_768, True),
    "larger": (256, 704, 8, 16_384, False),
}
"""Hidden size, intermediate size, layers, vocabulary, tied embeddings."""
CHECKPOINTING = ("none", "selective", "full")
MOMENTS = {"loss": "forward", "backward pass": "backward", "update": "step"}
"""The memory model's phases, and the engine's method for each."""
PASSES = 3
"""Profiled steps. Their lowest peak counts: on a busy machine a thread may free a buffer late."""
MOST_OVER, MOST_UNDER = 0.10, 0.05
"""Maximum deviation of the prediction above and below the highest peak, as shares of it."""


def llama(
    hidden: int, intermediate: int, layers: int, vocabulary: int, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 32,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }


def measure(
    shape: dict[str, Any], checkpointing: Any, device: torch.device
) -> tuple[dict[str, dict[str, float]], float]:
    """Returns peak bytes by phase in addition to persistent state, measured and predicted.

    The second value is the export's bytes.
    """
    tokens = random_set(16, shape["vocab_size"])
    memory.BUCKET = shape_of({"model_type": "llama", **shape}).parameters // 8
    cap = int(tokens.computed_lengths.sum() * 0.55)
    config = settings(
        "float32",
        16,
        cap,
        2,
        checkpointing,
        share_prefix=False,
        prune_last_layer=False,
        kernels="pytorch",
    )
    engine, steps = build(shape, config, device, tokens)
    engines.run_step(engine, steps[0], tokens, 1e-5)
    for moment, method in MOMENTS.items():
        mark(engine.deepspeed, method, moment)
    passes = []
    for _ in range(PASSES):
        with torch.profiler.profile(profile_memory=True) as profile:
            engines.run_step(engine, steps[0], tokens, 1e-5)
        passes.append(held(profile))
    sizes = shape_of(engine.packed.model.config.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        base = resolve("world")
        out = Path(folder) / "model"
        taken = export(
            engine.packed.model, False, out, base, PromptTokenizer(base).tokenizer, torch.float32
        )
    engine.release()
    return {
        MEASURED: {moment: min(peaks[moment] for peaks in passes) for moment in MOMENTS},
        PREDICTED: predicted(sizes, steps[0], tokens, checkpointing),
    }, float(taken)


def mark(engine: Any, method: str, moment: str) -> None:
    """Marks the calls of `method` for the profiler."""
    plain = getattr(engine, method)

    def marked(*args: Any, **more: Any) -> Any:
        with torch.profiler.record_function(moment):
            return plain(*args, **more)

    setattr(engine, method, marked)


def held(profile: torch.profiler.profile) -> dict[str, float]:
    """Returns the peak bytes of each phase, relative to the start of the profile."""
    results: Any = profile.profiler and profile.profiler.kineto_results
    events = results.events()
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"
    )
    times, bytes_held = (
        np.array([time for time, _ in changes]),
        np.cumsum([size for _, size in changes]),
    )
    found: dict[str, float] = dict.fromkeys(MOMENTS, 0.0)
    for event in events:
        if event.name() in MOMENTS:
            within = (times >= event.start_ns()) & (times <= event.start_ns() + event.duration_ns())
            found[event.name()] = max(found[event.name()], float(bytes_held[within].max()))
    return found


def predicted(
    shape: ModelShape, step: packing.Step, tokens: TokenizedSet, checkpointing: Any
) -> dict[str, float]:
    """Returns the same by the memory model."""
    examples = [micro[0] for micro in step]
    most = max(int(tokens.computed_lengths[chosen].sum()) for chosen in examples)
    rows = max(int(tokens.supervised_counts[chosen].sum()) for chosen in examples)
    work = memory.Workload(shape, 1, False, True, most, rows, on_gpu=False)
    found = memory.estimate(work, memory.Setting(2, "none", checkpointing))
    kept = found.gradients + found.activations
    return {
        "loss": kept + found.loss,
        "backward pass": kept + found.backward,
        "update": found.gradients + found.step,
    }


@click.command()
@click.option("--repeats", default=1, show_default=True, help="Taken once: nothing here varies.")
@click.option("--quick", is_flag=True, help="The small model alone, without checkpointing.")
def main(repeats: int, quick: bool) -> None:
    """Measure and store the rows of `memory`."""
    device = one_rank()
    torch.set_num_threads(1)
    sheet = Sheet("memory", quick)
    for name, sizes in list(SHAPES.items())[: 1 if quick else None]:
        for checkpointing in CHECKPOINTING[: 1 if quick else None]:
            found, taken = measure(llama(*sizes), checkpointing, device)
            most = {who: max(found[who].values()) for who in (MEASURED, PREDICTED)}
            gap = most[PREDICTED] / most[MEASURED] - 1
            say(f"{name}, {checkpointing}: {found}; the prediction differs by {gap:+.1%}")
            if not -MOST_UNDER <= gap <= MOST_OVER:
                raise SystemExit(
                    "the memory model is further off than is allowed: nothing is stored"
                )
            gate = Gate(
                checked="how far the memory model's prediction is above what is held",
                gap=gap,
                tolerance=MOST_OVER,
            )
            case = f"{name}, checkpointing {checkpointing}"
            for who in (MEASURED, PREDICTED):
                sheet.add(case, "most bytes held in a step", "MiB", [most[who] / 2**20], gate, who)
                for moment in MOMENTS:
                    sheet.add(
                        case,
                        f"most bytes held in the {moment}",
                        "MiB",
                        [found[who][moment] / 2**20],
                        gate,
                        who,
                    )
            sheet.add(case, "taken by the export", "MiB", [taken / 2**20], gate, MEASURED)
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
