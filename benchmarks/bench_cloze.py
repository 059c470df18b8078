"""Which score of option texts is best calibrated, and whether both engines give the same.

    python -m benchmarks.bench_cloze [--model models/smollm2] [--quick] [--repeats 1]

Asks the dev questions of the built-in facts that are no demonstrations, few-shot. The scores are
those of `ift_scale.scoring.cloze`; letters are measured on the same questions. configs/real.yaml
uses the score with the lowest negative log-likelihood of the right option.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

from benchmarks.suite.rows import Gate, Sheet
from ift_scale.config import FactsSource, ProbeConfig, ReliabilityConfig
from ift_scale.config.engines import EngineName
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec
from ift_scale.io.manifests import file_digest
from ift_scale.io.progress import say
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import facts
from ift_scale.records import Question
from ift_scale.scoring.cloze import Cloze, FewShotTexts
from ift_scale.scoring.letters import FewShot, LetterAsker
from ift_scale.scoring.scores import ChoiceScores

TOLERANCE = 1e-3
MODEL = Path("models/smollm2")
QUANTITIES = (("accuracy", "%"), ("negative log-likelihood", "nats"), ("calibration error", ""))


def asked(quick: bool) -> tuple[list[Question], list[Question]]:
    """Returns the dev questions with options, and those of them that are asked."""
    dev = [
        question
        for question in facts.load(FactsSource(kind="facts"), 0)
        if (question.kind, question.collection, question.split) == ("choice", "pool", "dev")
    ]
    shown = Demonstrations(dev, 5, 42)
    chosen = [question for question in dev if question not in shown.of(question)]
    return dev, chosen[:: 8 if quick else 1]


def largest_gap(first: pa.Table, second: pa.Table) -> float:
    """Returns the largest difference of any log-probability of two engines, in nats."""
    gaps = []
    for name in ("logprobs", "cloze", "empty"):
        a, b = (np.asarray(table[name].combine_chunks().flatten()) for table in (first, second))
        gaps.append(np.abs(a - b).max())
    return float(max(gaps))


def table_of(
    name: EngineName, model: Path, questions: list[Question], asker: LetterAsker, log: Path
) -> pa.Table:
    engine = EngineProcess(EngineSpec(str(model), "float32", ProbeConfig(engine=name)), log).ready()
    try:
        return asker.ask(engine, asker.write(questions))
    finally:
        engine.close()


@click.command()
@click.option("--model", type=click.Path(path_type=Path, exists=True), default=MODEL)
@click.option("--quick", is_flag=True, help="Every eighth question.")
@click.option("--repeats", default=1, show_default=True, help="Ignored: nothing is timed.")
def main(model: Path, quick: bool, repeats: int) -> None:
    """Store the rows of `cloze`."""
    dev, questions = asked(quick)
    tokenizer, shown = PromptTokenizer(model), Demonstrations(dev, 5, 42)
    texts = Cloze(FewShotTexts(tokenizer, shown), "pmi")
    asker = LetterAsker(FewShot(tokenizer, shown), plain, texts)
    compared = questions[::16]
    with tempfile.TemporaryDirectory() as logs:
        table = table_of("transformers", model, questions, asker, Path(logs) / "transformers.log")
        other = table_of("vllm", model, compared, asker, Path(logs) / "vllm.log")
    gap = largest_gap(table.take(list(range(0, len(questions), 16))), other)
    checked = f"log-probabilities of vllm and transformers, {len(compared)} questions, nats"
    gate = Gate(checked=checked, gap=gap, tolerance=TOLERANCE)
    if gap > TOLERANCE:
        raise SystemExit(f"vllm and transformers differ by {gap:.2g} nats: nothing is stored")
    sheet = Sheet("cloze", quick)
    about = {"model": file_digest(model / "model.safetensors")}
    for domain in [*sorted({question.domain for question in questions}), "all"]:
        rows = [n for n, q in enumerate(questions) if domain in (q.domain, "all")]
        for name, values in measures(table.take(rows)).items():
            case = f"{domain}, {len(rows)} questions"
            for (quantity, unit), value in zip(QUANTITIES, values, strict=True):
                sheet.add(case, quantity, unit, [value], gate, name, "neither", about=about)
            say(f"{case:30} {name:8} " + "  ".join(f"{value:.3f}" for value in values))
    say(f"stored in {sheet.store()}; the engines differ by at most {gap:.1e} nats")


def measures(table: pa.Table) -> dict[str, tuple[float, float, float]]:
    """Returns the values of QUANTITIES by letters and by each score of the texts."""
    scores = ChoiceScores(ReliabilityConfig(cloze="pmi"))
    rows = scores.rows(table).to_pylist()
    found = scores.summary.as_json(scores.prior)
    nll = float(-np.log([row["probs"][row["answer"]] for row in rows]).mean())
    by_measure = {"letters": found | {"nll": nll}} | found["cloze"]["scores"]
    return {name: (100 * v["accuracy"], v["nll"], v["ece"]) for name, v in by_measure.items()}


if __name__ == "__main__":
    main()
