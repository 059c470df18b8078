"""The validation loss on one rank: its value, its schedule, and what it leaves untouched."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy
from transformers import AutoModelForCausalLM

from ift_scale.config import TrainConfig, ValidationConfig
from ift_scale.ranks.environment import Ranks
from ift_scale.train.data import dataset
from ift_scale.train.job import Events, ValidationJob
from ift_scale.train.measurement.evaluator import Measurements
from ift_scale.train.model.packed import PackedCausalLM
from ift_scale.train.validation.evaluator import ValidationEvaluator
from tests.train.alone import Alone
from tests.train.validation import examples

NUM_STEPS = 5


class _Best:
    """Records what is offered, as `BestWeights` does."""

    def __init__(self) -> None:
        self.offered: list[tuple[int, float]] = []
        self.seconds = 0.0

    @property
    def step(self) -> int | None:
        return min(self.offered, key=lambda pair: pair[1])[0] if self.offered else None

    def offer(self, step: int, loss: float) -> None:
        self.offered.append((step, loss))


def _model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _evaluator(
    folder: Path,
    model: Path,
    tokens: Path,
    every: int = 2,
    held_out: Path | None = None,
    cap: int = 128,
    best: Any = None,
    digest: str = "d",
    stopping: dict[str, Any] | None = None,
    **train: Any,
) -> ValidationEvaluator:
    settings: dict[str, Any] = {"zero_stage": 2, "max_length": 128, "tokens_per_micro_batch": 256}
    config = TrainConfig.model_validate(settings | train)
    packed = PackedCausalLM(
        _model(model).train(), config, torch.device("cpu"), linear_cross_entropy
    )
    engine: Any = SimpleNamespace(
        packed=packed,
        config=config,
        device=torch.device("cpu"),
        ranks=Ranks(rank=0, world_size=1, local_rank=0),
        deepspeed=None,
    )
    job = ValidationJob(
        tokens=str(tokens),
        held_out=None if held_out is None else str(held_out),
        every=every,
        digest=digest,
    )
    section = ValidationConfig.model_validate({"share": 0.1, "early_stopping": stopping})
    control: Any = Alone()
    return ValidationEvaluator(
        job, section, engine, control, NUM_STEPS, 96, cap, folder, Events(None), {}, best
    )


def _plain_loss(
    model: Path, tokens: dataset.TokenizedSet, numbers: list[int], average: str
) -> float:
    """The weighted loss by the model's own forward pass, an example at a time."""
    network = _model(model).eval()
    sums, counts, weights = [], [], []
    for i in numbers:
        span = slice(tokens.offsets[i], tokens.offsets[i + 1])
        ids, mask = torch.from_numpy(tokens.ids[span].astype(np.int64)), tokens.supervised[span][1:]
        with torch.no_grad():
            logprobs = network(ids[None]).logits[0, :-1].log_softmax(-1)
        losses = -logprobs[torch.arange(len(ids) - 1), ids[1:]].double().numpy()[mask]
        sums.append(losses.sum())
        counts.append(len(losses))
        weights.append(tokens.weights[i])
    s, n, w = np.array(sums), np.array(counts), np.array(weights)
    return float(
        (w * s).sum() / (w * n).sum() if average == "token" else (w * s / n).sum() / w.sum()
    )


@pytest.mark.parametrize("average", ["token", "example"])
def test_it_is_the_exact_loss_however_it_is_packed(
    tmp_path: Path, world_model: Path, average: str
) -> None:
    rows = [examples.row(i, weight=1 + i % 3) for i in range(24)]
    path = examples.tokens(examples.write(tmp_path / "a.jsonl", rows), world_model)
    tokens, numbers = dataset.load(path), [1, 4, 5, 11, 17, 23]
    np.save(tmp_path / "held.npy", np.array(numbers))
    expected = _plain_loss(world_model, tokens, numbers, average)
    for number, settings in enumerate(({"cap": 1}, {"cap": 4096}, {"share_prefix": False})):
        folder = tmp_path / str(number)
        folder.mkdir()
        evaluator = _evaluator(
            folder, world_model, path, 2, tmp_path / "held.npy", loss_average=average, **settings
        )
        row = evaluator.after(2)
        assert row["validation_loss"] == pytest.approx(expected, rel=1e-6)
        assert row["examples"] == 6
        assert row["supervised_tokens"] == tokens.supervised_counts[numbers].sum()


def test_it_is_measured_on_schedule_and_leaves_training_untouched(
    tmp_path: Path, world_model: Path
) -> None:
    path = examples.tokens(
        examples.write(tmp_path / "a.jsonl", [examples.row(i) for i in range(8)]), world_model
    )
    best = _Best()
    evaluator = _evaluator(tmp_path, world_model, path, best=best)
    packed = evaluator._engine.packed
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in packed.state_dict().items()}
    logged = [Measurements([evaluator]).after(step) for step in range(NUM_STEPS + 1)]
    assert [set(fields) for fields in logged] == [
        {"validation_loss"}, set(), {"validation_loss"}, set(), {"validation_loss"},
        {"validation_loss"},
    ]  # fmt: skip
    assert torch.equal(state, torch.get_rng_state())
    assert packed.training and all(p.grad is None for p in packed.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in packed.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert rows == evaluator.rows and [row["step"] for row in rows] == [0, 2, 4, 5]
    assert [step for step, _ in best.offered] == [2, 4, 5]  # the base model is no candidate
    assert evaluator.counts() == {
        "validation_measurements": 4,
        "validation_every": 2,
        "validation_examples": 8,
        "best_step": 2,
    }
    assert evaluator.times() == {"validation": evaluator.seconds, "keep_best": 0.0}

    # A resumed arm continues from the file, unless it is of other examples.
    again = _evaluator(tmp_path, world_model, path)
    assert again.rows == rows and again.seconds == pytest.approx(evaluator.seconds)
    assert again.after(4) == {}
    assert _evaluator(tmp_path, world_model, path, digest="other").rows == []
    assert not (tmp_path / "validation.jsonl").exists()


def test_early_stopping_counts_measurements_without_improvement(
    tmp_path: Path, world_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = examples.tokens(
        examples.write(tmp_path / "a.jsonl", [examples.row(i) for i in range(8)]), world_model
    )
    losses = iter([3.0, 2.0, math.nan, 1.95, 1.0])
    monkeypatch.setattr(ValidationEvaluator, "_loss", lambda self: next(losses))
    stopping = {"patience": 2, "least_improvement": 0.1}
    evaluator = _evaluator(tmp_path, world_model, path, every=1, stopping=stopping)
    stops = []
    for step in range(4):
        evaluator.after(step)
        stops.append(evaluator.should_stop)
    assert stops == [False, False, False, True]
    assert [row["validation_loss"] for row in evaluator.rows] == [3.0, 2.0, None, 1.95]
    assert "NaN" not in (tmp_path / "validation.jsonl").read_text()
    assert Measurements([evaluator]).counts()["stopped_early"] == 1
    resumed = _evaluator(tmp_path, world_model, path, every=1, stopping=stopping)
    assert resumed.should_stop


def test_an_arm_without_validation_measures_nothing(tmp_path: Path) -> None:
    engine: Any = SimpleNamespace(device=torch.device("cpu"))
    control: Any = Alone()
    none = ValidationEvaluator(
        None, ValidationConfig(), engine, control, 5, 96, 128, tmp_path, Events(None), {}, None
    )
    assert none.after(0) == {} and none.counts() == {} == none.times()
