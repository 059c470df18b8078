"""The keys of finished runs are pinned, because a changed key repeats every finished run.

`golden/keys.json` has the keys of each case's stages, over artifacts with fixed content. The report
is left out: its key contains the whole configuration, so every new setting changes it, and writing
a report takes a second. After a change that is meant to invalidate results (a stage's version), run
`python -m tests.update_golden`.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config import Config
from ift_scale.config.file import load
from ift_scale.io.files import write_text
from ift_scale.io.manifests import MANIFEST, write_manifest
from ift_scale.pipeline import Pipeline
from ift_scale.records import LAYERS_FILE, LEARNT_FILE, PROBED_FILE

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "keys.json"
CASES = {
    "demo": [],
    "live stops": ["train.live.early_stopping={metric: accuracy}", "train.precision=float32"],
    "written": [
        "construct.settings=[contextualized, harmonious]",
        "write.own={kind: base_model, engine: transformers}",
        "write.contexts={kind: base_model, engine: transformers}",
        "write.on_failure=keep",
    ],
    "other engines": [
        "probe.engine=transformers",
        "probe.reliability.permutations=circular",
        "evaluate.engine=transformers",
        "evaluate.generate=true",
        "train.hpz=off",
        "train.zero_stage=3",
    ],
}
FILES = {
    "questions": ["questions.jsonl", "audit.json"],
    "probe": ["probe.parquet", "knowledge.json"],
    "write": ["texts.jsonl", "paraphrases.jsonl"],
    "construct": ["balance.csv"],
    "train": ["metrics.jsonl", "model/a.safetensors"],
    "evaluate": ["scores.parquet"],
    "learnt": [LEARNT_FILE],
    "hidden": [PROBED_FILE, LAYERS_FILE],
    "analyse": ["arms.csv"],
}
QUESTION = {
    "id": "w1",
    "domain": "rivers",
    "subject": "s",
    "kind": "choice",
    "question": "Q?",
    "choices": ["a", "b", "c", "d"],
    "answer": "A",
    "split": "train",
    "collection": "pool",
}


def _close(folder: Path, stage: str, key: str, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = (
            json.dumps(QUESTION) + "\n"
            if name == "questions.jsonl"
            else f"{stage}/{folder.name}/{name}\n"
        )
        path.write_text(text)
    manifest = write_manifest(folder, stage, key, {}, {}, {}, {"total": 1.0})
    fixed = manifest.model_copy(update={"created": "2026-01-01T00:00:00+00:00"})
    write_text(folder / MANIFEST, fixed.model_dump_json())


def keys_of(config: Config) -> dict[str, Any]:
    """Returns the keys of the run's stages, writing each one's artifact under its key."""
    context = Pipeline(config).context
    found: dict[str, Any] = {}
    for stage in FILES:
        tasks = context.tasks(stage)
        if not tasks:  # off in this run
            continue
        keys = {task.folder.name: task.key for task in tasks}
        found[stage] = keys if context.stages[stage].per_arm else tasks[0].key
        sets = [f"{arm.name}.jsonl" for arm in context.arms()] if stage == "construct" else []
        for task in tasks:
            _close(task.folder, stage, task.key, [*FILES[stage], *sets])
    return found


def all_keys(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the keys of all cases, with run folders below `folder`."""
    before = Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    try:
        demo = str(ROOT / "configs" / "demo.yaml")
        return {
            name: keys_of(load(demo, (*overrides, f"output_dir={name.replace(' ', '-')}")))
            for name, overrides in CASES.items()
        }
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return all_keys(tmp_path_factory.mktemp("keys"))


@pytest.mark.parametrize("case", CASES)
def test_keys_of_finished_runs_do_not_change(found: dict[str, dict[str, Any]], case: str) -> None:
    assert found[case] == json.loads(GOLDEN.read_text())[case]


def test_the_cases_differ(found: dict[str, dict[str, Any]]) -> None:
    assert len({keys["probe"] for keys in found.values()}) == 2
    assert len({json.dumps(keys["train"]) for keys in found.values()}) >= 3
