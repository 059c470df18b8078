"""MedQA (Jin et al., 2021), the four-option questions of the US medical licensing exam.

Example row: `EXAMPLE`. There is no dev split, so the first ten train rows are used as dev.
"""

from ift_scale.errors import DataError, Place
from ift_scale.io.jsonl import Row
from ift_scale.questions.answers import option_index
from ift_scale.questions.checks import checked_options, required, text
from ift_scale.questions.published import PublishedDataset
from ift_scale.records import LETTERS

EXAMPLE = {
    "question": "A junior orthopaedic surgery resident is completing a carpal tunnel repair with "
    "the department chairman as the attending physician. During the case, the resident "
    "inadvertently cuts a flexor tendon. The tendon is repaired without complication. "
    "The attending tells the resident that the patient will do fine, and there is no "
    "need to report this minor complication that will not harm the patient, as he does "
    "not want to make the patient worry unnecessarily. He tells the resident to leave "
    "this complication out of the operative report. Which of the following is the "
    "correct next action for the resident to take?",
    "answer": "Tell the attending that he cannot fail to disclose this mistake",
    "options": {
        "A": "Disclose the error to the patient and put it in the operative report",
        "B": "Tell the attending that he cannot fail to disclose this mistake",
        "C": "Report the physician to the ethics committee",
        "D": "Refuse to dictate the operative report",
    },
    "meta_info": "step1",
    "answer_idx": "B",
    "metamap_phrases": [
        "junior orthopaedic surgery resident",
        "completing",
        "carpal tunnel repair",
    ],
}


def fields(place: Place, row: Row) -> Row:
    by_letter = required(place, row, "options")
    if not isinstance(by_letter, dict):
        raise DataError(
            Place(place.file, place.line, "options"),
            "must map letters to options",
            "Fix the row",
            by_letter,
        )
    # A Parquet file gives every row the letters of all rows, null if the row has fewer options.
    letters = sorted(letter for letter, text_of in by_letter.items() if text_of is not None)
    if letters != list(LETTERS[: len(letters)]):
        problem = "must have the letters A, B, C and so on, each once"
        raise DataError(
            Place(place.file, place.line, "options"), problem, "Fix or remove the row", letters
        )
    choices = checked_options(place, "options", [by_letter[letter] for letter in letters])
    return {
        "question": text(place, row, "question"),
        "choices": choices,
        "answer": option_index(
            Place(place.file, place.line, "answer_idx"),
            required(place, row, "answer_idx"),
            choices,
            "letter",
        ),
    }


DATASET = PublishedDataset(
    path="GBaker/MedQA-USMLE-4-options",
    domain="medicine",
    splits={"dev": "train[:10]", "train": "train[10:]", "test": "test"},
    fields=fields,
)
