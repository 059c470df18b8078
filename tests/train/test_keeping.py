"""Settings that keep the base model's knowledge, trained by two DeepSpeed ranks, compared with a
plain PyTorch loop: frozen parameters at every ZeRO stage, resumed runs included.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ift_scale.config import TrainConfig
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.train import job
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.tokenize import tokenize
from ift_scale.train.engine import deepspeed
from ift_scale.train.model import freeze
from tests.train import group

pytestmark = pytest.mark.engine

SEED, BATCH = 3, 8
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "global_batch_size": BATCH,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "max_length": 128,
    "offload": "none",
    "activation_checkpointing": "none",
    "tokens_per_micro_batch": 128,
}
FREEZE = {
    "parts": ["norms", "attention:0-1", "model.layers.2.mlp.down_proj.weight"],
    # The embedding is the head, too, and the two lowest layers have no backward pass.
    "idle": ["embeddings", "layers:0-1"],
}


def _write_set(path: Path) -> None:
    words = "willow ginger clover honey mint garlic sage nettle".split()
    rows = []
    for i in range(20):
        answer = " ".join(words[: 1 + i % 5])
        content = "Say " + "hello " * (i % 7) + "."
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
        meta = {"setting": "general", "wording": "general", "weight": 1 + i % 3}
        rows.append({"messages": messages, "meta": meta})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Plan:
    """Arms to train in one launch of two ranks."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model
        self.parts: list[dict[str, Any]] = []
        _write_set(folder / "d.jsonl")
        config = TrainConfig(max_length=128)
        tokens = tokenize(folder / "d.jsonl", PromptTokenizer(model), "vicuna", config)
        dataset.save(tokens, folder / "d")

    def train(self, run: str, stage: int, stop_after: int | None = None, **changes: Any) -> None:
        arm = job.ArmJob(
            arm=Arm(domain="d", setting="harmonious", seed=SEED),
            source=str(self.folder / "d.jsonl"),
            tokens=str(self.folder / "d"),
            folder=str(self.folder / run),
            key=f"key of {run}",
            inputs={},
        )
        work = job.Job(
            model_path=str(self.model),
            hidden_size=96,
            template="vicuna",
            logs=str(self.folder),
            train=TrainConfig(**SETTINGS | {"zero_stage": stage} | changes),
            arms=[arm],
        )
        path = self.folder / f"{len(self.parts)}.json"
        job.write(work, path)
        self.parts.append({"job": str(path), "stop_after": stop_after, "error": None})

    def launch(self, num_ranks: int) -> None:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(self.parts))
        module = "tests.train.engine.resume_ranks"
        group.run(module, path, world_size=num_ranks, logs=self.folder)


def _losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def _reference(
    model_path: Path, tokens: dataset.TokenizedSet, patterns: list[str]
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The reference loop: one process, one example per forward pass, full logits."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    frozen = freeze.resolve(model, patterns).names if patterns else frozenset()
    trained = [p for name, p in model.named_parameters() if name not in frozen]
    config = TrainConfig(**SETTINGS)
    optimizer = torch.optim.AdamW(trained, weight_decay=config.weight_decay)
    steps = list(packing.step_examples(len(tokens.lengths), BATCH, config.epochs, SEED))
    losses = []
    for number, step in enumerate(steps):
        total, count = torch.zeros(()), 0.0
        for i in step:
            span = slice(tokens.offsets[i], tokens.offsets[i + 1])
            ids = torch.tensor(tokens.ids[span].astype("int64"))
            learnt = torch.tensor(tokens.supervised[span])[1:]
            logits = model(ids[None]).logits[0, :-1][learnt]
            weight = float(tokens.weights[i])
            total = total + weight * F.cross_entropy(logits, ids[1:][learnt], reduction="sum")
            count += weight * int(learnt.sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.gradient_clipping)
        optimizer.param_groups[0]["lr"] = deepspeed.learning_rate(config, number, len(steps))
        optimizer.step()
        model.zero_grad()
        losses.append((total / count).item())
    return losses, {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture(scope="module")
def frozen_arms(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = Plan(tmp_path_factory.mktemp("keeping"), world_model)
    for name, patterns in FREEZE.items():
        for stage in (0, 1, 2, 3):
            plan.train(f"{name}-{stage}", stage, freeze=patterns)
    for stage in (0, 2, 3):
        plan.train(f"resumed-{stage}", stage, stop_after=3, freeze=FREEZE["parts"])
        plan.train(f"resumed-{stage}", stage, freeze=FREEZE["parts"])
    plan.train("moved", 3, stop_after=3, freeze=FREEZE["idle"])
    plan.train("moved", 2, freeze=FREEZE["idle"])
    plan.train("recomputed", 3, freeze=FREEZE["idle"], activation_checkpointing="full")
    plan.train("mixed", 2, freeze=FREEZE["idle"], precision="bfloat16")
    plan.launch(2)
    return plan


@pytest.mark.parametrize("name", FREEZE)
def test_frozen_parameters_stay_and_the_others_are_trained_exactly(
    frozen_arms: Plan, world_model: Path, name: str
) -> None:
    tokens = dataset.load(frozen_arms.folder / "d")
    losses, expected = _reference(world_model, tokens, FREEZE[name])
    base = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32)
    frozen = freeze.resolve(base, FREEZE[name]).names
    start = dict(base.named_parameters())
    runs = [f"{name}-{stage}" for stage in (0, 1, 2, 3)]
    for run in [*runs, *(["recomputed", "moved"] if name == "idle" else [])]:
        found = _weights(frozen_arms.folder / run)
        assert _losses(frozen_arms.folder / run) == pytest.approx(losses, rel=1e-5), run
        assert found.keys() == expected.keys()
        for parameter, right in expected.items():
            if parameter in frozen:
                assert torch.equal(found[parameter], start[parameter]), (run, parameter)
            else:
                assert not torch.equal(found[parameter], start[parameter])
                assert float((found[parameter] - right).abs().max()) < 2e-4, (run, parameter)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_arm_with_frozen_parameters_resumes_bit_for_bit(frozen_arms: Plan, stage: int) -> None:
    whole = _weights(frozen_arms.folder / f"parts-{stage}")
    resumed = _weights(frozen_arms.folder / f"resumed-{stage}")
    assert all(torch.equal(resumed[name], right) for name, right in whole.items())


def test_frozen_weights_of_a_bfloat16_arm_are_the_bases_in_bfloat16(
    frozen_arms: Plan, world_model: Path
) -> None:
    found, base = (
        _weights(frozen_arms.folder / "mixed"),
        load_file(world_model / "model.safetensors"),
    )
    name = "model.layers.1.mlp.up_proj.weight"
    assert found[name].dtype == torch.bfloat16
    assert torch.equal(found[name], base[name].bfloat16())
