"""Rows of the authors' sets that break the paper's rules of selection. Pure functions over loaded sets.

H holds questions that the model answers rightly, I and S questions that it answers wrongly, all with a probability above
0.5. H and I share no question; S asks the questions of I and teaches the model's own answer; all sets of a domain have
the same size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ift_scale.construct.official import (
    FILES,
    THRESHOLD,
    Imported,
    Sets,
    content,
    is_stated,
    probability,
)
from ift_scale.errors import DataError, Place

_SHOWN = 3


class Breach(NamedTuple):
    """A broken rule: what is wrong, with the places of all rows that it concerns (none if it concerns a whole set)."""

    problem: str
    places: Sequence[Place]

    def __str__(self) -> str:
        shown = ", ".join(f"{Path(place.file).name}:{place.line}" for place in self.places[:_SHOWN])
        more = f" and {len(self.places) - _SHOWN} more" if len(self.places) > _SHOWN else ""
        return self.problem + (f" ({shown}{more})" if shown else "")


def check(models: Mapping[Path, Sets]) -> None:
    """DataError that lists every broken rule of the sets in these models' folders."""
    found = [
        f"{folder / domain}: {breach}"
        for folder, sets in models.items()
        for domain, by_setting in sets.items()
        for breach in breaches(by_setting)
    ]
    if found:
        lines = "".join(f"\n  - {line}" for line in found)
        remedy = (
            "Fetch these sets again, correct them, or leave the domains out (construct.domains)"
        )
        raise DataError(
            Place("official sets"),
            f"{len(found)} of the paper's rules are broken:{lines}\n ",
            remedy,
        )


def breaches(sets: dict[str, list[Imported]]) -> list[Breach]:
    """The broken rules of one domain's sets, in the order of the rules."""
    found: list[Breach] = []

    def add(problem: str, rows: Iterable[Imported]) -> None:
        places = [row.place for row in rows]
        if places:
            found.append(
                Breach(
                    f"{len(places)} {'row' if len(places) == 1 else 'rows'} of {problem}", places
                )
            )

    for setting, rows in sets.items():
        for problem, is_broken in _row_rules(setting):
            add(f"{setting} {problem}", filter(is_broken, rows))
    known, mistaken, own = (sets.get(setting, []) for setting in FILES)
    for other, rows in (("incompatible", mistaken), ("self_aligning", own)):
        ids, contents = {row.question.id for row in rows}, {content(row.question) for row in rows}
        add(
            f"harmonious ask a question of {other}",
            (r for r in known if r.question.id in ids or content(r.question) in contents),
        )
    if "incompatible" in sets and "self_aligning" in sets:
        add(
            "self_aligning ask a question that incompatible does not ask",
            _without_partner(own, mistaken),
        )
        add(
            "incompatible ask a question that self_aligning does not ask",
            _without_partner(mistaken, own),
        )
        add(
            "self_aligning have another prediction than the same question has in incompatible",
            _predicted_otherwise(own, mistaken),
        )
    sizes = {setting: len(rows) for setting, rows in sets.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{setting} {size:,}" for setting, size in sizes.items())
        found.append(Breach(f"the sets differ in size: {told}", ()))
    return found


def _row_rules(setting: str) -> list[tuple[str, Callable[[Imported], bool]]]:
    """What may be wrong with a single row."""
    predicted: tuple[str, Callable[[Imported], bool]] = ("are predicted rightly", _is_right)
    taught: tuple[str, Callable[[Imported], bool]] = (
        "have another output than the answer",
        lambda row: row.output not in (None, row.question.answer),
    )
    if setting == "harmonious":
        predicted = ("are predicted wrongly", lambda row: not _is_right(row))
    if setting == "self_aligning":
        taught = (
            "have another output than the model's own prediction",
            lambda row: row.output not in (None, row.score.prediction),
        )
    return [
        predicted,
        (
            "state in `correct` the opposite of what `pred` and `answer` say",
            lambda row: row.score.correct != _is_right(row),
        ),
        (
            f"have a confidence of at most {THRESHOLD}",
            lambda row: row.score.confidence <= THRESHOLD,
        ),
        (
            "have a prediction that is not the most likely option",
            lambda row: probability(row, row.score.prediction) < max(row.score.probs or []),
        ),
        (
            "state other probabilities than `probs` gives these options",
            lambda row: not is_stated(row),
        ),
        taught,
    ]


def _is_right(row: Imported) -> bool:
    return row.score.prediction == row.question.answer


def _without_partner(rows: Sequence[Imported], others: Sequence[Imported]) -> list[Imported]:
    """Rows whose question no row of `others` asks with the same id, text, options and answer."""

    def asked(row: Imported) -> tuple[object, ...]:
        question = row.question
        return question.id, question.question, tuple(question.choices), question.answer

    partners = {asked(row) for row in others}
    return [row for row in rows if asked(row) not in partners]


def _predicted_otherwise(rows: Sequence[Imported], others: Sequence[Imported]) -> list[Imported]:
    predictions = {row.question.id: row.score.prediction for row in others}
    return [
        row
        for row in rows
        if predictions.get(row.question.id, row.score.prediction) != row.score.prediction
    ]
