"""The stage: planted states in shards, and the world's model from questions to tables."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ift_scale.analyse.hidden import read_probed
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError
from ift_scale.hidden import run
from ift_scale.hidden.reading import STATE, control_option, view_of
from ift_scale.hidden.run import fit_and_apply
from ift_scale.io.manifests import read_manifest, write_manifest
from ift_scale.pipeline import Pipeline
from ift_scale.records import Question
from ift_scale.scoring.shards import Shards
from ift_scale.stages import STAGES, stages_of


def _question(number: int, split: str = "train") -> Question:
    return Question.model_validate(
        {"id": f"q{number}", "domain": "d", "subject": "d", "collection": "pool", "split": split,
         "question": "Q?", "choices": [f"text {n}" for n in range(number % 3, number % 3 + 4)],
         "answer": number % 4}
    )  # fmt: skip


def test_only_fit_questions_are_shuffled_and_letters_are_balanced() -> None:
    assert view_of(1, _question(5, "test"))[0].order == (0, 1, 2, 3)
    orders = [view_of(1, _question(n))[0].order for n in range(400)]
    right = np.bincount([o.index(n % 4) for n, o in enumerate(orders)], minlength=4)
    assert right.min() > 60 and orders == [view_of(1, _question(n))[0].order for n in range(400)]


def test_the_control_is_a_fixed_function_of_the_texts() -> None:
    texts = [_question(n).choices[control_option(3, _question(n))] for n in range(30)]
    # The text that comes first among those of a question does so in every question with them.
    assert len(set(texts[0::3])) == len(set(texts[1::3])) == len(set(texts[2::3])) == 1
    several = {control_option(seed, _question(0)) for seed in range(40)}
    assert several == {0, 1, 2, 3}


def test_an_answer_in_a_middle_layer_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_LAYERS_AT_ONCE", 2)
    rng = np.random.default_rng(0)
    num, width = 600, 12
    letter, control = rng.integers(4, size=(2, num))
    states = rng.normal(size=(3, num, width)).astype(np.float32)
    states[1, :, :4] += 5 * np.eye(4, dtype=np.float32)[letter]  # decodable in layer 1 only
    shards = Shards(tmp_path, "key", 350)
    shards.folder.mkdir(parents=True)
    for number, start in enumerate((0, 350)):
        rows = slice(start, start + 350)
        columns = {
            "id": pa.array([f"q{n}" for n in range(num)][rows]),
            "answer": pa.array(letter[rows], pa.int16()),
            "control": pa.array(control[rows], pa.int16()),
            "num_choices": pa.array(np.full(num, 4)[rows], pa.int16()),
            "lens": pa.array(np.zeros((num, 3), np.int8)[rows].tolist(), pa.list_(pa.int8(), 3)),
        }
        for layer in range(3):
            flat = pa.array(states[layer][rows].ravel())
            columns[STATE.format(layer)] = pa.FixedSizeListArray.from_arrays(flat, width)
        shards.write(number, pa.table(columns))
    ids = {"d": ([f"q{n}" for n in range(300)], [f"q{n}" for n in range(599, 299, -1)])}
    probed, layers = fit_and_apply([shards.path(0), shards.path(1)], ids)
    assert probed["question_id"].to_pylist() == ids["d"][1]
    decoded_L = np.array(probed["decoded"].to_pylist()).mean(0)
    control_L = np.array(probed["control"].to_pylist()).mean(0)
    assert decoded_L[1] > 0.95 and decoded_L[[0, 2]].max() < 0.4 and control_L.max() < 0.4
    losses = layers["held_out_loss"].to_pylist()
    assert int(np.argmin(losses)) == 1 and layers["fit_questions"].to_pylist() == [300] * 3


def test_off_by_default_and_refused_in_words(tmp_path: Path) -> None:
    config = from_dict(
        {"output_dir": str(tmp_path / "run"), "questions": {"sources": [{"kind": "world"}]}}
    )
    assert [s.name for s in stages_of(config)] == [s.name for s in STAGES if s.name != "hidden"]
    pipeline = Pipeline(config)
    assert pipeline.context.tasks("hidden") == []
    with pytest.raises(ConfigError, match=r"hidden\.on: false, so the hidden stage is not run"):
        pipeline.make("hidden")


@pytest.mark.engine
def test_the_worlds_model_from_questions_to_tables(tmp_path: Path, world_model: Path) -> None:
    """The arm is the base model itself, with answers of its own that are wrong."""
    root = tmp_path / "run"
    settings = {
        "output_dir": str(root),
        "questions": {"sources": [{"kind": "world"}]},
        "probe": {"engine": "transformers"},
        "evaluate": {"engine": "transformers", "base": True},
        "construct": {"settings": ["harmonious"], "domains": ["medicine"], "size": 24},
        "hidden": {"on": True, "max_fit_questions": 200},
    }
    pipeline = Pipeline(from_dict(settings))
    for stage in ("questions", "probe", "write", "construct"):
        pipeline.make(stage)
    (task,) = pipeline.context.tasks("train")
    shutil.copytree(world_model, task.folder / "model")
    write_manifest(task.folder, "train", task.key, {}, {}, {}, {"total": 1.0})
    pipeline.make("evaluate")
    pipeline.make("hidden")
    base = read_probed(root / "hidden" / "base")
    arm = read_probed(root / "hidden" / str(task.arm and task.arm.name))
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
    pipeline.make("analyse")
    table = pd.read_csv(root / "analyse" / "hidden.csv").set_index("setting")
    asked = pd.read_parquet(root / "probe/probe.parquet").set_index("question_id")
    assert table.loc["base"].expressed == asked.loc[base.probed.question_id].correct.mean()
    assert table.loc["base"].decodable_low > 0.35  # chance is 0.25
    assert len(pd.read_csv(root / "analyse" / "hidden_layers.csv")) == 2 * (num_layers + 1)
    # The base model, 0-shot, answers as the arm with the same weights; only the prompt changes.
    parts = pd.read_csv(root / "analyse" / "format_content.csv")
    assert set(parts.group) == {"HOMO", "ID", "OOD"} and (parts.content_change == 0).all()
    assert (parts.content_kl < 1e-9).all() and (parts.total_kl > 0.01).all()
    assert np.allclose(parts.format_change, parts.accuracy - parts.few_shot_accuracy)
    assert pd.read_csv(root / "analyse" / "forgetting.csv").forgotten.to_list() == [0]
    assert len(list((root / "evaluate").glob("*/scores.parquet"))) == 2
    pipeline.make("report")
    assert "Format and content" in (root / "report" / "index.html").read_text()
    assert "Hidden or gone" in (root / "report" / "index.html").read_text()
