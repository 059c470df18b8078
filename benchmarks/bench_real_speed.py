"""Option texts and training on SmolLM2-135M-Instruct, compared with lm-evaluation-harness and TRL.

    benchmarks/peers/install.sh; benchmarks/peers/install_trl.sh
    python -m benchmarks.bench_real_speed [--model models/smollm2] [--repeats 3]

Every program runs alone on one thread and is timed by its CPU seconds, so that other load on the
machine changes little. Texts: the options of dev questions of the built-in facts after a 5-shot
prompt. Training: questions of the pools with their answers in the model's chat template, optimizer
steps of `class_speed` against TRL with the plain loss. Figures are stored only if log-likelihoods
agree within 1e-3 nats and losses within 1e-4.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks import class_speed
from benchmarks.bench_cloze import MODEL, asked
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale import draws
from ift_scale.config import FactsSource, ProbeConfig
from ift_scale.engines.protocol import EngineSpec, TextRequest
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.io.progress import say
from ift_scale.prompts.templates import Demonstrations, chat_messages, gold_text, without_options
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.questions import facts
from ift_scale.records import Message
from ift_scale.scoring.cloze import FewShotTexts
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.model.path import PRUNED

PEERS = Path(__file__).parent / "peers"
LM_EVAL, TRL = "lm-eval hf", "TRL, plain loss"
NATS, LOSSES = 1e-3, 1e-4


def texts(model: Path, quick: bool) -> list[TextRequest]:
    """Returns the options of the dev questions as engine requests."""
    dev, questions = asked(quick)
    writer = FewShotTexts(PromptTokenizer(model), Demonstrations(dev, 5, 42))
    chosen = questions[: 8 if quick else 40]
    return [
        request for question in chosen for request in writer.requests(question, question.choices)
    ]


def score_by_us(
    model: Path, calls: Sequence[Sequence[TextRequest]], repeats: int
) -> tuple[np.ndarray, list[float]]:
    """Returns the log-likelihoods of all calls in order, and the CPU seconds of each repeat."""
    spec = EngineSpec(str(model), "float32", ProbeConfig(engine="transformers"))
    engine, seconds = TransformersEngine(spec), []
    engine.loglikelihood(calls[0][:4])
    for _ in range(repeats):
        started = time.process_time()
        found = np.concatenate([engine.loglikelihood(requests) for requests in calls])
        seconds.append(time.process_time() - started)
    return found, seconds


def score_by_lm_eval(
    model: Path, requests: Sequence[TextRequest], repeats: int, work: Path
) -> tuple[np.ndarray, list[float]]:
    path, output = work / "requests.jsonl", work / "lm-eval.json"
    rows = [{"context": r.prompt, "continuation": r.continuation} for r in requests]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    script = PEERS / "lm_eval" / "texts.py"
    command = [environment("lm-eval"), script, path, model.resolve(), output, "--repeats", repeats]
    _run(command)
    found = json.loads(output.read_text())
    return np.array(found["loglikelihoods"]), found["seconds"]


def examples(model: Path) -> TokenizedSet:
    """Returns STEPS * BATCH questions of the pools with their answers, as in configs/real.yaml."""
    tokenizer = PromptTokenizer(model)
    pool = {
        q.id: q
        for q in facts.load(FactsSource(kind="facts"), 0)
        if (q.kind, q.collection, q.split) == ("choice", "pool", "train")
    }
    count = class_speed.STEPS * class_speed.BATCH
    rows = []
    for id in draws.sample(set(pool), count, "real-speed"):
        answer = Message(role="assistant", content=gold_text(pool[id]))
        rows.append(tokenizer.example([*chat_messages(without_options(pool[id])), answer], "model"))
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)])
    ids = np.concatenate([ids for ids, _ in rows]).astype(np.int32)
    supervised = np.concatenate([mask for _, mask in rows])
    return TokenizedSet(ids, supervised, offsets, np.ones(count), num_truncated=0)


def train_by_trl(model: Path, tokens: TokenizedSet, work: Path) -> tuple[list[float], list[float]]:
    """Returns (losses, CPU seconds) of each optimizer step."""
    class_speed.write(tokens, work / "steps.jsonl")
    shutil.copytree(model, work / "model")
    output = work / "trl.json"
    _run([environment("trl"), PEERS / "trl_classes.py", work, output])
    found = json.loads(output.read_text())["model"]
    if "error" in found:
        raise SystemExit(f"TRL failed: {found['error']}")
    return found["losses"], found["seconds"]


def _run(command: Sequence[object]) -> None:
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([*map(str, command)], check=True, env=one_thread)


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=MODEL)
@click.option("--repeats", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Eight questions, one repeat.")
def main(model: Path, repeats: int, quick: bool) -> None:
    """Store the rows of `real-speed`."""
    torch.set_num_threads(1)
    repeats = 1 if quick else repeats
    sheet = Sheet("real-speed", quick)
    with tempfile.TemporaryDirectory() as folder:
        add_texts(sheet, model, texts(model, quick), repeats, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        add_training(sheet, model, examples(model), Path(folder))
    say(f"stored in {sheet.store()}")


def add_texts(
    sheet: Sheet, model: Path, requests: Sequence[TextRequest], repeats: int, work: Path
) -> None:
    ours, seconds = score_by_us(model, [requests], repeats)
    theirs, peer_seconds = score_by_lm_eval(model, requests, repeats, work)
    gap = float(np.abs(ours - theirs).max())
    gate = Gate(checked="log-likelihoods of ours and lm-eval, nats", gap=gap, tolerance=NATS)
    if gap > NATS:
        raise SystemExit(f"log-likelihoods differ by {gap:.2g} nats: nothing is stored")
    case = f"{len(requests)} option texts, 5-shot, float32, one thread"
    rates = {
        "ours": [len(requests) / s for s in seconds],
        LM_EVAL: [len(requests) / s for s in peer_seconds],
    }
    add_rates(sheet, case, "texts per CPU second", rates, LM_EVAL, gate)


def add_training(sheet: Sheet, model: Path, tokens: TokenizedSet, work: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    losses, seconds = class_speed.train(loaded, PRUNED, tokens)
    del loaded
    peer_losses, peer_seconds = train_by_trl(model, tokens, work)
    gap = max(abs(a - b) / b for a, b in zip(losses, peer_losses, strict=True))
    gate = Gate(checked="relative difference of losses from TRL", gap=gap, tolerance=LOSSES)
    if gap > LOSSES:
        raise SystemExit(f"losses differ by {gap:.2g}: {losses}, {peer_losses}: nothing is stored")
    case = f"{class_speed.BATCH} examples per step, float32, one thread"
    rates = {
        "ours": class_speed.rate(seconds, tokens),
        TRL: class_speed.rate(peer_seconds, tokens),
    }
    add_rates(sheet, case, "training tokens per CPU second", rates, TRL, gate)


def add_rates(
    sheet: Sheet,
    case: str,
    quantity: str,
    rates: dict[str, list[float]],
    peer: str,
    gate: Gate,
    **about: float,
) -> None:
    """Adds the rates of ours and of one peer, and their ratio."""
    found = ratios(rates["ours"], {peer: rates[peer]}, "higher")
    for who, values in rates.items():
        more = {"ratios": found, "about": about} if who == "ours" else {}
        sheet.add(case, quantity, "/s", values, gate, who, "higher", **more)
    ratio = found[peer]
    say(f"{quantity}: {ratio.value:.2f} times {peer} ({ratio.low:.2f} to {ratio.high:.2f})")


if __name__ == "__main__":
    main()
