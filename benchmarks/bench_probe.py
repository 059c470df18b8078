"""The probe compared with the authors' loop and lm-evaluation-harness (hf and vllm backends).

    benchmarks/peers/install.sh
    python -m benchmarks.bench_probe [--repeats 5] [--dtype float32 --dtype bfloat16] [--part 60]
        [--resume]

All programs run in turn. In each repeat the peers get another part of the prompts (whole MMLU
subjects, evenly distributed) and ours gets all prompts, because its speed comes from sharing a
subject's prefix. Every program writes the same kind of file (peers/README.md). Seconds are those of
scoring only: token ids in, probabilities out.

The authors' loop runs in two forms: as released, with each letter tokenized on its own, and with
the letters' tokens as they are in the prompt, which all others use. A speed is stored only if the
tokens are those of the second form and the predictions agree with it in float32 on the common
questions. For the first form the agreement is only reported.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from benchmarks.peers import model as peers_model
from benchmarks.peers import prompts as peers_prompts
from benchmarks.suite.registry import environment
from benchmarks.suite.rows import Gate, Sheet, ratios
from ift_scale.io.progress import say

PEERS = Path(__file__).parent / "peers"
LM_EVAL = environment("lm-eval")
LEAST_AGREEMENT = {"float32": 0.995, "bfloat16": 0.9}
RELEASED, IN_PROMPT = "authors' loop", "authors' loop, letters in the prompt"
REFERENCE = f"{IN_PROMPT} float32"
CHECKED = (
    "share of predictions other than in float32 by the authors' loop with the letters in the prompt"
)
SIDES = ("ours transformers", "ours vllm")
OTHERS = (RELEASED, IN_PROMPT, "lm-eval hf", "lm-eval vllm")


def commands(
    work: Path, dtypes: tuple[str, ...], everything: Path, part: Path, few: Path, repeat: int
) -> dict[str, tuple[list[str], Path]]:
    """Returns (command, its output) by name.

    `part` is this repeat's share of the prompts, `few` a smaller share of those.
    """
    module = [sys.executable, "-m"]
    lm_eval = [str(LM_EVAL), str(PEERS / "lm_eval" / "run.py")]
    found: dict[str, tuple[list[str], Path]] = {}

    def add(who: str, program: list[str], prompts: Path, *options: str) -> None:
        for dtype in dtypes:
            name = f"{who} {dtype}"
            output = work / "results" / f"{file_of(name)}-{repeat}.json"
            paths = map(str, (prompts, work / "model", output))
            found[name] = [*program, *paths, *options, "--dtype", dtype], output

    for engine in ("transformers", "vllm"):
        ours = [*module, "benchmarks.peers.ours"]
        add(f"ours {engine}", ours, everything, "--engine", engine)
    for form, letters in ((RELEASED, "alone"), (IN_PROMPT, "in-prompt")):
        add(form, [*module, "benchmarks.peers.authors_loop"], part, "--letters", letters)
    add("lm-eval hf", [*lm_eval, "hf"], part)
    add("lm-eval vllm", [*lm_eval, "vllm"], few)
    return found


def file_of(name: str) -> str:
    return name.replace(" ", "-").replace("'", "").replace(",", "")


def run_one(name: str, command: list[str], output: Path, resume: bool) -> dict[str, Any]:
    """Returns the program's result; with `resume` an existing one is used."""
    if not (resume and output.is_file()):
        output.parent.mkdir(parents=True, exist_ok=True)
        log = output.with_suffix(".log")
        with log.open("w") as file:
            ended = subprocess.run(command, stdout=file, stderr=file)
        if ended.returncode:
            raise SystemExit(f"{name} failed; see {log}")
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def compare(
    first: dict[str, dict[str, Any]], other: dict[str, Any], same_tokens: bool = True
) -> dict[str, float]:
    """Returns the agreement with the answers in `first` on the common questions.

    Exits if the tokens differ, unless they may.
    """
    same, difference, questions = 0, 0.0, 0
    for answer in other["answers"]:
        if answer["id"] not in first:
            continue
        reference = first[answer["id"]]
        if same_tokens and reference["tokens_sha256"] != answer["tokens_sha256"]:
            raise SystemExit(f"{other['peer']} was given other tokens for {answer['id']}")
        questions += 1
        same += reference["prediction"] == answer["prediction"]
        pairs = zip(reference["probabilities"], answer["probabilities"], strict=True)
        difference = max(difference, *(abs(a - b) for a, b in pairs))
    return {
        "questions": questions,
        "agreement": same / questions,
        "largest_probability_difference": difference,
    }


def parts(
    work: Path, everything: Path, repeats: int, part: int, few: int
) -> list[tuple[Path, Path]]:
    lines = everything.read_text().splitlines(keepends=True)
    found = []
    for repeat in range(repeats):
        mine = lines[repeat::repeats]
        mine = mine[:: max(1, len(mine) // part)][:part]
        paths = work / f"part{repeat}.jsonl", work / f"few{repeat}.jsonl"
        paths[0].write_text("".join(mine))
        paths[1].write_text("".join(mine[:: max(1, len(mine) // few)][:few]))
        found.append(paths)
    return found


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(list(LEAST_AGREEMENT)),
    default=list(LEAST_AGREEMENT),
    show_default=True,
)
@click.option("--part", default=60, show_default=True, help="Questions per repeat for the peers.")
@click.option(
    "--few",
    default=8,
    show_default=True,
    help="Of those, for lm-eval's vllm backend, which takes seconds per question.",
)
@click.option(
    "--work", default=Path("runs/peers"), show_default=True, type=click.Path(path_type=Path)
)
@click.option("--resume", is_flag=True, help="Keep results that an interrupted run has left.")
@click.option("--quick", is_flag=True, help="24 questions, 4 for the peers.")
def main(
    repeats: int,
    dtypes: tuple[str, ...],
    part: int,
    few: int,
    work: Path,
    resume: bool,
    quick: bool,
) -> None:
    """Measure and store the rows of `probe`."""
    if not LM_EVAL.is_file():
        raise click.UsageError(
            "lm-evaluation-harness is not installed; run "
            "`python -m benchmarks peers install lm-eval`"
        )
    peers_model.create(work / "model")
    everything = work / "prompts.jsonl"
    if not everything.exists():
        peers_prompts.create(everything, work / "model")
    if quick:
        everything, part, few = work / "prompts-quick.jsonl", 4, 1
        lines = (work / "prompts.jsonl").read_text().splitlines(keepends=True)
        everything.write_text("".join(lines[:: len(lines) // 24][:24]))
    results: dict[str, list[dict[str, Any]]] = {}
    for repeat, (mine, small) in enumerate(parts(work, everything, repeats, part, few)):
        # The reference for the predictions is always in float32.
        found = commands(
            work, tuple(dict.fromkeys(("float32", *dtypes))), everything, mine, small, repeat
        )
        for name, (command, output) in found.items():
            if name.rpartition(" ")[2] not in dtypes and name != REFERENCE:
                continue
            results.setdefault(name, []).append(run_one(name, command, output, resume))
            say(
                f"repeat {repeat}: {name}: {results[name][-1]['questions_per_second']:.2f} "
                "questions per second"
            )
    say(f"stored: {rows_of(results, dtypes, quick).store()}")


def gate_of(
    reference: dict[str, dict[str, Any]], name: str, each: list[dict[str, Any]]
) -> tuple[Gate, float]:
    """Returns (a program's gate, its largest difference of probabilities).

    Exits if its predictions differ too often. The released form may read other tokens, so its
    agreement is not required.
    """
    who, _, dtype = name.rpartition(" ")
    compared = [compare(reference, found, same_tokens=who != RELEASED) for found in each]
    least, tolerance = min(row["agreement"] for row in compared), LEAST_AGREEMENT[dtype]
    if least < tolerance and who != RELEASED:
        raise SystemExit(
            f"{name}: predictions differ from the authors' loop on {1 - least:.1%} of the "
            "questions: nothing is stored"
        )
    gate = Gate(
        checked=CHECKED, gap=1 - least, tolerance=None if who == RELEASED else 1 - tolerance
    )
    return gate, max(row["largest_probability_difference"] for row in compared)


def rows_of(
    results: dict[str, list[dict[str, Any]]], dtypes: tuple[str, ...], quick: bool
) -> Sheet:
    reference = {
        answer["id"]: answer for found in results[REFERENCE] for answer in found["answers"]
    }
    sheet = Sheet("probe", quick)
    for dtype in dtypes:
        rates = {
            who: [f["questions_per_second"] for f in results[f"{who} {dtype}"]]
            for who in (*SIDES, *OTHERS)
        }
        for who, values in rates.items():
            each = results[f"{who} {dtype}"]
            gate, difference = gate_of(reference, f"{who} {dtype}", each)
            answers = each[0]["answers"]
            about = {
                "questions": len(answers),
                "mean_prompt_tokens": sum(answer["prompt_tokens"] for answer in answers)
                / len(answers),
                "largest_probability_difference": difference,
                "seconds": each[-1]["seconds"],
            }
            others = {name: rates[name] for name in OTHERS} if who in SIDES else {}
            against = ratios(values, others, "higher")
            sheet.add(
                dtype,
                "questions per second",
                "1/s",
                values,
                gate,
                who,
                "higher",
                ratios=against,
                about=about,
            )
    return sheet


if __name__ == "__main__":
    main()
