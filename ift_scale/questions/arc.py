"""ARC (Clark et al., 2018): grade-school science, Challenge set; `name: ARC-Easy` for the Easy set.

Example row: `EXAMPLE`. Some rows number their options 1 to 4 instead of A to D, and some have three
or five.
"""

from ift_scale.errors import DataError, Place
from ift_scale.io.jsonl import Row
from ift_scale.questions.checks import options, required, text
from ift_scale.questions.published import PublishedDataset

EXAMPLE = {
    "id": "Mercury_SC_415702",
    "question": "George wants to warm his hands quickly by rubbing them. Which skin surface will"
    " produce the most heat?",
    "choices": {
        "text": ["dry palms", "wet palms", "palms covered with oil", "palms covered with lotion"],
        "label": ["A", "B", "C", "D"],
    },
    "answerKey": "A",
}


def fields(place: Place, row: Row) -> Row:
    """Maps a row's columns to question, choices and answer."""
    choices, labels = options(place, row, "choices.text"), options(place, row, "choices.label")
    if len(set(labels)) != len(choices):
        problem = f"must have a different label for each of the {len(choices)} options"
        raise DataError(
            Place(place.file, place.line, "choices.label"), problem, "Fix or remove the row", labels
        )
    key = required(place, row, "answerKey")
    if key not in labels:
        problem = f"names none of the options {', '.join(labels)}"
        raise DataError(
            Place(place.file, place.line, "answerKey"), problem, "Fix or remove the row", key
        )
    return {
        "id": row.get("id"),
        "question": text(place, row, "question"),
        "choices": choices,
        "answer": labels.index(key),
    }


DATASET = PublishedDataset(
    path="allenai/ai2_arc",
    name="ARC-Challenge",
    domain="science",
    splits={"dev": "validation[:10]", "train": "train", "test": "test"},
    fields=fields,
)
