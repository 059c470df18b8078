"""Long work in one process: are memory, open files and threads flat?

    python -m benchmarks.bench_soak [--quick] [--repeats 1] [--keep FOLDER]

2,000 optimizer steps of one arm, 200 arms in one launch, and 50,000 questions to one engine, each
by the command that a user would run, on the embedded world's model. Every second the command, its
ranks and its engine are sampled (`benchmarks.soak`). The rows are stored only if nothing grows.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import click

from benchmarks import soak
from benchmarks.kills.attempt import Attempt, Process
from benchmarks.soak import Growth
from benchmarks.suite.rows import Gate, Sheet
from ift_scale.io.files import write_json
from ift_scale.io.progress import say

_SECONDS = 1.0
_CHUNK = 250
_DOMAINS = ("medicine", "engineering")


class Work(NamedTuple):
    """`stages` in order, of which the last is sampled; `done`: how much of it is done."""

    unit: str
    amount: int
    overrides: tuple[str, ...]
    stages: tuple[str, ...]
    done: Callable[[Attempt], float]


def steps(amount: int) -> Work:
    epochs = -(-amount // 6)  # 48 examples, 8 per step
    overrides = (
        "construct.settings=[harmonious]",
        f"train.epochs={epochs}",
        "train.checkpoint.every=100",
        "train.live.every=0",
        "train.log_every=10",
        "train.launcher=direct",
    )
    return Work(
        "optimizer steps",
        epochs * 6,
        overrides,
        ("questions", "probe", "write", "construct", "train"),
        lambda attempt: attempt.step()[0],
    )


def arms(amount: int) -> Work:
    seeds = list(range(-(-amount // 4)))
    overrides = (
        f"construct.domains=[{', '.join(_DOMAINS)}]",
        f"construct.seeds={seeds}",
        "train.epochs=1",
        "train.checkpoint.every=0",
        "train.live.every=0",
        "train.launcher=direct",
    )
    return Work(
        "arms",
        len(seeds) * 4,
        overrides,
        ("questions", "probe", "write", "construct", "train"),
        lambda attempt: sum(event["event"] == "done" for event in attempt.events()),
    )


def questions(amount: int, pool: Path) -> Work:
    write_pool(pool, amount)
    source = f"[{{kind: paper, domain: made, path: {pool}}}]"
    return Work(
        "questions",
        amount,
        (
            f"questions.sources={source}",
            "construct.domains=[made]",
            f"probe.chunk_size={_CHUNK}",
            "probe.num_shots=1",
        ),
        ("questions", "probe"),
        lambda attempt: attempt.count("probe/shards/*/*.parquet") * _CHUNK,
    )


def write_pool(folder: Path, size: int) -> None:
    """Writes `size` train questions of the paper's format, and ten dev and ten test questions.

    Their words are few: the tokenizer keeps up to 400,000, which new words would go on to fill.
    """
    words = "willow ginger clover honey mint garlic sage nettle hazel oak".split()
    folder.mkdir(parents=True)
    for split, count in {"dev": 10, "train": size, "test": 10}.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                named = " ".join(words[int(digit)] for digit in f"{i:05d}")
                choices = [f"{words[(i + place) % 10]} {split}" for place in range(4)]
                row = {"id": i, "question": f"Which is {split} {named}?", "choices": choices}
                file.write(json.dumps(row | {"answer": i % 4}) + "\n")


def measure(work: Work, folder: Path) -> Iterator[tuple[str, dict[str, Growth], int]]:
    """Yields (process, its growths, number of samples) of each process of the work's last stage."""
    for stage in work.stages[:-1]:
        attempt = Attempt(folder, work.overrides, stage)
        if attempt.wait(3600) != 0:
            raise SystemExit(f"{stage}: {attempt.output[-2000:]}")
    attempt = Attempt(folder, work.overrides, work.stages[-1])
    samples: dict[str, list[tuple[float, dict[str, float]]]] = {}
    while attempt.process.poll() is None:
        done = work.done(attempt)
        for process in attempt.processes() if done else ():
            found = soak.sample(process.pid)
            if found is not None:
                samples.setdefault(_role(process), []).append((done, found))
        time.sleep(_SECONDS)
    if attempt.process.returncode != 0:
        raise SystemExit(f"{work.unit}: {attempt.output[-2000:]}")
    write_json(folder.with_name(f"{folder.name}-samples.json"), samples)
    for role, found_samples in samples.items():
        # Only during the work: afterwards files are merged, and processes end.
        most = max(done for done, _ in found_samples)
        first_of_last = next(i for i, (done, _) in enumerate(found_samples) if done == most)
        kept = found_samples[: first_of_last + 1]
        yield role, soak.growths(kept), len(kept)


def _role(process: Process) -> str:
    if process.is_rank:
        return f"rank {process.rank}"
    return "engine" if process.is_engine else "command"


WORKS: dict[str, Callable[[Path, int], Work]] = {
    "questions": lambda folder, part: questions(50_000 // part, folder / "pool"),
    "steps": lambda folder, part: steps(2_000 // part),
    "arms": lambda folder, part: arms(200 // part),
}


@click.command()
@click.option("--quick", is_flag=True, help="A twentieth of the work.")
@click.option("--repeats", default=1, show_default=True, help="Ignored: once is enough.")
@click.option("--work", "names", type=click.Choice([*WORKS]), multiple=True, help="Only these.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the runs; kept.")
def main(quick: bool, repeats: int, names: tuple[str, ...], keep: Path | None) -> None:
    """Store the rows of `soak`."""
    folder = keep or Path(tempfile.mkdtemp(prefix="soak-"))
    grown = []
    for name in names or WORKS:
        work = WORKS[name](folder, 20 if quick else 1)
        sheet = Sheet("soak", quick)
        growing = _fill(sheet, work, folder / name)
        grown += growing
        if not growing:
            say(f"stored: {sheet.store()}")
    if grown:
        raise SystemExit("not stored, because these grow: " + "; ".join(grown))
    if keep is None:
        shutil.rmtree(folder)


def _fill(sheet: Sheet, work: Work, folder: Path) -> list[str]:
    """Adds the rows of a work; returns what grows."""
    who, grown = f"{work.amount:,} {work.unit}", []
    for role, found, num in measure(work, folder):
        for name, growth in found.items():
            text = f"{who}, {role}, {name}"
            say(
                f"{text}: {growth.level:.1f}, grows by {growth.value:.2f} "
                f"[{growth.low:.2f}, {growth.high:.2f}], {growth.allowed:.2f} allowed"
            )
            grown += [] if growth.is_flat else [text]
            sheet.add(
                role,
                f"growth of {name}",
                "MiB" if name in soak.MEMORY else "count",
                [growth.value],
                Gate(
                    checked="growth after the first fifth of the work",
                    gap=growth.value,
                    tolerance=growth.allowed,
                ),
                who,
                interval=(growth.low, growth.high),
                about={"level": growth.level, "samples": num},
            )
    return grown


if __name__ == "__main__":
    main()
