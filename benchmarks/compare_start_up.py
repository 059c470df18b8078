"""CPU seconds of every command at its start, next to those of another commit.

    python -m benchmarks.compare_start_up COMMIT [--run runs/demo] [--repeats 7]

`--run`: a finished run of configs/demo.yaml. Each version gets a copy, in which stages find
themselves done. `--only`: names of commands; all if left out.
Both versions run in turn, with the packages of this environment. Other programs on the machine
hardly change CPU seconds (user and system, children included). Prints, for each command, the
median ratio of the pairs and their quartiles.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from ift_scale.stages import STAGES

ROOT = Path(__file__).parent.parent
HELPS = ("init", "sft", "screen")


def commands(run: Path) -> list[list[str]]:
    """Returns the arguments of each command, with a finished run's folder where it needs one."""
    stages = [[stage.name, "configs/demo.yaml"] for stage in STAGES]
    runs = [*stages, ["run", "configs/demo.yaml"], ["plan", "configs/demo.yaml"]]
    return [
        ["--help"],
        *([name, "--help"] for name in HELPS),
        *([*command, "--set", f"output_dir={run}"] for command in runs),
        ["show", str(run)],
        ["audit", "configs/demo.yaml"],
    ]


def cpu_seconds(root: Path, arguments: list[str]) -> float:
    """Returns the CPU seconds of a command with the code in `root`. Raises if it fails."""
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "ift_scale.cli", *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = os.times()
    return after.children_user + after.children_system - before[2] - before[3]


def compare(runs: dict[Path, Path], repeats: int, only: tuple[str, ...]) -> None:
    """Prints a table row per command. `runs`: the run of each version's root, the older first."""
    print("| command | before, s | now, s | ratio: median (quartiles) |\n|---|---|---|---|")
    for both in zip(*(commands(run) for run in runs.values()), strict=True):
        arguments = both[0]
        if only and arguments[0] not in only:
            continue
        sides = list(zip(runs, both, strict=True))
        for root, command in sides:
            cpu_seconds(root, command)  # compiles, fills caches
        pairs = [[cpu_seconds(*side) for side in sides] for _ in range(repeats)]
        before, now = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [after / first for first, after in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        name = " ".join(arguments[:2] if arguments[-1] == "--help" else arguments[:1])
        print(
            f"| `{name}` | {before:.2f} | {now:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) |",
            flush=True,
        )


@click.command()
@click.argument("commit")
@click.option("--run", default="runs/demo", show_default=True, help="Finished run of the demo.")
@click.option("--repeats", default=7, show_default=True)
@click.option("--only", multiple=True, help="Name of a command; may be repeated.")
def main(commit: str, run: str, repeats: int, only: tuple[str, ...]) -> None:
    """Compare the start-up of all commands with COMMIT."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        runs = {base: Path(folder) / "run-base", ROOT: Path(folder) / "run"}
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(base), commit], check=True)
        try:
            for copy in runs.values():
                shutil.copytree(run, copy)
            compare(runs, repeats, only)
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)


if __name__ == "__main__":
    main()
