"""Training steps of 1B- and 7B-shaped Llamas on one device: tokens a second, share of its matrix rate, peak memory.

    python benchmarks/gpu_train.py --shape 1b --shape 7b      (one GPU)
    python benchmarks/gpu_train.py --tiny                     (anywhere; shows that it runs)

In: nothing but a seed; weights and tokens are random, lengths and supervised share like those of peers/train_set.py. First a small
model's losses are held against plain transformers' in float32, token by token; where they differ nothing is measured. The matrix
rate is that of a large product in the training dtype, measured in the same run; FLOPs are what the loss needs (train/shape.py).
Out: rows of `train` on this device (`--tiny`: on the screen only).
"""

import json
import time
from typing import Any

import click
import numpy as np
import torch
from random_llama import build, one_rank, random_set, settings
from transformers import AutoModelForCausalLM, LlamaConfig

from ift_scale.bench.rows import Gate, Sheet
from ift_scale.config import TrainConfig
from ift_scale.errors import EnvironmentProblem
from ift_scale.progress import say
from ift_scale.train import engine as engines
from ift_scale.train import memory, packing, setting
from ift_scale.train.batch import num_shared
from ift_scale.train.data import TokenizedSet
from ift_scale.train.shape import ModelShape, train_flops

TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": TINY,
    "1b": {  # Llama 3.2 1B
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "7b": {  # LLaMA-2-7B
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
}
# Of `check`.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """FLOPs a second of a product of two size x size matrices, the median of 20."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(25):
        waited(device)
        started = time.perf_counter()
        a @ b
        waited(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / float(np.median(seconds[5:]))


def waited(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def check(device: torch.device, precision: str) -> float:
    """How far a small model's losses of single tokens are from plain transformers' in float32, one example at a time.

    The mean difference over the losses' standard deviation. The weights are large, so that attention decides about the losses.
    """
    tokens = random_set(8, TINY["vocab_size"])
    engine, steps = build(TINY, settings(precision, 8, 2048), device, tokens, std=0.25)
    config = LlamaConfig.from_dict(engine.packed.model.config.to_dict())  # a copy: the engine's own names its attention
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).to(device)
    plain.load_state_dict(engine.packed.model.state_dict())
    differences, expected = [], []
    for examples, losses_R in engines.run_step(engine, steps[0], tokens, 0.0).row_losses:
        parts = losses_R.split([int(tokens.supervised_counts[i]) for i in examples])
        for example, part in zip(examples, parts, strict=True):
            span = slice(tokens.offsets[example], tokens.offsets[example + 1])
            ids = torch.from_numpy(tokens.ids[span].astype(np.int64)).to(device)
            rows = torch.from_numpy(tokens.supervised[span][1:]).to(device)
            with torch.no_grad():
                logits_LV = plain(ids[None]).logits[0, :-1]
                losses = torch.nn.functional.cross_entropy(logits_LV, ids[1:], reduction="none")[rows]
            differences.append((part - losses).abs())
            expected.append(losses)
    engine.release()
    return float(torch.cat(differences).mean() / torch.cat(expected).std())


def measure(name: str, config: TrainConfig, device: torch.device, num_steps: int, rate: float) -> dict[str, Any]:
    """Seconds a step behind two for warming up, and what follows from them."""
    tokens = random_set(config.global_batch_size * (num_steps + 2), SHAPES[name]["vocab_size"])
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    config, _ = setting.resolve(config, ModelShape.from_config(LlamaConfig(**SHAPES[name]).to_dict()), setting.Room(total, 1, 1))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    engine, steps = build(SHAPES[name], config, device, tokens)
    seconds, losses = [], []
    for step in steps:
        waited(device)
        started = time.perf_counter()
        losses.append(engines.run_step(engine, step, tokens, 1e-5).loss.item())
        waited(device)
        seconds.append(time.perf_counter() - started)
    sizes = ModelShape.from_config(engine.packed.model.config.to_dict())
    pruned, attention = engine.packed.pruned, engine.packed.attention
    engine.release()
    examples = [[i for micro in step for place in micro for i in place] for step in steps[2:]]
    shared = [prefixes(step, tokens) for step in steps[2:]]
    flops = [
        train_flops(sizes, tokens.computed_lengths[e], tokens.supervised_counts[e], pruned, found)
        for e, found in zip(examples, shared, strict=True)
    ]
    timed = seconds[2:]
    return {
        "about": {
            "parameters": sizes.parameters,
            "settings": config.model_dump(
                include={"precision", "zero_stage", "activation_checkpointing", "tokens_per_micro_batch"}
            ),
            "attention": attention,
            "last_layer_pruned": pruned,
            "examples_per_step": config.global_batch_size,
            "tokens_per_step": [int(tokens.lengths[e].sum()) for e in examples],
            "matrix_flops_per_second": rate,
            "losses": losses,
        },
        "seconds per step": timed,
        "tokens per second": [float(tokens.lengths[e].sum() / s) for e, s in zip(examples, timed, strict=True)],
        "share of the matrix rate": [f / s / rate for f, s in zip(flops, timed, strict=True)],
        "peak memory": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "peak reserved memory": torch.cuda.max_memory_reserved() if device.type == "cuda" else None,
        "estimated memory": estimated_bytes(sizes, config, device),
    }


def add(sheet: Sheet, case: str, found: dict[str, Any], gate: Gate) -> None:
    about = found["about"]
    sheet.add(case, "tokens per second", "1/s", found["tokens per second"], gate, better="higher", about=about)
    sheet.add(case, "seconds per step", "s", found["seconds per step"], gate)
    sheet.add(case, "share of the matrix rate", "share", found["share of the matrix rate"], gate, better="higher")
    for name in ("peak memory", "peak reserved memory", "estimated memory"):
        sheet.add(case, name, "B", [found[name]], gate)


def prefixes(step: packing.Step, tokens: TokenizedSet) -> list[tuple[int, int]]:
    """(tokens, examples) of the prefixes that the step's micro-batches compute once."""
    found = [(num_shared(place, tokens), len(place)) for micro in step for place in micro]
    return [(length, count) for length, count in found if length]


def estimated_bytes(shape: ModelShape, config: TrainConfig, device: torch.device) -> float:
    """What the memory model says."""
    work = memory.Workload.of(config, shape, 1, device.type == "cuda")
    return memory.estimate(work, memory.Setting(config.zero_stage, "none", config.activation_checkpointing)).held


@click.command()
@click.option(
    "--shape", "names", multiple=True, type=click.Choice([name for name in SHAPES if name != "tiny"]), default=["1b", "7b"]
)
@click.option("--steps", default=8, show_default=True, help="Measured optimizer steps, behind two for warming up.")
@click.option("--batch", default=128, show_default=True, help="Examples of a step.")
@click.option("--tokens", default=16_384, show_default=True, help="Tokens of a micro-batch, at most.")
@click.option("--checkpointing", default="auto", show_default=True, type=click.Choice(["auto", "none", "selective", "full"]))
@click.option("--tiny", is_flag=True, help="Tiny sizes, in float32, nothing stored.")
def main(names: tuple[str, ...], steps: int, batch: int, tokens: int, checkpointing: str, tiny: bool) -> None:
    """Measure, and store the rows of `train` on this device."""
    device = one_rank()
    if device.type != "cuda" and not tiny:
        raise click.UsageError("there is no GPU; say --tiny to see that it runs")
    differences = {precision: check(device, precision) for precision in TOLERANCE}
    say(f"tokens' losses against plain transformers in float32, by their spread: {differences}")
    if not all(differences[precision] <= most for precision, most in TOLERANCE.items()):
        raise SystemExit("the losses are others than plain transformers': nothing is measured")
    precision, size = ("float32", 512) if tiny else ("bfloat16", 8192)
    gate = Gate(checked="tokens' losses against plain transformers', by their spread", gap=differences[precision],
                tolerance=TOLERANCE[precision])  # fmt: skip
    rate = matrix_rate(device, getattr(torch, precision), size)
    say(f"matrix rate: {rate / 1e12:.2f} TFLOP/s")
    if tiny:
        names, steps, batch, tokens = ("tiny",), 2, 8, 2048
    config = settings(precision, batch, tokens, "auto", checkpointing)
    sheet = Sheet("train", tiny, "cpu" if tiny else torch.cuda.get_device_name(device))
    for name in names:
        try:
            found = measure(name, config, device, steps, rate)
        except (EnvironmentProblem, torch.OutOfMemoryError) as error:  # the memory model's word, or the device's
            say(f"{name}: does not fit: {str(error).splitlines()[0]}")
            continue
        say(f"{name}: {json.dumps(found)}")
        if not tiny:
            add(sheet, f"{name} {precision}", found, gate)
            sheet.store()  # after each shape: a later one may not end in time


if __name__ == "__main__":
    main()
