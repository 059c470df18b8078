"""The paper's pools: JSON lines {dev,train,test}.jsonl of one domain.

Example row:
    {"id": 49, "question": "The following foods undergo initial chemical digestion in the mouth is _____",
     "choices": ["rice", "egg", "Pork", "Vegetable leaf"], "answer": 0, "explanation": ""}
"""

import random
from pathlib import Path

from ift_scale import jsonl
from ift_scale.config import PaperSource
from ift_scale.errors import DataError, Place
from ift_scale.questions.checks import UniqueIds, choice_question
from ift_scale.records import Question, Split

SPLITS: tuple[Split, ...] = ("dev", "train", "test")


def load(source: PaperSource, seed: int) -> list[Question]:
    folder = Path(source.path)
    if not folder.is_dir():
        raise DataError(Place(folder), "no such folder", "Set questions.sources.*.path to the pool's folder")
    limits = {"train": source.max_train, "test": source.max_test}
    questions = []
    for split in SPLITS:
        found = _split(jsonl.find(folder, split), source.domain, split)
        limit = limits.get(split)
        if limit is not None and limit < len(found):
            chosen = set(random.Random(f"{seed}/{source.domain}/{split}").sample(range(len(found)), limit))
            found = [question for number, question in enumerate(found) if number in chosen]
        questions += found
    return questions


def _split(path: Path, domain: str, split: Split) -> list[Question]:
    unique = UniqueIds()
    questions = []
    for number, row in jsonl.rows(path):
        place = Place(path, number)
        if row.get("id") is None:
            raise DataError(Place(path, number, "id"), "missing", "Give every row an id that is unique in its file")
        id = f"{domain}/{split}/{row['id']}"
        unique.check(place, id)
        questions.append(choice_question(place, row, id=id, domain=domain, subject=domain, collection="pool", split=split))
    return questions
