"""Every number that is a mean over fewer domains than the run has says so, and means that are compared are over the same ones."""

import re
from pathlib import Path

import pandas as pd
import pytest

from ift_scale.analyse import run as analyse
from ift_scale.analyse.answers import ArmScores, table_of
from ift_scale.config import Config
from ift_scale.io.progress import Bar
from ift_scale.records import Arm, Score
from ift_scale.report import latex, study
from ift_scale.report.coverage import label, over, side_by_side
from ift_scale.report.facts import Facts, Sources
from ift_scale.report.run import page
from ift_scale.stage import Task
from ift_scale.treatments import POOLED
from tests.analyse.scores import arm, choices

DOMAINS = ("engineering", "history", "law", "medicine")
SETTINGS = ("harmonious", "incompatible", "mixture-0.5", "self_aligning")
RIGHT = {"engineering": 30, "history": 28, "law": 29, "medicine": 20}
"""Of 40 questions, by all settings alike but for `incompatible`, which has two less."""


def _scores(domain: str, setting: str, seed: int) -> list[Score]:
    right = RIGHT[domain] - 2 * (setting == "incompatible")
    named = [s.model_copy(update={"response": "x", "refused": i == seed, "generated_prediction": 1}) for i, s in enumerate(
        choices([i < right for i in range(40)], domain))]  # fmt: skip
    return named


def _facts(folder: Path, lacking: dict[str, tuple[str, ...]]) -> Facts:
    """The report's facts of a run in which `lacking`[setting] are the domains without an arm."""
    arms: list[ArmScores] = [
        arm(setting, seed, _scores(domain, setting, seed), domain)
        for domain in DOMAINS
        for setting in SETTINGS
        for seed in (0, 1, 2)
        if domain not in lacking.get(setting, ())
    ]
    base = [s for domain in DOMAINS for s in choices([i < 25 for i in range(40)], domain, sure=0.9)]
    config = Config(output_dir=str(folder))
    analyse.compute(
        config,
        Task("analyse", folder / "analyse", "key", {}),
        iter(arms),
        table_of(base),
        Bar("analyse", None, None),
    )
    there: list[Arm] = [scores.arm for scores in arms]
    nothing = folder / "none"
    return Facts(
        config, Sources(folder / "analyse", nothing, there, {}, {}, 0.25, {}, nothing, nothing)
    )


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """As the authors' Mistral sets: no self-aligning set in medicine."""
    return _facts(tmp_path_factory.mktemp("partial") / "run", {"self_aligning": ("medicine",)})


def _text(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html)).replace("\u00a0", " ")


def test_every_table_counts_the_domains_of_every_row(partial: Facts) -> None:
    names = ("settings", "comparisons", "transitions", "grades", "abstention", "generated")
    for name in names:
        whole = partial[name][partial[name].domain == "all"]
        lacks = (
            (whole.setting == "self_aligning")
            if "setting" in whole
            else (whole[["first", "second"]] == "self_aligning").any(axis=1)
        )
        assert len(whole) and lacks.any() and (whole.of_domains == 4).all(), name
        assert (whole[lacks].domains == 3).all() and (whole[~lacks].domains == 4).all(), name
        assert (partial[name][partial[name].domain == "law"].domains == 1).all(), name
    best = partial["best_ratio"].set_index("domain").loc["all"]
    assert (best.domains, best.difference) == (3, 0)
    assert (
        partial["correlation"].domains == 4
    ).all()  # points of every domain, some with fewer ratios


def test_the_page_says_so_wherever_a_mean_is_over_fewer(partial: Facts) -> None:
    text = _text(page(partial, []))
    harmonious, self_aligning = 100 * 107 / 160, 100 * 87 / 120
    assert re.search(rf"S self-aligning {self_aligning:.1f} \[[\d., ]+\] over 3 of 4 domains", text)
    assert re.search(rf"H harmonious {harmonious:.1f} \[[\d., ]+\] I ", text)
    assert "The same over the domains that every setting has: engineering, history and law" in text
    assert re.search(
        rf"H harmonious {self_aligning:.1f} \[[\d., ]+\] over 3 of 4 domains", text
    )  # the same as S there
    assert re.search(r"base model, few-shot 62.5 over 3 of 4 domains", text)
    assert re.search(r"H − S HOMO 120 × 3 0.0 \[[−+\d., ]+\] over 3 of 4 domains", text)
    assert "S (3/4)" in text and "S − I (3/4)" in text  # plots
    assert "HOMO: 3 of 4 domains" in text  # the line over ratios is over the domains that all have
    assert re.search(
        r"\(−?[+\d.]+ to [+\d.]+\) over 3 of 4 domains: the interval holds zero|\+5.0 points .* over 3 of 4 domains",
        text,
    )


def test_values_without_an_interval_have_their_reason(tmp_path: Path) -> None:
    """Two of the base model's grades have five questions in a domain, and no other seed says what training varies."""
    base = (
        choices([True] * 30, "law", sure=0.9)
        + choices([False] * 5, "n", sure=0.9)
        + choices([True] * 5, "u", sure=0.4)
    )
    after = choices([True] * 30, "law") + choices([False] * 5, "n") + choices([True] * 5, "u")
    arms = [arm(setting, 0, after, "law") for setting in ("harmonious", "incompatible")]
    config = Config(output_dir=str(tmp_path))
    analyse.compute(
        config,
        Task("analyse", tmp_path / "analyse", "key", {}),
        iter(arms),
        table_of(base),
        Bar("analyse", None, None),
    )
    nothing = tmp_path / "none"
    facts = Facts(
        config,
        Sources(
            tmp_path / "analyse", nothing, [a.arm for a in arms], {}, {}, 0.25, {}, nothing, nothing
        ),
    )
    text = _text(page(facts, []))
    assert "Values without brackets: no interval: a domain has fewer than 10 questions." in text
    assert "Values without brackets: one seed: no interval over seeds." in text
    assert "? cannot tell (one seed)" in text and "✓ holds here" not in text
    assert "these very models, not about the method" in text


def test_latex_says_so(partial: Facts) -> None:
    text = latex.tables(partial)
    assert (
        re.search(r"S self-aligning & .* over 3 of 4 domains", text)
        and "tab:accuracy-shared" in text
    )
    assert re.search(r"H \$-\$ S & .* over 3 of 4 domains", text)
    assert not re.search(r"H harmonious & 66\.9 .* over", text.split("accuracy-shared")[0])


def test_a_study_says_so(partial: Facts, tmp_path: Path) -> None:
    whole = _facts(tmp_path / "whole", {})
    variants = {}
    for name, facts in (("partial", partial), ("whole", whole)):
        (tmp_path / name / "report").mkdir(parents=True)
        for file in facts.sources.tables.glob("*.csv"):
            (tmp_path / name / "report" / file.name).write_bytes(file.read_bytes())
        variants[name] = Config(output_dir=str(tmp_path / name))
    text = _text(study.run(Config(output_dir=str(tmp_path)), variants).read_text())
    row = re.search(r"S self-aligning HOMO (.*?\]( over 3 of 4 domains)?) (.*?\]( over)?) ", text)
    assert row and row[2] and not row[4]


def test_nothing_is_said_where_nothing_is_missing(tmp_path: Path) -> None:
    facts = _facts(tmp_path / "run", {})
    text = _text(page(facts, []))
    assert not re.search(r"over \d of \d domains|\(\d/\d\)", text) and "mean over 4 domains" in text
    assert facts["settings"][
        facts["settings"].domain == "shared"
    ].empty and "accuracy-shared" not in latex.tables(facts)


def test_settings_without_a_common_domain_are_no_line(tmp_path: Path) -> None:
    lacking = {
        "incompatible": ("engineering",),
        "mixture-0.5": ("history", "law"),
        "self_aligning": ("medicine",),
    }
    facts = _facts(tmp_path / "run", lacking)
    text = _text(page(facts, []))
    assert facts["settings"][facts["settings"].domain == "shared"].empty
    assert (
        "no domain has all ratios, so there is no line" in text
        and "best:" not in text.split("By domain")[0]
    )


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"domains": 3, "of_domains": 4}, "over 3 of 4 domains"),
        ({"domains": 4, "of_domains": 4}, ""),
        ({"domains": 1, "of_domains": 4, "domain": "law"}, ""),
        ({"domains": 1, "of_domains": 4, "domain": POOLED}, ""),
        ({"domains": 4, "kl_domains": 2, "of_domains": 4}, "over 2 of 4 domains"),
        ({"domains": float("nan"), "of_domains": float("nan")}, ""),
        ({}, ""),
    ],
)
def test_words(row: dict, told: str) -> None:
    assert over(row, "kl") == told
    assert label({"setting": "self_aligning"} | row, "kl") == (
        "S" + told.replace("over ", " (").replace(" of ", "/").replace(" domains", ")")
    )


def test_rows_side_by_side_are_the_shared_ones_where_there_are_any() -> None:
    rows = [("all", "HOMO"), ("shared", "HOMO"), ("all", "ID"), ("law", "ID")]
    found = side_by_side(pd.DataFrame(rows, columns=["domain", "group"]))
    assert sorted(zip(found.domain, found.group, strict=True)) == [
        ("all", "ID"),
        ("shared", "HOMO"),
    ]
