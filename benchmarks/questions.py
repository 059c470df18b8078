"""Peak memory and speed of the questions stage on pools of 10,000 to 1,000,000 questions in the paper's format.

    python benchmarks/questions.py [--sizes 10000,100000,1000000]

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

sys.path.insert(0, str(Path(__file__).parent))

from rows import store

from ift_scale.config_file import from_dict
from ift_scale.progress import Bar
from ift_scale.questions import run

MIB = 1 << 20


def write_pool(folder: Path, size: int) -> None:
    """`size` train questions of about 200 bytes, and ten each of dev and test."""
    folder.mkdir()
    for split, count in {"dev": 10, "train": size, "test": 10}.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(count):
                choices = [f"{name} of entity number {i * 7919 % 1_000_003}" for name in ("river", "capital", "founder", "emblem")]
                row = {"id": i, "question": f"Which of these belongs to entity number {i}?", "choices": choices, "answer": i % 4}
                file.write(json.dumps(row) + "\n")


def measure(pool: Path, near: bool) -> dict[str, float]:
    """The stage on one pool, in this process."""
    sources = [{"kind": "paper", "domain": "made", "path": str(pool)}]
    config = from_dict({"output_dir": str(pool / "run"), "questions": {"sources": sources, "audit": {"near": near}}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    run.run(config, pool / "run" / "questions", "key", {}, Bar("questions", None, None))
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "extra_mib": (after - before) * 1024 / MIB, "peak_mib": after * 1024 / MIB}


@click.command()
@click.option("--sizes", default="10000,100000,1000000", show_default=True)
@click.option("--pool", type=click.Path(path_type=Path), help="Measure this pool only and print it; how the driver calls itself.")
@click.option("--near/--no-near", default=True, help="With --pool: whether near duplicates are looked for.")
def main(sizes: str, pool: Path | None, near: bool) -> None:
    """Measure every size and store benchmarks/results/questions.json."""
    if pool is not None:
        print(json.dumps(measure(pool, near)))
        return
    found = {}
    for size in map(int, sizes.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            write_pool(Path(folder) / "pool", size)
            for option in ("--near", "--no-near"):
                command = [sys.executable, __file__, "--pool", str(Path(folder) / "pool"), option]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                measured = json.loads(told.splitlines()[-1])
                found[f"{size} {option}"] = {"questions_per_second": size / measured["seconds"], **measured}
    print(store("questions", found).read_text())


if __name__ == "__main__":
    main()
