"""C-Eval (Huang et al., 2023): 52 subjects of Chinese exams, five explained dev questions each.

Example row: `EXAMPLE`, from subject computer_network. The answers of the test split are not public,
so val is used as test. Locally: the unpacked archive, dev/law_dev.csv and val/law_val.csv.
"""

from functools import partial

from ift_scale.errors import Place
from ift_scale.io.jsonl import Row
from ift_scale.questions.answers import option_index
from ift_scale.questions.checks import columns_of_options, optional_text, text, without_answer
from ift_scale.questions.subjects import PerSubjectDataset, domains_file

EXAMPLE = {
    "id": 0,
    "question": "使用位填充方法,以01111110为位首flag,数据为011011111111111111110010,"
    "求问传送时要添加几个0____",
    "A": "1",
    "B": "2",
    "C": "3",
    "D": "4",
    "answer": "C",
    "explanation": "",
}


def fields(place: Place, row: Row) -> Row:
    if not row.get("answer"):
        raise without_answer(place, "answer", row.get("answer"), "Set splits.test to val")
    choices = columns_of_options(place, row, "ABCD")
    return {
        "question": text(place, row, "question"),
        "choices": choices,
        "answer": option_index(
            Place(place.file, place.line, "answer"), row["answer"], choices, "letter"
        ),
        "explanation": optional_text(place, row, "explanation"),
    }


DATASET = PerSubjectDataset(
    path="ceval/ceval-exam",
    splits={"dev": "dev", "test": "val"},
    file_suffix="_{split}.csv",
    domains=partial(domains_file, "ceval_domains.json"),
    fields=fields,
)
