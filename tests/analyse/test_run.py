"""The stage as a whole: every table, and the examples."""

import json
from pathlib import Path

import pandas as pd

from ift_scale.analyse import run as analyse
from ift_scale.analyse.answers import table_of
from ift_scale.analyse.examples import examples
from ift_scale.config import AnalyseConfig, Config
from ift_scale.io.progress import Bar
from ift_scale.stage import Task
from tests.analyse.scores import BASE, BETTER, WORSE, arm, choice, choices, panels


def test_examples_are_those_that_changed_most() -> None:
    arms = [
        arm("harmonious", 0, choices(BETTER)),
        *(
            arm(
                "incompatible",
                s,
                [choice(f"q{i}", i != 7, sure=0.9 if i == 7 else 0.6) for i in range(40)],
            )
            for s in (0, 1)
        ),
    ]
    found = examples(panels(arms, BASE), 3)
    assert len(found) == 3 and len({e["question_id"] for e in found}) == 3
    first = next(e for e in found if e["changed_by"] == "incompatible")
    assert (first["question_id"], first["answer"], first["base_prediction"]) == ("q7", 1, 1)
    assert first["predictions"] == {"harmonious": 1, "incompatible": 0}


def test_a_question_of_several_domains_is_one_example() -> None:
    arms = [arm("incompatible", 0, choices(WORSE), domain, "OOD") for domain in ("d", "e")]
    found = examples(panels(arms, BASE), 12)
    assert len({e["question_id"] for e in found}) == len(found) == 12


def test_every_table_is_written_with_its_columns(tmp_path: Path) -> None:
    config = Config(output_dir=str(tmp_path), analyse=AnalyseConfig(bootstrap_samples=400))
    arms = iter([arm("harmonious", 0, choices(BETTER)), arm("incompatible", 0, choices(WORSE))])
    analyse.compute(
        config,
        Task("analyse", tmp_path / "analyse", "key", {}),
        arms,
        table_of(BASE),
        Bar("analyse", None, None),
    )
    tables = {name: pd.read_csv(tmp_path / "analyse" / f"{name}.csv") for name in analyse.TABLES}
    assert {name for name, table in tables.items() if table.empty} == {
        "correlation_points",
        "correlation",
        "best_ratio",
        "abstention",
        "generated",
        "measures",
    }
    lines = (tmp_path / "analyse" / analyse.EXAMPLES).read_text().splitlines()
    assert len(lines) == 12 and all(json.loads(line)["predictions"] for line in lines)
