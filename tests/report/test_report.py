"""The page, its files, and unusual or minimal input."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ift_scale.config import MatchingConfig
from ift_scale.report import colors, latex
from ift_scale.report.facts import Facts, read
from ift_scale.report.html import table
from ift_scale.report.run import page, write_page
from ift_scale.report.sections import experiment
from ift_scale.report.sections.probe import calibration, letters, reliability
from ift_scale.report.svg import Axis, Chart, limits, round_numbers
from ift_scale.report.text import number
from ift_scale.stage import Task
from ift_scale.treatments import BY_NAME, POOLED
from tests.report import synthetic

VOID = {"meta", "link", "br", "img", "hr", "path", "circle", "rect", "polygon"}


class Reader(HTMLParser):
    """Tags must close in order; gathers the visible text, the addresses, and what has ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.unnamed: list[str] = []
        self.headings: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [values[name] or "" for name in ("href", "src") if name in values]
        self.ids += [values["id"] or ""] if "id" in values else []
        if (tag == "svg" or values.get("role") == "region") and not values.get("aria-label"):
            self.unnamed.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another: {self.open[-5:]}"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text.append(data)


def _read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def _check(text: str) -> Reader:
    """What every page must keep."""
    reader = _read(text)
    assert not re.search(r"\b(nan|NaN|None|inf)\b", " ".join(reader.text))
    assert not re.search(r'["\s,ML](-?nan|-?inf)\b', text), "a chart has a place that is no number"
    for address in reader.addresses:
        inside = address.startswith("#") and address[1:] in reader.ids
        assert inside or re.fullmatch(r"[a-z_]+\.(csv|jsonl|tex)", address), address
    assert len(set(reader.ids)) == len(reader.ids) and reader.unnamed == []
    assert (
        all(b <= a + 1 for a, b in zip(reader.headings, reader.headings[1:], strict=False))
        and reader.headings.count(1) == 1
    )
    assert not re.search(r"url\(|@import|https?://", text)
    return reader


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return synthetic.facts(tmp_path_factory.mktemp("full") / "files")


def test_the_page_of_a_run_with_everything(full: Facts, tmp_path: Path) -> None:
    write_page(full.config, Task("report", tmp_path / "report", "k", {}), full.inputs)
    text = (tmp_path / "report" / "index.html").read_text()
    reported = " ".join(_check(text).text)
    titles = (
        "Comparison with the paper",
        "Mixtures",
        "Answers that turned right",
        "Example questions",
        "Generated answers",
        "Live knowledge",
    )
    assert all(title in reported for title in titles)
    assert len(text) < 1_500_000 and text.count("<svg") > 80
    files = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"balance.csv", "live.csv", "tables.tex", "transitions.csv", "examples.jsonl"} <= files
    assert all(f'href="{name}"' in text for name in files - {"index.html", "manifest.json"})
    assert "3 of 160" in reported  # duplicate questions
    assert (
        "7 were written more than once" in reported and "their questions are in no set" in reported
    )
    assert (
        "kl is the same for every point" in reported and "∞" in reported
    )  # reasons where there is no number


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return synthetic.facts(
        tmp_path_factory.mktemp("small") / "files",
        ("law",),
        ("harmonious", "incompatible"),
        (0,),
        ("HOMO",),
    )


def test_texts_of_the_run_are_escaped(small: Facts) -> None:
    text = page(small, [])
    assert "<script>alert" not in text and "<b>mint" not in text
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; Which of A &amp; B?" in text


def test_the_page_is_the_same_every_time(small: Facts) -> None:
    assert page(small, []) == page(Facts(small.config, small.inputs), [])


def test_the_page_of_a_minimal_run(tmp_path: Path) -> None:
    facts = synthetic.facts(
        tmp_path / "files", ("law",), ("harmonious", "incompatible"), (0,), ("HOMO",), full=False
    )
    reported = " ".join(_check(page(facts, ["arms.csv"])).text)
    assert (
        "This run has one seed" in reported
        and "fine-tuned 2 times" in reported
        and "law" in reported
    )
    assert (
        "Mixtures:" not in reported
        and "Example questions" not in reported
        and "Generated answers" not in reported
    )


@pytest.mark.parametrize(
    ("domains", "settings"),
    [
        ((POOLED,), ("natural",)),
        (
            (*synthetic.DOMAINS[:2], POOLED),
            ("self_aligning", "unknown-0.5", "highly_known", "unknown"),
        ),
    ],
)
def test_any_settings_and_domains_have_a_page(
    tmp_path: Path, domains: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    facts = synthetic.facts(tmp_path / "files", domains, settings, (0,), ("HOMO", "reading"))
    reported = " ".join(_check(page(facts, [])).text)
    assert "reading" in reported and ("share of unknown questions" in reported) == (
        len(settings) > 1
    )


@pytest.mark.parametrize(
    ("matching", "told"),
    [
        ({}, "only their sizes are equal"),
        (
            {"letters": "reorder", "length": "selection", "author": "external"},
            "target letters (by reordering options), length (by choosing questions) and author (an "
            "external model writes all",
        ),
    ],
)
def test_matching_is_described(matching: dict[str, str], told: str) -> None:
    assert told in experiment._controls(MatchingConfig.model_validate(matching))


def test_sets_that_are_not_matched_are_shown_once(small: Facts) -> None:
    assert "before matching" in page(small, [])
    small.config.construct.matching = MatchingConfig()
    try:
        text = page(small, [])
        assert "before matching" not in text and "as trained on" in text and "Hollow" not in text
    finally:
        small.config.construct.matching = MatchingConfig(letters="reorder")


def test_free_questions_have_no_chance(tmp_path: Path) -> None:
    facts = synthetic.facts(
        tmp_path / "files",
        ("law",),
        ("harmonious", "incompatible"),
        (0,),
        ("HOMO free",),
        full=False,
    )
    rows = "domain,group,accuracy,accuracy_low,accuracy_high\nlaw,HOMO free,0.25,0.2,0.3\n"
    (facts.inputs.tables / "base.csv").write_text(rows)
    reported = " ".join(_check(page(facts, [])).text)
    assert "indistinguishable from chance" not in reported and "that matches an alias" in reported


def test_refusals_are_drawn_where_it_is_known_what_the_base_model_knew(tmp_path: Path) -> None:
    facts = synthetic.facts(
        tmp_path / "files", ("law",), ("natural", "refuse_unknown"), (0,), ("HOMO", "HOMO free")
    )
    found = facts["abstention"]
    found.loc[found.group == "HOMO free", ["refused_known", "refused_unknown"]] = float("nan")
    text = page(facts, [])
    assert "Refusals on HOMO by setting" in text and "Refusals on HOMO free by setting" not in text
    _check(text)


def test_tables_without_rows_are_missing_tables(tmp_path: Path) -> None:
    facts = synthetic.facts(tmp_path / "files", ("law",), full=False)
    for name in ("comparisons", "correlation", "grades"):
        (facts.inputs.tables / f"{name}.csv").write_text("\n")
    reported = " ".join(_check(page(facts, [])).text)
    assert "no two settings to compare" in reported
    assert "No correlation: it requires three ratios" in reported


def test_a_domain_may_be_called_na(tmp_path: Path) -> None:
    (tmp_path / "base.csv").write_text("domain,group,accuracy\nNA,HOMO,0.5\nnull,ID,\n")
    found = read(tmp_path / "base.csv", "base")
    assert found.domain.tolist() == ["NA", "null"] and found.accuracy.isna().tolist() == [
        False,
        True,
    ]


def test_an_empty_cell_needs_a_reason() -> None:
    with pytest.raises(AssertionError, match="without an explanation"):
        table([{"a": "x", "b": None}], "Something")
    assert "– was not asked" in table([{"a": "x", "b": None}], "Something", "was not asked.")


def test_numbers() -> None:
    assert [number(v, 1) for v in (None, float("nan"), -0.04, -1.25)] == ["–", "–", "0.0", "−1.2"]
    assert [number(v, 1) for v in (1234.5, float("-inf"))] == ["1,234.5", "−∞"]
    assert number(0.0, 1, sign=True) == "0.0" and number(0.3, 1, sign=True) == "+0.3"


def test_every_color_is_seen_on_both_backgrounds() -> None:
    for setting in [*BY_NAME, "mixture-0.5", "mixture-0.25", "unknown-0.5"]:
        for background in ("#ffffff", "#15171c"):
            assert colors.contrast(colors.of(setting), background) >= 3, setting
    assert len({colors.of(setting) for setting in BY_NAME}) == len(BY_NAME)
    assert colors.contrast(colors.readable_on("#d55e00"), "#d55e00") >= 4.5


def test_text_of_the_page_has_contrast_enough() -> None:
    style = (Path(colors.__file__).parent / "page.css").read_text()
    for block in (style.split("@media")[0], style.split("dark) {")[1].split("}")[0]):
        found = dict(re.findall(r"--(\w+): (#\w{6})", block))
        for name in ("ink", "quiet", "link", "good", "bad", "open"):
            for behind in ("paper", "faint"):
                assert colors.contrast(found[name], found[behind]) >= 4.5, (name, behind)


def test_ticks_are_round() -> None:
    assert round_numbers(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and round_numbers(-0.07, 0.31) == [
        0,
        0.1,
        0.2,
        0.3,
    ]
    assert limits([]) == (0.0, 1.0) and limits([0.3, 0.3])[0] < 0.3 < limits([0.3, float("nan")])[1]


def test_what_is_no_number_is_not_drawn() -> None:
    chart = Chart(Axis(0, 1), Axis(0, 1), "nothing")
    nan = float("nan")
    chart.point(nan, 1, "#000000")
    chart.line([0, nan], [nan, 1], "#000000")
    chart.band([0, 1], [nan, nan], [1, nan], "#000000")
    chart.bar(nan, 1, 0, 1, "#000000")
    chart.level(nan)
    chart.text(nan, 0, "a")
    assert chart.marks == []


def test_only_what_was_asked_for_is_told_of_the_knowledge() -> None:
    plain = synthetic.KNOWLEDGE
    measures = ["expected calibration error", "Brier score", "spread of recall, 4 options"]
    assert [row["measure"] for row in reliability(plain)] == measures
    by_text = {"accuracy": 0.5, "nll": 1.25, "ece": 0.125}
    grades = {"HighlyKnown": 5, "MaybeKnown": 1, "WeaklyKnown": 0, "Unknown": 2}
    more = {
        "letters": {
            "4": {
                "recall": [0.5] * 4,
                "recall_std": 0,
                "letter_bias": 0.2,
                "probability": [0.4] * 4,
                "prior": [0.2] * 4,
            }
        },
        "views": {"questions": 8, "agreement": 0.75},
        "cloze": {"score": "sum", "agreement": 0.6, "scores": {"sum": by_text, "byte": by_text}},
        "grades": grades,
        "free": {"questions": 7, "exact_match": 0.2, "f1": 0.3, "grades": grades},
    }
    reported = {row["measure"]: row["value"] for row in reliability(plain | more)}
    assert (
        reported["letter bias, 4 options"] == "0.200"
        and reported["agreement between views"] == "0.750"
        and reported["accuracy by the options' texts, sum, used"] == "0.500"
        and reported["agreement between text and letter"] == "0.600"
    )
    assert (
        reported["Unknown, choice questions"] == "2"
        and reported["exact match, free questions"] == "0.200"
    )
    assert letters(4, more["letters"]["4"]).count("<circle") == 12  # type: ignore[index]
    assert calibration(plain["calibration"]).startswith("<svg")  # type: ignore[arg-type]


def test_latex_is_escaped_and_balanced(full: Facts) -> None:
    assert latex.escape("50% of A_B & {C} − \\x") == r"50\% of A\_B \& \{C\} $-$ \textbackslash{}x"
    text = latex.tables(full)
    assert text.count(r"\begin{") == text.count(r"\end{") == 6 and r"\toprule" in text
    body = [line for line in text.splitlines() if " & " in line]
    assert all(re.search(r"(?<!\\)[%_#]", line) is None and line.endswith(r" \\") for line in body)
    assert not re.search(r"[−∞–×]", text)
