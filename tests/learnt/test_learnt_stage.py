"""The stage's tasks: which models are asked, and what they depend on; a run of text sets."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from ift_scale.config.file import from_dict, load
from ift_scale.io.manifests import write_manifest
from ift_scale.pipeline import Pipeline
from ift_scale.run_folder.progress import progress_of
from ift_scale.stages import STAGES
from ift_scale.write import run as write
from tests.test_keys import ROOT, keys_of
from tests.write.made import ScriptedWorker


def _keys(tmp_path: Path, *settings: str) -> dict[str, str]:
    overrides = ["construct.seeds=[0]", "learnt.on=true", f"output_dir={tmp_path}/run", *settings]
    return keys_of(load(str(ROOT / "configs" / "demo.yaml"), tuple(overrides)))["learnt"]


def test_only_sets_without_options_depend_on_the_score_of_texts(tmp_path: Path) -> None:
    cloze = ["probe.reliability.decide_by=cloze", "probe.reliability.cloze=sum"]
    changed = [cloze[0], "probe.reliability.cloze=pmi"]
    assert _keys(tmp_path) == _keys(tmp_path, *cloze)
    text = "construct.response=text"
    one, other = _keys(tmp_path, text, *cloze), _keys(tmp_path, text, *changed)
    assert one.keys() == other.keys() and all(one[name] != other[name] for name in one)


def test_written_paraphrases_are_an_input_and_train_nothing_again(tmp_path: Path) -> None:
    overrides = ("construct.seeds=[0]", "learnt.on=true", f"output_dir={tmp_path}/run")
    path = str(ROOT / "configs" / "demo.yaml")
    before = keys_of(load(path, overrides))
    after = keys_of(load(path, (*overrides, "write.paraphrases={kind: base_model}")))
    assert before["construct"] == after["construct"] and before["train"] == after["train"]
    assert before["write"] != after["write"]
    assert all(before["learnt"][name] != after["learnt"][name] for name in before["learnt"])


def test_arms_without_questions_are_left_out(tmp_path: Path) -> None:
    settings = "construct.settings=[harmonious, incompatible, general_only]"
    overrides = [settings, "construct.seeds=[0]", "learnt.on=true", "train.average=[0.5]"]
    config = load(str(ROOT / "configs" / "demo.yaml"), (*overrides, f"output_dir={tmp_path}/run"))
    keys = keys_of(config)
    names = {name.removeprefix("rivers-") for name in keys["learnt"]}
    assert names == {
        "base",
        "harmonious-seed0",
        "incompatible-seed0",
        "harmonious-average-0.5-seed0",
        "incompatible-average-0.5-seed0",
    }
    context = Pipeline(config).context
    for stage in ("evaluate", "learnt"):
        for task in context.tasks(stage):
            write_manifest(task.folder, stage, task.key, {}, task.inputs, {}, {"total": 1.0})
    stages = [stage for stage in STAGES if stage.name in keys]
    found = {p.stage: p for p in progress_of(context.root, stages, context.arms())}
    assert (found["learnt"].state, found["learnt"].total) == ("done", 4)
    assert (found["evaluate"].state, found["evaluate"].total) == ("done", 6)


@pytest.mark.engine
def test_sets_without_options_from_questions_to_tables(
    tmp_path: Path, world_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arm is the base model itself; a scripted writer paraphrases."""

    def say(prompt: str, seed: int) -> str:
        return f"Tell me this: {prompt.splitlines()[-2]}"

    monkeypatch.setattr(write, "engine_workers", lambda *_: [ScriptedWorker(world_model, say)])
    root = tmp_path / "run"
    settings = {
        "output_dir": str(root),
        "questions": {"sources": [{"kind": "world"}]},
        "probe": {
            "engine": "transformers",
            "reliability": {"cloze": "pmi", "decide_by": "cloze"},
        },
        "write": {"paraphrases": {"kind": "base_model", "style": "plain"}},
        "evaluate": {"engine": "transformers"},
        "construct": {
            "settings": ["contextualized"],
            "domains": ["medicine"],
            "size": 16,
            "response": "text",
        },
        "learnt": {"on": True},
    }
    pipeline = Pipeline(from_dict(settings))
    for stage in ("questions", "probe", "write", "construct"):
        pipeline.make(stage)
    (task,) = pipeline.context.tasks("train")
    shutil.copytree(world_model, task.folder / "model")
    write_manifest(task.folder, "train", task.key, {}, {}, {}, {"total": 1.0})
    for stage in ("evaluate", "learnt", "analyse", "report"):
        pipeline.make(stage)
    arm = pd.read_parquet(root / "learnt" / str(task.arm and task.arm.name) / "learnt.parquet")
    forms = arm.form.value_counts().to_dict()
    # One by the writer, and two by the world's statements.
    assert forms.pop("paraphrase") == 48 and set(forms.values()) == {16}
    assert set(forms) == {"as trained", "without context", "with options", "free"}
    assert arm.context.str.startswith("Context: ").all() and (arm.target == arm.answer).all()
    table = pd.read_csv(root / "analyse" / "learnt.csv").set_index(["form", "grade"])
    trained = table.loc["as trained", "all"]
    assert trained["trained"] == trained.trained_before and trained.chance == 0.25
    assert "The sets show no options" in (root / "report" / "index.html").read_text()
