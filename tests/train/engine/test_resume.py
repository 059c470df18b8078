"""An interrupted and resumed arm equals an uninterrupted one, and does not depend on earlier arms.

Runs DeepSpeed ranks over gloo.
"""

import json
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ift_scale.config import TrainConfig
from ift_scale.io.manifests import file_digest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.train import job
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.tokenize import tokenize
from ift_scale.train.engine import checkpoint_manifest
from tests.train import group
from tests.train.rounding import RATE, assert_trained_alike

pytestmark = pytest.mark.engine

SEED, BATCH, NUM_STEPS = 3, 8, 6  # 20 examples, 2 epochs
STAGES = (0, 1, 2, 3)
CHANGES = [(stage, other) for stage in STAGES for other in STAGES]
OFFLOADED = [(2, "optimizer"), (3, "optimizer"), (3, "all")]
BAD_WORD, BAD_LINES = "copper", (6, 12)
BAD = [(0, "float32"), (2, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")]
TOO_BAD = (
    r"d.jsonl: step \d was skipped, its loss or gradient is non-finite: lines .*"
    r" 2 such steps are more than train.max_bad_steps = 1"
)


def _write_set(path: Path, words: str) -> None:
    rows = []
    for i in range(20):
        answer = " ".join(words.split()[: 1 + i % 5])
        messages = [
            {"role": "user", "content": "Say " + "hello " * (i % 7) + "."},
            {"role": "assistant", "content": answer},
        ]
        rows.append({"messages": messages, "meta": {"setting": "general", "wording": "general"}})
    for i in BAD_LINES:
        rows[i - 1]["messages"][0]["content"] = f"Say {BAD_WORD}."  # type: ignore[index]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _with_a_bad_token(base: Path, folder: Path) -> Path:
    """The base model with an untied head and a NaN embedding row for BAD_WORD."""
    shutil.copytree(base, folder)
    weights = load_file(base / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = embedding.clone()
    _, *tokens = PromptTokenizer(base).encode([f" {BAD_WORD}"])[0]
    embedding[tokens] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _in_float32(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    weights = {
        name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Plan:
    """Arms to train one after another in one launch."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model
        self.bad_model = _with_a_bad_token(model, folder / "bad")
        self.float_model = _in_float32(model, folder / "float")
        self.parts: list[dict[str, Any]] = []
        self.output = ""
        for name, words in {
            "d": "willow ginger clover honey mint",
            "e": "garlic sage nettle hazel oak",
        }.items():
            _write_set(folder / f"{name}.jsonl", words)
            tokens = tokenize(
                folder / f"{name}.jsonl",
                PromptTokenizer(model),
                "vicuna",
                TrainConfig(max_length=128),
            )
            dataset.save(tokens, folder / f"{name}")

    def train(
        self,
        run: str,
        stage: int,
        stop_after: int | None = None,
        error: str | None = None,
        arms: str = "d",
        model: Path | None = None,
        **settings: Any,
    ) -> Path:
        """Plan the arms into FOLDER/RUN; returns the folder of the last one."""
        same = {
            "epochs": 2,
            "global_batch_size": BATCH,
            "learning_rate": RATE,
            "weight_decay": 0.1,
            "max_length": 128,
        }
        decided = {
            "offload": "none",
            "activation_checkpointing": "none",
            "zero_stage": stage,
            "tokens_per_micro_batch": 128,
        }
        jobs = [
            job.ArmJob(
                arm=Arm(domain=name, setting="harmonious", seed=SEED),
                source=str(self.folder / f"{name}.jsonl"),
                tokens=str(self.folder / f"{name}"),
                folder=str(self.folder / run / name),
                key=f"key of {name}",
                inputs={},
            )
            for name in arms
        ]
        work = job.Job(
            model_path=str(model or self.model),
            hidden_size=96,
            template="vicuna",
            logs=str(self.folder),
            train=TrainConfig.model_validate(same | decided | settings),
            arms=jobs,
        )
        path = self.folder / f"{run}-{len(self.parts)}.json"
        job.write(work, path)
        self.parts.append({"job": str(path), "stop_after": stop_after, "error": error})
        return self.folder / run / arms[-1]

    def launch(self, num_ranks: int) -> None:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(self.parts))
        self.parts = []
        ranks = "tests.train.engine.resume_ranks"
        self.output += group.run(ranks, path, world_size=num_ranks, logs=self.folder)[0]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def _equal(a: Path, b: Path) -> bool:
    one, other = _weights(a), _weights(b)
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@dataclass
class Trained:
    folders: dict[str, Path]
    output: str


@pytest.fixture(scope="module")
def trained(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Every arm that the tests look at, in four launches: 2 ranks, 1 rank, 2 ranks, 4 ranks."""
    plan = Plan(tmp_path_factory.mktemp("resume"), world_model)
    draw = random.Random(20)
    found: dict[str, Path] = {}
    for stage in STAGES:
        found[f"whole {stage}"] = plan.train(f"whole-{stage}", stage, export_epochs=[1])
        step = draw.randrange(1, NUM_STEPS)
        plan.train(f"resumed-{stage}", stage, stop_after=step, export_epochs=[1])
        found[f"resumed {stage}"] = plan.train(f"resumed-{stage}", stage, export_epochs=[1])
        plan.train(f"left-{stage}", stage, stop_after=step)
    for stage, offload in OFFLOADED:
        plan.train(f"left-{stage}-{offload}", stage, stop_after=3, offload=offload)
        found[f"resumed {stage} {offload}"] = plan.train(
            f"resumed-{stage}-{offload}", stage, stop_after=3, offload=offload
        )
        plan.train(f"resumed-{stage}-{offload}", stage, offload=offload)
    for stage in (0, 2, 3):
        # In float32 the trainer uses the base's float32 tensors without a copy.
        found[f"alone {stage}"] = plan.train(f"alone-{stage}", stage, model=plan.float_model)
        found[f"after another {stage}"] = plan.train(
            f"both-{stage}", stage, arms="ed", model=plan.float_model
        )
    for stage in (1, 2, 3):
        found[f"whole mixed {stage}"] = plan.train(f"mixed-{stage}", stage, precision="bfloat16")
        found[f"resumed mixed {stage}"] = plan.train(
            f"resumed-mixed-{stage}", stage, stop_after=3, precision="bfloat16"
        )
        plan.train(f"resumed-mixed-{stage}", stage, precision="bfloat16")
    for stage, precision in BAD:
        settings: dict[str, Any] = {"model": plan.bad_model, "precision": precision}
        found[f"bad {stage} {precision}"] = plan.train(
            f"bad-{stage}-{precision}", stage, max_bad_steps=NUM_STEPS, **settings
        )
    for stage, precision in BAD[::4]:
        plan.train(
            f"too-bad-{stage}",
            stage,
            model=plan.bad_model,
            precision=precision,
            max_bad_steps=1,
            error=TOO_BAD,
        )
    plan.launch(2)
    for stage, other in CHANGES:
        shutil.copytree(plan.folder / f"left-{stage}", plan.folder / f"from-{stage}-to-{other}")
        found[f"2 ranks of {stage}, 1 of {other}"] = plan.train(f"from-{stage}-to-{other}", other)
    for stage, offload in OFFLOADED:
        shutil.copytree(
            plan.folder / f"left-{stage}-{offload}", plan.folder / f"free-{stage}-{offload}"
        )
        found[f"2 ranks of {stage} with {offload} in host memory, 1 with it"] = plan.train(
            f"left-{stage}-{offload}", stage, offload=offload
        )
        found[f"2 ranks of {stage} with {offload} in host memory, 1 without"] = plan.train(
            f"free-{stage}-{offload}", stage
        )
    for stage in STAGES:
        plan.train(f"up-{stage}", stage, stop_after=2)
    plan.launch(1)
    for stage in STAGES:
        found[f"1 rank of {stage}, 2 of {stage}"] = plan.train(f"up-{stage}", stage)
    plan.launch(2)
    copied = {"hpz": 2, "tokens_per_micro_batch": 64}  # four ranks as two nodes
    found["whole hpz"] = plan.train("hpz", 3, **copied)
    plan.train("resumed-hpz", 3, stop_after=3, **copied)
    found["resumed hpz"] = plan.train("resumed-hpz", 3, **copied)
    plan.train("to-hpz", 2, stop_after=3)
    found["from stage 2 to hpz"] = plan.train("to-hpz", 3, **copied)
    plan.train("to-fused", 3, stop_after=3)
    found["from AdamW to fused"] = plan.train("to-fused", 3, optimizer="torch_fused")
    plan.launch(4)
    return Trained(found, plan.output)


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_have_the_digests_of_all_files(trained: Trained, stage: int) -> None:
    left = trained.folders[f"whole {stage}"].parents[1] / f"left-{stage}"
    ((path, saved),) = checkpoint_manifest.complete(left / ".checkpoints" / "d")
    assert saved.world_size == 2 and saved.digests.keys() == saved.files.keys()
    assert len(saved.files) >= 2 and "metrics.jsonl" in saved.files
    assert saved.digests == {name: file_digest(path / name) for name in saved.files}


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_is_uninterrupted_bit_for_bit(trained: Trained, stage: int) -> None:
    assert _equal(trained.folders[f"whole {stage}"], trained.folders[f"resumed {stage}"])
    first = [trained.folders[f"{run} {stage}"] / "epochs" / "1" for run in ("whole", "resumed")]
    assert _equal(*first) and not _equal(first[0], trained.folders[f"whole {stage}"])
    whole, resumed = (
        _rows(trained.folders[f"whole {stage}"]),
        _rows(trained.folders[f"resumed {stage}"]),
    )
    names = [
        sorted(path.name for path in trained.folders[f"{run} {stage}"].iterdir())
        for run in ("whole", "resumed")
    ]
    assert names[0] == names[1]
    assert [row["step"] for row in resumed] == list(range(1, NUM_STEPS + 1))
    assert [row["loss"] for row in resumed] == [row["loss"] for row in whole]
    manifest = json.loads((trained.folders[f"resumed {stage}"] / "manifest.json").read_text())
    assert manifest["counts"]["resumed"] == 1
    assert not (trained.folders[f"resumed {stage}"].parent / ".checkpoints" / "d").exists()


@pytest.mark.parametrize(
    "change",
    [f"2 ranks of {a}, 1 of {b}" for a, b in CHANGES]
    + [f"1 rank of {stage}, 2 of {stage}" for stage in STAGES],
)
def test_resumed_by_other_ranks_and_stages(trained: Trained, change: str) -> None:
    whole, resumed = _weights(trained.folders["whole 2"]), _weights(trained.folders[change])
    assert_trained_alike(resumed, whole)


@pytest.mark.parametrize(("stage", "offload"), OFFLOADED)
def test_states_in_host_memory_are_resumed_and_redistributed(
    trained: Trained, stage: int, offload: str
) -> None:
    moved = f"2 ranks of {stage} with {offload} in host memory, 1"
    for resumed in (f"resumed {stage} {offload}", f"{moved} with it", f"{moved} without"):
        assert_trained_alike(
            _weights(trained.folders[resumed]), _weights(trained.folders["whole 2"])
        )


def test_weights_held_once_per_node_are_those_of_the_checkpoint(trained: Trained) -> None:
    assert _equal(trained.folders["whole hpz"], trained.folders["resumed hpz"])


@pytest.mark.parametrize("change", ["whole hpz", "from stage 2 to hpz", "from AdamW to fused"])
def test_results_stay_with_copies_and_with_another_optimizer(trained: Trained, change: str) -> None:
    assert_trained_alike(_weights(trained.folders[change]), _weights(trained.folders["whole 2"]))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_an_arm_does_not_know_what_ran_before_it(trained: Trained, stage: int) -> None:
    assert _equal(trained.folders[f"alone {stage}"], trained.folders[f"after another {stage}"])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_resumed_in_bfloat16_with_float32_master_weights(trained: Trained, stage: int) -> None:
    assert _equal(
        trained.folders[f"whole mixed {stage}"], trained.folders[f"resumed mixed {stage}"]
    )


@pytest.mark.parametrize(("stage", "precision"), BAD)
def test_non_finite_steps_are_skipped_counted_and_named(
    trained: Trained, stage: int, precision: str
) -> None:
    """Too many of them end the arm with TOO_BAD, which the ranks check."""
    folder = trained.folders[f"bad {stage} {precision}"]
    steps = packing.step_examples(20, BATCH, 2, SEED)
    bad = [
        number
        for number, examples in enumerate(steps, 1)
        if {line - 1 for line in BAD_LINES} & set(examples)
    ]
    rows = _rows(folder)
    assert [row["step"] for row in rows if not row["applied"]] == bad
    assert json.loads((folder / "manifest.json").read_text())["counts"]["bad_steps"] == len(bad)
    for line in BAD_LINES:
        assert re.search(
            rf"d.jsonl: step \d was skipped, .* is non-finite: lines .*\b{line}\b",
            trained.output,
        )
    changed = (
        _weights(folder)["lm_head.weight"]
        - load_file(folder.parents[1] / "bad" / "model.safetensors")["lm_head.weight"]
    )
    assert changed.isfinite().all() and changed.abs().max() > 0
    # The metrics of the arm that ended with an error are kept.
    assert "null" in (folder.parents[1] / f"d-harmonious-seed{SEED}-metrics.jsonl").read_text()
