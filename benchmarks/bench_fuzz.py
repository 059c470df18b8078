"""Malformed input: how many inputs of each kind are read rightly or refused with words.

    python -m benchmarks.bench_fuzz [--inputs 10000] [--kind NAME] [--first 0] [--keep FOLDER]

Each input is made from its kind's name and its number alone, so `--kind NAME --first N --inputs 1`
runs input N again; `--keep` writes the files of every input that was neither read nor refused.
Two processes share the kinds; each imports everything once and forks a child per input.
"""

import gc
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import click

from benchmarks.fuzz import server
from benchmarks.fuzz.case import Case
from benchmarks.suite.rows import Gate, Sheet, out_folder, read_file, store
from ift_scale.errors import EnvironmentProblem
from ift_scale.io.progress import say

MODULES = ("configs", "data", "instructions", "machines", "models", "stored")
SHARES = {"model folders": 0.6, "GGUF files": 0.6}
"""Kinds with fewer inputs than others, because theirs take longer."""
_SHOWN = 6
COLUMNS = {
    "read": "read",
    "refused": "refused",
    "unclear": "refused without clear words",
    "traceback": "tracebacks",
    "hang": "hangs",
    "crash": "crashes",
    "silent": "silent",
}


def kinds() -> list[str]:
    """Returns the names of all kinds of input."""
    found = (import_module(f"benchmarks.fuzz.{name}").KINDS for name in MODULES)
    return [kind.name for kinds in found for kind in kinds]


def shares(names: Sequence[str], inputs: int) -> dict[str, int]:
    """Returns the number of inputs by kind, at least `inputs` together."""
    weights = {name: SHARES.get(name, 1.0) for name in names}
    total = sum(weights.values())
    return {name: int(-(-inputs * weight // total)) for name, weight in weights.items()}


def run_here(counts: dict[str, int], first: int = 0, keep: Path | None = None) -> None:
    """Runs inputs of some kinds in this process.

    Prints one JSON line per kind, {"kind": NAME, OUTCOME: COUNT}, after the inputs that were
    neither read nor refused.
    """
    found = [kind for name in MODULES for kind in import_module(f"benchmarks.fuzz.{name}").KINDS]
    chosen = [kind for kind in found if kind.name in counts]
    with tempfile.TemporaryDirectory() as temporary, server.own_cache(Path(temporary)):
        folder = Path(temporary) / "input"
        for kind in chosen:
            for case in kind.valid():
                server.warm(case, folder)
        gc.collect()
        gc.freeze()
        for kind in chosen:
            outcomes: Counter[str] = Counter()
            for number in range(first, first + counts[kind.name]):
                case = kind.make(random.Random(f"{kind.name}/{number}"))
                outcome = server.run(case, folder)
                outcomes[outcome.name] += 1
                if outcome.name not in ("read", "refused"):
                    _report(f"{kind.name}/{number}", case, outcome, keep)
            print(json.dumps({"kind": kind.name, **outcomes}), flush=True)


def _report(name: str, case: Case, outcome: server.Outcome, keep: Path | None) -> None:
    shown = "\n    ".join(outcome.output.strip().splitlines()[-_SHOWN:])
    print(f"{name}: {outcome.name} {case.argv} {case.changed}\n    {shown}", flush=True)
    if keep is not None:
        target = keep / name.replace(" ", "-").replace("/", "-")
        target.mkdir(parents=True)
        case.write(target)


def run_apart(
    counts: dict[str, int], first: int = 0, keep: Path | None = None
) -> dict[str, Counter[str]]:
    """As `run_here` in a process of its own; returns the outcomes by kind."""
    command = [sys.executable, "-m", "benchmarks.bench_fuzz", "--here", json.dumps(counts)]
    command += ["--first", str(first), *(["--keep", str(keep)] if keep is not None else [])]
    found: dict[str, Counter[str]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"kind": '):
                outcomes = json.loads(line)
                kind = outcomes.pop("kind")
                found[kind] = Counter(outcomes)
            print(line, end="", flush=True)
    if process.returncode or found.keys() != counts.keys():
        missing = ", ".join(counts.keys() - found.keys())
        raise EnvironmentProblem(f"the process ended with {process.returncode} before: {missing}")
    return found


def run_all(
    counts: dict[str, int], processes: int = 2, first: int = 0, keep: Path | None = None
) -> dict[str, Counter[str]]:
    """Returns the outcomes by kind; `processes` share the kinds."""
    names = list(counts)
    parts = [{name: counts[name] for name in names[n::processes]} for n in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        found = pool.map(lambda part: run_apart(part, first, keep), filter(None, parts))
        return {name: outcomes for part in found for name, outcomes in part.items()}


@click.command()
@click.option("--inputs", default=10_000, show_default=True, help="Of all kinds together.")
@click.option("--kind", "only", help="Only this kind.")
@click.option("--first", default=0, show_default=True, help="Number of the first input.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for the inputs that fail.")
@click.option("--processes", default=2, show_default=True)
@click.option("--here", help="JSON: number of inputs by kind, to be run in this process.")
@click.option("--repeats", default=1, hidden=True)
@click.option("--quick", is_flag=True, help="20 inputs of each kind.")
def main(
    inputs: int,
    only: str | None,
    first: int,
    keep: Path | None,
    processes: int,
    here: str | None,
    repeats: int,
    quick: bool,
) -> None:
    """Store the counts of `fuzz`; with --kind, those of this kind next to the others."""
    if here is not None:
        run_here(json.loads(here), first, keep)
        sys.stdout.flush()
        os._exit(0)  # libraries report what they leak at exit
    names = kinds() if only is None else [only]
    counts = shares(names, 20 * len(names) if quick else inputs)
    outcomes_of = run_all(counts, processes, first, keep)
    sheet, failed = Sheet("fuzz", quick), 0
    gate = Gate(checked="every input ran to its end or to its limit of 20 s")
    for name in names:
        outcomes = outcomes_of[name]
        failed += outcomes.total() - outcomes["read"] - outcomes["refused"]
        figures = {"inputs": outcomes.total()}
        figures |= {title: outcomes[outcome] for outcome, title in COLUMNS.items()}
        for quantity, count in figures.items():
            sheet.add(name, quantity, "count", [count], gate, better="neither")
    say(f"{failed} inputs were neither read rightly nor refused with words")
    if not first:
        stored = read_file(out_folder(quick) / "fuzz.jsonl")
        others = [row for row in stored if row.case in kinds() and row.case not in names]
        say(f"stored: {store([*others, *sheet.rows], out_folder(quick))}")


if __name__ == "__main__":
    main()
