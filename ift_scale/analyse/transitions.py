"""transitions.csv: what became right and what became wrong, from the base model few-shot to the arm."""

from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.panel import Panels

NAMES = ("right_right", "right_wrong", "wrong_right", "wrong_wrong")
COLUMNS = (
    "setting",
    "domain",
    "group",
    "domains",
    "of_domains",
    "over",
    *NAMES,
    "gained",
    "lost",
    "reason",
)
_NONE = "the base model had no answer that was {}, so none could be {}"


def transitions(before_Q: np.ndarray, after_SQ: np.ndarray) -> np.ndarray:
    """Shares of (seed, question) that were right and stayed, became wrong, became right, stayed wrong: (4,), of sum 1.

    Questions that were not asked before (NaN) are left out; all NaN where none is left.
    """
    asked_Q = np.isfinite(before_Q)
    before_Q, after_SQ = before_Q[asked_Q] == 1, after_SQ[:, asked_Q] == 1
    if not asked_Q.any():
        return np.full(4, np.nan)
    return np.array(
        [
            (after_SQ[:, before_Q == was] == became).sum()
            for was in (True, False)
            for became in (True, False)
        ]
    ) / (after_SQ.size)


def transition_table(panels: Panels) -> pd.DataFrame:
    """Shares over seeds and questions, domains alike: those whose questions the base model was asked (`over`).

    `gained`: share of what was wrong that is right now; `lost`: the reverse. Shares have no intervals here: grades.csv has them by
    what was known.
    """
    rows = []
    for setting in panels.settings:
        for name, group, there in panels.places(setting):
            found = [p for p in there if p.base.columns.correct.notna().any()]
            if found:
                shares = [
                    transitions(p.base.columns.correct.to_numpy(), p.of(setting, "accuracy"))
                    for p in found
                ]
                row = {"setting": setting, "domain": name, "group": group} | panels.coverage(found)
                rows.append(row | _row(np.mean(shares, axis=0)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(shares: np.ndarray) -> dict[str, Any]:
    kept, lost, gained, stayed = (float(share) for share in shares)
    row: dict[str, Any] = dict(zip(NAMES, (kept, lost, gained, stayed), strict=True))
    row["gained"] = gained / (gained + stayed) if gained + stayed else None
    row["lost"] = lost / (lost + kept) if lost + kept else None
    missing = [("wrong", "gained")] * (row["gained"] is None) + [("right", "lost")] * (
        row["lost"] is None
    )
    return row | {"reason": "; ".join(_NONE.format(*words) for words in missing)}
