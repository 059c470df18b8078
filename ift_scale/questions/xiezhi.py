"""Xiezhi (Gu et al., 2023; github.com/MikeGu721/XiezhiBenchmark), split as in the paper.

Example row: `EXAMPLE`. A row belongs to a pool if it has any of the pool's labels. Its options are
one text, one per line, and only rows with four are used. 250 rows are drawn for test and 10 for
dev. Excluded rows are counted.
"""

from array import array
from collections import Counter
from collections.abc import Iterator

from ift_scale.config.questions import XiezhiSource
from ift_scale.errors import DataError, Place
from ift_scale.io.dataset import open_dataset
from ift_scale.io.jsonl import Row
from ift_scale.questions import published
from ift_scale.questions.checks import required, text
from ift_scale.questions.published import Placed, QuestionOrigin, RandomSplit
from ift_scale.questions.reading import RowSelection

EXAMPLE = {
    "question": "After the victory of the Anti-Japanese War, _____ supported Chiang Kai-shek in"
    " launching the civil War.",
    "labels": ["History", "Political Science", "Jurisprudence", "International Relations"],
    "answer": "America",
    "options": "Britain\nFrance\nJapan\nAmerica",
}
NUM_OPTIONS = 4
RANDOM_SPLIT = RandomSplit(split="train", counts={"dev": 10, "test": 250}, rest="train")


def load(source: XiezhiSource, seed: int, left_out: Counter[str]) -> Iterator[Placed]:
    """Yields the questions of the pool; `left_out` counts the other rows by reason."""
    opened = open_dataset(source.path, source.name)
    key = f"{seed}/{source.domain}"
    if source.splits is None:
        selections = published.split_randomly(
            _pool(published.select_only_split(opened, RANDOM_SPLIT), source.labels, left_out),
            fields,
            RANDOM_SPLIT,
            key,
        )
    else:
        named = published.selections_of(opened, fields, dict(source.splits), key)
        selections = {
            split: _pool(selection, source.labels, left_out) for split, selection in named.items()
        }
    target = QuestionOrigin(f"xiezhi/{source.domain}", source.domain, source.collection)
    limits = {"train": source.max_train, "test": source.max_test}
    yield from published.questions(selections, fields, target, limits, seed)


def _pool(
    selection: RowSelection, labels: list[str] | None, left_out: Counter[str]
) -> RowSelection:
    """Returns the rows that the paper's rule keeps."""
    positions = array("q")
    for position, (_, place, row) in enumerate(selection.rows()):
        if labels is not None and not set(labels) & set(_labels(place, row)):
            left_out["other labels"] += 1
        elif len(_options(place, row)) != NUM_OPTIONS:
            left_out["not four options"] += 1
        else:
            positions.append(position)
    return selection.at(positions)


def fields(place: Place, row: Row) -> Row:
    """Maps a row's columns to question, choices and answer."""
    options = _options(place, row)
    answer = text(place, row, "answer")
    if answer not in options:
        raise DataError(
            Place(place.file, place.line, "answer"),
            "is not one of the options",
            "Fix or remove the row",
            answer,
        )
    return {
        "question": text(place, row, "question"),
        "choices": options,
        "answer": options.index(answer),
    }


def _labels(place: Place, row: Row) -> list[str]:
    labels = required(place, row, "labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(
            Place(place.file, place.line, "labels"),
            "must be a list of texts",
            "Fix or remove the row",
            labels,
        )
    return labels


def _options(place: Place, row: Row) -> list[str]:
    # Most rows of the Chinese files end with a surplus quotation mark and line break.
    lines = text(place, row, "options").replace("\r\n", "\n").removesuffix('"\n').split("\n")
    return [line for line in lines if line.strip()]
