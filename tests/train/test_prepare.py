"""Checks before the ranks start: the training path and live knowledge."""

from pathlib import Path

import numpy as np
import pytest
from transformers import Phi3Config

from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError
from ift_scale.records import Arm
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.job import ArmJob, LiveJob
from ift_scale.train.live.tokens import LiveSet, save
from ift_scale.train.model.path import TrainingPath
from ift_scale.train.prepare import evaluates, path_with_live
from ift_scale.train.proof import stored


def _config(tmp_path: Path, **train: object) -> Config:
    return from_dict({"output_dir": str(tmp_path), "train": {"max_length": 80} | train})


def _arm(folder: Path, lengths: list[int], num_questions: int) -> ArmJob:
    """Returns an arm with a live question of each length, of which the first ones are asked."""
    count, offsets = len(lengths), np.cumsum([0, *lengths])
    supervised = np.zeros(offsets[-1], dtype=bool)
    supervised[offsets[1:] - 1] = True
    tokens = TokenizedSet(
        np.zeros(offsets[-1], dtype=np.int32), supervised, offsets, np.ones(count), num_truncated=0
    )
    numbers = np.arange(count)
    questions = LiveSet(
        tokens,
        questions_N=numbers,
        letters_PC=np.zeros((count, 2), dtype=int),
        num_choices_Q=np.full(count, 2),
        answers_Q=np.zeros(count, dtype=int),
        base_QC=np.full((count, 2), 0.5),
        grades_Q=np.zeros(count, dtype=int),
        ids_Q=numbers.astype(str),
    )
    save(questions, folder / "live.npz")
    live = LiveJob(questions=str(folder / "live.npz"), num_questions=num_questions, every=1)
    arm = Arm(domain="d", setting="harmonious", seed=0)
    return ArmJob(arm=arm, source="", tokens="", folder="", key="", inputs={}, live=live)


@pytest.mark.parametrize(("asked", "name"), [(1, "packed"), (2, "single")])
def test_a_live_prompt_beyond_a_rotary_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int, name: str
) -> None:
    """The second question is longer than `max_length`, and then LongRoPE's frequencies change."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    rope |= {"rope_theta": 10_000.0, "original_max_position_embeddings": 100}
    settings = Phi3Config(
        rope_parameters=rope,
        max_position_embeddings=400,
        original_max_position_embeddings=100,
    )
    settings.save_pretrained(tmp_path)
    config = _config(tmp_path)
    path = stored.proof_of(tmp_path, config.train.max_length).fastest(config.train)
    assert path.name == "packed"
    arms = [_arm(tmp_path, [60, 120], asked)]
    assert path_with_live(config, tmp_path, arms, path).name == name


def test_a_model_that_evaluation_changes_has_no_live_knowledge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = TrainingPath(name="padded", evaluates=False)
    assert not evaluates(path, _config(tmp_path).train)
    assert "no live knowledge: the model's evaluation mode" in capsys.readouterr().out
    stopping = _config(tmp_path, live={"early_stopping": {"metric": "accuracy"}})
    with pytest.raises(ConfigError, match=r"train.live.early_stopping: no live knowledge"):
        evaluates(path, stopping.train)
    assert evaluates(TrainingPath(name="padded"), stopping.train)
