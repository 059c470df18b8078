"""The stages that are off by default, on the world's model from questions to the report."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ift_scale.analyse.hidden import read_probed
from ift_scale.config.file import from_dict
from ift_scale.io.manifests import read_manifest, write_manifest
from ift_scale.pipeline import Pipeline


@pytest.mark.engine
def test_the_worlds_model_from_questions_to_tables(tmp_path: Path, world_model: Path) -> None:
    """The arm is the base model itself."""
    root = tmp_path / "run"
    settings = {
        "output_dir": str(root),
        "questions": {"sources": [{"kind": "world"}]},
        "probe": {"engine": "transformers"},
        "evaluate": {"engine": "transformers", "base": True, "few_shot": True},
        "construct": {"settings": ["harmonious"], "domains": ["medicine"], "size": 24},
        "learnt": {"on": True},
        "hidden": {"on": True, "max_fit_questions": 200},
    }
    pipeline = Pipeline(from_dict(settings))
    for stage in ("questions", "probe", "write", "construct"):
        pipeline.make(stage)
    (task,) = pipeline.context.tasks("train")
    shutil.copytree(world_model, task.folder / "model")
    write_manifest(task.folder, "train", task.key, {}, {}, {}, {"total": 1.0})
    pipeline.make("evaluate")
    pipeline.make("learnt")
    pipeline.make("hidden")
    _check_learnt(root)
    _check_hidden(root, world_model, str(task.arm and task.arm.name))
    pipeline.make("analyse")
    _check_tables(root)
    pipeline.make("report")
    page = (root / "report" / "index.html").read_text()
    for title in ("Format and content", "Was it learnt?", "Hidden or gone"):
        assert title in page


def _check_hidden(root: Path, world_model: Path, arm_name: str) -> None:
    base = read_probed(root / "hidden" / "base")
    arm = read_probed(root / "hidden" / arm_name)
    num_layers = json.loads((world_model / "config.json").read_text())["num_hidden_layers"]
    assert base.layers.layer.tolist() == list(range(num_layers + 1))
    assert (base.layers.fit_questions == 200).all() and len(base.probed) == 100
    manifest = read_manifest(root / "hidden" / "base")
    assert manifest and manifest.counts["questions"] == 300
    assert not (root / "hidden" / "base" / "shards").exists()  # states are not kept
    # The last layer's lens is the measured answer, of the base model and of the arm.
    for model, path in ((base, root / "probe/probe.parquet"), (arm, None)):
        path = path or next((root / "evaluate").glob("*-seed0/scores.parquet"))
        scores = pd.read_parquet(path).set_index("question_id").loc[model.probed.question_id]
        assert [lens[-1] for lens in model.probed.lens] == scores.prediction.astype(int).to_list()


def _check_tables(root: Path) -> None:
    table = pd.read_csv(root / "analyse" / "hidden.csv").set_index("setting")
    base = read_probed(root / "hidden" / "base")
    asked = pd.read_parquet(root / "probe/probe.parquet").set_index("question_id")
    assert table.loc["base"].expressed == asked.loc[base.probed.question_id].correct.mean()
    assert table.loc["base"].decodable_low > 0.35  # chance is 0.25
    assert len(pd.read_csv(root / "analyse" / "hidden_layers.csv")) == 2 * len(base.layers)
    # The base model, 0-shot, answers as the arm with the same weights; only the prompt changes.
    parts = pd.read_csv(root / "analyse" / "format_content.csv")
    assert set(parts.group) == {"HOMO", "ID", "OOD"} and (parts.content_change == 0).all()
    assert (parts.content_kl < 1e-9).all() and (parts.total_kl > 0.01).all()
    assert np.allclose(parts.format_change, parts.accuracy - parts.few_shot_accuracy)
    assert (parts.content_few_shot_change == 0).all() and (parts.content_few_shot_kl < 1e-9).all()
    assert pd.read_csv(root / "analyse" / "forgetting.csv").forgotten.to_list() == [0]
    assert len(list((root / "evaluate").glob("*/scores.parquet"))) == 3
    learnt = pd.read_csv(root / "analyse" / "learnt.csv").set_index(["form", "grade"])
    row = learnt.loc["as trained", "all"]
    assert row["trained"] == row.trained_before > 0.8 and row.new_items == 0
    points = pd.read_csv(root / "analyse" / "learnt_points.csv")
    assert points.fitted_known.eq(row["trained"]).all() and points["items"].eq(24).all()
    assert len(pd.read_parquet(root / "analyse" / "learnt_items.parquet")) == 120


def _check_learnt(root: Path) -> None:
    base, arm = (
        pd.read_parquet(root / "learnt" / name / "learnt.parquet")
        for name in ("base", "medicine-harmonious-seed0")
    )
    # The arm is the base model: the same prompts have the same answers.
    drawn = ["question_id", "form", "number", "order", "context", "prediction", "response"]
    pd.testing.assert_frame_equal(base[drawn], arm[drawn])
    np.testing.assert_allclose(
        np.concatenate(base.logprobs.dropna().tolist()),
        np.concatenate(arm.logprobs.dropna().tolist()),
        atol=1e-4,
    )
    assert arm.form.value_counts().to_dict() == {
        "paraphrase": 48, "as trained": 24, "other order": 24, "free": 24
    }  # fmt: skip
    assert (arm.target == arm.answer).all() and base.target.isna().all()
    # The base model knows these items, and answers most of them in words too.
    by_form = (arm.prediction == arm.answer).groupby(arm.form).mean()
    assert by_form["as trained"] > 0.8 and by_form["free"] > 0.7 and by_form.min() > 0.4
