"""The probe against what a user would otherwise run: the authors' loop, and lm-evaluation-harness with its hf and vllm backends.

    benchmarks/peers/install.sh
    python benchmarks/bench_probe.py [--repeats 5] [--resume]

In one run, in turn: each repeat takes another part of the prompts for the peers (whole MMLU subjects dealt out evenly, so over all
repeats every question is asked by the authors' loop), and all prompts for ours. Every program gives the same kind of file
(peers/README.md); seconds are those of scoring alone, token ids in, probabilities out. A speed is stored only where the tokens
asked were the same and the predictions agree; each program's answers are compared with the authors' loop's in float32.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))

from rows import quantiles, store

from ift_scale.progress import say

PEERS = Path(__file__).parent / "peers"
LM_EVAL = PEERS / ".venv" / "bin" / "python"
LEAST_AGREEMENT = {"float32": 0.995, "bfloat16": 0.9}


def commands(work: Path, part: Path, few: Path, repeat: int) -> dict[str, tuple[list[str], Path]]:
    """(command without its output, output) by name. `part` is this repeat's fifth of the prompts, `few` some of those."""
    model, everything = str(work / "model"), str(work / "prompts.jsonl")
    lm_eval = [str(LM_EVAL), str(PEERS / "lm_eval" / "run.py")]
    found: dict[str, list[str]] = {}
    for dtype in ("float32", "bfloat16"):
        for engine in ("transformers", "vllm"):
            found[f"ours {engine} {dtype}"] = [sys.executable, str(PEERS / "ours.py"), everything, model, "--engine", engine]
        found[f"authors {dtype}"] = [sys.executable, str(PEERS / "authors_loop.py"), str(part), model]
        found[f"lm-eval hf {dtype}"] = [*lm_eval, "hf", str(part), model]
        found[f"lm-eval vllm {dtype}"] = [*lm_eval, "vllm", str(few), model]
    return {
        name: ([*command, "--dtype", name.rpartition(" ")[2]], work / "results" / f"{name.replace(' ', '-')}-{repeat}.json")
        for name, command in found.items()
    }


def run_one(name: str, command: list[str], output: Path, resume: bool) -> dict[str, Any]:
    """The program's result; `resume` takes one that is there."""
    if not (resume and output.is_file()):
        output.parent.mkdir(parents=True, exist_ok=True)
        (program, script), rest = command[:2], command[2:]
        place = 3 if script.endswith("run.py") else 2  # the output stands behind the prompts and the model
        log = output.with_suffix(".log")
        with log.open("w") as file:
            ended = subprocess.run([program, script, *rest[:place], str(output), *rest[place:]], stdout=file, stderr=file)
        if ended.returncode:
            raise SystemExit(f"{name} failed; see {log}")
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def compare(first: dict[str, dict[str, Any]], other: dict[str, Any]) -> dict[str, float]:
    """Agreement with the answers in `first` on the questions that both were asked; ends where other tokens were asked."""
    same, difference, questions = 0, 0.0, 0
    for answer in other["answers"]:
        reference = first[answer["id"]]
        if reference["tokens_sha256"] != answer["tokens_sha256"]:
            raise SystemExit(f"{other['peer']} was asked other tokens for {answer['id']}")
        questions += 1
        same += reference["prediction"] == answer["prediction"]
        pairs = zip(reference["probabilities"], answer["probabilities"], strict=True)
        difference = max(difference, *(abs(a - b) for a, b in pairs))
    return {"questions": questions, "agreement": same / questions, "largest_probability_difference": difference}


def parts(work: Path, repeats: int, few: int) -> list[tuple[Path, Path]]:
    lines = (work / "prompts.jsonl").read_text().splitlines(keepends=True)
    found = []
    for repeat in range(repeats):
        mine = lines[repeat::repeats]
        paths = work / f"part{repeat}.jsonl", work / f"few{repeat}.jsonl"
        paths[0].write_text("".join(mine))
        paths[1].write_text("".join(mine[:: max(1, len(mine) // few)][:few]))
        found.append(paths)
    return found


@click.command()
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--few", default=12, show_default=True, help="Questions a repeat for lm-eval's vllm backend, which takes seconds each."
)
@click.option("--work", default=Path("runs/peers"), show_default=True, type=click.Path(path_type=Path))
@click.option("--resume", is_flag=True, help="Keep results that an interrupted run has left.")
def main(repeats: int, few: int, work: Path, resume: bool) -> None:
    """Measure and store benchmarks/results/probe.json."""
    if not LM_EVAL.is_file():
        raise click.UsageError("lm-evaluation-harness is not installed; run benchmarks/peers/install.sh")
    for script, options in (("model.py", [str(work / "model")]), ("prompts.py", [str(work / "prompts.jsonl")])):
        if not Path(options[0]).exists():
            more = ["--model", str(work / "model")] if script == "prompts.py" else []
            subprocess.run([sys.executable, str(PEERS / script), *options, *more], check=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for repeat, (part, small) in enumerate(parts(work, repeats, few)):
        for name, (command, output) in commands(work, part, small, repeat).items():
            results.setdefault(name, []).append(run_one(name, command, output, resume))
            say(f"repeat {repeat}: {name}: {results[name][-1]['questions_per_second']:.2f} questions a second")
    store_all(results, repeats)


def store_all(results: dict[str, list[dict[str, Any]]], repeats: int) -> None:
    reference = {answer["id"]: answer for found in results["authors float32"] for answer in found["answers"]}
    rates = {name: [found["questions_per_second"] for found in each] for name, each in results.items()}
    agreement = {name: [compare(reference, found) for found in each] for name, each in results.items()}
    for name, each in agreement.items():
        least = min(row["agreement"] for row in each)
        if least < LEAST_AGREEMENT[name.rpartition(" ")[2]]:
            raise SystemExit(
                f"{name} predicts otherwise than the authors' loop on {1 - least:.1%} of the questions: nothing is stored"
            )
    ratios = {}
    for dtype in ("float32", "bfloat16"):
        for peer in ("authors", "lm-eval hf", "lm-eval vllm"):
            for engine in ("transformers", "vllm"):
                pairs = zip(rates[f"ours {engine} {dtype}"], rates[f"{peer} {dtype}"], strict=True)
                ratios[f"ours {engine} / {peer}, {dtype}"] = quantiles([ours / theirs for ours, theirs in pairs])
    rows = {
        "questions": len(reference),
        "mean_prompt_tokens": sum(a["prompt_tokens"] for a in reference.values()) / len(reference),
        "questions_per_second": {name: quantiles(found) for name, found in rates.items()},
        "ratios": ratios,
        "against_authors_float32": {name: each[-1] for name, each in agreement.items()},
        "seconds": {name: each[-1]["seconds"] for name, each in results.items()},
    }
    print(store("probe", rows).read_text())


if __name__ == "__main__":
    main()
