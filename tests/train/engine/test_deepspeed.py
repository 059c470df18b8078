"""DeepSpeed ranks over gloo against a plain PyTorch loop, at any ZeRO stage and world size."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.errors import EnvironmentProblem
from ift_scale.io.manifests import is_done
from ift_scale.io.progress import Bar
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.stage import Task
from ift_scale.train import run as train
from ift_scale.train.data import packing
from ift_scale.train.data.cache import tokenized
from ift_scale.train.data.dataset import TokenizedSet, load
from tests.train.rounding import RATE, assert_trained_alike

pytestmark = pytest.mark.engine

ARM = Arm(domain="d", setting="harmonious", seed=3)


def _config(tmp_path: Path, **changes: object) -> Config:
    settings = {
        "epochs": 2,
        "global_batch_size": 8,
        "learning_rate": RATE,
        "weight_decay": 0.1,
        "max_length": 128,
        "tokens_per_micro_batch": 2048,
        "launcher": "direct",
    }
    return from_dict({"output_dir": str(tmp_path), "train": settings | changes})


def _task(folder: Path) -> Task:
    return Task("train", folder / "train" / ARM.name, "key", {}, ARM)


def _write_set(path: Path) -> None:
    words = "willow ginger clover honey mint garlic sage nettle".split()
    rows = []
    for i in range(20):
        answer = " ".join(words[: 1 + i % 5])
        messages = [
            {"role": "user", "content": "Say " + "hello " * (i % 7) + "."},
            {"role": "assistant", "content": answer},
        ]
        rows.append(
            {
                "messages": messages,
                "meta": {"setting": "general", "wording": "general", "weight": 1 + i % 3},
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _reference(
    model_path: Path, tokens: TokenizedSet, config: Config
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The reference loop: one process, one example per forward pass, full logits."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    settings = config.train
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
    )
    steps = list(
        packing.step_examples(
            len(tokens.lengths), settings.global_batch_size, settings.epochs, ARM.seed
        )
    )
    warmup = math.ceil(settings.warmup_ratio * len(steps))
    cosine = get_cosine_schedule_with_warmup(optimizer, warmup, len(steps)).lr_lambdas[0]
    schedule = LambdaLR(
        optimizer, lambda step: (step + 1) / warmup if step < warmup else cosine(step)
    )
    losses = []
    for step in steps:
        total, count = torch.zeros(()), 0.0
        for i in step:
            span = slice(tokens.offsets[i], tokens.offsets[i + 1])
            ids = torch.tensor(tokens.ids[span].astype("int64"))
            learnt = torch.tensor(tokens.supervised[span])[1:]
            logits = model(ids[None]).logits[0, :-1]
            weight = float(tokens.weights[i])
            total = total + weight * F.cross_entropy(
                logits[learnt], ids[1:][learnt], reduction="sum"
            )
            count += weight * int(learnt.sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return losses, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("num_ranks", "zero_stage", "cap", "launcher"),
    [
        (1, 0, 2048, "direct"),
        (2, 2, 128, "deepspeed"),
        (2, 3, 128, "direct"),
        (3, 2, 2048, "direct"),
    ],
)
def test_training_is_exact(
    tmp_path: Path, world_model: Path, num_ranks: int, zero_stage: int, cap: int, launcher: str
) -> None:
    trackers = ["tensorboard"] if launcher == "deepspeed" else []
    config = _config(
        tmp_path,
        num_ranks=num_ranks,
        zero_stage=zero_stage,
        tokens_per_micro_batch=cap,
        launcher=launcher,
        trackers=trackers,
    )
    sets = tmp_path / "set.jsonl"
    _write_set(sets)
    (tmp_path / "logs").mkdir()
    seconds = train.train(
        config,
        tmp_path / "train",
        world_model,
        [(_task(tmp_path), ARM, sets)],
        tmp_path / "logs",
        Bar("t", 1, None),
    )
    assert seconds["launch_and_imports"] > 0
    folder = tmp_path / "train" / ARM.name
    assert is_done(folder, "key")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tokens = load(
        tokenized(sets, tmp_path / "train" / ".tokens", PromptTokenizer(world_model), config)
    )
    losses, weights = _reference(world_model, tokens, config)
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=2e-5)
    reported = (
        "computed_tokens",
        "supervised_share",
        "micro_batches",
        "imbalance",
        "tokens_per_second_per_gpu",
        "peak_memory_gib",
    )
    assert all(row[name] > 0 for row in rows for name in reported) and all(
        row["mfu"] is None for row in rows
    )
    assert len(list(tmp_path.glob(f"logs/tensorboard/{ARM.name}/*/events.out.*"))) == len(
        trackers
    )  # of one rank
    exported = load_file(folder / "model" / "model.safetensors")
    assert_trained_alike(exported, weights)
    # The folder loads as any Hugging Face model, template included.
    AutoModelForCausalLM.from_pretrained(folder / "model")
    assert "ASSISTANT" in PromptTokenizer(folder / "model").tokenizer.chat_template


def test_an_arm_of_one_step_learns(tmp_path: Path, world_model: Path) -> None:
    config = _config(tmp_path, epochs=1, global_batch_size=20, zero_stage=2)
    _write_set(tmp_path / "set.jsonl")
    pending = [(_task(tmp_path), ARM, tmp_path / "set.jsonl")]
    train.train(
        config, tmp_path / "train", world_model, pending, tmp_path / "logs", Bar("t", 1, None)
    )
    folder = tmp_path / "train" / ARM.name
    (row,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert row["learning_rate"] == config.train.learning_rate
    before, after = (
        load_file(place / "model.safetensors") for place in (world_model, folder / "model")
    )
    assert all(not torch.equal(after[name].float(), before[name].float()) for name in before)


@pytest.mark.parametrize("launcher", ["direct", "deepspeed"])
def test_a_failing_rank_ends_the_group_with_its_message(
    tmp_path: Path, world_model: Path, launcher: str
) -> None:
    config = _config(tmp_path, num_ranks=2, launcher=launcher)
    sets = tmp_path / "set.jsonl"
    _write_set(sets)
    (tmp_path / "logs").mkdir()
    blocker = tmp_path / "train"
    blocker.mkdir()
    (blocker / f".{ARM.name}.incomplete").write_text("a file where rank 0 wants a folder")
    with pytest.raises(
        EnvironmentProblem, match=r"rank 0 failed: .*cannot be read or written \(File exists\)"
    ):
        train.train(
            config,
            blocker,
            world_model,
            [(_task(tmp_path), ARM, sets)],
            tmp_path / "logs",
            Bar("t", 1, None),
        )
    assert not (blocker / ARM.name).exists()
