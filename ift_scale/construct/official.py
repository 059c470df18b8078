"""Reads the authors' released sets (github.com/renmengjie7/Self-Aligning) as our records.

An example row, shortened:
    {"id": 6468, "question": "...", "choices": ["...", "...", "...", "..."], "answer": 1,
     "explanation": "...", "correct": false, "pred": 0, "probs": [0.920, 0.022, 0.018, 0.040],
     "golden_prob": 0.022, "pred_prob": 0.920, "output": 1}
A set's rows are in MODEL/DOMAIN/FILE.jsonl (or .gz). S has its explanation in `model_exp`. Missing
files are skipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


class ReleasedRow(BaseModel):
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
    """One example of a released set.

    `target` is the option that it teaches, `text` its explanation (may be empty), `output` the
    file's own output option, and `place` the file and line of the row.
    """

    question: Question
    score: Score
    target: int
    text: str
    golden_prob: float
    output: int | None
    place: Place


Sets = dict[str, dict[str, list[Imported]]]
"""Rows by domain and setting."""


def models(folder: Path) -> list[Path]:
    """Returns the models' folders in `folder`, or `folder` itself if it is a model's folder."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    stems = tuple(FILES.values())
    is_model = any(file.name.startswith(stems) for domain in inside for file in domain.iterdir())
    return [folder] if is_model or not inside else inside


def available(folder: Path) -> dict[str, list[str]]:
    """Returns the settings that have a set, for each domain in a model's folder."""
    if not folder.is_dir():
        raise DataError(
            Place(folder), "no such folder", "Pass the folder of a model, official_groups/MODEL"
        )
    settings_by_domain: dict[str, list[str]] = {}
    for domain in sorted(path for path in folder.iterdir() if path.is_dir()):
        for setting, stem in FILES.items():
            if jsonl.exists(domain, stem):
                settings_by_domain.setdefault(domain.name, []).append(setting)
    if not settings_by_domain:
        names = ", ".join(f"DOMAIN/{stem}.jsonl" for stem in FILES.values())
        raise DataError(
            Place(folder),
            f"contains none of {names} (or .gz)",
            "Pass the folder of a model, official_groups/MODEL",
        )
    return settings_by_domain


def load(folder: Path) -> Sets:
    """Returns the sets of one model's folder; a DataError names the file, line and field."""
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
                "occurs more than once in this file",
                "Remove one of the rows",
                fields["id"],
            )
        made[imported.question.id] = imported
    if not made:
        raise DataError(Place(path), "contains no rows", "Download the file again, or remove it")
    return list(made.values())


def _checked(place: Place, fields: dict[str, object]) -> ReleasedRow:
    try:
        row = ReleasedRow.model_validate(fields)
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
            problem = "must be a non-empty string" if field == "question" else "an option is empty"
            raise DataError(
                Place(place.file, place.line, field),
                problem,
                "Fix or remove the row",
                getattr(row, field),
            )
    if len(row.probs) != len(row.choices):
        problem = f"must have a probability for each of the {len(row.choices)} options"
        raise DataError(
            Place(place.file, place.line, "probs"), problem, "Fix or remove the row", row.probs
        )
    return row


def _imported(row: ReleasedRow, place: Place, prefix: str, domain: str, setting: str) -> Imported:
    field = "model_exp" if setting == "self_aligning" else "explanation"
    text = row.model_exp if setting == "self_aligning" else row.explanation
    if text is None:
        raise DataError(
            Place(place.file, place.line, field),
            "missing",
            "Add it (may be an empty string), or remove the row",
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
    """Returns a set's rows as training examples.

    With style `letter_text_explanation`, the explanation (if any) follows on a line of its own.
    """
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
    """Returns a key that ignores case, white space and the order of the options."""
    text, *options = (
        " ".join(part.casefold().split()) for part in (question.question, *question.choices)
    )
    return (text, *sorted(options))


def probability(row: Imported, option: int | None) -> float:
    """Returns the model's probability of an option."""
    assert row.score.probs is not None and option is not None
    return row.score.probs[option]


def is_stated(row: Imported) -> bool:
    """True if `pred_prob` and `golden_prob` agree with `probs`."""
    predicted, gold = probability(row, row.score.prediction), probability(row, row.score.answer)
    return abs(predicted - row.score.confidence) < 1e-9 and abs(gold - row.golden_prob) < 1e-9
