"""CPU seconds of every command at its start, next to those of another commit.

    python -m benchmarks.compare_start_up COMMIT [--run runs/demo] [--repeats 7]

`--run`: a finished run of configs/demo.yaml, which is copied, so that each stage finds itself done.
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


def compare(base: Path, run: Path, repeats: int) -> None:
    """Prints a table row per command."""
    print("| command | before, s | now, s | ratio: median (quartiles) |\n|---|---|---|---|")
    for arguments in commands(run):
        for root in (base, ROOT):
            cpu_seconds(root, arguments)  # compiles, fills caches
        pairs = [
            (cpu_seconds(base, arguments), cpu_seconds(ROOT, arguments)) for _ in range(repeats)
        ]
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
def main(commit: str, run: str, repeats: int) -> None:
    """Compare the start-up of all commands with COMMIT."""
    with tempfile.TemporaryDirectory() as folder:
        base, copy = Path(folder) / "base", Path(folder) / "run"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "-q", "--detach", str(base), commit], check=True)
        try:
            shutil.copytree(run, copy)
            compare(base, copy, repeats)
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)


if __name__ == "__main__":
    main()
