"""Statistics of the released sets, and the paper's rules recomputed from their probabilities."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ift_scale.construct.official import (
    THRESHOLD,
    Imported,
    Sets,
    content,
    is_stated,
    probability,
)
from ift_scale.records import LETTERS


def _words(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def names_text(text: str, option: str) -> bool:
    """True if the text contains the option's words in order, ignoring case and punctuation.

    A match may end inside a longer word, so that a plural counts.
    """
    words = _words(option)
    return words in _words(text) if words else option in text


def names_letter(text: str, letter: str) -> bool:
    """True if the text calls the letter the answer, as in `The correct answer is "B"`."""
    return re.search(rf'answer is:? "?\(?{letter}\b', text) is not None


@dataclass(frozen=True)
class SetFacts:
    """Statistics of one set. Integers count rows; shares are relative to `size`."""

    size: int
    repeated: int
    """Rows with the content of an earlier row under another id."""
    right: int
    """Rows whose prediction is the answer and whose `correct` agrees."""
    wrong: int
    """Rows whose prediction is not the answer and whose `correct` agrees."""
    confident: int
    """Rows whose prediction has a probability above 0.5."""
    arg_max: int
    """Rows whose prediction is the most likely option."""
    stated: int
    """Rows whose `pred_prob` and `golden_prob` agree with `probs`."""
    targets: dict[str, float]
    """Share of each letter among the targets."""
    predictions: dict[str, float]
    """Share of each letter among the model's predictions."""
    smallest_confidence: float
    """Smallest probability of a prediction; close to 0.5 for a plain draw above 0.5."""
    median_confidence: float
    """Median probability of the prediction."""
    median_gold: float
    """Median probability of the right option."""
    without_text: int
    """Rows without an explanation."""
    names_text: float
    """Share whose explanation contains the target's text."""
    names_target: float
    """Share whose explanation contains the target's text or calls its letter the answer."""


def set_facts(rows: Sequence[Imported]) -> SetFacts:
    size = len(rows)
    scores = [row.score for row in rows]
    right = sum(score.correct and score.prediction == score.answer for score in scores)
    wrong = sum(not score.correct and score.prediction != score.answer for score in scores)
    by_text = [names_text(row.text, row.question.choices[row.target]) for row in rows]
    by_letter = [names_letter(row.text, LETTERS[row.target]) for row in rows]
    return SetFacts(
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


def _shares(options: Sequence[int | None]) -> dict[str, float]:
    counts = Counter(option for option in options if option is not None)
    return {LETTERS[option]: counts[option] / len(options) for option in sorted(counts)}


@dataclass(frozen=True)
class Invariants:
    """The paper's selection rules for one domain: True if satisfied, None if a set is missing."""

    sets: dict[str, SetFacts]
    harmonious_known: bool | None
    """H: every prediction is right and has a probability above 0.5."""
    others_mistaken: bool | None
    """I and S: every prediction is wrong and has a probability above 0.5."""
    same_questions: bool | None
    """S has the questions of I."""
    same_size: bool | None
    """All sets have the same size."""
    probabilities_agree: bool
    """Predictions are the most likely options, and the stated probabilities agree."""

    @property
    def self_aligning_targets(self) -> dict[str, float]:
        """Returns the share of each letter that S teaches.

        Without S's file these are I's predictions, which are the same in domains with both files.
        """
        if "self_aligning" in self.sets:
            return self.sets["self_aligning"].targets
        return self.sets["incompatible"].predictions if "incompatible" in self.sets else {}


def invariants(sets: Sets) -> dict[str, Invariants]:
    """Checks the paper's rules for each domain, recomputed from the rows' probabilities."""
    return {domain: _invariants(by_setting) for domain, by_setting in sets.items()}


def _invariants(sets: dict[str, list[Imported]]) -> Invariants:
    found = {setting: set_facts(rows) for setting, rows in sets.items()}
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


_COLUMNS = (
    "set",
    "size",
    "targets A/B/C/D/...",
    "min. confidence",
    "median",
    "gold",
    "names target",
    "or its letter",
    "no text",
)


def table(name: str, found: dict[str, Invariants]) -> str:
    """Returns the invariants as text for a terminal."""
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
            lines.append(
                f"  self_aligning: no file; according to I's predictions, its targets are {letters}"
            )
    return "\n".join(lines[1:])


def _rules(found: Invariants) -> str:
    rules = {
        "H right and above 0.5": found.harmonious_known,
        "I and S wrong and above 0.5": found.others_mistaken,
        "S has I's questions": found.same_questions,
        "equal sizes": found.same_size,
        "probabilities agree": found.probabilities_agree,
    }
    words = {True: "yes", False: "NO", None: "unknown"}
    return ", ".join(f"{rule}: {words[satisfied]}" for rule, satisfied in rules.items())


def _line(cells: Sequence[str]) -> str:
    return (
        "  "
        + "".join(
            f"{cell:<{width}}"
            for cell, width in zip(cells, (15, 7, 22, 17, 8, 8, 14, 15, 8), strict=True)
        ).rstrip()
    )
