"""Probing on one GPU: MMLU 5-shot questions per second of a 7B-shaped Llama in our vLLM engine.

    python -m benchmarks.gpu.probe            (one GPU)
    python -m benchmarks.gpu.probe --tiny     (on any machine; shows that it works)

Input: MMLU's questions (--data), a tokenizer trained on them (peers/model.py), random weights.
First, vLLM's log-probabilities of a small model in the run's dtype are compared with transformers'
in float32; if they differ, nothing is measured. The peer is one request per option, as
lm-evaluation-harness sends to vLLM: the prompt followed by a letter, whose log-probability is read
from the prompt's. Its answers are compared with ours, too. The limit is the FLOPs of all tokens
after prefix caching by blocks, over the matrix rate measured in the same run. Writes rows of
`probe` on this device (with `--tiny` only to the screen).

Nothing is decoded, so no CUDA graphs are captured. With `--compile` vLLM also compiles the model,
which takes half a minute.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from benchmarks.gpu.shapes import SHAPES
from benchmarks.gpu.train import matrix_rate
from benchmarks.peers import model as peers_model
from benchmarks.random_llama import random_weights
from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale.config import MmluSource, ProbeConfig
from ift_scale.config.engines import EngineName
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec, ScoreRequest
from ift_scale.engines.vllm import VllmEngine
from ift_scale.estimate.shape_of import shape_of
from ift_scale.io.progress import say
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import mmlu
from ift_scale.records import Question
from ift_scale.scoring.letters import FewShot, LetterAsker

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Maximum mean difference of log-probabilities over their spread."""
OURS, PEER = "ours vllm", "one request an option"
BLOCK = 16
"""Tokens per block of vLLM's prefix cache."""
TINY = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
MOST_TOKENS = 4000
"""Maximum tokens of a prompt; the shapes have 4,096 positions."""
DATA = Path(__file__).parents[3] / "shared" / "data"
MEMORY = Path("/dev/shm")


def questions(data: Path, count: int) -> tuple[list[Question], Demonstrations]:
    """Returns whole test subjects until there are `count` questions, and demonstrations."""
    found = [
        question for _, question in mmlu.load(MmluSource(kind="mmlu", path=str(data / "mmlu")), 0)
    ]
    asked = sorted((q for q in found if q.split == "test"), key=lambda q: q.subject)
    last = asked[min(count, len(asked)) - 1].subject
    return [q for q in asked if q.subject <= last], Demonstrations(found, 5, 42)


def one_request_an_option(engine: VllmEngine, requests: Sequence[ScoreRequest]) -> np.ndarray:
    """Same as `Engine.score`, from the log-probabilities of prompts that end with the option."""
    from vllm import SamplingParams, TokensPrompt

    asked = [(request.prompt, option) for request in requests for option in request.options]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=[*prompt, option]) for prompt, option in asked]
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    return np.array(
        [
            out.prompt_logprobs[-1][option].logprob
            for out, (_, option) in zip(outputs, asked, strict=True)
        ]
    )


def computed_tokens(requests: Sequence[ScoreRequest]) -> int:
    """Counts tokens after prefix caching by blocks; a prompt's last token is always computed."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for request in requests:
        prompt = tuple(request.prompt)
        blocks = [prompt[:end] for end in range(BLOCK, len(prompt), BLOCK)]
        known = next((n for n, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks[known:])
        total += len(prompt) - known * BLOCK
    return total


def seconds_of(ask: Callable[[], np.ndarray], engine: VllmEngine, repeats: int) -> list[float]:
    """Returns the seconds of each repeat, with an empty cache."""
    found = []
    for _ in range(repeats):
        engine.reset_cache()
        started = time.perf_counter()
        ask()
        found.append(time.perf_counter() - started)
    return found


def apart(answers: np.ndarray, reference: np.ndarray) -> float:
    """Returns the mean difference of log-probabilities over the reference's spread."""
    return float(np.abs(answers - reference).mean() / reference.std())


def check(model: Path, requests: Sequence[ScoreRequest], dtype: str, logs: Path) -> float:
    """Returns the distance of vLLM's answers from transformers' in float32 on a small model."""
    answers = []
    sides: tuple[tuple[EngineName, str], ...] = (("transformers", "float32"), ("vllm", dtype))
    for name, kind in sides:
        config = ProbeConfig(engine=name, enforce_eager=True)
        engine = EngineProcess(EngineSpec(str(model), kind, config), logs / f"{name}.log").ready()
        try:
            answers.append(engine.score(requests))
        finally:
            engine.close()
    return apart(answers[1], answers[0])


def room(size: float) -> Path | None:
    """Returns a folder in memory with room for so many bytes, or None for the default."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 1.3 * size else None


def write_model(
    folder: Path, shape: dict[str, Any], tokenizer: Path, device: torch.device, dtype: torch.dtype
) -> None:
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    weights = random_weights(folder, shape, device, dtype, 0.02)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if device.type == "cuda":
        torch.cuda.empty_cache()


@click.command()
@click.option(
    "--data",
    default=DATA,
    type=click.Path(path_type=Path, exists=True),
    help="Folder that contains mmlu/ and pools/.",
)
@click.option(
    "--questions",
    "count",
    default=2000,
    show_default=True,
    help="Approximate number, in whole subjects.",
)
@click.option(
    "--per-option", default=100, show_default=True, help="Of them, for one request an option."
)
@click.option("--repeats", default=3, show_default=True)
@click.option(
    "--work", default=Path("runs/peers"), show_default=True, type=click.Path(path_type=Path)
)
@click.option(
    "--logs",
    default=Path("runs/benchmark-logs"),
    show_default=True,
    type=click.Path(path_type=Path),
)
@click.option(
    "--compile/--eager",
    "compiled",
    default=False,
    show_default=True,
    help="Let vLLM compile the model.",
)
@click.option(
    "--tiny", is_flag=True, help="A tiny model in float32, few questions, nothing stored."
)
def main(
    data: Path,
    count: int,
    per_option: int,
    repeats: int,
    work: Path,
    logs: Path,
    compiled: bool,
    tiny: bool,
) -> None:
    """Measure, and store this device's rows of `probe`."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that a time limit does not leave the weights in memory
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not tiny:
        raise click.UsageError("no GPU found; --tiny works on any machine")
    name, dtype, size = ("tiny", "float32", 512) if tiny else ("7b", "bfloat16", 8192)
    if tiny:
        count, per_option, repeats = 1, 4, 1
    small = work / "model"
    peers_model.create(small, data)
    asked, demonstrations = questions(data, count)
    asked = asked[:24] if tiny else asked
    written = (
        LetterAsker(FewShot(PromptTokenizer(small), demonstrations), plain).write(asked).requests
    )
    single = [
        request for request in written if isinstance(request, ScoreRequest)
    ]  # all, with this tokenizer
    requests = [request for request in single if len(request.prompt) <= MOST_TOKENS]
    few = requests[:: max(1, len(requests) // per_option)][:per_option]
    difference = check(small, few, dtype, logs)
    say(f"vLLM in {dtype} against transformers in float32: {difference:.1e} of the spread")
    if not difference <= TOLERANCE[dtype]:
        raise SystemExit("the answers differ from transformers': nothing is measured")
    rate = matrix_rate(device, getattr(torch, dtype), size)
    shape = (TINY if tiny else SHAPES[name]) | {"vocab_size": len(PromptTokenizer(small).tokenizer)}
    sizes = shape_of({"model_type": "llama", **shape})
    with tempfile.TemporaryDirectory(
        dir=room(getattr(torch, dtype).itemsize * sizes.parameters)
    ) as folder:
        write_model(Path(folder), shape, small, device, getattr(torch, dtype))
        engine = VllmEngine(
            EngineSpec(folder, dtype, ProbeConfig(engine="vllm", enforce_eager=not compiled))
        )
    gap = apart(engine.score(few), one_request_an_option(engine, few))  # also the warm-up
    say(f"one request an option: {gap:.1e} of the spread from ours")
    if not gap <= TOLERANCE[dtype]:
        raise SystemExit("one request an option gets other answers: nothing is measured")
    computed = computed_tokens(requests)
    flops = 2.0 * (computed * sizes.matrices + len(requests) * sizes.embedding_parameters)
    device_name = "cpu" if tiny else torch.cuda.get_device_name(device)
    sheet, case = (
        Sheet("probe", tiny, device_name),
        f"{name} {dtype}{', compiled' if compiled else ''}",
    )
    gate = Gate(
        checked="log-probabilities against transformers' in float32, by their spread",
        gap=difference,
        tolerance=TOLERANCE[dtype],
    )
    about = {
        "questions": len(requests),
        "mean_prompt_tokens": float(np.mean([len(request.prompt) for request in requests])),
        "computed_tokens": computed,
        "matrix_flops_per_second": rate,
        "gap_to_one_request_an_option": gap,
        "limit_questions_per_second": len(requests) * rate / flops,
    }
    ours = [len(requests) / s for s in seconds_of(lambda: engine.score(requests), engine, repeats)]
    shares = [flops * r / len(requests) / rate for r in ours]
    say(f"{name}: {OURS} {ours} questions per second, {shares} of the matrix rate")
    sheet.add(case, "share of the matrix rate", "share", shares, gate, OURS, "higher", about=about)
    if not tiny:
        sheet.store()  # a time limit may end the peer
    theirs = [
        len(few) / s
        for s in seconds_of(lambda: one_request_an_option(engine, few), engine, repeats)
    ]
    say(f"{name}: {PEER} {theirs} questions per second")
    against = ratios(ours, {PEER: theirs}, "higher")
    sheet.add(
        case, "questions per second", "1/s", ours, gate, OURS, "higher", ratios=against, about=about
    )
    sheet.add(
        case,
        "questions per second",
        "1/s",
        theirs,
        gate,
        PEER,
        "higher",
        about=about | {"questions": len(few)},
    )
    if not tiny:
        say(f"stored: {sheet.store()}")
    sys.stdout.flush()
    os._exit(0)  # vLLM's threads can keep an interpreter alive


if __name__ == "__main__":
    main()
