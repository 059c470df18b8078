"""CMMLU (Li et al., 2024): 67 subjects of Chinese knowledge, each with five dev questions.

Example row: `EXAMPLE`, one of subject agronomy. The hub's dataset is a loading script, which `datasets` runs no longer, so the
files are those that the hub has converted it to. Locally: the unpacked archive, dev/agronomy.csv and test/agronomy.csv.
"""

from functools import partial

from ift_scale.errors import Place
from ift_scale.questions.answers import option
from ift_scale.questions.checks import Row, columns_of_options, required, text
from ift_scale.questions.subjects import Parts, domains_file

EXAMPLE = {
    "Question": "肉牛屠宰后，胴体的哪个部位肉质较好",
    "A": "胸",
    "B": "腹",
    "C": "大腿",
    "D": "小腿",
    "Answer": "C",
}


def fields(place: Place, row: Row) -> Row:
    choices = columns_of_options(place, row, "ABCD")
    return {
        "question": text(place, row, "Question"),
        "choices": choices,
        "answer": option(
            Place(place.file, place.line, "Answer"),
            required(place, row, "Answer"),
            choices,
            "letter",
        ),
    }


PARTS = Parts(
    path="haonan-li/cmmlu",
    hub_files="{subject}/{split}/*.parquet",
    revision="refs/convert/parquet",
    splits={"dev": "dev", "test": "test"},
    file_suffix=".csv",
    domains=partial(domains_file, "cmmlu_domains.json"),
    fields=fields,
)
