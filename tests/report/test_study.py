"""A study's page from its variants' tables."""

from pathlib import Path

import pandas as pd

from ift_scale.config import Config
from ift_scale.report import study
from tests.report import synthetic
from tests.report.test_report import _read


def _study(folder: Path) -> tuple[Config, dict[str, Config]]:
    """Two finished variants; the second has no mixtures and one setting of its own."""
    whole = Config.model_validate({"output_dir": str(folder)})
    variants = {}
    for name, settings in (
        ("paper", synthetic.SETTINGS),
        ("matched", ("harmonious", "incompatible", "natural")),
    ):
        facts = synthetic.facts(folder / "made" / name, settings=settings)
        config = {
            "output_dir": str(folder / name),
            "construct": {"matching": {"letters": "selection" if name == "matched" else "none"}},
        }
        variants[name] = Config.model_validate(config)
        (folder / name).mkdir()
        facts.inputs.tables.rename(folder / name / "report")
    return whole, variants


def test_variants_stand_side_by_side(tmp_path: Path) -> None:
    page = study.run(*_study(tmp_path))
    reader = _read(page.read_text())
    reported = " ".join(reader.text)
    assert (
        "construct.matching.letters: selection" in reported
        and "the study's own settings" in reported
    )
    assert {"../paper/report/index.html", "../matched/report/index.html"} <= set(reader.addresses)
    assert all(
        title in reported
        for title in ("Accuracy in percent", "H − I", "Best ratio", "Mean rank correlation")
    )
    assert page.read_text().count("<svg") == 3  # differences on three groups
    assert "this variant has no such settings" in reported and "nan" not in reported
    table = pd.read_csv(tmp_path / "report" / "comparisons.csv")
    assert set(table.variant) == {"paper", "matched"} and "difference" in table


def test_settings_that_a_variant_changes(tmp_path: Path) -> None:
    one = Config.model_validate({"output_dir": "a", "train": {"epochs": 3}})
    other = Config.model_validate(
        {"output_dir": "b", "train": {"epochs": 5}, "construct": {"settings": ["natural"]}}
    )
    assert study.changes(one, other) == ["construct.settings: ['natural']", "train.epochs: 5"]
