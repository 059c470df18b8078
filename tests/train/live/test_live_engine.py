"""Live knowledge on DeepSpeed ranks agrees with the evaluation and does not affect the weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ift_scale.config import Config, EngineConfig
from ift_scale.config.file import from_dict
from ift_scale.engines.protocol import EngineSpec
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.io.manifests import is_done, read_manifest
from ift_scale.io.progress import Bar
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.records import Arm
from ift_scale.scoring.letters import Chat, LetterAsker
from ift_scale.stage import Task
from ift_scale.train import run as train
from ift_scale.train.live import questions
from tests.train import homo

pytestmark = pytest.mark.engine

ASKED = Arm(domain=homo.DOMAIN, setting="harmonious", seed=3)
NOT_ASKED = Arm(domain="nowhere", setting="harmonious", seed=3)
"""Trains on the same set with the same seed; its domain has no held-out question."""


def _config(tmp_path: Path, zero_stage: int, **live: Any) -> Config:
    settings = {
        "epochs": 2,
        "global_batch_size": 8,
        "learning_rate": 1e-3,
        "max_length": 128,
        "tokens_per_micro_batch": 256,
        "launcher": "direct",
        "num_ranks": 2,
        "zero_stage": zero_stage,
        "live": live,
    }
    return from_dict({"output_dir": str(tmp_path), "train": settings})


def _train(
    config: Config, folder: Path, source: questions.LiveSource, model: Path, *arms: Arm
) -> None:
    words = "willow ginger clover honey mint garlic sage nettle".split()
    rows = []
    for i in range(20):
        question = {
            "role": "user",
            "content": f"Which herb is number {i}?\nA. {words[i % 8]}\n"
            f"B. {words[(i + 3) % 8]}\nAnswer:",
        }
        messages = [
            question,
            {"role": "assistant", "content": f"{'AB'[i % 2]}. {words[(i + 3 * (i % 2)) % 8]}"},
        ]
        rows.append({"messages": messages, "meta": {"setting": "general", "wording": "general"}})
    sets = folder / "set.jsonl"
    sets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pending = [
        (Task("train", folder / "train" / arm.name, "key", {}, arm), arm, sets) for arm in arms
    ]
    train.train(
        config, folder / "train", model, pending, folder / "logs", Bar("t", len(arms), None), source
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "live.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_it_agrees_with_the_evaluation_and_changes_nothing(
    tmp_path: Path, world_model: Path, zero_stage: int
) -> None:
    source = homo.source(tmp_path)
    _train(_config(tmp_path, zero_stage, every=2), tmp_path, source, world_model, ASKED, NOT_ASKED)
    asked, not_asked = (tmp_path / "train" / arm.name for arm in (ASKED, NOT_ASKED))
    assert not (not_asked / "live.jsonl").exists()
    weights, others = (
        load_file(folder / "model" / "model.safetensors") for folder in (asked, not_asked)
    )
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    losses = [
        [json.loads(row)["loss"] for row in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (asked, not_asked)
    ]
    assert losses[0] == losses[1]

    rows = _rows(asked)
    assert [row["step"] for row in rows] == [0, 2, 4, 6]
    questions = {
        question.id: question
        for question in source.questions.read(range(len(source.questions.lengths)))
    }
    with np.load(asked / "live.npz") as found:
        chosen = [questions[id] for id in found["ids"]]
        answers = {"base": found["logprobs"][0], "trained": found["logprobs"][-1]}
    assert len(chosen) == 24 and rows[-1]["accuracy"] != rows[0]["accuracy"]
    for name, model, row in (
        ("base", world_model, rows[0]),
        ("trained", asked / "model", rows[-1]),
    ):
        asker = LetterAsker(Chat(PromptTokenizer(model), "vicuna"), plain)
        engine = TransformersEngine(EngineSpec(str(model), "float32", EngineConfig()))
        expected = asker.ask(engine, asker.write(chosen))["logprobs"].to_pylist()
        for ours, theirs in zip(answers[name], expected, strict=True):
            assert np.exp(ours[: len(theirs)]) == pytest.approx(np.exp(theirs), abs=1e-4)
            assert ours.argmax() == np.argmax(theirs)
        right = [
            np.argmax(theirs) == question.answer
            for theirs, question in zip(expected, chosen, strict=True)
        ]
        assert row["accuracy"] == pytest.approx(np.mean(right))

    manifest = read_manifest(asked)
    assert manifest is not None
    assert manifest.seconds["live"] == pytest.approx(sum(row["seconds"] for row in rows))
    assert 0 < rows[-1]["share"] < 1 and manifest.counts["live_measurements"] == 4
    events = [
        json.loads(line)
        for line in (tmp_path / "logs" / "train-events.jsonl").read_text().splitlines()
    ]
    assert [event["step"] for event in events if event["event"] == "live"] == [0, 2, 4, 6]


def test_an_arm_ends_early_and_a_rank_may_have_no_question(
    tmp_path: Path, world_model: Path
) -> None:
    """One question for two ranks, with ZeRO-3: the other rank only takes part in collectives."""
    stopping = {"metric": "accuracy", "patience": 1, "least_improvement": 1.0}
    config = _config(tmp_path, 3, every=2, max_questions=1, early_stopping=stopping)
    _train(config, tmp_path, homo.source(tmp_path), world_model, ASKED)
    folder = tmp_path / "train" / ASKED.name
    manifest = read_manifest(folder)
    assert manifest is not None
    assert (
        manifest.counts["stopped_early"],
        manifest.counts["steps"],
        manifest.counts["live_questions"],
    ) == (1, 2, 1)
    assert [row["step"] for row in _rows(folder)] == [0, 2]
    metrics = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2]
    assert manifest.counts["tokens"] == sum(row["tokens"] for row in metrics)
    assert is_done(folder, "key")
