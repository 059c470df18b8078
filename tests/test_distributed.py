"""Who a process is, by each launcher's variables, and which devices are its own."""

from pathlib import Path
from typing import Literal

import pytest

from ift_scale import distributed
from ift_scale.config import EngineConfig
from ift_scale.distributed import Ranks
from ift_scale.inference import slots
from ift_scale.inference.engine import resolved_identity
from ift_scale.inference.slots import slots_for
from ift_scale.progress import Bar

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID",
             "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS", "CUDA_VISIBLE_DEVICES")  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, Ranks(3, 1, 4, 2)),  # torchrun
        ({"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"}, Ranks(3, 1, 4, 2)),  # deepspeed
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, before any srun
        (
            {"SLURM_STEP_NUM_TASKS": "5", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "3,2"},
            Ranks(4, 1, 5, 3),
        ),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "7", "SLURM_LOCALID": "3", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"},
            Ranks(7, 3, 8, 4),
        ),
    ],
)
def test_each_launchers_variables(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Ranks | None) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert distributed.from_environment() == expected


@pytest.mark.parametrize(
    ("visible", "ranks", "tensor_parallel", "expected"),
    [
        ("0,1,2,3", None, 1, ("0", "1", "2", "3")),  # one process has the node
        ("0,1,2,3", Ranks(1, 1, 4, 4), 1, ("1",)),
        ("0,1,2,3", Ranks(1, 1, 2, 2), 2, ("2", "3")),
        ("5", Ranks(1, 1, 4, 4), 1, ("5",)),  # the launcher shows each rank its own
        ("GPU-a,GPU-b", Ranks(0, 0, 1, 1), 1, ("GPU-a", "GPU-b")),
        ("6,3", Ranks(5, 0, 9), 2, ("6", "3")),  # Ray shows each actor its own, wherever they are on the node
        ("", Ranks(0, 0, 1, 1), 1, ()),
    ],
)
def test_a_ranks_devices(
    monkeypatch: pytest.MonkeyPatch, visible: str, ranks: Ranks | None, tensor_parallel: int, expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(distributed, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert distributed.own_devices(ranks, tensor_parallel) == expected
    monkeypatch.setattr(distributed, "has_gpu", lambda: False)
    assert distributed.own_devices(ranks, tensor_parallel) == ()


def test_an_actors_engine_gets_the_devices_that_ray_has_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[tuple[tuple[str, ...], str]] = []
    monkeypatch.setattr(slots, "EngineProcess", lambda spec, log: started.append((spec.devices, log.name)) or EngineDouble())
    monkeypatch.setattr(distributed, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,3")
    # What the node's Ray was started with may stand in the environment as well.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("RANK", "1")
    config = EngineConfig(tensor_parallel_size=2)
    (slot,) = slots_for(config, "auto", tmp_path / "probe.log", Ranks(5, 0, 9), Bar("t", 0, None))
    slot.serve(tmp_path)
    assert started == [(("6", "3"), "probe-rank5.log")]


class EngineDouble:
    def ready(self) -> None: ...


@pytest.mark.parametrize(("elsewhere", "engine"), [("gpu", "vllm"), ("cpu", "transformers")])
def test_who_only_leads_has_no_engine_and_asks_for_the_ranks_shards(
    elsewhere: Literal["cpu", "gpu"], engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(distributed, "has_gpu", lambda: elsewhere == "cpu")  # such as a cluster's head without GPUs
    leads = Ranks(0, 0, 9, engines_elsewhere=elsewhere)
    assert slots_for(EngineConfig(), "auto", tmp_path / "probe.log", leads, Bar("t", 0, None)) == []
    assert resolved_identity(EngineConfig(), "auto", distributed.engines_on_gpu(leads))["engine"] == engine
