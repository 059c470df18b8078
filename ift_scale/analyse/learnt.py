"""learnt.csv, learnt_points.csv, learnt_curve.csv: the training items of each arm, asked again.

An item is *fitted* if the arm, asked as in training, gives the answer of its set. That is the right
answer except where a set teaches another one (self-aligning, mixtures), so both are counted. It is
*new* if it is fitted and the base model, asked the same prompt, answers otherwise. Transfer is the
share of new items that are answered as trained in another form; what the base model answers there
is given next to it.

The curve is the linear model of Gekhman et al. 2024 (arXiv 2405.05904): accuracy on other questions
= b0 + known x share of the set that is fitted and Known + unknown x share that is fitted
and Unknown, here with a b0 per domain. Notation: A arms, Q items.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy

from ift_scale.analyse.answers import Answers, answers_of
from ift_scale.analyse.grades import BY_CONFIDENCE, grades_of
from ift_scale.analyse.intervals import DIFFERENCE, ONE_SEED, SHARE, Measure, mean_columns
from ift_scale.analyse.panel import Panel, Panels
from ift_scale.records import AS_TRAINED, GRADES, LEARNT_FILE, Arm
from ift_scale.treatments import BASE

ALL_GRADES = "all"
_UNKNOWN = "Unknown"
_KNOWN = (*GRADES[:3], BY_CONFIDENCE[0])
"""SliCK's Known grades; without grades, items that the base model answers rightly with a confidence
above the threshold. All others are counted as Unknown."""
_NONE_NEW = "no item is new: the base model gives the same answers, or none is fitted"
_PROMPT = ["question_id", "form", "number", "order", "context"]
MEASURES: dict[str, Measure] = {
    "trained": SHARE,
    "trained_before": SHARE,
    "gain": DIFFERENCE,
    "right": SHARE,
    "right_before": SHARE,
    "transfer": SHARE,
    "new_transfer": SHARE,
    "new_before": SHARE,
}
"""trained: the answer is the set's; right: it is the right one; _before: of the base model. gain:
trained less trained_before. transfer: trained, of the fitted items; new_transfer and new_before:
trained and trained_before, of the new items."""
CURVE = (
    "group points seeds domains known known_low known_high unknown unknown_low unknown_high "
    "r_squared reason"
)


@dataclass(frozen=True)
class LearntAnswers:
    """`rows`: one per arm, item and prompt. `base`: the probe's answers to train questions."""

    rows: pd.DataFrame
    arms: dict[str, Arm]
    base: Answers


def read_learnt(
    folders: Mapping[str, Path], arms: Sequence[Arm], trained: pa.Table
) -> LearntAnswers:
    """Reads the learnt stage's results. `folders`: by the arms' names and `base`.

    `trained`: the probe's rows of train questions.
    """
    base = _read(folders[BASE])[[*_PROMPT, "prediction"]]
    asked = {arm.name: arm for arm in arms if arm.name in folders}
    frames = [
        with_base(_read(folders[name]), base).assign(arm=name, domain=arm.domain)
        for name, arm in asked.items()
    ]
    return LearntAnswers(pd.concat(frames, ignore_index=True), asked, answers_of(trained))


def _read(folder: Path) -> pd.DataFrame:
    rows = pd.read_parquet(folder / LEARNT_FILE)
    return rows.assign(order=rows.order.map(lambda order: " ".join(map(str, order))))


def with_base(rows: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Adds what the base model answers to the same prompts.

    New columns: trained, right, trained_before, right_before (0 or 1); logprob, the natural-log
    probability of the trained answer among the options; chance, that of guessing it. The last two
    are NaN for the form `free`.
    """
    before = base.set_index(_PROMPT).prediction
    prediction = before.loc[pd.MultiIndex.from_frame(rows[_PROMPT])].to_numpy()
    return rows.assign(
        trained=(rows.prediction == rows.target).astype(float),
        right=(rows.prediction == rows.answer).astype(float),
        trained_before=(prediction == rows.target).astype(float),
        right_before=(prediction == rows.answer).astype(float),
        logprob=[
            np.nan if scores is None else scores[target] - scipy.special.logsumexp(scores)
            for scores, target in zip(rows.logprobs, rows.target, strict=True)
        ],
        chance=[np.nan if scores is None else 1 / len(scores) for scores in rows.logprobs],
    )


def with_grades(learnt: LearntAnswers, threshold: float) -> pd.DataFrame:
    """Returns one row per arm, item and prompt with the item's grade."""
    ids = pd.Index(learnt.rows.question_id)
    return pd.DataFrame(
        {"arm": learnt.rows.arm, "question_id": ids, "form": learnt.rows.form}
        | {"number": learnt.rows.number}
        | {"grade": grades_of(learnt.base.of(ids), threshold)}
        | {
            name: learnt.rows[name]
            for name in "target answer prediction trained right trained_before right_before "
            "logprob".split()
        }
    )


def learnt_tables(
    learnt: LearntAnswers, tested: Panels, threshold: float, level: float
) -> dict[str, pd.DataFrame]:
    """Returns the tables by name. `tested`: the arms' answers to test questions."""
    panels = _panels(learnt)
    points = point_table(panels, tested, threshold)
    return {
        "learnt": _form_table(panels, threshold, level),
        "learnt_points": points,
        "learnt_curve": curve_table(points, level),
    }


def _panels(learnt: LearntAnswers) -> Panels:
    """Returns a panel per domain and form. An item's value is the mean over a form's prompts."""
    counted = ["trained", "trained_before", "right", "right_before", "chance"]
    items = learnt.rows.groupby(["domain", "form", "arm", "question_id"], sort=False)[counted]
    means = items.mean().reset_index()
    as_trained = dict(list(means[means.form == AS_TRAINED].groupby("arm")))
    found = []
    for (domain, form), part in means.groupby(["domain", "form"], sort=False):
        questions = pd.Index(part.question_id.unique())
        names = list(part.arm.unique())
        of_arms = [
            _values(rows, as_trained[name], questions)
            for name, rows in part.groupby("arm", sort=False)
        ]
        values = {measure: np.stack([v[measure] for v in of_arms]) for measure in of_arms[0]}
        arms = [learnt.arms[name] for name in names]
        base = learnt.base.of(questions)
        found.append(Panel(str(domain), str(form), questions, arms, values, base))
    return Panels(found)


def _values(
    rows: pd.DataFrame, as_trained: pd.DataFrame, questions: pd.Index
) -> dict[str, np.ndarray]:
    """Returns an arm's measures in one form, shape (Q,); NaN for items that it does not have."""
    here = rows.set_index("question_id").reindex(questions)
    first = as_trained.set_index("question_id").reindex(questions)
    fitted_Q = (first.trained == 1).to_numpy()
    new_Q = fitted_Q & (first.trained_before == 0).to_numpy()
    trained_Q, before_Q = here.trained.to_numpy(), here.trained_before.to_numpy()
    return {
        "trained": trained_Q,
        "trained_before": before_Q,
        "gain": trained_Q - before_Q,
        "chance": here.chance.to_numpy(),
        "right": here.right.to_numpy(),
        "right_before": here.right_before.to_numpy(),
        "transfer": np.where(fitted_Q, trained_Q, np.nan),
        "new_transfer": np.where(new_Q, trained_Q, np.nan),
        "new_before": np.where(new_Q, before_Q, np.nan),
    }


def _form_table(panels: Panels, threshold: float, level: float) -> pd.DataFrame:
    grade_Q = {panel.key: grades_of(panel.base, threshold) for panel in panels}
    rows = []
    for setting in panels.settings:
        for domain, form, there in panels.cells(setting):
            for grade in (ALL_GRADES, *GRADES, *BY_CONFIDENCE):
                among = {
                    p.domain: _asked(p, setting)
                    & ((grade_Q[p.key] == grade) | (grade == ALL_GRADES))
                    for p in there
                }
                chosen = [p for p in there if among[p.domain].any()]
                if chosen:
                    row = {"setting": setting, "domain": domain, "form": form, "grade": grade}
                    row |= panels.coverage(chosen)
                    rows.append(row | _summary(panels, chosen, setting, among, level))
    return pd.DataFrame(rows)


def _asked(panel: Panel, setting: str) -> np.ndarray:
    """Returns a mask (Q,) of the items in some set of the setting."""
    return np.isfinite(panel.of(setting, "trained")).any(0)


def _summary(
    panels: Panels, chosen: list[Panel], setting: str, among: dict[str, np.ndarray], level: float
) -> dict[str, Any]:
    new = [panel.of(setting, "new_transfer")[:, among[panel.domain]] for panel in chosen]
    row: dict[str, Any] = {
        "seeds": min(len(panel.seeds(setting)) for panel in chosen),
        "items": len({q for p in chosen for q in p.questions[among[p.domain]]}),
        "new_items": int(sum(np.isfinite(values_SQ).sum() for values_SQ in new)),
    }
    chance = [panel.of(setting, "chance")[:, among[panel.domain]] for panel in chosen]
    has_chance = all(np.isfinite(values_SQ).any() for values_SQ in chance)
    row["chance"] = float(np.mean([np.nanmean(c) for c in chance])) if has_chance else None
    reasons = [] if row["new_items"] else [_NONE_NEW]
    for name, measure in MEASURES.items():
        made = panels.estimate(chosen, setting, name, measure, among)
        row |= mean_columns(name, made, level)
        reasons += [made.missing_over_questions] if made else []
    return row | {"reason": "; ".join(dict.fromkeys(filter(None, reasons)))}


def point_table(panels: Panels, tested: Panels, threshold: float) -> pd.DataFrame:
    """Returns, for each arm and test group, what it fitted and its accuracy there.

    fitted_known and fitted_unknown are shares of the arm's items; those that are fitted to another
    than the right answer are in fitted_wrong only. change: accuracy less the base model's.
    """
    rows = []
    items = {panel.domain: panel for panel in panels if panel.group == AS_TRAINED}
    for panel in tested:
        own = items.get(panel.domain)
        for number, arm in enumerate(panel.arms):
            if own is None or arm not in own.arms:
                continue
            shares = _fitted_shares(own, own.arms.index(arm), threshold)
            accuracy = float(panel.values["accuracy"][number].mean())
            before = float(np.nanmean(panel.base.columns.correct.to_numpy(float)))
            row = {"setting": arm.setting, "domain": arm.domain, "seed": arm.seed}
            row |= {"group": panel.group, **shares}
            rows.append(row | {"accuracy": accuracy, "change": accuracy - before})
    return pd.DataFrame(rows)


def _fitted_shares(panel: Panel, row: int, threshold: float) -> dict[str, Any]:
    trained_Q, right_Q = panel.values["trained"][row], panel.values["right"][row]
    known_Q = np.isin(grades_of(panel.base, threshold).astype(str), _KNOWN)
    fitted_Q, num = trained_Q == 1, int(np.isfinite(trained_Q).sum())
    shares = {
        "fitted_known": fitted_Q & (right_Q == 1) & known_Q,
        "fitted_unknown": fitted_Q & (right_Q == 1) & ~known_Q,
        "fitted_wrong": fitted_Q & (right_Q == 0),
    }
    return {"items": num} | {name: mask.sum() / num for name, mask in shares.items()}


def curve_table(points: pd.DataFrame, level: float) -> pd.DataFrame:
    """Returns the coefficients of the linear model, by test group.

    Fitted for each seed over its domains and settings; the value is the mean over seeds, the
    interval Student's over them, and r_squared the mean share of the variation within domains.
    """
    rows = []
    for group in dict.fromkeys(points.group):
        part = points[points.group == group]
        row: dict[str, Any] = {"group": group, "points": len(part)}
        row |= {"seeds": part.seed.nunique(), "domains": part.domain.nunique()}
        fits = [fit_curve(of_seed) for _, of_seed in part.groupby("seed")]
        reason = next((fit for fit in fits if isinstance(fit, str)), "")
        if not reason:
            made_SK = np.array(fits)
            row["r_squared"] = made_SK[:, 2].mean()
            for column, name in enumerate(("known", "unknown")):
                row |= _over_seeds(name, made_SK[:, column], level)
            reason = ONE_SEED if len(fits) == 1 else ""
        rows.append(row | {"reason": reason})
    return pd.DataFrame(rows, columns=CURVE.split())


def fit_curve(points: pd.DataFrame) -> tuple[float, float, float] | str:
    """Returns the slopes of known and unknown and R^2 by least squares, or why there are none."""
    names = ["fitted_known", "fitted_unknown", "accuracy"]
    within = points[names] - points.groupby("domain")[names].transform("mean")
    x_N2, y_N = within[names[:2]].to_numpy(), within["accuracy"].to_numpy()
    freedom = len(points) - points.domain.nunique() - 2
    if freedom < 1:
        return "fewer arms of a seed than the curve has coefficients"
    if np.linalg.matrix_rank(x_N2, tol=1e-6) < 2:
        return "the fitted shares of known and unknown items do not vary independently"
    slopes = np.linalg.lstsq(x_N2, y_N, rcond=None)[0]
    total = float((y_N**2).sum())
    left = float(((y_N - x_N2 @ slopes) ** 2).sum())
    return float(slopes[0]), float(slopes[1]), 1 - left / total if total else float("nan")


def _over_seeds(name: str, values_S: np.ndarray, level: float) -> dict[str, float | None]:
    mean, low, high = float(values_S.mean()), None, None
    if len(values_S) > 1:
        quantile = scipy.special.stdtrit(len(values_S) - 1, (1 + level) / 2)
        half = float(quantile * values_S.std(ddof=1) / len(values_S) ** 0.5)
        low, high = mean - half, mean + half
    return {name: mean, f"{name}_low": low, f"{name}_high": high}
