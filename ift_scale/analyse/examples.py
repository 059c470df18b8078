"""examples.jsonl: the questions whose answers changed most, with each setting's answer."""

import json
from typing import Any

import numpy as np

from ift_scale.analyse.panel import Panel, Panels
from ift_scale.treatments import PAPER

NUM_EXAMPLES = 12


def examples(panels: Panels, num: int = NUM_EXAMPLES) -> list[dict[str, Any]]:
    """Returns up to `num` questions, in turn for each of the paper's settings, without repetition.

    Each setting contributes its questions with the largest KL from the base model (mean over
    seeds) in any domain. `changed_by` is that setting; `predictions` are the options by setting,
    the most frequent over seeds (the first one on a tie). Questions without options are left out.
    """
    selected: dict[str, dict[str, Any]] = {}
    settings = [setting for setting in PAPER if setting in panels.settings] or panels.settings
    queues = {setting: iter(_by_change(panels, setting, num)) for setting in settings}
    while len(selected) < num and queues:
        for setting, queue in list(queues.items()):
            chosen = next((c for c in queue if c[2] not in selected), None)
            if chosen is None:
                del queues[setting]
            elif len(selected) < num:
                kl, panel, question = chosen
                selected[question] = _example(panel, question) | {"changed_by": setting, "kl": kl}
    return list(selected.values())


def _by_change(panels: Panels, setting: str, num: int) -> list[tuple[float, Panel, str]]:
    """Returns (KL, panel, question), largest KL first; ties are in order of domain, group, id."""
    ranked = []
    for panel in panels:
        if setting in panel.settings:
            kl_Q = panel.of(setting, "kl").mean(0)
            there = np.flatnonzero(np.isfinite(kl_Q))
            # Other settings may take the same questions first: keep enough of each panel.
            best = there[np.argsort(-kl_Q[there], kind="stable")][: num * len(PAPER)]
            ranked += [(float(kl_Q[q]), panel, str(panel.questions[q])) for q in best]
    return sorted(ranked, key=lambda item: (-item[0], item[1].key, item[2]))


def _example(panel: Panel, question: str) -> dict[str, Any]:
    place = panel.questions.get_loc(question)
    base = panel.base.columns.iloc[place]
    return {
        "question_id": question,
        "domain": panel.domain,
        "group": panel.group,
        "answer": int(base.answer),
        "base_prediction": int(base.prediction),
        "base_confidence": float(base.confidence),
        "predictions": {
            s: _most_frequent(panel.of(s, "prediction")[:, place]) for s in panel.settings_in_order
        },
    }


def _most_frequent(predictions_S: np.ndarray) -> int | None:
    there = [int(p) for p in predictions_S if np.isfinite(p)]
    return max(there, key=there.count) if there else None


def as_lines(selected: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(example) + "\n" for example in selected)
