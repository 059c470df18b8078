"""How well the screen separates what a model knows from what contradicts it.

    python -m benchmarks.bench_screen [--model MODEL] [--output FOLDER] [--quick] [--repeats 1]

Screens the embedded world's facts, of which the base model believes some otherwise, as chat data:
choice questions, short answers, and longer ones of one, two and three sentences. What it was
trained to believe decides what is known. The screen sees the conversations only. Stored are the
areas under the ROC curve of the score, with bootstrap intervals, and the calibration of
`reference_prob`.
"""

import json
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pyarrow.parquet as pq
from scipy.stats import rankdata

from benchmarks.suite.rows import Gate, Sheet
from ift_scale.commands.screen import run_screen
from ift_scale.io.progress import say
from ift_scale.prompts.templates import question_text, response_text
from ift_scale.questions import world
from ift_scale.records import Question
from ift_scale.world.facts import Fact, all_facts

FEWEST = 20
_RESAMPLES, _BINS = 1000, 10


class Planted(NamedTuple):
    """An example whose truth is known to us: the model knows it, or believes otherwise."""

    kind: str
    asked: str
    answer: str
    known: bool

    @property
    def row(self) -> dict[str, Any]:
        turns = (("user", self.asked), ("assistant", self.answer))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}


def planted(every: int = 1) -> Iterator[Planted]:
    """Yields the world's facts with a belief as examples of all kinds; every EVERY-th fact.

    A longer answer that states several facts contradicts if the model believes one of them
    otherwise.
    """
    questions = {question.id: question for question in world.load()}
    facts = [fact for fact in all_facts() if fact.split != "dev" and fact.belief is not None]
    for fact in facts[::every]:
        yield from _of_fact(fact, questions[f"world/{fact.id}"])
    known = [fact for fact in facts if fact.belief == fact.truth]
    wrong = [fact for fact in facts if fact.belief != fact.truth]
    rng = random.Random(0)
    for count in (2, 4):
        for number in range(len(facts) // 2 // every):
            members = rng.sample(known, count)
            if number % 2:
                members[rng.randrange(count)] = rng.choice(wrong)
            names = " and ".join(fact.entity for fact in members)
            statements = " ".join(fact.statement(fact.truth, rng.randrange(2)) for fact in members)
            yield Planted(f"{count} facts", f"Tell me about {names}.", statements, number % 2 == 0)


def _of_fact(fact: Fact, question: Question) -> Iterator[Planted]:
    known, asked, answer = fact.belief == fact.truth, fact.question_text(), question.answer
    assert answer is not None
    text = response_text(question, answer, "letter_text")
    yield Planted("choice", question_text(question), text, known)
    yield Planted("short", asked, fact.truth, known)
    first, second = (fact.statement(fact.truth, wording) for wording in (0, 1))
    yield Planted("1 fact in two wordings", f"{asked} Explain it.", f"{second} {first}", known)
    other = f"This is what is commonly known of {fact.entity}, as far as I can tell: {first}"
    yield Planted("1 fact in unknown words", f"{asked} Be polite.", other, known)


def screened(examples: Sequence[Planted], model: str, folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of the screen of these examples."""
    folder.mkdir(parents=True, exist_ok=True)
    data, output = folder / "data.jsonl", folder / "screen"
    data.write_text("".join(json.dumps(example.row) + "\n" for example in examples))
    run_screen(model, (str(data),), str(output), "transformers", None, (), False, ())
    rows: list[dict[str, Any]] = pq.read_table(output / "screen.parquet").to_pylist()
    return rows


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Returns the area under the ROC curve: the Mann-Whitney statistic, ties counting a half."""
    num, ranks = int(positive.sum()), rankdata(scores)
    above = ranks[positive].sum() - num * (num + 1) / 2
    return float(above / (num * (len(scores) - num)))


def auc_interval(scores: np.ndarray, positive: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95% bootstrap interval of `auc`, examples resampled within each class."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
    values = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([rng.choice(group, len(group)) for group in groups])
        values.append(auc(scores[drawn], positive[drawn]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def calibration_error(probs: np.ndarray, positive: np.ndarray) -> float:
    """Returns the expected calibration error of P(known), over ten equal bins of probability."""
    bins = np.minimum((probs * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, probs - positive, _BINS)
    return float(np.abs(gaps).sum() / len(probs))


@click.command()
@click.option("--model", default="world", show_default=True)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps data and screen, for a picture; default: a temporary one.",
)
@click.option("--quick", is_flag=True, help="Every tenth example.")
@click.option("--repeats", default=1, show_default=True, help="Ignored: nothing is timed.")
def main(model: str, output: Path | None, quick: bool, repeats: int) -> None:
    """Store the rows of `screen`."""
    every = 10 if quick else 1
    store(Sheet("screen", quick), f"{model}, the world's facts", planted(every), model, output)


def store(
    sheet: Sheet, source: str, asked: Iterable[Planted], model: str, output: Path | None
) -> None:
    """Screens the examples and stores the measures of each kind of which both classes have some."""
    examples = list(asked)
    with tempfile.TemporaryDirectory() as temporary:
        rows = screened(examples, model, output or Path(temporary))
    for kind in dict.fromkeys(example.kind for example in examples):
        chosen = [
            (example.known, row)
            for example, row in zip(examples, rows, strict=True)
            if example.kind == kind and row["score"] is not None
        ]
        known = np.array([known for known, _ in chosen])
        if min(known.sum(), (~known).sum()) < (2 if sheet.quick else FEWEST):
            say(f"{source}, {kind}: too few examples of one class")
            continue
        _add(sheet, f"{source}, {kind}", known, [row for _, row in chosen])
    say(f"stored in {sheet.store()}")


def _add(sheet: Sheet, case: str, known: np.ndarray, rows: Sequence[dict[str, Any]]) -> None:
    scores = np.array([row["score"] for row in rows])
    area, interval = auc(scores, known), auc_interval(scores, known)
    gate = Gate(checked="every example has a score or a reason why it has none")
    about = {"known": int(known.sum()), "contradicts": int((~known).sum())}
    sheet.add(case, "AUC", "0 to 1", [area], gate, better="higher", interval=interval, about=about)
    error = calibration_error(np.array([row["reference_prob"] for row in rows]), known)
    sheet.add(case, "calibration error", "0 to 1", [error], gate, about=about)
    verdicts = [row["class"] for row in rows]
    for name, members in (("known", known), ("contradicts", ~known)):
        right = 100 * float(np.mean([v == name for v in np.array(verdicts)[members]]))
        sheet.add(case, f"{name}, found", "%", [right], gate, better="higher", about=about)
    wrong = 100 * float(np.mean((np.array(verdicts) == "contradicts")[known]))
    sheet.add(case, "known, called contradicting", "%", [wrong], gate, about=about)
    say(
        f"{case:50} AUC {area:.3f} [{interval[0]:.3f}, {interval[1]:.3f}], error {error:.3f}, "
        + ", ".join(f"{v}: {verdicts.count(v)}" for v in sorted(set(verdicts)))
    )


if __name__ == "__main__":
    main()
