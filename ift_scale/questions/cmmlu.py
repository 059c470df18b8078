"""CMMLU (Li et al., 2024): 67 subjects of Chinese knowledge, five dev questions each.

Example row: `EXAMPLE`, from subject agronomy. The hub's dataset is a loading script, which
`datasets` no longer runs, so the files are the hub's converted ones. Locally: the unpacked archive,
dev/agronomy.csv and test/agronomy.csv.
"""

from functools import partial

from ift_scale.errors import Place
from ift_scale.io.jsonl import Row
from ift_scale.questions.answers import option_index
from ift_scale.questions.checks import columns_of_options, required, text
from ift_scale.questions.subjects import PerSubjectDataset, domains_file

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
        "answer": option_index(
            Place(place.file, place.line, "Answer"),
            required(place, row, "Answer"),
            choices,
            "letter",
        ),
    }


DATASET = PerSubjectDataset(
    path="haonan-li/cmmlu",
    hub_files="{subject}/{split}/*.parquet",
    revision="refs/convert/parquet",
    splits={"dev": "dev", "test": "test"},
    file_suffix=".csv",
    domains=partial(domains_file, "cmmlu_domains.json"),
    fields=fields,
)
