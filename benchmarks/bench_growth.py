"""Growth of a training step's time with set size, example lengths, vocabulary and ranks.

    python -m benchmarks.bench_growth [--repeats 3]

A small random Llama, float32, one thread per rank, gloo; worlds of 1, 2 and 4 ranks, one process
group each (`growth_ranks.py`). If ranks outnumber cores, the figure shows the cost of coordination,
not a speed-up. Condition: the first step's loss is the same for every world and stage.
`python -m benchmarks report` draws the series and fits their slopes.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.suite.rows import Gate, Sheet
from ift_scale.io.files import log_tail
from ift_scale.io.progress import say
from ift_scale.ranks import environment

WORLDS = (1, 2, 4)
TOLERANCE = 1e-5


def run_world(size: int, folder: Path, repeats: int, quick: bool) -> list[dict[str, Any]]:
    """Returns the points of one process group."""
    out = folder / f"{size}.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.growth_ranks",
        str(out),
        "--repeats",
        str(repeats),
    ]
    command += ["--quick"] if quick else []
    shared = {
        **environment.local_launch(size, environment.free_port()),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    running = []
    with (folder / f"{size}.log").open("w") as log:
        for rank in range(size):
            rank_env = os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(subprocess.Popen(command, env=rank_env, stdout=log, stderr=log))
        failed = [process.wait() for process in running]
    if any(failed):
        raise SystemExit(f"{size} ranks failed\n{log_tail(folder / f'{size}.log')}")
    found: list[dict[str, Any]] = json.loads(out.read_text())
    return found


@click.command()
@click.option("--repeats", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Worlds of 1 and 2, ZeRO-2, two points of each sweep.")
def main(repeats: int, quick: bool) -> None:
    """Measure and store the rows of `scaling`."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in WORLDS[: 2 if quick else None]:
            found += run_world(size, Path(folder), repeats, quick)
            say(f"{size} {'rank' if size == 1 else 'ranks'}: done")
    same = [p["loss"] for p in found if p["case"].startswith("ZeRO")]
    gap = max(abs(loss / same[0] - 1) for loss in same)
    if gap > TOLERANCE:
        raise SystemExit(
            f"the first step's loss differs by {gap:.1e} between worlds and stages: "
            "nothing is stored"
        )
    gate = Gate(
        checked="relative difference of the first step's loss between worlds and stages",
        gap=gap,
        tolerance=TOLERANCE,
    )
    sheet = Sheet("scaling", quick)
    for p in found:
        quantity = "seconds of an epoch" if p["case"] == "set size" else "seconds per step"
        sheet.add(
            p["case"],
            quantity,
            "s",
            p["seconds"],
            gate,
            at=p["at"],
            about={"tokens": p["tokens"], "loss": p["loss"]},
        )
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
