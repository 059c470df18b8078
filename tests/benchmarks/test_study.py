"""The study's data and tables, from made-up variants."""

from pathlib import Path

import pytest

from benchmarks import study
from ift_scale.config import Config
from ift_scale.io.manifests import write_manifest
from tests.report import synthetic


@pytest.fixture
def variant(tmp_path: Path) -> Config:
    facts = synthetic.facts(tmp_path / "made")
    run = tmp_path / "paper"
    (run / "construct").mkdir(parents=True)
    facts.inputs.tables.rename(run / "analyse")
    facts.inputs.balance.rename(run / "construct" / "balance.csv")
    write_manifest(
        run / "construct",
        "construct",
        "k",
        {},
        {},
        {"law/set_size": 39, "law/uncertain": 2},
        {"total": 0.0},
    )
    return Config.model_validate({"output_dir": str(run)})


def test_rows_and_tables(variant: Config) -> None:
    rows = study.found(variant)
    assert rows["sets"] == [{"domain": "law", "size": 39}]
    moved = next(
        row
        for row in rows["balance"]
        if (row["covariate"], row["setting"]) == ("letter", "harmonious")
    )
    assert moved["before"] == pytest.approx(0.2) and moved["after"] == pytest.approx(0.03)
    assert {row["group"] for row in rows["settings"]} == {"HOMO", "ID", "OOD"} and len(
        rows["settings"]
    ) == 3 * len(synthetic.SETTINGS)
    lines = study.markdown({"paper": rows, "matched": rows}).splitlines()
    assert "| questions in a set | paper | matched |" in lines and "| law | 39 | 39 |" in lines
    one = next(line for line in lines if line.startswith("| H - I | HOMO |"))
    first, second = one.split(" | ")[2:]
    assert (
        first == second.removesuffix(" |") and first.startswith("+") and "nan" not in "".join(lines)
    )
    assert any(
        line.startswith("| all domains | ID | ") and " compared with 1: " in line for line in lines
    )
    without = rows | {"balance": [{"covariate": "letter", "setting": "unknown"}]}
    assert "distance from I" not in study.markdown({"slick": without})
    assert "arms" not in study.markdown({"paper": rows})
    learnt = {"setting": "harmonious", "learnt": 0.25, "learnt_low": 0.2, "learnt_high": 0.3}
    shown = study.markdown({"paper": rows, "kl": rows | {"mechanisms": [learnt]}})
    assert "| variant | arms | learnt |" in shown
    assert "| kl | H harmonious | 25.0 [20.0, 30.0] |" in shown
