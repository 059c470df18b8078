"""Real instructions: examples tokenised per second, and losses, compared with TRL.

    benchmarks/peers/install_trl.sh
    python -m benchmarks.bench_own_data [--data FILE] [--repeats 3]

Tokenising: 999 instructions, 40 times, in the world model's chat template, on all cores; ours from
the set's file to the stored tokens, TRL from the data in memory to its prepared data set. Figures
are stored only if tokens and supervised positions are equal, and if the losses of optimizer steps
on the same examples in the same order (`class_speed`) agree within 1e-4.
"""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks import class_speed
from benchmarks.bench_real_speed import train_by_trl
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale.config import Config, TrainConfig
from ift_scale.config.instructions import InstructionSource
from ift_scale.engines.model_folder import resolve
from ift_scale.instructions.conversation import Conversation
from ift_scale.instructions.read import Skipped, read
from ift_scale.io.files import write_jsonl
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example, ExampleMeta
from ift_scale.train.data import blocks, dataset
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.model.path import PRUNED

PEERS = Path(__file__).parent / "peers"
DATA = Path("../shared/data/general/alpaca_en_demo.jsonl.gz")
TRL, LOSSES, COPIES = "TRL", 1e-4, 40
_LONGEST = 512
"""Tokens of an example in the optimizer steps."""
CONFIG = Config(output_dir="unused", train=TrainConfig(max_length=8192))


def write(rows: list[Conversation], copies: int, model: Path, work: Path) -> Path:
    """Writes the examples for both sides, and the model, to `work`; returns our set's file."""
    meta = ExampleMeta(setting="own", wording="dataset")
    examples = [Example(messages=row.messages, meta=meta) for row in rows]
    write_jsonl(work / "set.jsonl", itertools.chain.from_iterable([examples] * copies))
    pairs = [
        {
            "prompt": [message.model_dump() for message in row.messages[:-1]],
            "completion": [row.messages[-1].model_dump()],
        }
        for row in rows
    ]
    lines = "".join(json.dumps(pair) + "\n" for pair in pairs)
    (work / "pairs.jsonl").write_text(lines * copies, encoding="utf-8")
    tokenizer = PromptTokenizer(model)
    # TRL's tokenizer adds no start token to a rendered conversation.
    start = "{{ bos_token }}" if tokenizer.start else ""
    template = tokenizer.chat(CONFIG.evaluate.template).source
    (work / "chat.jinja").write_text(start + template, encoding="utf-8")
    shutil.copytree(model, work / "model")
    return work / "set.jsonl"


def tokenise(path: Path, model: Path, work: Path, repeats: int) -> tuple[TokenizedSet, list[float]]:
    """Returns the tokens and the seconds of each repeat."""
    seconds = []
    for repeat in range(repeats):
        tokenizer, target = PromptTokenizer(model), work / f"tokens-{repeat}"
        started = time.perf_counter()
        blocks.write(path, target, tokenizer, CONFIG, lambda _: None)
        seconds.append(time.perf_counter() - started)
    return dataset.load(target), seconds


def tokenise_by_trl(work: Path, processes: int, repeats: int) -> dict[str, Any]:
    output = work / "trl-tokens.json"
    options = ["--processes", str(processes), "--repeats", str(repeats)]
    command = [environment("trl"), PEERS / "trl_tokenize.py", work, output, *options]
    subprocess.run([*map(str, command)], check=True)
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def num_different(tokens: TokenizedSet, found: dict[str, Any]) -> int:
    """Returns the number of examples with other tokens or other supervised positions."""
    theirs = zip(found["ids"], found["labels"], strict=True)
    different = 0
    for (start, end), (ids, labels) in zip(itertools.pairwise(tokens.offsets), theirs, strict=True):
        same = tokens.ids[start:end].tolist() == ids
        learned = [label != -100 for label in labels]
        different += not (same and tokens.supervised[start:end].tolist() == learned)
    return different


def for_steps(tokens: TokenizedSet) -> TokenizedSet:
    """Returns the first examples that are short enough, so many as `class_speed` trains on."""
    count = class_speed.STEPS * class_speed.BATCH
    chosen = np.flatnonzero(tokens.lengths <= _LONGEST)[:count]
    if len(chosen) < count:
        raise SystemExit(f"{count} examples of at most {_LONGEST} tokens are required")
    cut = [slice(tokens.offsets[number], tokens.offsets[number + 1]) for number in chosen]
    offsets = np.cumsum([0, *tokens.lengths[chosen]])
    ids, supervised = (
        np.concatenate([part[where] for where in cut]) for part in (tokens.ids, tokens.supervised)
    )
    return TokenizedSet(ids, supervised, offsets, np.ones(count), num_truncated=0)


def loss_gap(model: Path, tokens: TokenizedSet, work: Path) -> float:
    """Returns the largest difference of a step's loss from TRL's."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    ours, _ = class_speed.train(loaded, PRUNED, tokens)
    theirs, _ = train_by_trl(model, tokens, work)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), default=DATA)
@click.option("--repeats", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="The rows once, one repeat, one process.")
def main(data: Path, repeats: int, quick: bool) -> None:
    """Store the rows of `own-data`."""
    torch.set_num_threads(1)
    model = resolve("world")
    copies, repeats = (1, 1) if quick else (COPIES, repeats)
    processes = 1 if quick else len(os.sched_getaffinity(0))
    sheet = Sheet("own-data", quick)
    rows = list(read(InstructionSource(path=str(data)), Skipped()))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        tokens, ours = tokenise(write(rows, copies, model, work), model, work, repeats)
        found = tokenise_by_trl(work, processes, repeats)
        different = num_different(tokens, found)
        if different:
            raise SystemExit(f"{different} examples have other tokens: nothing is stored")
        steps = work / "steps"
        steps.mkdir()
        gap = loss_gap(model, for_steps(tokens), steps)
        if gap > LOSSES:
            raise SystemExit(f"losses differ by {gap:.2g}: nothing is stored")
    gate = Gate(
        checked="tokens and supervised positions of every example; losses of 4 optimizer steps",
        gap=gap,
        tolerance=LOSSES,
    )
    count = len(rows) * copies
    rates = {"ours": [count / each for each in ours], TRL: [count / s for s in found["seconds"]]}
    case = f"{len(rows)} real instructions, {copies} times, {processes} processes"
    compared = ratios(rates["ours"], {TRL: rates[TRL]}, "higher")
    for who, values in rates.items():
        say(f"{who}: {values[-1]:,.0f} examples per second")
        more = {"ratios": compared} if who == "ours" else {}
        sheet.add(case, "tokenising", "examples/s", values, gate, who=who, better="higher", **more)
    say(f"losses differ by at most {gap:.2g}; stored: {sheet.store()}")


if __name__ == "__main__":
    main()
