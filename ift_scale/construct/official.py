"""The authors' released sets (github.com/renmengjie7/Self-Aligning) as input: their rows as our records, and what holds of them.

Example row, cut short:
    {"id": 6468, "question": "...", "choices": ["...", "...", "...", "..."], "answer": 1, "explanation": "...", "correct": false,
     "pred": 0, "probs": [0.920, 0.022, 0.018, 0.040], "golden_prob": 0.022, "pred_prob": 0.920, "output": 1}
A set's rows are of MODEL/DOMAIN/FILE.jsonl (.gz too); S has its explanation in `model_exp`. Files that are missing are left aside.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl
from ift_scale.prompts.templates import chat_messages, response_text
from ift_scale.records import LETTERS, Example, ExampleMeta, Message, Question, Score

FILES = {
    "harmonious": "consistent-correct-exp-sample",
    "incompatible": "inconsistent-golden-exp",
    "self_aligning": "inconsistent-predict-model-exp",
}
THRESHOLD = 0.5
Style = Literal["letter", "letter_text", "letter_text_explanation"]

Filled = Annotated[str, Field(min_length=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Row(BaseModel):
    """A line of the release."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    id: int | str
    question: Filled
    choices: Annotated[list[Filled], Field(min_length=2, max_length=len(LETTERS))]
    answer: Annotated[int, Field(ge=0)]
    correct: bool
    pred: Annotated[int, Field(ge=0)]
    probs: list[Probability]
    golden_prob: Probability
    pred_prob: Probability
    explanation: str | None = None
    model_exp: str | None = None
    output: int | None = None


@dataclass(frozen=True)
class Imported:
    """One example of a set: `target` is the option that it teaches, `text` its explanation (empty where the authors have none).

    `output` is the option that the file names as the row's output, `place` the file and line that the row comes from.
    """

    question: Question
    score: Score
    target: int
    text: str
    golden_prob: float
    output: int | None
    place: Place


Sets = dict[str, dict[str, list[Imported]]]
"""By domain and setting."""


def available(folder: Path) -> dict[str, list[str]]:
    """The settings of each domain whose sets a model's folder has."""
    if not folder.is_dir():
        raise DataError(
            Place(folder), "no such folder", "Give the folder of a model, official_groups/MODEL"
        )
    found: dict[str, list[str]] = {}
    for domain in sorted(path for path in folder.iterdir() if path.is_dir()):
        for setting, stem in FILES.items():
            if jsonl.exists(domain, stem):
                found.setdefault(domain.name, []).append(setting)
    if not found:
        names = ", ".join(f"DOMAIN/{stem}.jsonl" for stem in FILES.values())
        raise DataError(
            Place(folder),
            f"holds none of {names} (.gz too)",
            "Give the folder of a model, official_groups/MODEL",
        )
    return found


def load(folder: Path) -> Sets:
    """The sets of one model's folder; DataError names the file, line and field of anything wrong."""
    return {
        domain: {
            setting: _rows(
                jsonl.find(folder / domain, FILES[setting]),
                f"official/{folder.name}/{domain}",
                domain,
                setting,
            )
            for setting in settings
        }
        for domain, settings in available(folder).items()
    }


def _rows(path: Path, prefix: str, domain: str, setting: str) -> list[Imported]:
    made: dict[str, Imported] = {}
    for number, fields in jsonl.rows(path):
        place = Place(path, number)
        imported = _imported(_checked(place, fields), place, prefix, domain, setting)
        if imported.question.id in made:
            raise DataError(
                Place(path, number, "id"),
                "stands already in this file",
                "Remove one of the rows",
                fields["id"],
            )
        made[imported.question.id] = imported
    if not made:
        raise DataError(Place(path), "holds no row", "Fetch the file again, or remove it")
    return list(made.values())


def _checked(place: Place, fields: dict[str, object]) -> Row:
    try:
        row = Row.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        value = None if first["type"] == "missing" else first["input"]
        raise DataError(
            Place(place.file, place.line, field), first["msg"], "Fix or remove the row", value
        ) from error
    for field in ("answer", "pred"):
        if getattr(row, field) >= len(row.choices):
            problem = f"is out of range: there are {len(row.choices)} options"
            raise DataError(
                Place(place.file, place.line, field),
                problem,
                "Fix or remove the row",
                getattr(row, field),
            )
    for field, texts in (("question", [row.question]), ("choices", row.choices)):
        if not all(text.strip() for text in texts):
            problem = (
                "must be a text that is not empty" if field == "question" else "an option is empty"
            )
            raise DataError(
                Place(place.file, place.line, field),
                problem,
                "Fix or remove the row",
                getattr(row, field),
            )
    if len(row.probs) != len(row.choices):
        problem = f"must hold a probability for each of the {len(row.choices)} options"
        raise DataError(
            Place(place.file, place.line, "probs"), problem, "Fix or remove the row", row.probs
        )
    return row


def _imported(row: Row, place: Place, prefix: str, domain: str, setting: str) -> Imported:
    field = "model_exp" if setting == "self_aligning" else "explanation"
    text = row.model_exp if setting == "self_aligning" else row.explanation
    if text is None:
        raise DataError(
            Place(place.file, place.line, field),
            "missing",
            "Add it (empty where there is none), or remove the row",
        )
    question = Question(
        id=f"{prefix}/{row.id}",
        domain=domain,
        subject=domain,
        collection="pool",
        split="train",
        question=row.question,
        choices=row.choices,
        answer=row.answer,
        explanation=row.explanation or None,
    )
    score = Score(
        question_id=question.id,
        domain=domain,
        subject=domain,
        collection="pool",
        split="train",
        answer=row.answer,
        logprobs=None,
        probs=row.probs,
        letter_mass=None,
        prediction=row.pred,
        confidence=row.pred_prob,
        correct=row.correct,
    )
    target = row.pred if setting == "self_aligning" else row.answer
    return Imported(question, score, target, text.strip(), row.golden_prob, row.output, place)


def examples(imported: Sequence[Imported], setting: str, style: Style) -> list[Example]:
    """A set's rows as training examples, the explanation on the line behind the option, where `style` has one and the row too."""
    return [_example(item, setting, style) for item in imported]


def _example(item: Imported, setting: str, style: str) -> Example:
    response = response_text(item.question, item.target, style)
    wording: Literal["dataset", "external", "base_model"] = (
        "base_model" if setting == "self_aligning" else "dataset"
    )
    if style == "letter_text_explanation" and item.text:
        response = f"{response}\n{item.text}"
        wording = "base_model" if setting == "self_aligning" else "external"
    meta = ExampleMeta(
        setting=setting,
        question_id=item.question.id,
        domain=item.question.domain,
        target=LETTERS[item.target],
        consistent=item.target == item.score.prediction,
        wording=wording,
    )
    return Example(
        messages=[*chat_messages(item.question), Message(role="assistant", content=response)],
        meta=meta,
    )


def content(question: Question) -> tuple[str, ...]:
    """The same for questions that differ only in case, blanks and the order of their options."""
    text, *options = (
        " ".join(part.casefold().split()) for part in (question.question, *question.choices)
    )
    return (text, *sorted(options))


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def names_text(text: str, option: str) -> bool:
    """Whether the text holds the option's words in their order, whatever the case and punctuation; inside longer words too, so that
    a plural counts."""
    said = _words(option)
    return said in _words(text) if said else option in text


def names_letter(text: str, letter: str) -> bool:
    """Whether it calls the letter the answer: `The correct answer is "B"`."""
    return re.search(rf'answer is:? "?\(?{letter}\b', text) is not None


@dataclass(frozen=True)
class Facts:
    """What holds of one set. Counts are of its rows, shares of its size."""

    size: int
    repeated: int
    """Rows that ask what an earlier row asks, under another id."""
    right: int
    """Rows whose prediction is the answer, and `correct` says the same."""
    wrong: int
    confident: int
    """Rows whose predicted probability is above 0.5."""
    arg_max: int
    """Rows whose prediction is the most likely option."""
    stated: int
    """Rows whose pred_prob and golden_prob are those options' probabilities."""
    targets: dict[str, float]
    """Share of each letter among the targets; `predictions` among what the model predicts."""
    predictions: dict[str, float]
    smallest_confidence: float
    """Smallest predicted probability. A plain draw of what is above 0.5 begins close to 0.5."""
    median_confidence: float
    """Median of the predicted probability; `median_gold` of the right option's."""
    median_gold: float
    without_text: int
    """Rows without an explanation."""
    names_text: float
    """Share whose explanation holds the target's text; `names_target` that or calls its letter the answer."""
    names_target: float


def facts(rows: Sequence[Imported]) -> Facts:
    size = len(rows)
    scores = [row.score for row in rows]
    right = sum(score.correct and score.prediction == score.answer for score in scores)
    wrong = sum(not score.correct and score.prediction != score.answer for score in scores)
    by_text = [names_text(row.text, row.question.choices[row.target]) for row in rows]
    by_letter = [names_letter(row.text, LETTERS[row.target]) for row in rows]
    return Facts(
        size=size,
        repeated=size - len({content(row.question) for row in rows}),
        right=right,
        wrong=wrong,
        confident=sum(score.confidence > THRESHOLD for score in scores),
        arg_max=sum(
            probability(row, row.score.prediction) == max(row.score.probs or []) for row in rows
        ),
        stated=sum(is_stated(row) for row in rows),
        targets=_shares([row.target for row in rows]),
        predictions=_shares([score.prediction for score in scores]),
        smallest_confidence=min(score.confidence for score in scores),
        median_confidence=median(score.confidence for score in scores),
        median_gold=median(row.golden_prob for row in rows),
        without_text=sum(not row.text for row in rows),
        names_text=sum(by_text) / size,
        names_target=sum(text or letter for text, letter in zip(by_text, by_letter, strict=True))
        / size,
    )


def probability(row: Imported, option: int | None) -> float:
    assert row.score.probs is not None and option is not None
    return row.score.probs[option]


def is_stated(row: Imported) -> bool:
    predicted, gold = probability(row, row.score.prediction), probability(row, row.score.answer)
    return abs(predicted - row.score.confidence) < 1e-9 and abs(gold - row.golden_prob) < 1e-9


def _shares(options: Sequence[int | None]) -> dict[str, float]:
    counts = Counter(option for option in options if option is not None)
    return {LETTERS[option]: counts[option] / len(options) for option in sorted(counts)}


@dataclass(frozen=True)
class Invariants:
    """The paper's rules of selection, of one domain: True where they hold, None where a set is missing."""

    sets: dict[str, Facts]
    harmonious_known: bool | None
    """H: every prediction right, and its probability above 0.5."""
    others_mistaken: bool | None
    """I and S: every prediction wrong, and its probability above 0.5."""
    same_questions: bool | None
    """S asks the questions of I."""
    same_size: bool | None
    probabilities_agree: bool
    """Predictions are the most likely options, and the stated probabilities theirs."""

    @property
    def self_aligning_targets(self) -> dict[str, float]:
        """The letters that S teaches; where its file is missing, I's predictions, which are the same where both are there."""
        found = self.sets.get("self_aligning")
        return (
            found.targets
            if found
            else self.sets["incompatible"].predictions
            if "incompatible" in self.sets
            else {}
        )


def invariants(sets: Sets) -> dict[str, Invariants]:
    """By domain, what the paper says of its sets, found anew from their probabilities."""
    return {domain: _invariants(by_setting) for domain, by_setting in sets.items()}


def _invariants(sets: dict[str, list[Imported]]) -> Invariants:
    found = {setting: facts(rows) for setting, rows in sets.items()}
    known = found.get("harmonious")
    others = [found[setting] for setting in ("incompatible", "self_aligning") if setting in found]
    ids = [
        {row.question.id for row in sets[setting]}
        for setting in ("incompatible", "self_aligning")
        if setting in found
    ]
    return Invariants(
        sets=found,
        harmonious_known=known.right == known.confident == known.size if known else None,
        others_mistaken=all(f.wrong == f.confident == f.size for f in others) if others else None,
        same_questions=ids[0] == ids[1] if len(ids) == 2 else None,
        same_size=len({f.size for f in found.values()}) == 1 if len(found) > 1 else None,
        probabilities_agree=all(f.arg_max == f.stated == f.size for f in found.values()),
    )


def models(folder: Path) -> list[Path]:
    """The models' folders: the folder itself, or where it holds such folders, these."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    stems = tuple(FILES.values())
    is_model = any(file.name.startswith(stems) for domain in inside for file in domain.iterdir())
    return [folder] if is_model or not inside else inside


_COLUMNS = (
    "set",
    "size",
    "targets A/B/C/D/...",
    "least sure",
    "median",
    "gold",
    "names target",
    "or its letter",
    "no text",
)


def table(name: str, found: dict[str, Invariants]) -> str:
    """The invariants as a person reads them."""
    lines = []
    for domain, of_domain in found.items():
        lines += ["", f"{name} {domain}: {_rules(of_domain)}", _line(_COLUMNS)]
        for setting, f in of_domain.sets.items():
            letters = "/".join(f"{share:.0%}" for share in f.targets.values())
            shares = (f"{f.names_text:.1%}", f"{f.names_target:.1%}", f"{f.without_text}")
            probabilities = (
                f"{f.smallest_confidence:.5f}",
                f"{f.median_confidence:.3f}",
                f"{f.median_gold:.3f}",
            )
            lines.append(_line((setting, f"{f.size}", letters, *probabilities, *shares)))
        if "self_aligning" not in of_domain.sets:
            letters = "/".join(f"{share:.0%}" for share in of_domain.self_aligning_targets.values())
            lines.append(f"  self_aligning: no file; by I's predictions its targets are {letters}")
    return "\n".join(lines[1:])


def _rules(found: Invariants) -> str:
    rules = {
        "H right and above 0.5": found.harmonious_known,
        "I and S wrong and above 0.5": found.others_mistaken,
        "S asks I's questions": found.same_questions,
        "equal sizes": found.same_size,
        "probabilities agree": found.probabilities_agree,
    }
    told = {True: "yes", False: "NO", None: "not known"}
    return ", ".join(f"{rule}: {told[holds]}" for rule, holds in rules.items())


def _line(cells: Sequence[str]) -> str:
    return (
        "  "
        + "".join(
            f"{cell:<{width}}"
            for cell, width in zip(cells, (15, 7, 22, 12, 8, 8, 14, 15, 8), strict=True)
        ).rstrip()
    )
