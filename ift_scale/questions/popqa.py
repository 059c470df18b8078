"""PopQA (Mallen et al., 2023): free questions about entities of all popularities.

Example row: `EXAMPLE` (only columns that are read). `possible_answers` is a list as JSON text. The
dataset has one split, sorted by relation. The ten dev questions are drawn from all of it and the
rest is test. These few serve all relations, so the relation is not used as the subject.
"""

from ift_scale.errors import DataError, Place
from ift_scale.io import json_text
from ift_scale.io.jsonl import Row
from ift_scale.questions.checks import required, text
from ift_scale.questions.published import PublishedDataset, RandomSplit

EXAMPLE = {
    "id": 4222362,
    "subj": "George Rankin",
    "prop": "occupation",
    "obj": "politician",
    "s_pop": 142,
    "o_pop": 25692,
    "question": "What is George Rankin's occupation?",
    "possible_answers": '["politician", "political leader", "political figure", "polit.", "pol"]',
}


def fields(place: Place, row: Row) -> Row:
    listed = required(place, row, "possible_answers")
    try:
        aliases = json_text.decode(listed)
    except (json_text.InvalidJson, TypeError, AttributeError) as error:
        at = Place(place.file, place.line, "possible_answers")
        raise DataError(
            at, f"must be a JSON list as text: {error}", "Fix or remove the row", listed
        ) from error
    return {"id": row.get("id"), "question": text(place, row, "question"), "aliases": aliases}


DATASET = PublishedDataset(
    path="akariasai/PopQA",
    domain="popqa",
    splits=RandomSplit(split="test", counts={"dev": 10}, rest="test"),
    fields=fields,
    kind="free",
)
