"""examples.jsonl: a few questions whose answers changed most, with what every setting answers. The report adds their text."""

import json
from typing import Any

import numpy as np

from ift_scale.analyse.panel import Panel, Panels
from ift_scale.treatments import PAPER

NUM_EXAMPLES = 12


def examples(panels: Panels, num: int = NUM_EXAMPLES) -> list[dict[str, Any]]:
    """For each of the paper's settings in turn the question of the largest KL against the base model (mean over seeds), each once,
    in whatever domain it was asked.

    `changed_by`: the setting it was taken for; `predictions`: option by setting, the most frequent over seeds (the first of
    these where several are). Questions without options are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    settings = [setting for setting in PAPER if setting in panels.settings] or panels.settings
    queues = {setting: iter(_by_change(panels, setting, num)) for setting in settings}
    while len(found) < num and queues:
        for setting, queue in list(queues.items()):
            chosen = next((c for c in queue if c[2] not in found), None)
            if chosen is None:
                del queues[setting]
            elif len(found) < num:
                kl, panel, question = chosen
                found[question] = _example(panel, question) | {"changed_by": setting, "kl": kl}
    return list(found.values())


def _by_change(panels: Panels, setting: str, num: int) -> list[tuple[float, Panel, str]]:
    """The (num x settings) questions of the largest KL, falling; ties by domain, group and id."""
    ranked = []
    for panel in panels:
        if setting in panel.settings:
            kl_Q = panel.of(setting, "kl").mean(0)
            there = np.flatnonzero(np.isfinite(kl_Q))
            # Others may take the same ones first, so there are enough of each.
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


def as_lines(found: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(example) + "\n" for example in found)
