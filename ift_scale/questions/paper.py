"""The paper's pools: JSON lines {dev,train,test}.jsonl of one domain.

Example row:
    {"id": 49,
     "question": "The following foods undergo initial chemical digestion in the mouth is _____",
     "choices": ["rice", "egg", "Pork", "Vegetable leaf"], "answer": 0, "explanation": ""}
"""

from collections.abc import Iterator
from pathlib import Path

from ift_scale.config.questions import PaperSource
from ift_scale.errors import DataError, Place
from ift_scale.io import jsonl
from ift_scale.questions import sampling
from ift_scale.questions.checks import choice_question, row_id
from ift_scale.questions.published import Placed
from ift_scale.questions.reading import SPLITS, with_rows
from ift_scale.records import Split


def load(source: PaperSource, seed: int, with_train: bool = True) -> Iterator[Placed]:
    """Yields questions row by row; reads a limited split twice, first to draw from its ids.

    If `with_train` is false, the pool does not need a train file.
    """
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(
            Place(folder), "no such folder", "Set questions.sources.*.path to the pool's folder"
        )
    limits = {"train": source.max_train, "test": source.max_test}
    for split in SPLITS:
        if split == "train" and not with_train and not jsonl.exists(folder, split):
            continue
        path = jsonl.find(folder, split)
        limit, chosen = limits.get(split), None
        if limit is not None:
            ids = (str(row.get("id")) for _, row in jsonl.rows(path))
            chosen = sampling.lowest(ids, limit, f"{seed}/{source.domain}/{split}")
        for number, placed in enumerate(_split(path, source.domain, split)):
            if chosen is None or number in chosen:
                yield placed


def _split(path: Path, domain: str, split: Split) -> Iterator[Placed]:
    for number, row in with_rows(jsonl.rows(path), path):
        place = Place(path, number)
        own = row_id(place, row)
        if own is None:
            raise DataError(
                Place(path, number, "id"),
                "missing",
                "Give every row an id that is unique in its file",
            )
        id = f"{domain}/{split}/{own}"
        yield (
            place,
            choice_question(
                place, row, id=id, domain=domain, subject=domain, collection="pool", split=split
            ),
        )
