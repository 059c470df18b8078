"""hidden.csv and hidden_layers.csv: what linear probes decode and what the models answer.

About the pools' test questions (HOMO). A question is *decodable* if the probe of the model's best
layer ranks its right option first; the best layer has the lowest log-loss on fit questions that
were held out. It is *hidden* if it is decodable and the model's answer is wrong (after Gekhman et
al. 2025, arXiv 2503.15299), *lost* if the base model's answer was right and the arm's is wrong.

Intervals are over seeds and questions as everywhere, for the probes as fitted. Notation: A arms, Q
questions, L layers (the embedding first).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.intervals import DIFFERENCE, SHARE, Measure, mean_columns
from ift_scale.analyse.panel import Panel, Panels, num_questions
from ift_scale.records import LAYERS_FILE, PROBED_FILE, Arm
from ift_scale.treatments import BASE

HOMO = "HOMO"
MEASURES: dict[str, Measure] = {
    "decodable": SHARE,
    "control": SHARE,
    "selectivity": DIFFERENCE,
    "expressed": SHARE,
    "hidden": SHARE,
    "unread": SHARE,
    "change": DIFFERENCE,
    "lost": SHARE,
    "lost_before": SHARE,
    "lost_decodable": SHARE,
    "unknown_decodable": SHARE,
}
"""unread: expressed, not decodable. change: decodable after less before. lost_before and
lost_decodable: of the lost questions, the share decodable in the base model and in the arm.
unknown_decodable: of those that neither answers, the share decodable in the arm, for comparison."""
LAYER_MEASURES: dict[str, Measure] = {
    "decodable": SHARE,
    "control": SHARE,
    "selectivity": DIFFERENCE,
    "lens": SHARE,
}


@dataclass(frozen=True)
class ProbedModel:
    """The hidden stage's tables of one model."""

    probed: pd.DataFrame
    layers: pd.DataFrame

    def best_layer(self, domain: str) -> int:
        """Returns the layer with the lowest log-loss on held-out fit questions."""
        own = self.layers[self.layers.domain == domain]
        return int(own.layer.iloc[int(np.argmin(own.held_out_loss))])

    def of(self, domain: str, questions: pd.Index, name: str) -> np.ndarray:
        """Returns a column of lists over layers, shape (Q, L)."""
        own = self.probed[self.probed.domain == domain].set_index("question_id")
        return np.stack(own.loc[questions, name].to_list()).astype(float)


def read_probed(folder: Path) -> ProbedModel:
    return ProbedModel(pd.read_parquet(folder / PROBED_FILE), pd.read_parquet(folder / LAYERS_FILE))


def hidden_tables(
    panels: Panels, models: Mapping[str, ProbedModel], level: float
) -> dict[str, pd.DataFrame]:
    """Returns the tables by name. `models`: by the arms' names and `base`."""
    of_arms = [_with_probes(panel, models) for panel in panels if panel.group == HOMO]
    of_base = [_base_panel(panel, models[BASE]) for panel in panels if panel.group == HOMO]
    rows: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    for group in (Panels(of_base), Panels(of_arms)):
        for setting in group.settings:
            for domain, _, chosen in group.cells(setting):
                cell = {"setting": setting, "domain": domain} | group.coverage(chosen)
                rows.append(cell | _summary(group, chosen, setting, level))
                layers += [cell | row for row in _by_layer(group, chosen, setting, level)]
    return {"hidden": pd.DataFrame(rows), "hidden_layers": pd.DataFrame(layers)}


def values_of(
    decoded_QL: np.ndarray,
    control_QL: np.ndarray,
    lens_QL: np.ndarray,
    best: int,
    answer_Q: np.ndarray,
    expressed_Q: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns each measure of one model's Q questions, NaN if undefined.

    MEASURES without those that compare with the base model; LAYER_MEASURES as NAME/LAYER;
    best_layer and decision, the first layer from which on the lens shows the last layer's answer.
    """
    decoded_Q, control_Q = decoded_QL[:, best], control_QL[:, best]
    right_QL = np.where(lens_QL < 0, np.nan, lens_QL == answer_Q[:, None])
    values = {
        "decodable": decoded_Q,
        "control": control_Q,
        "selectivity": decoded_Q - control_Q,
        "expressed": expressed_Q,
        "hidden": _where_known(decoded_Q * (expressed_Q == 0), expressed_Q),
        "unread": _where_known((1 - decoded_Q) * (expressed_Q == 1), expressed_Q),
        "best_layer": np.full(len(answer_Q), float(best)),
        "decision": decision_layer(lens_QL),
    }
    for layer in range(decoded_QL.shape[1]):
        values[f"decodable/{layer}"] = decoded_QL[:, layer]
        values[f"control/{layer}"] = control_QL[:, layer]
        values[f"selectivity/{layer}"] = decoded_QL[:, layer] - control_QL[:, layer]
        values[f"lens/{layer}"] = right_QL[:, layer]
    return values


def compared_with_base(
    after: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the measures of an arm that need the base model's values, shape (Q,)."""
    was, is_now = before["expressed"], after["expressed"]
    known_Q = np.isfinite(was)
    lost_Q, never_Q = known_Q & (was == 1) & (is_now == 0), known_Q & (was == 0) & (is_now == 0)
    return {
        "change": after["decodable"] - before["decodable"],
        "lost": np.where(known_Q, lost_Q, np.nan),
        "lost_before": np.where(lost_Q, before["decodable"], np.nan),
        "lost_decodable": np.where(lost_Q, after["decodable"], np.nan),
        "unknown_decodable": np.where(never_Q, after["decodable"], np.nan),
    }


def decision_layer(lens_QL: np.ndarray) -> np.ndarray:
    """Returns the first layer from which on the option stays the last layer's; NaN if undefined."""
    same_QL = lens_QL == lens_QL[:, -1:]
    stays_QL = np.flip(np.logical_and.accumulate(np.flip(same_QL, 1), 1), 1)
    return np.where(lens_QL[:, -1] < 0, np.nan, stays_QL.argmax(1))


def _where_known(values_Q: np.ndarray, expressed_Q: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(expressed_Q), values_Q, np.nan)


def _values(panel: Panel, model: ProbedModel, expressed_Q: np.ndarray) -> dict[str, np.ndarray]:
    decoded, control, lens = (
        model.of(panel.domain, panel.questions, name) for name in ("decoded", "control", "lens")
    )
    best, answer_Q = model.best_layer(panel.domain), panel.base.columns.answer.to_numpy()
    return values_of(decoded, control, lens, best, answer_Q, expressed_Q)


def _base_values(panel: Panel, base: ProbedModel) -> dict[str, np.ndarray]:
    return _values(panel, base, panel.base.columns.correct.to_numpy())


def _base_panel(panel: Panel, base: ProbedModel) -> Panel:
    values = {name: values_Q[None] for name, values_Q in _base_values(panel, base).items()}
    return replace(panel, arms=[Arm(domain=panel.domain, setting=BASE, seed=0)], values=values)


def _with_probes(panel: Panel, models: Mapping[str, ProbedModel]) -> Panel:
    before = _base_values(panel, models[BASE])
    of_arms = []
    for arm, expressed_Q in zip(panel.arms, panel.values["accuracy"], strict=True):
        after = _values(panel, models[arm.name], expressed_Q)
        of_arms.append(after | compared_with_base(after, before))
    return replace(panel, values={n: np.stack([v[n] for v in of_arms]) for n in of_arms[0]})


def _summary(group: Panels, chosen: list[Panel], setting: str, level: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "seeds": min(len(panel.seeds(setting)) for panel in chosen),
        "questions": num_questions(chosen),
    }
    reasons = []
    for name, measure in MEASURES.items():
        is_there = name in chosen[0].values
        made = group.estimate(chosen, setting, name, measure) if is_there else None
        row |= mean_columns(name, made, level)
        reasons += [made.missing_over_questions] if made else []
    row["lost_questions"] = None
    if "lost" in chosen[0].values:
        row["lost_questions"] = int(sum(np.nansum(p.of(setting, "lost")) for p in chosen))
    for name in ("best_layer", "decision"):
        row[name] = _mean([panel.of(setting, name) for panel in chosen])
    row["layers"] = _num_layers(chosen[0]) - 1
    return row | {"reason": "; ".join(dict.fromkeys(filter(None, reasons)))}


def _by_layer(
    group: Panels, chosen: list[Panel], setting: str, level: float
) -> list[dict[str, Any]]:
    rows = []
    for layer in range(_num_layers(chosen[0])):
        row: dict[str, Any] = {"layer": layer}
        for name, measure in LAYER_MEASURES.items():
            made = group.estimate(chosen, setting, f"{name}/{layer}", measure)
            row |= mean_columns(name, made, level)
        rows.append(row)
    return rows


def _num_layers(panel: Panel) -> int:
    return sum(name.startswith("decodable/") for name in panel.values)


def _mean(values: list[np.ndarray]) -> float | None:
    there = [v[np.isfinite(v)].mean() for v in values if np.isfinite(v).any()]
    return float(np.mean(there)) if there else None
