"""Peak memory and speed of the questions stage on pools of 10,000 to 1,000,000 questions in the paper's format.

    python -m benchmarks.bench_questions [--sizes 10000,100000,1000000]

Each size is read in a process of its own, once with the audit's near duplicates and once without. The memory is the peak of its
resident set less what it held before the stage. The questions are the audit's hardest: all share most words with every test
question, so that each needs its signature.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.suite.rows import Gate, Sheet
from ift_scale.config.file import from_dict
from ift_scale.io.progress import Bar, say
from ift_scale.questions import run
from ift_scale.records import QUESTIONS_FILE
from ift_scale.stage import Task

MIB = 1 << 20


def write_pool(folder: Path, size: int) -> None:
    """`size` train questions of about 200 bytes, and ten each of dev and test."""
    folder.mkdir()
    for split, count in {"dev": 10, "train": size, "test": 10}.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                choices = [
                    f"{name} of entity number {i * 7919 % 1_000_003}"
                    for name in ("river", "capital", "founder", "emblem")
                ]
                row = {
                    "id": i,
                    "question": f"Which of these belongs to entity number {i}?",
                    "choices": choices,
                    "answer": i % 4,
                }
                file.write(json.dumps(row) + "\n")


def measure(pool: Path, near: bool) -> dict[str, float]:
    """The stage on one pool, in this process."""
    sources = [{"kind": "paper", "domain": "made", "path": str(pool)}]
    config = from_dict(
        {
            "output_dir": str(pool / "run"),
            "questions": {"sources": sources, "audit": {"near": near}},
        }
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    run.gather(
        config,
        Task("questions", pool / "run" / "questions", "key", {}),
        Bar("questions", None, None),
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (pool / "run" / "questions" / QUESTIONS_FILE).open("rb") as file:
        kept = sum(1 for _ in file)
    return {
        "kept": kept,
        "seconds": seconds,
        "extra_mib": (after - before) * 1024 / MIB,
        "peak_mib": after * 1024 / MIB,
    }


@click.command()
@click.option("--sizes", default="10000,100000", show_default=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="1,000 questions.")
@click.option(
    "--pool",
    type=click.Path(path_type=Path),
    help="Measure this pool only and print it; how the driver calls itself.",
)
@click.option(
    "--near/--no-near", default=True, help="With --pool: whether near duplicates are looked for."
)
def main(sizes: str, repeats: int, quick: bool, pool: Path | None, near: bool) -> None:
    """Measure every size, and store the rows of `questions`."""
    if pool is not None:
        print(json.dumps(measure(pool, near)))
        return
    sheet = Sheet("questions", quick)
    for size in [1000] if quick else map(int, sizes.split(",")):
        for option, case in (
            ("--near", "near duplicates looked for"),
            ("--no-near", "exact duplicates only"),
        ):
            add(sheet, case, size, [apart(size, option) for _ in range(repeats)])
    say(f"stored: {sheet.store()}")


def apart(size: int, option: str) -> dict[str, float]:
    """The stage on a pool of so many questions, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_pool(Path(folder) / "pool", size)
        command = [
            sys.executable,
            "-m",
            "benchmarks.bench_questions",
            "--pool",
            str(Path(folder) / "pool"),
            option,
        ]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    if found["kept"] != size + 20:
        raise SystemExit(
            f"{found['kept']} of {size + 20} questions are in the stage's file: nothing is stored"
        )
    say(f"{size} {option}: {found}")
    return found


def add(sheet: Sheet, case: str, size: int, runs: list[dict[str, float]]) -> None:
    gate, at = (
        Gate(checked="questions missing in the stage's file", gap=0, tolerance=0),
        {"questions": size},
    )
    sheet.add(
        case,
        "questions per second",
        "1/s",
        [size / r["seconds"] for r in runs],
        gate,
        better="higher",
        at=at,
    )
    sheet.add(case, "seconds", "s", [r["seconds"] for r in runs], gate, at=at)
    sheet.add(
        case,
        "memory over that before the stage",
        "MiB",
        [r["extra_mib"] for r in runs],
        gate,
        at=at,
    )
    sheet.add(case, "peak memory", "MiB", [r["peak_mib"] for r in runs], gate, at=at)


if __name__ == "__main__":
    main()
