"""The stage's tasks: which models are asked."""

from pathlib import Path

from ift_scale.config.file import load
from ift_scale.io.manifests import write_manifest
from ift_scale.pipeline import Pipeline
from ift_scale.run_folder.progress import progress_of
from ift_scale.stages import STAGES
from tests.test_keys import ROOT, keys_of


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
