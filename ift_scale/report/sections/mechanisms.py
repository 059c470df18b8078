"""What training did to knowledge, by setting: learnt, transferred, kept, hidden, forgotten."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import pandas as pd
from markupsafe import Markup

from ift_scale.records import AS_TRAINED, TRANSFER_FORMS
from ift_scale.report import colors
from ift_scale.report.coverage import label, overall
from ift_scale.report.facts import Facts
from ift_scale.report.html import figure, joined, key, paragraph, table
from ift_scale.report.svg import Axis, Chart, across, limits
from ift_scale.report.text import interval, setting_name
from ift_scale.treatments import BASE


class Tables(Protocol):
    """The analyse stage's tables by name; empty without rows."""

    def __getitem__(self, name: str) -> pd.DataFrame: ...


class Summary(NamedTuple):
    """A column of the summary: `name` of the `rows` of a table, times `sign`."""

    title: str
    table: str
    name: str
    rows: Mapping[str, tuple[str, ...]]
    sign: int = 1


_ALL, _TRANSFERRED = {"grade": ("all",)}, "transferred: "
COLUMNS = (
    Summary("learnt", "learnt", "gain", _ALL | {"form": (AS_TRAINED,)}),
    *(
        Summary(f"{_TRANSFERRED}{form}", "learnt", "new_transfer", _ALL | {"form": (form,)})
        for form in TRANSFER_FORMS
    ),
    Summary(
        "kept",
        "grades",
        "accuracy",
        {"group": ("HOMO",), "grade": ("known right", "HighlyKnown")},
    ),
    Summary("hidden", "hidden", "lost_decodable", {}),
    Summary("forgotten", "format_content", "content_change", {"group": ("OOD",)}, -1),
)
_NEEDED = ("learnt", "hidden", "format_content")
_TEXT = (
    "Learnt: of the training items, those that the arm answers as its set teaches, less those that "
    "the base model does. Transferred: of the items that are new to the base model, those that are "
    "answered as taught in another form too. Kept: of the test questions of the own domain that "
    "the base model knew, those that are answered correctly. Hidden: of its right answers that "
    "became wrong, those that a linear probe still decodes. Forgotten: accuracy lost on other "
    "domains, both 0-shot. A higher value is better except in the last column."
)


def body(facts: Facts) -> Markup | None:
    whole = summary(facts)
    if not len(whole):
        return None
    whole = whole.assign(setting=pd.Categorical(whole.setting, facts.settings, ordered=True))
    whole = whole.sort_values("setting").astype({"setting": str})
    shown = [column.title for column in COLUMNS if whole[column.title].notna().any()]
    caption = f"Percent, and {facts.level} intervals: {facts.scope}"
    rows = [
        {"setting": setting_name(row["setting"])} | {name: interval(row, name) for name in shown}
        for row in whole.to_dict("records")
    ]
    return joined(
        [
            paragraph(_TEXT),
            figure([(name, _drawn(whole, name)) for name in shown], caption, key(whole.setting)),
            table(rows, caption, "no such item or question; see the measure's own section."),
        ]
    )


def summary(tables: Tables) -> pd.DataFrame:
    """Returns one row per setting with NAME, NAME_low and NAME_high of each column, NaN if missing.

    Over all domains, as `coverage.overall`. All values are shares. Empty without the tables of the
    settings that are off by default.
    """
    found: dict[str, dict[str, Any]] = {}
    for column in COLUMNS if any(len(tables[name]) for name in _NEEDED) else ():
        frame = overall(tables[column.table])
        for field, values in column.rows.items():
            frame = frame[frame[field].isin(values)]
        for row in frame[frame.setting != BASE].to_dict("records"):
            of_setting = found.setdefault(row["setting"], {"setting": row["setting"]})
            ends = ("_low", "_high") if column.sign > 0 else ("_high", "_low")
            of_setting[column.title] = column.sign * row[column.name]
            for end, source in zip(("_low", "_high"), ends, strict=True):
                of_setting[f"{column.title}{end}"] = column.sign * row[f"{column.name}{source}"]
    names = [f"{c.title}{end}" for c in COLUMNS for end in ("", "_low", "_high")]
    return pd.DataFrame(found.values(), columns=["setting", *names])


def _drawn(frame: pd.DataFrame, name: str) -> Markup:
    rows = frame[frame[name].notna()].to_dict("records")
    ends = [value for row in rows for value in (row[name], row[f"{name}_low"], row[f"{name}_high"])]
    low, high = limits([0.0, *ends], -1, 1)
    chart = Chart(across([label(row) for row in rows]), Axis(low, high, percent=True), name)
    chart.level(0)
    for x, row in enumerate(rows):
        color = colors.of(row["setting"])
        chart.interval(x, row[f"{name}_low"], row[f"{name}_high"], color)
        chart.point(x, row[name], color)
    return chart.svg()
