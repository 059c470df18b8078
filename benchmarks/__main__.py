"""The command `python -m benchmarks`, run from the root of a checkout.

Heavy imports are inside the commands.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from ift_scale.commands.options import ErrorReportingGroup

PAGE = Path("runs/bench/index.html")


@click.group(cls=ErrorReportingGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run and compare benchmarks, and write the figures of README.md and docs/."""


@main.command("list")
def list_benchmarks() -> None:
    """List the benchmarks: what is measured, peers, check, workload and minutes."""
    from benchmarks.suite.registry import BENCHMARKS

    for b in BENCHMARKS.values():
        least, most = b.cpu.total(b.cpu.min_repeats), b.cpu.total(b.cpu.max_repeats)
        repeats = f"{b.cpu.min_repeats} to {b.cpu.max_repeats} repeats"
        repeats = repeats if b.cpu.max_repeats > 1 else "once"
        click.echo(
            f"{b.name}\n  measures       {b.measures}\n  compared with  {b.against}\n"
            f"  check          {b.gate}\n"
            f"  on a CPU       {b.cpu.workload}; {repeats}, {least:.0f} to {most:.0f} minutes\n"
            f"  on a GPU       {b.gpu}"
        )


@main.command()
@click.argument("name")
@click.option(
    "--quick",
    is_flag=True,
    help="Smallest sizes, one repeat: only shows that it works. Rows go to runs/bench-quick.",
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    help="Minutes on two idle cores; determines the repeats.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the rows; default: benchmarks/results.",
)
def run(name: str, quick: bool, budget: float | None, out: Path | None) -> None:
    """Run the benchmark NAME, or "all"; a failure does not stop the others."""
    from benchmarks.suite import registry
    from benchmarks.suite.rows import OUT
    from ift_scale.errors import EnvironmentProblem
    from ift_scale.io.progress import say

    benchmarks = registry.select(name)
    if missing := registry.missing_peers(benchmarks):
        raise EnvironmentProblem(
            f"not installed: {', '.join(missing)}. Run `python -m benchmarks peers install`."
        )
    repeats = (
        {b.name: b.cpu.max_repeats for b in benchmarks}
        if budget is None
        else registry.repeats_within(benchmarks, budget)
    )
    minutes = sum(b.cpu.total(repeats[b.name]) for b in benchmarks)
    say("quick: a few minutes" if quick else f"about {minutes:.0f} minutes on two idle cores")
    folder = out or (registry.QUICK if quick else registry.results_folder())
    environment = os.environ | {
        OUT: str(folder.resolve()),
        "PYTHONPATH": os.pathsep.join([str(registry.CHECKOUT), *sys.path[1:]]),
    }
    failed = []
    for b in benchmarks:
        count = 1 if quick else repeats[b.name]
        say(f"{b.name}: {count} {'repeat' if count == 1 else 'repeats'}")
        started = time.monotonic()
        options = ["--repeats", str(count), *(["--quick"] if quick else [])]
        ended = subprocess.run(
            [sys.executable, str(registry.folder() / b.driver), *options], env=environment
        )
        failed += [b.name] if ended.returncode else []
        minutes = (time.monotonic() - started) / 60
        say(f"{b.name}: {'failed' if ended.returncode else 'done'} ({minutes:.1f} minutes)")
    if failed:
        raise EnvironmentProblem(f"failed: {', '.join(failed)}; rows of the others are in {folder}")


@main.command()
@click.argument("first")
@click.argument("second")
@click.option(
    "--fail-on-loss",
    is_flag=True,
    help="Exit with 1 if a figure is worse beyond the spread of both.",
)
def compare(first: str, second: str, fail_on_loss: bool) -> None:
    """Show how many times better SECOND is than FIRST, figure by figure.

    Each is a file or folder of rows, or a git revision.
    """
    from benchmarks.suite import compare as comparing

    changes = comparing.compare(comparing.load(first), comparing.load(second))
    click.echo(comparing.table(changes))
    lost = comparing.lost(changes)
    click.echo(f"{len(changes)} figures in both, {len(lost)} worse beyond the spread")
    if lost and fail_on_loss:
        sys.exit(1)


@main.command()
@click.option(
    "--rows",
    type=click.Path(path_type=Path, exists=True),
    help="File or folder of rows; default: benchmarks/results.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=PAGE, show_default=True
)
def report(rows: Path | None, out: Path) -> None:
    """Write a page of all rows with plots."""
    from benchmarks.suite import page, registry
    from ift_scale.io.progress import say

    page.write(rows or registry.results_folder(), out)
    say(f"page: {out.resolve()}")


@main.command()
@click.option(
    "--check",
    is_flag=True,
    help="Change nothing; exit with 1 if a document disagrees with the rows.",
)
def readme(check: bool) -> None:
    """Write the tables of README.md and docs/ from the stored rows."""
    from benchmarks.suite import documents

    stale = documents.stale() if check else documents.refresh()
    state = "disagrees with the rows; run `python -m benchmarks readme`" if check else "written"
    for path in stale:
        click.echo(f"{path}: {state}")
    if stale and check:
        sys.exit(1)


@main.command()
@click.option("--write", is_flag=True, help="Store the counts as the tests' expected values.")
def counts(write: bool) -> None:
    """Compare the counts that are independent of machine speed with the stored ones."""
    from benchmarks.suite import counts as counting

    found, stored = counting.measure(), counting.stored()
    for line in counting.differences(stored, found) or ["no differences"]:
        click.echo(line)
    if write:
        counting.store(found)


@main.group()
def peers() -> None:
    """Manage the peers, each in its own locked environment."""


@peers.command()
@click.argument("names", nargs=-1, type=click.Choice(["lm-eval", "trl"]))
def install(names: tuple[str, ...]) -> None:
    """Create the environments of NAMES, or of all peers (minutes each).

    Liger-Kernel is the project's own extra `liger`.
    """
    from benchmarks.suite import registry
    from ift_scale.errors import EnvironmentProblem

    environment: dict[str, Any] = {"PYTHON": sys.executable} | os.environ
    for name in names or registry.PEERS:
        ended = subprocess.run(
            [str(registry.folder() / "peers" / registry.PEERS[name])], env=environment
        )
        if ended.returncode:
            raise EnvironmentProblem(f"{name}: the environment was not created; see above")


@main.command()
@click.argument("data", type=click.Path(file_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option(
    "--seed", default=0, show_default=True, help="Seed of questions, beliefs and weights."
)
def plant(data: str, out: str, seed: int) -> None:
    """Train a small Llama to believe right and wrong answers to real questions.

    DATA contains the pools, MMLU and general instructions. OUT receives the chosen questions, the
    beliefs and the model (docs/planted.md).
    """
    from pathlib import Path

    from benchmarks.planted.plant import run
    from benchmarks.planted.train import Recipe

    run(Path(data), Path(out), Recipe(seed=seed))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
