"""Seconds by part of a whole experiment, seconds to the first training step, and the results.

    python -m benchmarks.bench_demo [--repeats 2]

Runs configs/demo.yaml from scratch, each time in a new folder, and reads the manifests and tables.
Accuracies are those of the last repeat, with the analysis' own 95% intervals.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import pandas as pd

from benchmarks.suite.rows import Gate, Sheet
from ift_scale.io.files import read_json
from ift_scale.io.manifests import Manifest, read_manifest
from ift_scale.io.progress import say

QUICK = [
    "--set",
    "construct.seeds=[0]",
    "--set",
    "train.epochs=1",
    "--set",
    "probe.engine=transformers",
]
GATE = Gate(checked="arms without an evaluation", gap=0, tolerance=0)
CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


def _manifests(folder: Path) -> list[Manifest]:
    found = [read_manifest(path.parent) for path in sorted(folder.rglob("manifest.json"))]
    return [manifest for manifest in found if manifest is not None]


def one_run(folder: Path, changes: list[str], config: Path = CONFIG) -> dict[str, float]:
    """Runs a configuration into `folder`. Returns the seconds of each part."""
    started = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "ift_scale.cli",
        "run",
        str(config),
        "--set",
        f"output_dir={folder}",
        *changes,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    trained, evaluated = _manifests(folder / "train"), _manifests(folder / "evaluate")
    if not trained or len(trained) != len(evaluated):
        raise SystemExit(
            f"{len(evaluated)} of {len(trained)} arms are evaluated: nothing is stored"
        )
    parts = {"all": time.perf_counter() - started}
    for stage in ("questions", "construct", "analyse", "report"):
        parts[stage] = sum(m.seconds["total"] for m in _manifests(folder / stage))
    for stage in ("probe", "evaluate"):
        for part in ("engine_start", "scoring"):
            parts[f"{stage}: {part}"] = sum(m.seconds[part] for m in _manifests(folder / stage))
    for part in ("build", "steps", "export"):
        parts[f"train: {part}"] = sum(m.seconds[part] for m in trained)
    launch = read_json(folder / "logs" / "train-seconds.json")
    first = min(trained, key=lambda m: m.created).seconds
    parts |= {
        "first step: data (tokenising)": launch["tokenise"],
        "first step: launcher": launch["launch_and_imports"] - launch["imports"] - launch["join"],
        "first step: imports": launch["imports"],
        "first step: joining the group": launch["join"],
        "first step: model and engine": first["build"],
        "first step: the step": first["first_step"],
    }
    parts["first step: all"] = sum(
        seconds for name, seconds in parts.items() if name.startswith("first step")
    )
    return parts


def add_found(sheet: Sheet, tables: Path) -> None:
    """Adds accuracies of settings and base model, and paired differences, over all domains."""

    def add(row: dict[str, Any], who: str, name: str, quantity: str) -> None:
        low, high = (100 * row[f"{name}_{end}"] for end in ("low", "high"))
        interval = None if pd.isna(low) else (low, high)  # with one seed, differences have none
        about = {name: int(row[name]) for name in ("seeds", "domains", "of_domains")}
        sheet.add(
            row["group"],
            quantity,
            "%",
            [100 * row[name]],
            GATE,
            who,
            "neither",
            interval=interval,
            about=about,
        )

    settings = pd.read_csv(tables / "settings.csv").query("domain == 'all'")
    for row in settings.to_dict("records"):
        add(row, row["setting"], "accuracy", "accuracy")
    compared = pd.read_csv(tables / "comparisons.csv").query("domain == 'all'")
    for row in compared.to_dict("records"):
        add(row, f"{row['first']} - {row['second']}", "difference", "difference of accuracies")
    base, num = pd.read_csv(tables / "base.csv"), int(settings.of_domains.max())
    for group, part in base.groupby("group", sort=False):
        about = {
            "domains": part.domain.nunique(),
            "of_domains": num,
        }  # domains alike, as the arms' means
        sheet.add(
            str(group),
            "accuracy",
            "%",
            [100 * float(part.accuracy.mean())],
            GATE,
            "base",
            "neither",
            about=about,
        )


@click.command()
@click.option("--repeats", default=2, show_default=True)
@click.option("--quick", is_flag=True, help="One seed, one epoch.")
def main(repeats: int, quick: bool) -> None:
    """Run the demo from scratch and store the rows of `demo`."""
    runs, sheet = [], Sheet("demo", quick)
    for number in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "run"
            runs.append(one_run(root, QUICK if quick else []))
            if number == repeats - 1:
                add_found(sheet, root / "analyse")
    for name in runs[0]:
        sheet.add(name, "seconds", "s", [run[name] for run in runs], GATE)
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
