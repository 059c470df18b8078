"""Xiezhi as published (Gu et al., 2023; github.com/MikeGu721/XiezhiBenchmark), filtered and split as in the paper.

Example row: `EXAMPLE`. A row belongs to a pool when it has any of the pool's labels; the options are one text, a line each, and
only rows with four are used. 250 rows are drawn for test and 10 for dev. What the rule leaves out is counted.
"""

from array import array
from collections import Counter
from collections.abc import Iterator

from ift_scale.config import XiezhiSource
from ift_scale.errors import DataError, Place
from ift_scale.questions import known
from ift_scale.questions.checks import Row, required, text
from ift_scale.questions.known import Drawn, Placed, Target
from ift_scale.questions.reading import Section, open_dataset

EXAMPLE = {
    "question": "After the victory of the Anti-Japanese War, _____ supported Chiang Kai-shek in launching the civil War.",
    "labels": ["History", "Political Science", "Jurisprudence", "International Relations"],
    "answer": "America",
    "options": "Britain\nFrance\nJapan\nAmerica",
}
NUM_OPTIONS = 4
DRAWN = Drawn(split="train", counts={"dev": 10, "test": 250}, rest="train")


def load(source: XiezhiSource, seed: int, left_out: Counter[str]) -> Iterator[Placed]:
    """The rows of the pool; `left_out` counts the others by reason."""
    opened = open_dataset(source.path, source.name)
    key = f"{seed}/{source.domain}"
    if source.splits is None:
        sections = known.deal(
            _pool(known.whole_section(opened, DRAWN), source.labels, left_out), fields, DRAWN, key
        )
    else:
        named = known.sections_of(opened, fields, dict(source.splits), key)
        sections = {split: _pool(found, source.labels, left_out) for split, found in named.items()}
    target = Target(f"xiezhi/{source.domain}", source.domain, source.collection)
    limits = {"train": source.max_train, "test": source.max_test}
    yield from known.questions(sections, fields, target, limits, seed)


def _pool(section: Section, labels: list[str] | None, left_out: Counter[str]) -> Section:
    """The rows of a section that the paper's rule keeps."""
    positions = array("q")
    for position, (_, place, row) in enumerate(section.rows()):
        if labels is not None and not set(labels) & set(_labels(place, row)):
            left_out["other labels"] += 1
        elif len(_options(place, row)) != NUM_OPTIONS:
            left_out["not four options"] += 1
        else:
            positions.append(position)
    return section.at(positions)


def fields(place: Place, row: Row) -> Row:
    options = _options(place, row)
    answer = text(place, row, "answer")
    if answer not in options:
        raise DataError(
            Place(place.file, place.line, "answer"),
            "is none of the options",
            "Fix or remove the row",
            answer,
        )
    return {
        "question": text(place, row, "question"),
        "choices": options,
        "answer": options.index(answer),
    }


def _labels(place: Place, row: Row) -> list[str]:
    found = required(place, row, "labels")
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise DataError(
            Place(place.file, place.line, "labels"),
            "must be a list of texts",
            "Fix or remove the row",
            found,
        )
    return found


def _options(place: Place, row: Row) -> list[str]:
    # Most rows of the Chinese files end with a quotation mark and a line break too many.
    lines = text(place, row, "options").replace("\r\n", "\n").removesuffix('"\n').split("\n")
    return [line for line in lines if line.strip()]
