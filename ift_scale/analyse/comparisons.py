"""comparisons.csv: paired differences of two settings, with intervals, tests and power."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse import power
from ift_scale.analyse.intervals import columns
from ift_scale.analyse.paired import Discordant, discordant, holm, mcnemar
from ift_scale.analyse.panel import ALL_DOMAINS, Panel, Panels, num_questions
from ift_scale.treatments import dose_of, is_constructed

PAPER = (
    ("harmonious", "incompatible"),
    ("self_aligning", "incompatible"),
    ("harmonious", "self_aligning"),
    ("contextualized", "incompatible"),
)
CONTROLS = ("general_only", "format_only")
FORMAT = (
    *(
        (setting, control)
        for control in CONTROLS
        for setting in ("harmonious", "incompatible", "self_aligning", "natural")
    ),
    ("format_only", "general_only"),
)
"""What the questions of a set add to its general instructions, and their facts to their form."""
GRADED = (("highly_known", "unknown"),)
REFERENCES = ("incompatible", "natural")
COLUMNS = tuple(
    "first second domain group seeds questions domains of_domains over difference difference_low "
    "difference_high excludes_zero p holm_p detectable questions_low questions_high mcnemar_p "
    "discordant detectable_mcnemar reason".split()
)
_TOO_FEW = (
    "no detectable difference of McNemar's test: too few majorities differ for any difference to "
    "reach this power"
)


def pairs(settings: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs to compare: the paper's, SliCK's extreme grades, and the other treatments.

    H, I, S and `natural` are also compared with their general instructions alone and with invented
    questions. The others are compared with `incompatible` and `natural`, and users' own sets also
    with each other, in their order. Averages with the base model are compared with the arm that was
    trained. Mixtures and other doses are not tested; `correlation` and `dose` are about them.
    """
    paper = {*CONTROLS, *(setting for pair in PAPER for setting in pair)}
    others = [
        setting
        for setting in settings
        if setting not in paper
        and not setting.startswith(("mixture-", "unknown-"))
        and dose_of(setting).whole is None
    ]
    averages = [setting for setting in settings if dose_of(setting).kind == "average"]
    candidates = [
        *PAPER,
        *FORMAT,
        *GRADED,
        *((other, second) for second in REFERENCES for other in others if other != second),
        *combinations((s for s in others if not is_constructed(s)), 2),
        *((setting, dose_of(setting).trained) for setting in averages),
    ]
    return [pair for pair in candidates if set(pair) <= set(settings)]


@dataclass(frozen=True)
class _Pair:
    first: str
    second: str
    panels: list[Panel]

    def seeds(self, panel: Panel) -> list[int]:
        return panel.seeds(self.first, self.second)


def comparison_table(panels: Panels, level: float) -> pd.DataFrame:
    """Returns first setting minus second, over the domains that have both with a shared seed.

    About the method, that is, other seeds and questions: `difference_low`, `difference_high`; `p`,
    the smallest p whose interval excludes zero; `holm_p`, corrected within two families (rows over
    all domains, rows of single domains); `detectable`, the difference that is detected with power
    0.8 at the table's level, before correction. All are empty with one seed.

    About these trained models: `questions_low`, `questions_high`, over questions only;
    `mcnemar_p`, by each question's majority over seeds (`paired.discordant`), so that questions
    and not domains have equal weights; `detectable_mcnemar`, the detectable difference of
    McNemar's test for the `discordant` share of differing majorities.
    """
    rows = []
    for first, second in pairs(panels.settings):
        for name, group, there in panels.cells(first, second):
            if shared := [p for p in there if p.seeds(first, second)]:
                row = {"first": first, "second": second, "domain": name, "group": group}
                rows.append(row | _compared(panels, _Pair(first, second, shared), level))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    overall = table.domain == ALL_DOMAINS
    for family in (overall, ~overall):
        tested = family & table.p.notna()
        table.loc[tested, "holm_p"] = holm(table.p[tested].to_list())
    return table


def _compared(panels: Panels, pair: _Pair, level: float) -> dict[str, Any]:
    made = panels.difference(pair.panels, pair.first, pair.second)
    assert made is not None, "only panels with a shared seed are compared"
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
    """Counts each question once, by the majority of its answers over seeds and domains."""
    order = pd.Index(list(dict.fromkeys(q for panel in pair.panels for q in panel.questions)))
    answers: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for panel in pair.panels:
        columns = order.get_indexer(panel.questions)
        for side, setting in zip(answers, (pair.first, pair.second), strict=True):
            right_SQ = panel.values["accuracy"][panel.rows(setting, pair.seeds(panel))]
            spread_SU = np.full((len(right_SQ), len(order)), np.nan)
            spread_SU[:, columns] = right_SQ
            side.append(spread_SU)
    return discordant(np.concatenate(answers[0]), np.concatenate(answers[1]))
