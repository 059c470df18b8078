"""MedMCQA (Pal et al., 2022): Indian medical entrance exams, the paper's medicine pool.

Example row: `EXAMPLE`. `cop` is the index of the right option, from 0. In the hub's test split it
is -1, because those answers are not public, so validation is used as test. The authors' own JSON
files count `cop` from 1; docs/questions.md shows how to read them.
"""

from ift_scale.errors import Place
from ift_scale.io.jsonl import Row
from ift_scale.questions.answers import option_index
from ift_scale.questions.checks import (
    columns_of_options,
    optional_text,
    required,
    text,
    without_answer,
)
from ift_scale.questions.published import PublishedDataset

EXAMPLE = {
    "id": "e9ad821a-c438-4965-9f77-760819dfa155",
    "question": "Chronic urethral obstruction due to benign prismatic hyperplasia can lead to the"
    " following change in kidney parenchyma",
    "opa": "Hyperplasia",
    "opb": "Hyperophy",
    "opc": "Atrophy",
    "opd": "Dyplasia",
    "cop": 2,
    "choice_type": "single",
    "exp": "Chronic urethral obstruction because of urinary calculi, prostatic hyperophy, tumors,"
    " normal pregnancy, tumors, uterine prolapse or functional disorders cause hydronephrosis which"
    " by definition is used to describe dilatation of renal pelvis and calculus associated with"
    " progressive atrophy of the kidney due to obstruction to the outflow of urine Refer Robbins"
    " 7yh/9,1012,9/e. P950",
    "subject_name": "Anatomy",
    "topic_name": "Urinary tract",
}


def fields(place: Place, row: Row) -> Row:
    answer = required(place, row, "cop")
    if str(answer) == "-1":
        raise without_answer(place, "cop", answer, "Set splits.test to validation")
    choices = columns_of_options(place, row, ("opa", "opb", "opc", "opd"))
    return {
        "id": row.get("id"),
        "subject": optional_text(place, row, "subject_name"),
        "question": text(place, row, "question"),
        "choices": choices,
        "answer": option_index(Place(place.file, place.line, "cop"), answer, choices),
        "explanation": optional_text(place, row, "exp"),
    }


DATASET = PublishedDataset(
    path="openlifescienceai/medmcqa",
    domain="medicine",
    splits={"dev": "train[:10]", "train": "train[10:]", "test": "validation"},
    fields=fields,
)
