"""Training compared with TRL's SFTTrainer and the paper's recipe, and an ablation of ours.

    benchmarks/peers/install_trl.sh
    python -m benchmarks.bench_train [--repeats 5] [--slow-repeats 1] [--steps 2] [--resume]

All run on two gloo ranks with ZeRO-2, on the same tokens in the same optimizer steps
(peers/train_set.py), in turn, so that a ratio is of one repeat. First, ours and TRL run some more
steps in float32: their loss curves must agree, or nothing is measured. Then follow the repeats in
`--dtype`, whose losses must agree as well. Seconds are those of whole optimizer steps, including
data, without the first; speed is tokens per second without padding. The paper's recipe and our
ablations run only in the first `--slow-repeats` repeats.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.peers import train_set
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale.io.files import log_tail
from ift_scale.io.progress import say

PEERS = Path(__file__).parent / "peers"
PYTHON = environment("trl")
ABLATIONS = (
    "padding-removal",
    "balance",
    "supervised-rows",
    "last-layer-pruning",
    "prefix-sharing",
)
# Maximum relative difference of a step's loss from ours.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}
# Approximate seconds of a start and of a step on two cores, for the estimate printed first.
ROUGHLY = {"ours": (12, 5), "TRL": (12, 15), "TRL, plain loss": (12, 9), "paper's recipe": (15, 70)}
CHECKED = ("ours", "TRL", "TRL, plain loss")


def peer_command(script: str, *options: str, ranks: int = 2) -> list[str]:
    """Returns a peer's command on `ranks` ranks in its own environment."""
    return [
        str(PYTHON),
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        str(ranks),
        str(PEERS / script),
        *options,
    ]


def commands(
    work: Path, dtype: str, num_steps: int, paper_steps: int, pad_to: int
) -> dict[str, list[str]]:
    """Returns each program's command without its output, the argument after the workload."""
    paper = ["--steps", str(paper_steps), "--of", str(num_steps), "--pad-to", str(pad_to)]
    ours = [sys.executable, "-m", "benchmarks.peers.ours_train", str(work)]
    found = {
        "ours": ours,
        "TRL": peer_command("trl_sft.py", str(work), "--steps", str(num_steps)),
        "TRL, plain loss": peer_command(
            "trl_sft.py", str(work), "--steps", str(num_steps), "--loss", "plain"
        ),
        "paper's recipe": peer_command("hf_trainer.py", str(work), *paper),
    }
    found |= {f"without {name}": [*ours, "--without", name] for name in ABLATIONS}
    return {name: [*command, "--dtype", dtype] for name, command in found.items()}


def run_one(
    name: str, command: Sequence[str], workload: Path, output: Path, resume: bool
) -> dict[str, Any]:
    """Returns the program's result; with `resume` an existing one is used."""
    if not (resume and output.is_file()):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.unlink(missing_ok=True)
        position = command.index(str(workload)) + 1
        log = output.with_suffix(".log")
        environment = {
            **os.environ,
            "DS_ACCELERATOR": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("w") as file:
            whole = [*command[:position], str(output), *command[position:]]
            ended = subprocess.run(whole, stdout=file, stderr=file, env=environment)
        if ended.returncode or not output.is_file():
            raise SystemExit(f"{name} failed; see {log}\n{log_tail(log)}")
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def largest_difference(ours: dict[str, Any], other: dict[str, Any]) -> float:
    """Returns the largest relative difference of a step's loss; exits if the tokens differ."""
    pairs = list(zip(ours["steps"], other["steps"], strict=False))
    for number, (mine, theirs) in enumerate(pairs):
        if any(mine[count] != theirs[count] for count in ("examples", "tokens", "supervised")):
            raise SystemExit(
                f"{other['peer']} had another step {number}: {theirs} instead of {mine}"
            )
    return max(abs(theirs["loss"] / mine["loss"] - 1) for mine, theirs in pairs)


def check_losses(ours: dict[str, Any], other: dict[str, Any], name: str, dtype: str) -> float:
    difference = largest_difference(ours, other)
    if not difference <= TOLERANCE[dtype]:
        raise SystemExit(
            f"{name}: a step's loss differs from ours by {difference:.1e} in {dtype} (tolerance "
            f"{TOLERANCE[dtype]:.0e}): nothing is stored"
        )
    return difference


def speed(result: dict[str, Any], warm_up: int) -> tuple[float, float]:
    """Returns (tokens per second, seconds per step) after the warm-up, if there are more steps."""
    steps = result["steps"][warm_up:] or result["steps"]
    seconds = sum(step["seconds"] for step in steps)
    return sum(step["tokens"] for step in steps) / seconds, seconds / len(steps)


def estimate(
    repeats: int, slow_repeats: int, num_steps: int, paper_steps: int, check_steps: int
) -> float:
    """Returns the approximate minutes."""

    def seconds(name: str, steps: int) -> float:
        start, step = ROUGHLY[name]
        return start + steps * step

    fast = sum(seconds(name, num_steps) for name in CHECKED)
    slow = seconds("paper's recipe", paper_steps) + len(ABLATIONS) * seconds("ours", num_steps)
    check = sum(seconds(name, check_steps) for name in CHECKED)
    return (repeats * fast + min(slow_repeats, repeats) * slow + check) / 60


def prepare(work: Path, num_steps: int, batch: int = 32) -> dict[str, Any]:
    """Creates the workload with this number of steps if it is not there."""
    about = work / "workload.json"
    there: dict[str, Any] = json.loads(about.read_text()) if about.is_file() else {}
    if (there.get("steps"), there.get("batch")) != (num_steps, batch):
        return train_set.create(work, num_steps, batch)
    return there


def file_of(name: str) -> str:
    return name.replace(" ", "-").replace(",", "").replace("'", "")


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--slow-repeats",
    default=1,
    show_default=True,
    help="Repeats of the paper's recipe and of the ablations.",
)
@click.option("--steps", default=2, show_default=True, help="Measured optimizer steps a run.")
@click.option("--warm-up", default=1, show_default=True, help="Steps before them.")
@click.option(
    "--paper-steps",
    default=1,
    show_default=True,
    help="Full steps of the paper's recipe, which takes minutes per step.",
)
@click.option(
    "--pad-to",
    default=2048,
    show_default=True,
    help="Tokens per row in the paper's recipe; the paper's is 2048.",
)
@click.option(
    "--check-steps",
    default=3,
    show_default=True,
    help="Steps of the comparison of losses in float32.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(TOLERANCE)),
    default="float32",
    show_default=True,
    help="Of the timed runs.",
)
@click.option(
    "--work", default=Path("runs/peers"), show_default=True, type=click.Path(path_type=Path)
)
@click.option("--resume", is_flag=True, help="Keep results that an interrupted run has left.")
@click.option(
    "--quick", is_flag=True, help="Ours and TRL with the plain loss, one step after the warm-up."
)
def main(
    repeats: int,
    slow_repeats: int,
    steps: int,
    warm_up: int,
    paper_steps: int,
    pad_to: int,
    check_steps: int,
    dtype: str,
    work: Path,
    resume: bool,
    quick: bool,
) -> None:
    """Measure and store the rows of `train`."""
    if not PYTHON.is_file():
        raise click.UsageError("TRL is not installed; run `python -m benchmarks peers install trl`")
    checked_names: tuple[str, ...] = CHECKED
    if quick:
        repeats, slow_repeats, steps, check_steps, checked_names = (
            1,
            0,
            1,
            2,
            ("ours", "TRL, plain loss"),
        )
    num_steps = warm_up + steps
    minutes = estimate(repeats, slow_repeats, num_steps, paper_steps, check_steps)
    say(f"about {minutes:.0f} minutes on two cores that nobody else uses")
    results = work / "train-results"

    checked, check_work = {}, work / "train-check"
    prepare(check_work, check_steps)
    check_commands = commands(check_work, "float32", check_steps, 1, pad_to)
    for name in checked_names:
        checked[name] = run_one(
            name, check_commands[name], check_work, results / f"check-{file_of(name)}.json", resume
        )
        losses = ", ".join(f"{loss:.5f}" for loss in checked[name]["losses"])
        say(f"float32: {name}: losses {losses}")
    for name, found in checked.items():
        check_losses(checked["ours"], found, name, "float32")

    timed: dict[str, list[dict[str, Any]]] = {}
    timed_work = work / "train"
    about = prepare(timed_work, num_steps)
    for repeat in range(repeats):
        for name, command in commands(timed_work, dtype, num_steps, paper_steps, pad_to).items():
            if name not in checked_names and repeat >= slow_repeats:
                continue
            found = run_one(
                name, command, timed_work, results / f"{file_of(name)}-{repeat}.json", resume
            )
            timed.setdefault(name, []).append(found)
            check_losses(timed["ours"][repeat], found, name, dtype)
            tokens, seconds = speed(found, warm_up)
            say(f"repeat {repeat}: {name}: {tokens:.0f} tokens/s, {seconds:.2f} s per step")
    curves = {name: found["losses"] for name, found in checked.items()}
    sheet = rows_of(Sheet("train", quick), timed, warm_up, dtype, about, curves)
    say(f"stored: {sheet.store()}")


def rows_of(
    sheet: Sheet,
    timed: dict[str, list[dict[str, Any]]],
    warm_up: int,
    dtype: str,
    workload: dict[str, Any],
    curves: dict[str, list[float]],
) -> Sheet:
    rates = {name: [speed(found, warm_up)[0] for found in each] for name, each in timed.items()}
    for name, each in timed.items():
        gap = max(
            largest_difference(ours, other)
            for ours, other in zip(timed["ours"], each, strict=False)
        )
        gate = Gate(
            checked="relative difference of a step's loss from ours",
            gap=gap,
            tolerance=TOLERANCE[dtype],
        )
        about = {
            "workload": workload,
            "settings": each[0]["settings"],
            "versions": each[0]["versions"],
            "losses": each[0]["losses"],
            "longer_losses": curves.get(name, []),
        }
        others = (
            {other: values for other, values in rates.items() if other != name}
            if name == "ours"
            else {}
        )
        against = ratios(rates[name], others, "higher")
        sheet.add(
            dtype,
            "tokens per second",
            "1/s",
            rates[name],
            gate,
            name,
            "higher",
            ratios=against,
            about=about,
        )
        sheet.add(
            dtype, "seconds per step", "s", [speed(found, warm_up)[1] for found in each], gate, name
        )
    return sheet


if __name__ == "__main__":
    main()
