"""EntityQuestions (Sciavolino et al., 2021): free questions about Wikidata facts, 24 relations.

Example row: `EXAMPLE`, from relation P36, capital. The authors' archive contains dev/P36.dev.json
and so on, each a JSON list.
"""

from ift_scale.errors import Place
from ift_scale.io.jsonl import Row
from ift_scale.questions.checks import required, text
from ift_scale.questions.subjects import PerSubjectDataset

EXAMPLE = {
    "question": "What is the capital of Almohad Caliphate?",
    "answers": ["Tinmel", "Marrakesh"],
}


def fields(place: Place, row: Row) -> Row:
    return {"question": text(place, row, "question"), "aliases": required(place, row, "answers")}


DATASET = PerSubjectDataset(
    splits={"dev": "dev", "train": "train", "test": "test"},
    file_suffix=".{split}.json",
    fields=fields,
    kind="free",
)
