"""comparisons.csv: paired differences of two settings on the same questions and seeds, with tests and what could be shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse import power
from ift_scale.analyse.intervals import columns
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
    "first", "second", "domain", "group", "seeds", "questions", "domains", "of_domains", "over", "difference", "difference_low",
    "difference_high", "excludes_zero", "p", "holm_p", "detectable", "questions_low", "questions_high", "mcnemar_p", "discordant",
    "detectable_mcnemar", "reason",
)  # fmt: skip
_TOO_FEW = "no detectable difference of McNemar's test: too few majorities differ for any to be shown with this power"


def pairs(settings: Sequence[str]) -> list[tuple[str, str]]:
    """The paper's pairs, SliCK's ends, then every other treatment against `incompatible` and `natural`; mixtures are not tested."""
    paper = {setting for pair in PAPER for setting in pair}
    others = [
        setting
        for setting in settings
        if setting not in paper and not setting.startswith(("mixture-", "unknown-"))
    ]
    found = [
        *PAPER,
        *GRADED,
        *((other, second) for second in REFERENCES for other in others if other != second),
    ]
    return [pair for pair in found if set(pair) <= set(settings)]


@dataclass(frozen=True)
class _Pair:
    first: str
    second: str
    panels: list[Panel]

    def seeds(self, panel: Panel) -> list[int]:
        return panel.seeds(self.first, self.second)


def comparison_table(panels: Panels, level: float) -> pd.DataFrame:
    """First setting minus second, over the domains that have both with a shared seed.

    About the method, so about other seeds and questions: `difference_low`, `_high`; `p`, the least at which that interval leaves
    zero out; `holm_p`, which corrects `p` for two families (the rows over all domains are one, those of single domains the other);
    and `detectable`, the difference that is shown with power 0.8 at the table's level, before any correction. All are empty with
    one seed.

    About these very models: `questions_low`, `_high`, over questions alone; `mcnemar_p`, which takes each question once, by the
    majority over seeds (`paired.discordant`), so over all domains it weights questions alike, not domains; and
    `detectable_mcnemar`, the same for McNemar's test with the `discordant` share of differing majorities.
    """
    rows = []
    for first, second in pairs(panels.settings):
        for name, group, there in panels.places(first, second):
            if found := [p for p in there if p.seeds(first, second)]:
                row = {"first": first, "second": second, "domain": name, "group": group}
                rows.append(row | _compared(panels, _Pair(first, second, found), level))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    overall = table.domain == ALL_DOMAINS
    for family in (overall, ~overall):
        tested = family & table.p.notna()
        table.loc[tested, "holm_p"] = holm(table.p[tested].to_list())
    return table


def _compared(panels: Panels, pair: _Pair, level: float) -> dict[str, Any]:
    made = panels.difference(pair.panels, pair.first, pair.second)
    assert made is not None, "only panels with a shared seed are chosen"
    both, questions, answered = made.interval(level), made.over_questions(level), majorities(pair)
    by_test = (
        power.detectable_difference(answered.pairs, answered.share, level)
        if answered.pairs
        else None
    )
    return {
        "seeds": made.seeds,
        "questions": num_questions(pair.panels),
        **panels.coverage(pair.panels),
        **columns("difference", made.value, both),
        "excludes_zero": both is not None and both.excludes_zero,
        "p": made.p_value(),
        "detectable": power.detectable_by_error(made.half_width(level), made.standard_error)
        if both
        else None,
        "questions_low": questions and questions.low,
        "questions_high": questions and questions.high,
        "mcnemar_p": mcnemar(answered),
        "discordant": answered.share if answered.pairs else None,
        "detectable_mcnemar": by_test,
        "reason": "; ".join(filter(None, [made.missing, "" if by_test else _TOO_FEW])),
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
