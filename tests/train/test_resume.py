"""Interrupted and resumed equals uninterrupted, with real DeepSpeed ranks over gloo; an arm does not know what ran before it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ift_scale.config import TrainConfig
from ift_scale.distributed import free_port
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.train import data, job

pytestmark = pytest.mark.engine

RANKS = Path(__file__).with_name("resume_ranks.py")
NUM_STEPS = 6  # 20 examples, 8 a step, 2 epochs
STAGES = (0, 1, 2, 3)


def _write_set(path: Path, words: str) -> None:
    rows = []
    for i in range(20):
        answer = " ".join(words.split()[: 1 + i % 5])
        messages = [{"role": "user", "content": "Say " + "hello " * (i % 7) + "."}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages, "meta": {"setting": "general", "wording": "general"}})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Plan:
    """Arms to train one after another in one launch of `num_ranks`."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model, self.parts = folder, model, []  # type: ignore[var-annotated]
        for name, words in {"d": "willow ginger clover honey mint", "e": "garlic sage nettle hazel oak"}.items():
            _write_set(folder / f"{name}.jsonl", words)
            tokens = data.tokenize(folder / f"{name}.jsonl", PromptTokenizer(model), "vicuna", TrainConfig(max_length=128))
            data.save(tokens, folder / f"{name}.npz")

    def train(self, run: str, stage: int, stop_after: int | None = None, arms: str = "d", **settings: Any) -> Path:
        """Plan the arms into FOLDER/RUN; returns the folder of the last one."""
        train = TrainConfig(
            epochs=2, global_batch_size=8, learning_rate=1e-3, weight_decay=0.1, max_length=128, tokens_per_micro_batch=128,
            offload="none", activation_checkpointing="none", zero_stage=stage, **settings,
        )  # type: ignore[arg-type]  # fmt: skip
        jobs = [
            job.ArmJob(
                arm=Arm(domain=name, setting="harmonious", seed=3),
                source=str(self.folder / f"{name}.jsonl"),
                tokens=str(self.folder / f"{name}.npz"),
                folder=str(self.folder / run / name),
                key=f"key of {name}",
                inputs={},
            )
            for name in arms
        ]
        work = job.Job(model_path=str(self.model), hidden_size=96, template="vicuna", train=train, arms=jobs)
        path = self.folder / f"{run}-{len(self.parts)}.json"
        job.write(work, path)
        self.parts.append({"job": str(path), "stop_after": stop_after})
        return self.folder / run / arms[-1]

    def launch(self, num_ranks: int) -> None:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(self.parts))
        self.parts = []
        place = {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "DS_ACCELERATOR": "cpu"}
        ranks = [
            subprocess.Popen(
                [sys.executable, str(RANKS), str(path)],
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(num_ranks)
        ]
        outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0] * num_ranks, "\n".join(text[-3000:] for text in outputs)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def _equal(a: Path, b: Path) -> bool:
    one, other = _weights(a), _weights(b)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every arm that the tests look at, in three launches: 2 ranks, 1 rank, 2 ranks."""
    plan = Plan(tmp_path_factory.mktemp("resume"), world_model)
    draw = random.Random(20)
    found: dict[str, Path] = {}
    for stage in STAGES:
        found[f"whole {stage}"] = plan.train(f"whole-{stage}", stage)
        step = draw.randrange(1, NUM_STEPS)
        plan.train(f"resumed-{stage}", stage, stop_after=step)
        found[f"resumed {stage}"] = plan.train(f"resumed-{stage}", stage)
        for other in STAGES:  # left for the next launch, and for other stages
            plan.train(f"from-{stage}-to-{other}", stage, stop_after=step)
    for stage in (2, 3):
        found[f"after another {stage}"] = plan.train(f"both-{stage}", stage, arms="ed")
    plan.launch(2)
    for stage in STAGES:
        for other in STAGES:
            found[f"2 ranks of {stage}, 1 of {other}"] = plan.train(f"from-{stage}-to-{other}", other)
        plan.train(f"up-{stage}", stage, stop_after=2)
    plan.launch(1)
    for stage in STAGES:
        found[f"1 rank of {stage}, 2 of {stage}"] = plan.train(f"up-{stage}", stage)
    plan.launch(2)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_is_uninterrupted_bit_for_bit(trained: dict[str, Path], stage: int) -> None:
    assert _equal(trained[f"whole {stage}"], trained[f"resumed {stage}"])
    whole, resumed = _rows(trained[f"whole {stage}"]), _rows(trained[f"resumed {stage}"])
    assert [row["step"] for row in resumed] == list(range(1, NUM_STEPS + 1))
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    manifest = json.loads((trained[f"resumed {stage}"] / "manifest.json").read_text())
    assert manifest["counts"]["resumed"] == 1
    assert not (trained[f"resumed {stage}"].parent / ".checkpoints" / "d").exists()


CHANGED = [f"2 ranks of {stage}, 1 of {other}" for stage in STAGES for other in STAGES]


@pytest.mark.parametrize("change", CHANGED + [f"1 rank of {stage}, 2 of {stage}" for stage in STAGES])
def test_resumed_by_other_ranks_and_stages(trained: dict[str, Path], change: str) -> None:
    whole, resumed = _weights(trained["whole 2"]), _weights(trained[change])
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_arm_does_not_know_what_ran_before_it(trained: dict[str, Path], stage: int) -> None:
    assert _equal(trained[f"whole {stage}"], trained[f"after another {stage}"])
