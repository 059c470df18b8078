"""The whole experiment on SmolLM2-135M-Instruct and real facts: seconds by part, and the results.

    python -m benchmarks.bench_real [--folder runs/bench-real]

Runs configs/real.yaml from scratch; the run stays in FOLDER with its report. Accuracies are those
of the analysis with its 95% intervals. `models/smollm2` must be imported (`make real` does it).
"""

import shutil
from pathlib import Path

import click
import pandas as pd

from benchmarks.bench_demo import GATE, add_found, one_run
from benchmarks.suite.rows import Sheet
from ift_scale.analyse.transitions import NAMES
from ift_scale.io.progress import say

CONFIG = Path(__file__).parent.parent / "configs" / "real.yaml"
QUICK = [
    "--set",
    "construct.seeds=[0]",
    "--set",
    "construct.size=4",
    "--set",
    "construct.settings=[harmonious, incompatible]",
    "--set",
    "questions.sources=[{kind: facts, domains: [geography], max_train: 40, max_test: 6,"
    " max_per_subject: 4}, {kind: facts, domains: [aviation], max_per_subject: 4}]",
]


def add_consistency(sheet: Sheet, tables: Path) -> None:
    """Adds rank correlation and KL divergence of settings from the base model, over all domains."""
    frame = pd.read_csv(tables / "settings.csv").query("domain == 'all' and kl == kl")
    names = {"consistency": ("rank correlation", ""), "kl": ("KL(base || arm)", "nats")}
    for name, (quantity, unit) in names.items():
        for row in frame.to_dict("records"):
            interval = row[f"{name}_low"], row[f"{name}_high"]
            sheet.add(
                row["group"],
                quantity,
                unit,
                [row[name]],
                GATE,
                row["setting"],
                "neither",
                interval=None if pd.isna(interval[0]) else interval,
            )


def add_transitions(sheet: Sheet, tables: Path) -> None:
    """Adds the shares of questions that stay or turn right or wrong, over all domains."""
    frame = pd.read_csv(tables / "transitions.csv").query("domain == 'all'")
    for row in frame.to_dict("records"):
        for name in NAMES:
            sheet.add(row["group"], name, "", [row[name]], GATE, row["setting"], "neither")


def add_measures(sheet: Sheet, tables: Path) -> None:
    """Adds the agreement of letters, option texts and free answers on the same questions."""
    for row in pd.read_csv(tables / "measures.csv").dropna(subset="kappa").to_dict("records"):
        about = {name: row[name] for name in ("answers", "first_accuracy", "second_accuracy")}
        case = f"{row['group']}: {row['first']}, {row['second']}"
        sheet.add(case, "kappa", "", [row["kappa"]], GATE, row["model"], "neither", about=about)


@click.command()
@click.option("--repeats", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="A cut of one domain, two settings and one seed.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("runs/bench-real"))
def main(repeats: int, quick: bool, folder: Path) -> None:
    """Run the experiment from scratch and store the rows of `real`."""
    runs, sheet = [], Sheet("real", quick)
    for _ in range(repeats):
        if folder.exists():
            shutil.rmtree(folder)
        runs.append(one_run(folder, QUICK if quick else [], CONFIG))
    add_found(sheet, folder / "analyse")
    add_consistency(sheet, folder / "analyse")
    add_transitions(sheet, folder / "analyse")
    add_measures(sheet, folder / "analyse")
    for name in runs[0]:
        sheet.add(name, "seconds", "s", [run[name] for run in runs], GATE)
    say(f"stored: {sheet.store()}")


if __name__ == "__main__":
    main()
