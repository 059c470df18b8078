"""The log of a run's steps: the values of a row, when they are read, and the progress line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ift_scale.config import TrainConfig
from ift_scale.estimate.shape import train_flops
from ift_scale.estimate.shape_of import shape_of
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.job import Events
from ift_scale.train.monitor import throughput
from ift_scale.train.monitor.metrics import StepLog
from ift_scale.train.monitor.progress import progress_line, time_left
from ift_scale.train.monitor.throughput import Meter
from ift_scale.train.monitor.trackers import Trackers

CPU = torch.device("cpu")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def _tokens() -> TokenizedSet:
    """Examples of 4, 3 and 5 tokens, 2, 1 and 2 supervised; two of them end unsupervised."""
    supervised = np.array([0, 1, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0], dtype=bool)
    return TokenizedSet(
        np.arange(12, dtype=np.int32), supervised, np.array([0, 4, 7, 12]), np.ones(3), 0
    )


def _meter(**changes: Any) -> Meter:
    settings: dict[str, Any] = {
        "tokens": _tokens(),
        "hidden_size": 64,
        "num_ranks": 2,
        "shape": shape_of(LLAMA),
        "pruned": True,
        "share_prefix": True,
        "peak_flops": 1e9,
    }
    return Meter(**(settings | changes))


STEP = [[[0], [2]], [[1], []]]


def test_counts_are_of_the_whole_step() -> None:
    found = _meter().counts(STEP)
    assert (
        found["examples"],
        found["tokens"],
        found["computed_tokens"],
        found["supervised_tokens"],
    ) == (3, 12, 6, 5)
    assert (
        found["supervised_share"] == 5 / 12
        and found["micro_batches"] == 2
        and found["imbalance"] > 1
    )
    assert found["model_flops"] == train_flops(shape_of(LLAMA), [2, 2, 2], [2, 2, 1], pruned=True)
    assert _meter(pruned=False).counts(STEP)["model_flops"] > found["model_flops"]


def test_rates_are_those_of_one_device() -> None:
    found = _meter().rates({"tokens": 12, "model_flops": 4e8}, seconds=0.5)
    assert found == {"tokens_per_second_per_gpu": 12, "mfu": 0.4}
    assert _meter(peak_flops=None).rates({"tokens": 12, "model_flops": 4e8}, 0.5)["mfu"] is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362.05),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_peaks_of_known_devices(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert throughput.known_peak(name) == peak
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    flops, reason = throughput.peak_flops(TrainConfig(), torch.device("cuda"), torch.bfloat16)
    assert flops == (peak and peak * 1e12)
    assert (reason is None) == (peak is not None)


def test_the_peak_that_is_set_counts_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert throughput.peak_flops(TrainConfig(peak_tflops=0.5), CPU, torch.float32) == (5e11, None)
    assert throughput.peak_flops(TrainConfig(), CPU, torch.float32) == (None, None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    flops, reason = throughput.peak_flops(TrainConfig(), torch.device("cuda"), torch.float32)
    assert (
        flops is None
        and reason is not None
        and "is for bfloat16, and this is torch.float32; set train.peak_tflops" in reason
    )


class _OnDevice:
    """A norm that counts how often it is read."""

    reads = 0

    def __float__(self) -> float:
        _OnDevice.reads += 1
        return 0.5


class _Result:
    def __init__(self, loss: float, applied: bool = True, norm: Any = 0.25):
        self.loss, self.grad_norm, self.learning_rate, self.applied = (
            torch.tensor(loss),
            norm,
            1e-3,
            applied,
        )
        self.divergences: dict[str, torch.Tensor] = {}


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def _log(tmp_path: Path, num_steps: int, every: int, **meter: Any) -> StepLog:
    events = Events(tmp_path / "events.jsonl")
    return StepLog(
        tmp_path / "metrics.jsonl",
        events,
        num_steps,
        _meter(num_ranks=1, **meter),
        Trackers([], tmp_path, print),
        every,
        CPU,
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_device_is_read_once_per_interval(
    tmp_path: Path, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _log(tmp_path, num_steps=5, every=3)
    reads_at: list[int] = []
    whole = torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda tensor: [reads_at.append(number), whole(tensor)][1]
    )
    for number in range(5):
        log.start()
        with monkeypatch.context() as inside:  # not allowed before the end of an interval
            if number not in (2, 4):
                for name in ("item", "__float__", "__bool__", "cpu"):
                    inside.setattr(
                        torch.Tensor, name, lambda *a: pytest.fail("the device was waited for")
                    )
            log.add(number, STEP, _Result(float(number), norm=_OnDevice()))  # type: ignore[arg-type]
            log.finish({"validation_loss": 0.5} if number == 1 else {})
        assert _OnDevice.reads == {0: 0, 1: 0, 2: 3, 3: 3, 4: 5}[number]
    assert reads_at == [2, 4]
    log.close()
    rows, events = _lines(tmp_path / "metrics.jsonl"), _lines(tmp_path / "events.jsonl")
    assert [row["loss"] for row in rows] == [0, 1, 2, 3, 4] and [row["step"] for row in rows] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert [event["step"] for event in events] == [3, 5]
    assert (
        events[0]["of"] == 5 and events[0]["seconds_left"] > 0 and events[-1]["seconds_left"] == 0
    )
    assert all(
        row["seconds"] > 0 and row["mfu"] > 0 and 0.05 < row["peak_memory_gib"] < 100
        for row in rows
    )
    assert [row.get("validation_loss") for row in rows] == [None, 0.5, None, None, None]
    first = rows[0]
    assert first["tokens_per_second_per_gpu"] == pytest.approx(12 / first["seconds"])
    assert first["mfu"] == pytest.approx(first["model_flops"] / first["seconds"] / 1e9)


def test_a_non_finite_loss_is_null(tmp_path: Path, group: None) -> None:
    log = _log(tmp_path, num_steps=2, every=2, peak_flops=None)
    log.start()
    log.add(0, STEP, _Result(math.nan, applied=False, norm=math.inf))  # type: ignore[arg-type]
    log.finish({})
    log.start()
    log.add(1, STEP, _Result(1.0, norm=None))  # type: ignore[arg-type]
    log.finish({})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    bad, good = _lines(tmp_path / "metrics.jsonl")
    assert (
        bad["loss"] is None
        and bad["grad_norm"] is None
        and bad["applied"] is False
        and bad["mfu"] is None
    )
    assert good["loss"] == 1 and good["grad_norm"] is None and good["applied"] is True


EVENT = {
    "step": 12,
    "of": 46,
    "loss": 1.2344,
    "grad_norm": 0.871,
    "learning_rate": 1.9e-5,
    "tokens_per_second_per_gpu": 3412.2,
    "supervised_share": 0.313,
    "mfu": 0.521,
    "peak_memory_gib": 61.23,
    "seconds_left": 175.0,
}


def test_the_progress_line() -> None:
    assert progress_line("engineering-harmonious-seed0", EVENT) == (
        "engineering-harmonious-seed0 step 12/46 loss 1.234 norm 0.87 lr 1.9e-05"
        " 3,412 tok/s/GPU sup 31% MFU 52% mem 61.2 GiB 3 min left"
    )
    unknown = progress_line("a", EVENT | {"mfu": None, "loss": None, "grad_norm": None})
    assert "loss nan norm nan" in unknown and "MFU" not in unknown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (29, "29 s"),
        (31, "1 min"),
        (3600, "1 h 0 min"),
        (9000, "2 h 30 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_time_left(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_a_note_is_emitted_once(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    for _ in range(3):
        events.note("no MFU: why")
    assert _lines(tmp_path / "events.jsonl") == [{"event": "note", "message": "no MFU: why"}]
