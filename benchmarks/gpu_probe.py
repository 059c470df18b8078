"""Probing on one GPU: MMLU 5-shot questions a second of a 7B-shaped Llama in our vLLM engine, beside one request an option.

    python benchmarks/gpu_probe.py            (one GPU)
    python benchmarks/gpu_probe.py --tiny     (anywhere; shows that it runs)

In: MMLU's questions, a tokenizer trained on them (peers/model.py), random weights. First a small model's log-probabilities by vLLM
in the dtype of the run are held against transformers' in float32; where they differ nothing is measured. One request an option is
what lm-evaluation-harness sends to vLLM: the prompt with a letter behind it, whose log-probability is read from the prompt's. Its
answers are held against ours too. The limit is told: FLOPs of the tokens that no earlier prompt begins with, block by block, over
the matrix rate measured in the same run. Out: rows of `probe` on this device (`--tiny`: on the screen only).
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from gpu_train import SHAPES, matrix_rate
from random_llama import random_weights
from safetensors.torch import save_file
from transformers import AutoTokenizer

from ift_scale.bench.rows import Gate, Sheet, ratios
from ift_scale.config import MmluSource, ProbeConfig
from ift_scale.inference.engine import EngineSpec, ScoreRequest
from ift_scale.inference.letters import FewShot, LetterAsker
from ift_scale.inference.process import EngineProcess
from ift_scale.inference.prompts import Demonstrations
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.inference.views import plain
from ift_scale.inference.vllm_engine import VllmEngine
from ift_scale.progress import say
from ift_scale.questions import mmlu
from ift_scale.records import Question
from ift_scale.train.shape import ModelShape

TOLERANCE_NATS = {"float32": 0.01, "bfloat16": 0.05}
BLOCK = 16
"""Tokens of a block of vLLM's prefix cache."""
TINY = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
MOST_TOKENS = 4000
"""Of a prompt; the shapes have 4,096 positions."""
PEERS = Path(__file__).parent / "peers"
MMLU = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
MEMORY = Path("/dev/shm")


def questions(count: int) -> tuple[list[Question], Demonstrations]:
    """Whole test subjects until there are `count` questions."""
    found = [question for _, question in mmlu.load(MmluSource(kind="mmlu", path=str(MMLU)), 0)]
    asked = sorted((q for q in found if q.split == "test"), key=lambda q: q.subject)
    last = asked[min(count, len(asked)) - 1].subject
    return [q for q in asked if q.subject <= last], Demonstrations(found, 5, 42)


def one_request_an_option(engine: VllmEngine, requests: Sequence[ScoreRequest]) -> np.ndarray:
    """As `Engine.score`, by the log-probabilities of prompts that end with the option."""
    from vllm import SamplingParams, TokensPrompt

    asked = [(request.prompt, option) for request in requests for option in request.options]
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    prompts = [TokensPrompt(prompt_token_ids=[*prompt, option]) for prompt, option in asked]
    outputs = engine.llm.generate(prompts, params, use_tqdm=False)
    return np.array([out.prompt_logprobs[-1][option].logprob for out, (_, option) in zip(outputs, asked, strict=True)])


def computed_tokens(requests: Sequence[ScoreRequest]) -> int:
    """Tokens left when every block is computed once, whoever asks first; a prompt's last token is always computed."""
    seen: set[tuple[int, ...]] = set()
    total = 0
    for request in requests:
        prompt = tuple(request.prompt)
        blocks = [prompt[:end] for end in range(BLOCK, len(prompt), BLOCK)]
        known = next((n for n, block in enumerate(blocks) if block not in seen), len(blocks))
        seen.update(blocks[known:])
        total += len(prompt) - known * BLOCK
    return total


def seconds_of(ask: Callable[[], np.ndarray], engine: VllmEngine, repeats: int) -> tuple[list[float], np.ndarray]:
    """Seconds of each repeat with an empty cache, and the answers."""
    found = []
    for _ in range(repeats):
        engine.reset_cache()
        started = time.perf_counter()
        answers = ask()
        found.append(time.perf_counter() - started)
    return found, answers


def check(model: Path, requests: Sequence[ScoreRequest], dtype: str, logs: Path) -> float:
    """Largest difference in nats between vLLM and transformers in float32 on a small model."""
    answers = []
    for name, kind in (("transformers", "float32"), ("vllm", dtype)):
        engine = EngineProcess(EngineSpec(str(model), kind, ProbeConfig(engine=name)), logs / f"{name}.log").ready()
        try:
            answers.append(engine.score(requests))
        finally:
            engine.close()
    return float(np.abs(answers[0] - answers[1]).max())


def write_model(folder: Path, shape: dict[str, Any], tokenizer: Path, device: torch.device, dtype: torch.dtype) -> None:
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    weights = random_weights(folder, shape, device, dtype, 0.02)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if device.type == "cuda":
        torch.cuda.empty_cache()


@click.command()
@click.option("--questions", "count", default=3000, show_default=True, help="About so many, in whole subjects.")
@click.option("--per-option", default=120, show_default=True, help="Of them, for one request an option.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--work", default=Path("runs/peers"), show_default=True, type=click.Path(path_type=Path))
@click.option("--logs", default=Path("runs/benchmark-logs"), show_default=True, type=click.Path(path_type=Path))
@click.option("--tiny", is_flag=True, help="A tiny model in float32, few questions, nothing stored.")
def main(count: int, per_option: int, repeats: int, work: Path, logs: Path, tiny: bool) -> None:
    """Measure, and store the rows of `probe` on this device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type != "cuda" and not tiny:
        raise click.UsageError("there is no GPU; say --tiny to see that it runs")
    name, dtype, size = ("tiny", "float32", 512) if tiny else ("7b", "bfloat16", 8192)
    if tiny:
        count, per_option, repeats = 1, 4, 1
    small = work / "model"
    if not small.exists():
        subprocess.run([sys.executable, str(PEERS / "model.py"), str(small)], check=True)
    asked, demonstrations = questions(count)
    asked = asked[:24] if tiny else asked
    written = LetterAsker(FewShot(PromptTokenizer(small), demonstrations), plain).write(asked).requests
    requests = [request for request in written if len(request.prompt) <= MOST_TOKENS]
    few = requests[:: max(1, len(requests) // per_option)][:per_option]
    difference = check(small, few, dtype, logs)
    say(f"vLLM in {dtype} against transformers in float32: {difference:.1e} nats at most")
    if not difference <= TOLERANCE_NATS[dtype]:
        raise SystemExit("the answers are others than transformers': nothing is measured")
    rate = matrix_rate(device, getattr(torch, dtype), size)
    shape = (TINY if tiny else SHAPES[name]) | {"vocab_size": len(PromptTokenizer(small).tokenizer)}
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() and not tiny else None) as folder:
        write_model(Path(folder), shape, small, device, getattr(torch, dtype))
        engine = VllmEngine(EngineSpec(folder, dtype, ProbeConfig(engine="vllm")))
    engine.score(few)
    sizes = ModelShape.from_config({"model_type": "llama", **shape})
    computed = computed_tokens(requests)
    flops = 2.0 * (computed * sizes.layers * sizes.layer_matrices + len(requests) * sizes.embedding_parameters)
    ours, answers = seconds_of(lambda: engine.score(requests), engine, repeats)
    mine = engine.score(few)
    theirs, other = seconds_of(lambda: one_request_an_option(engine, few), engine, repeats)
    gap = float(np.abs(mine - other).max())
    say(f"one request an option: {gap:.1e} nats at most from ours")
    if not gap <= TOLERANCE_NATS[dtype]:
        raise SystemExit("one request an option is answered otherwise: nothing is stored")
    rates = {"ours vllm": [len(requests) / s for s in ours], "one request an option": [len(few) / s for s in theirs]}
    shares = [flops / s / rate for s in ours]
    say(f"{name}: {rates} questions a second, {shares} of the matrix rate, {len(answers)} log-probabilities")
    if tiny:
        return
    sheet = Sheet("probe", False, torch.cuda.get_device_name(device))
    gate = Gate(checked="log-probabilities against transformers' in float32, nats", gap=difference, tolerance=TOLERANCE_NATS[dtype])
    case, who = f"{name} {dtype}", "ours vllm"
    about = {
        "questions": len(requests),
        "mean_prompt_tokens": float(np.mean([len(request.prompt) for request in requests])),
        "computed_tokens": computed,
        "matrix_flops_per_second": rate,
        "gap_to_one_request_an_option": gap,
    }
    against = ratios(rates[who], {"one request an option": rates["one request an option"]}, "higher")
    sheet.add(case, "questions per second", "1/s", rates[who], gate, who, "higher", ratios=against, about=about)
    sheet.add(case, "share of the matrix rate", "share", shares, gate, who, "higher")
    peer = "one request an option"
    sheet.add(case, "questions per second", "1/s", rates[peer], gate, peer, "higher", about={"questions": len(few)})
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
