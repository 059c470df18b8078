"""Real instructions: examples tokenised per second, and losses, compared with TRL.

    benchmarks/peers/install_trl.sh
    python -m benchmarks.bench_own_data [--data FILE] [--repeats 3]

Tokenising: 999 instructions, 40 times, in the world model's chat template, on all cores; ours from
the set's file to the stored tokens, TRL from the data in memory to its prepared data set. Figures
are stored only if tokens and supervised positions are equal, and if the losses of an epoch agree
within 1e-4: `ift-scale sft` on two ranks, killed once and resumed, and TRL, which is given the same
tokens in the same order.
"""

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.bench_train import peer_command, run_one
from benchmarks.peers.train_set import peer_rows
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale.config import Config, TrainConfig
from ift_scale.config.instructions import InstructionSource
from ift_scale.engines.model_folder import resolve
from ift_scale.instructions.conversation import Conversation
from ift_scale.instructions.read import Skipped, read
from ift_scale.io.files import write_jsonl, write_text
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example, ExampleMeta
from ift_scale.train.data import blocks, dataset, packing
from ift_scale.train.data.dataset import TokenizedSet

PEERS = Path(__file__).parent / "peers"
DATA = Path("../shared/data/general/alpaca_en_demo.jsonl.gz")
TRL, LOSSES, COPIES = "TRL", 1e-4, 40
ARM, BATCH, KILLED_AT = "pooled-data-seed0", 27, 15
"""27 divides the 999 rows: peers repeat examples to fill the last step."""
RECIPE = {
    "num_ranks": 2,
    "epochs": 1,
    "global_batch_size": BATCH,
    "learning_rate": 5e-4,
    "max_length": 1024,
    "too_long": "truncate",
    "precision": "float32",
    "log_every": 1,
    "checkpoint.every": 4,
}
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


def losses_of_sft(data: Path, folder: Path) -> list[dict[str, Any]]:
    """Returns the metrics of each step of `ift-scale sft` on two ranks, killed once and resumed."""
    command = [sys.executable, "-m", "ift_scale.cli", "sft", "world", str(data)]
    command += ["--output", str(folder), *(f"--set=train.{k}={v}" for k, v in RECIPE.items())]
    metrics = folder / "train" / ARM / "metrics.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") >= KILLED_AT):
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(command)} ended before it was killed")
        time.sleep(0.05)
    process.kill()
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def losses_of_trl(folder: Path, work: Path) -> list[dict[str, Any]]:
    """Returns the result of each of TRL's steps on the run's tokens, in the run's order."""
    (tokens,) = (dataset.load(path.parent) for path in folder.glob("train/.tokens/*/ids.npy"))
    order = list(packing.step_examples(len(tokens.lengths), BATCH, num_epochs=1, seed=0))
    write_text(
        work / "steps.jsonl", "".join(json.dumps(row) + "\n" for row in peer_rows(tokens, order))
    )
    options = ["--steps", str(len(order)), "--batch", str(BATCH), "--micro-batch", "9"]
    options += ["--learning-rate", str(RECIPE["learning_rate"]), "--loss", "plain"]
    command = peer_command("trl_sft.py", str(work), *options, ranks=1)
    steps: list[dict[str, Any]] = run_one(TRL, command, work, work / "trl.json", False)["steps"]
    return steps


def loss_gap(data: Path, work: Path) -> tuple[int, float]:
    """Returns (number of steps, largest difference of a step's loss between `sft` and TRL)."""
    folder = work / "run"
    ours = losses_of_sft(data, folder)
    theirs = losses_of_trl(folder, work)
    for mine, other in zip(ours, theirs, strict=True):
        if mine["supervised_tokens"] != other["supervised"]:
            raise SystemExit(f"step {mine['step']} has other examples: nothing is stored")
    return len(ours), max(abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True))


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
        steps, gap = loss_gap(data.resolve(), work)
        if gap > LOSSES:
            raise SystemExit(f"losses differ by {gap:.2g}: nothing is stored")
    gate = Gate(
        checked="tokens and supervised positions of every example; losses of `sft` on two ranks, "
        f"killed and resumed, and of TRL in {steps} optimizer steps",
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
