"""How far a run has come, from its manifests alone: stages that are done, partly done, out of date.

A finished stage is out of date if a file that it read has changed since. Changed settings show
only when a command computes the stages' keys again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ift_scale.io.manifests import Manifest, digest_of, read_manifest
from ift_scale.records import Arm
from ift_scale.stage import trained_arm
from ift_scale.stages import Entry
from ift_scale.treatments import asks_questions

State = Literal["done", "partly done", "out of date", "not started"]

_READS = {
    "probe": {"questions": "questions/questions.jsonl"},
    "write": {"questions": "questions/questions.jsonl", "probe": "probe/probe.parquet"},
    "construct": {
        "questions": "questions/questions.jsonl",
        "probe": "probe/probe.parquet",
        "texts": "write/texts.jsonl",
    },
    "train": {"set": "construct/{trained}.jsonl"},
    "evaluate": {"questions": "questions/questions.jsonl"},
    "learnt": {
        "questions": "questions/questions.jsonl",
        "set": "construct/{trained}.jsonl",
        "written": "write/paraphrases.jsonl",
    },
    "hidden": {"questions": "questions/questions.jsonl"},
    "analyse": {"probe": "probe/probe.parquet"},
    "report": {"settings.csv": "analyse/settings.csv", "arms.csv": "analyse/arms.csv"},
}
"""For each stage, the inputs in its manifest and the file of another stage that each was."""


@dataclass(frozen=True)
class StageProgress:
    """One stage. `current` of its `total` parts are up to date: arms for train and evaluate."""

    stage: str
    per_arm: bool
    state: State
    current: int
    total: int
    finished: str | None
    """When its latest part was finished, in UTC (ISO 8601)."""


def progress_of(
    root: Path, stages: Sequence[Entry], arms: Sequence[Arm] | None
) -> list[StageProgress]:
    """The given stages of a run in order. `arms` is None until they are known by the questions."""
    found = []
    trained_of = {arm.name: trained_arm(arm).name for arm in arms or ()}
    all_stale, stale_arms = False, set[str]()
    for entry in stages:
        stage = entry.name
        own = [a for a in arms or () if asks_questions(a.setting) or not entry.of_questions]
        names = [arm.name for arm in own] if entry.per_arm else [""]
        read = {name: read_manifest(root / stage / name) for name in names}
        made = {name: manifest for name, manifest in read.items() if manifest is not None}
        all_stale |= stage == "analyse" and bool(stale_arms)
        current = {
            name
            for name, manifest in made.items()
            if not all_stale
            and name not in stale_arms
            and _is_current(root, stage, name, trained_of.get(name, name), manifest)
        }
        if (
            stage == "analyse"
            and made
            and set(_arms_read(made[""])) != {a.name for a in arms or ()}
        ):
            current = set()  # of other arms than the settings ask for now
        # What was made of an outdated result is outdated too.
        if entry.per_arm:
            stale_arms |= made.keys() - current
        else:
            all_stale |= bool(made) and not current
        finished = max((manifest.created for manifest in made.values()), default=None)
        state = _state(len(current), len(made), len(names))
        found.append(StageProgress(stage, entry.per_arm, state, len(current), len(names), finished))
    return found


def _state(current: int, made: int, total: int) -> State:
    if current:
        return "done" if current == total else "partly done"
    return "out of date" if made else "not started"


def _is_current(root: Path, stage: str, arm: str, trained: str, manifest: Manifest) -> bool:
    """True if every file that the manifest names as an input is the one that is stored now.

    `trained`: the trained arm that `arm` is, or is derived from.
    """
    reads = {name: path.format(trained=trained) for name, path in _READS.get(stage, {}).items()}
    if stage == "analyse":
        reads |= {arm: f"evaluate/{arm}/scores.parquet" for arm in _arms_read(manifest)}
        reads |= {path: path for path in manifest.inputs if "/" in path}
    if stage in ("evaluate", "learnt", "hidden") and manifest.inputs["model"] != _weights_digest(
        root / "train" / arm
    ):
        return False
    recorded = {name: path for name, path in reads.items() if name in manifest.inputs}
    return all(manifest.inputs[name] == _digest(root / path) for name, path in recorded.items())


def _arms_read(manifest: Manifest) -> list[str]:
    """The arms whose evaluations the analyse stage has read; other inputs are named by paths."""
    return [n for n in manifest.inputs if n != "probe" and "/" not in n]


def _digest(path: Path) -> str | None:
    """The digest of a file that its stage's manifest records; None without a manifest."""
    manifest = read_manifest(path.parent)
    return None if manifest is None else manifest.files.get(path.name)


def _weights_digest(arm: Path) -> str | None:
    """The digest of a trained arm's model, as the evaluate stage records it."""
    manifest = read_manifest(arm)
    if manifest is None:
        return None
    return digest_of({file: d for file, d in manifest.files.items() if file.startswith("model/")})
