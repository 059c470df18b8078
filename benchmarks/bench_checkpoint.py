"""Seconds and bytes of saving, loading and exporting a checkpoint, by model size.

    python -m benchmarks.bench_checkpoint [--repeats 3]

One rank on a CPU, ZeRO-2, float32, random Llamas. A save includes fsync. Loading is into an engine
with other weights. Condition: every parameter and both optimizer moments are bit-identical to the
saved ones, and the exported file contains the parameters. Each size and repeat has its own save,
load and export.
"""

import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file

from benchmarks.random_llama import build, one_rank, random_set, settings
from benchmarks.suite.rows import Gate, Sheet
from ift_scale.engines.model_folder import resolve
from ift_scale.io.files import flush
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.train.engine import deepspeed as engines
from ift_scale.train.engine.checkpoint import Checkpoints
from ift_scale.train.engine.checkpoint_manifest import Progress
from ift_scale.train.engine.export import export
from ift_scale.train.job import ArmJob
from ift_scale.train.launch.control import Control

SIZES = {
    "0.5 M": (128, 2, 512),
    "3.7 M": (256, 4, 1024),
    "23 M": (512, 6, 4096),
    "83 M": (768, 8, 16_384),
}
"""Hidden size, layers, vocabulary."""
EXACT = Gate(
    checked="largest difference of a parameter or moment from what was saved", gap=0, tolerance=0
)


def llama(hidden: int, layers: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": 11 * hidden // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
    }


def state(engine: engines.TrainEngine) -> list[torch.Tensor]:
    """Returns copies of the parameters and of the optimizer's moments."""
    moments = [
        value
        for entry in engine.deepspeed.optimizer.optimizer.state.values()
        for value in entry.values()
    ]
    return [
        t.detach().clone()
        for t in [*engine.packed.parameters(), *moments]
        if isinstance(t, torch.Tensor)
    ]


def measure(
    shape: dict[str, Any], device: torch.device, control: Control, folder: Path
) -> dict[str, float]:
    """Returns the seconds and bytes of one save, load and export."""
    tokens = random_set(4, shape["vocab_size"])
    config = settings("float32", 4, 4096, kernels="pytorch")
    arm = ArmJob(
        arm=Arm(domain="d", setting="harmonious", seed=0),
        source="",
        tokens="",
        folder=str(folder / "arm"),
        key="k",
        inputs={},
    )
    (folder / "rows").mkdir(parents=True)
    checkpoints = Checkpoints(arm, config, control, folder / "rows" / "metrics.jsonl")
    engine, steps = build(shape, config, device, tokens)
    engines.run_step(engine, steps[0], tokens, 1e-3)
    expected, found = (
        state(engine),
        {"parameters": float(sum(p.numel() for p in engine.packed.parameters()))},
    )
    started = time.perf_counter()
    checkpoints.save(engine, Progress(step=1))
    found["save"] = time.perf_counter() - started
    found["checkpoint_bytes"] = size_of(checkpoints.folder)
    engines.run_step(
        engine, steps[0], tokens, 1e-3
    )  # weights and moments now differ from the saved
    assert any(not torch.equal(a, b) for a, b in zip(expected, state(engine), strict=True))
    started = time.perf_counter()
    checkpoints.load(engine)
    found["load"] = time.perf_counter() - started
    if not all(torch.equal(a, b) for a, b in zip(expected, state(engine), strict=True)):
        raise SystemExit("the loaded state differs from the saved one: nothing is stored")
    base = resolve("world")
    started = time.perf_counter()
    export(
        engine.packed.model,
        False,
        folder / "model",
        base,
        PromptTokenizer(base).tokenizer,
        torch.float32,
    )
    flush(folder / "model")
    found["export"] = time.perf_counter() - started
    weights = load_file(folder / "model" / "model.safetensors")
    if not all(
        torch.equal(weights[name], value)
        for name, value in engine.packed.model.state_dict().items()
    ):
        raise SystemExit("the exported weights are not the model's: nothing is stored")
    found["export_bytes"] = size_of(folder / "model")
    engine.release()
    return found


def size_of(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


@click.command()
@click.option("--repeats", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="The smallest model alone.")
def main(repeats: int, quick: bool) -> None:
    """Measure and store the rows of `checkpoint`."""
    device = one_rank()
    control, sheet = Control(None, timedelta(minutes=30)), Sheet("checkpoint", quick)
    for name, sizes in list(SIZES.items())[: 1 if quick else None]:
        runs = []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(llama(*sizes), device, control, Path(folder)))
        say(f"{name}: {runs[-1]}")
        at = {"parameters": runs[0]["parameters"]}
        for case in ("save", "load", "export"):
            sheet.add(case, "seconds", "s", [run[case] for run in runs], EXACT, at=at)
        for case, key in (("save", "checkpoint_bytes"), ("export", "export_bytes")):
            sheet.add(case, "size", "MiB", [run[key] / 2**20 for run in runs], EXACT, at=at)
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
