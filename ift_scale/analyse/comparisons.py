"""comparisons.csv: paired differences of two settings on the same questions and seeds, with tests and what could be shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse import power
from ift_scale.analyse.paired import Discordant, discordant, holm, mcnemar
from ift_scale.analyse.panel import ALL_DOMAINS, Panel, Panels, num_questions

PAPER = (
    ("harmonious", "incompatible"),
    ("self_aligning", "incompatible"),
    ("harmonious", "self_aligning"),
    ("contextualized", "incompatible"),
)
GRADED = (("highly_known", "unknown"),)
REFERENCES = ("incompatible", "natural")
COLUMNS = (
    "first", "second", "domain", "group", "seeds", "questions", "difference", "difference_low", "difference_high",
    "questions_low", "questions_high", "excludes_zero", "mcnemar_p", "holm_p", "detectable", "discordant", "detectable_mcnemar",
    "reason",
)  # fmt: skip
_NO_ERROR = "no detectable difference: no question's difference varies, so there is no error to go by"
_TOO_FEW = "no detectable difference of McNemar's test: too few majorities differ for any to be shown with this power"


def pairs(settings: Sequence[str]) -> list[tuple[str, str]]:
    """The paper's pairs, SliCK's ends, then every other treatment against `incompatible` and `natural`; mixtures are not tested."""
    paper = {setting for pair in PAPER for setting in pair}
    others = [setting for setting in settings if setting not in paper and not setting.startswith(("mixture-", "unknown-"))]
    found = [*PAPER, *GRADED, *((other, second) for second in REFERENCES for other in others if other != second)]
    return [pair for pair in found if set(pair) <= set(settings)]


@dataclass(frozen=True)
class _Pair:
    first: str
    second: str
    panels: list[Panel]

    def seeds(self, panel: Panel) -> list[int]:
        return panel.seeds(self.first, self.second)


def comparison_table(panels: Panels, level: float) -> pd.DataFrame:
    """First setting minus second.

    `difference_low`, `_high`: over seeds and questions, the main result; `questions_low`, `_high`: questions alone. `mcnemar_p`
    takes each question once, by the majority over seeds (`paired.discordant`), so over all domains it weights questions alike, not
    domains. `holm_p` corrects it for two families: the rows over all domains are one, the rows of single domains the other.
    `detectable`: the difference that is shown with power 0.8 at the bootstrap's error; `detectable_mcnemar`: the same for McNemar's
    test with the `discordant` share of differing majorities. Both at the table's level, before any correction.
    """
    rows = []
    for first, second in pairs(panels.settings):
        for name, domains in panels.choices:
            for group in panels.groups:
                found = [p for p in panels.chosen(domains, group, first, second) if p.seeds(first, second)]
                if found:
                    row = {"first": first, "second": second, "domain": name, "group": group}
                    rows.append(row | _compared(panels, _Pair(first, second, found), level))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    overall = table.domain == ALL_DOMAINS
    for family in (overall, ~overall):
        table.loc[family, "holm_p"] = holm(table.mcnemar_p[family].to_list())
    return table


def _compared(panels: Panels, pair: _Pair, level: float) -> dict[str, Any]:
    drawn = panels.difference(pair.panels, pair.first, pair.second)
    assert drawn is not None, "only panels with a shared seed are chosen"
    both, questions, answered = drawn.interval(level), drawn.over_questions(level), majorities(pair)
    by_error = power.detectable_by_error(drawn.standard_error, level) if drawn.standard_error > 0 else None
    by_test = power.detectable_difference(answered.pairs, answered.share, level) if answered.pairs else None
    missing = [_NO_ERROR] * (by_error is None) + [_TOO_FEW] * (by_test is None)
    return {
        "seeds": min(len(pair.seeds(p)) for p in pair.panels),
        "questions": num_questions(pair.panels),
        **both.columns("difference"),
        "questions_low": questions.low,
        "questions_high": questions.high,
        "excludes_zero": both.excludes_zero,
        "mcnemar_p": mcnemar(answered),
        "detectable": by_error,
        "discordant": answered.share if answered.pairs else None,
        "detectable_mcnemar": by_test,
        "reason": "; ".join(missing),
    }


def majorities(pair: _Pair) -> Discordant:
    """Each question once, by the majority of its answers over seeds and over the domains that ask it: none counts twice."""
    order = pd.Index(list(dict.fromkeys(q for panel in pair.panels for q in panel.questions)))
    answers: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for panel in pair.panels:
        places = order.get_indexer(panel.questions)
        for side, setting in zip(answers, (pair.first, pair.second), strict=True):
            right_SQ = panel.values["accuracy"][panel.rows(setting, pair.seeds(panel))]
            spread_SU = np.full((len(right_SQ), len(order)), np.nan)
            spread_SU[:, places] = right_SQ
            side.append(spread_SU)
    return discordant(np.concatenate(answers[0]), np.concatenate(answers[1]))
