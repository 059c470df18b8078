"""Kills a small run at chosen moments of all stages, resumes it, and compares what it leaves.

    python -m benchmarks.bench_kills [--quick] [--repeats 1] [--jobs 1] [--keep FOLDER]

Four lives of the same run of the embedded world (`benchmarks.kills.attempt`), with one rank and
two, started directly and by the deepspeed launcher. In each, the command, its launcher or a rank is
killed or signalled at every moment of `benchmarks.kills.moments`, and the same command resumes from
there. The rows are stored only if every promise of docs/reliability.md held: no process remains,
exit codes and output say what happened, the run ends, and its files are those of an undisturbed
run, times aside, and no others.
"""

import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import NamedTuple

import click

from benchmarks.kills.attempt import Attempt
from benchmarks.kills.campaign import COMMAND_KILLED, Kill, Life, Target, Violation
from benchmarks.kills.moments import MOMENTS, Moment
from benchmarks.suite.rows import Gate, Sheet
from ift_scale.io.progress import say

DIRECT, ONE_RANK = ("train.launcher=direct",), ("train.launcher=direct", "train.num_ranks=1")
DEEPSPEED = ("train.launcher=deepspeed",)
_REFERENCE_SECONDS = 1800.0


class Plan(NamedTuple):
    """The settings of a life, and its targets in turn."""

    overrides: tuple[str, ...]
    targets: tuple[Target, ...]


PLANS = {
    "two ranks": Plan(DIRECT, (COMMAND_KILLED,)),
    "deepspeed launcher signalled": Plan(DEEPSPEED, (Target("command", SIGTERM),)),
    "deepspeed launcher": Plan(
        DEEPSPEED,
        (
            Target("rank 1", SIGKILL),
            Target("launcher", SIGKILL),
            Target("rank 0", SIGKILL),
            Target("node launcher", SIGKILL),
            Target("rank 1", SIGTERM),
            COMMAND_KILLED,
            Target("launcher", SIGTERM),
        ),
    ),
    "one rank": Plan(
        ONE_RANK, (COMMAND_KILLED, Target("command", SIGTERM), Target("rank 0", SIGKILL))
    ),
}


def reference(folder: Path, overrides: tuple[str, ...]) -> Path:
    """Returns the folder of a run that nothing disturbs."""
    attempt = Attempt(folder, overrides)
    if attempt.wait(_REFERENCE_SECONDS) != 0:
        raise SystemExit(f"the undisturbed run failed: {attempt.output[-2000:]}")
    return folder


def live(plan: Plan, folder: Path, moments: Sequence[Moment], seed: int) -> Life:
    """Returns a life that has come to its end."""
    life = Life(folder, plan.overrides, seed)
    life.live(moments, plan.targets)
    return life


def moments_of(name: str, quick: bool, spread: bool) -> list[Moment]:
    """Returns the moments of a life: all, or with `spread` its share of those of running ranks."""
    if quick:
        return list(MOMENTS[::6])
    steps = [moment for moment in MOMENTS if moment.stage == "train"][2:]  # of running ranks
    left_out = set(steps) - set(steps[list(PLANS).index(name) :: len(PLANS)]) if spread else set()
    return [moment for moment in MOMENTS if moment not in left_out]


def store(name: str, kills: Sequence[Kill], num_files: int, quick: bool) -> Path:
    """Stores the seconds of a life's kills by moment, target and signal."""
    sheet = Sheet("kills", quick)
    gate = Gate(
        checked="no process of the run remains; the run resumes to the files of an undisturbed one "
        "and no others; files that differ",
        gap=0.0,
    )
    groups: dict[tuple[str, str], list[Kill]] = {}
    for kill in kills:
        groups.setdefault((kill.moment, f"{kill.signal} to {kill.who}"), []).append(kill)
    for (moment, kind), found in groups.items():
        about = {
            "exit_codes": [kill.exit_code for kill in found],
            "files": num_files,
        }
        sheet.add(moment, kind, "s", [kill.seconds for kill in found], gate, name, about=about)
    return sheet.store()


@click.command()
@click.option("--quick", is_flag=True, help="One life, every sixth moment.")
@click.option("--repeats", default=1, show_default=True, help="Lives of each kind.")
@click.option("--jobs", default=1, show_default=True, help="Lives at the same time.")
@click.option("--life", "names", type=click.Choice([*PLANS]), multiple=True, help="Only these.")
@click.option("--spread", is_flag=True, help="Each life takes a share of the ranks' moments.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the runs; continued.")
def main(
    quick: bool,
    repeats: int,
    jobs: int,
    names: tuple[str, ...],
    spread: bool,
    keep: Path | None,
) -> None:
    """Store the rows of `kills`."""
    work = keep or Path(tempfile.mkdtemp(prefix="kills-"))
    work.mkdir(parents=True, exist_ok=True)
    names = names or tuple(PLANS)[: 1 if quick else None]
    plans = {name: PLANS[name] for name in names}
    with ThreadPoolExecutor(jobs) as pool:
        settings = {plan.overrides[1:]: DIRECT + plan.overrides[1:] for plan in plans.values()}
        undisturbed = {
            ranks: pool.submit(reference, work / f"undisturbed-{number}" / "run", overrides)
            for number, (ranks, overrides) in enumerate(settings.items())
        }
        lives = {
            (name, number): pool.submit(
                live,
                plan,
                work / f"{name.replace(' ', '-')}-{number}" / "run",
                moments_of(name, quick, spread),
                number,
            )
            for number in range(repeats)
            for name, plan in plans.items()
        }
    failed = []
    for name in plans:
        try:
            found = [lives[name, number].result() for number in range(repeats)]
            num_files = [life.compare(undisturbed[life.overrides[1:]].result()) for life in found]
        except Violation as violation:
            failed.append(f"{name}: {violation}")
            continue
        kills = [kill for life in found for kill in life.kills]
        say(f"{name}: {len(kills)} kills; stored: {store(name, kills, num_files[0], quick)}")
    if failed:
        raise SystemExit("\n".join(["not stored:", *failed]))
    if keep is None:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
