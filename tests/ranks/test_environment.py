"""Ranks from each launcher's variables, the address of the rendezvous, and a rank's devices."""

import os
import socket
from pathlib import Path
from typing import Literal

import pytest

from ift_scale.config import BUILTIN_MODEL, EngineConfig, ModelConfig
from ift_scale.engines import pool
from ift_scale.engines.pool import engine_workers
from ift_scale.engines.protocol import resolved_identity
from ift_scale.errors import EnvironmentProblem
from ift_scale.io.progress import Bar
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks

VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "LOCAL_SIZE",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_STEP_TASKS_PER_NODE",
    "SLURM_NTASKS",
    "CUDA_VISIBLE_DEVICES",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_NODELIST",
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        (
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            Ranks(3, 1, 4, 2),
        ),  # torchrun
        (
            {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_SIZE": "2"},
            Ranks(3, 1, 4, 2),
        ),  # deepspeed
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script, before any srun
        (
            {
                "SLURM_STEP_NUM_TASKS": "5",
                "SLURM_PROCID": "4",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "3,2",
            },
            Ranks(4, 1, 5, 3),
        ),
        (
            {
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_PROCID": "7",
                "SLURM_LOCALID": "3",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
            },
            Ranks(7, 3, 8, 4),
        ),
    ],
)
def test_each_launchers_variables(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: Ranks | None
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.from_environment() == expected


@pytest.mark.parametrize(
    ("visible", "ranks", "tensor_parallel", "expected"),
    [
        ("0,1,2,3", None, 1, ("0", "1", "2", "3")),  # one process has the node
        ("0,1,2,3", Ranks(1, 1, 4, 4), 1, ("1",)),
        ("0,1,2,3", Ranks(1, 1, 2, 2), 2, ("2", "3")),
        ("5", Ranks(1, 1, 4, 4), 1, ("5",)),  # the launcher shows each rank its own
        ("GPU-a,GPU-b", Ranks(0, 0, 1, 1), 1, ("GPU-a", "GPU-b")),
        (
            "6,3",
            Ranks(5, 0, 9),
            2,
            ("6", "3"),
        ),  # Ray shows each actor its own, wherever they are on the node
        ("", Ranks(0, 0, 1, 1), 1, ()),
    ],
)
def test_a_ranks_devices(
    monkeypatch: pytest.MonkeyPatch,
    visible: str,
    ranks: Ranks | None,
    tensor_parallel: int,
    expected: tuple[str, ...],
) -> None:
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert environment.own_devices(ranks, tensor_parallel) == expected
    monkeypatch.setattr(environment, "has_gpu", lambda: False)
    assert environment.own_devices(ranks, tensor_parallel) == ()


def test_an_actors_engine_gets_the_devices_that_ray_has_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[tuple[tuple[str, ...], str]] = []
    monkeypatch.setattr(
        pool,
        "EngineProcess",
        lambda spec, log: started.append((spec.devices, log.name)) or EngineDouble(),
    )
    monkeypatch.setattr(environment, "has_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,3")
    # The environment may also have the variables with which the node's Ray was started.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("RANK", "1")
    config = EngineConfig(engine="vllm", tensor_parallel_size=2)
    (worker,) = engine_workers(
        config, ModelConfig(), tmp_path / "probe.log", Ranks(5, 0, 9), Bar("t", 0, None)
    )
    worker.load(tmp_path)
    assert started == [(("6", "3"), "probe-rank5.log")]


class EngineDouble:
    def ready(self) -> None: ...


@pytest.mark.parametrize(("elsewhere", "engine"), [("gpu", "vllm"), ("cpu", "transformers")])
def test_a_coordinator_has_no_engine_and_uses_the_shards_of_its_ranks(
    elsewhere: Literal["cpu", "gpu"], engine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        environment, "has_gpu", lambda: elsewhere == "cpu"
    )  # such as a cluster's head without GPUs
    coordinator = Ranks(0, 0, 9, engines_elsewhere=elsewhere)
    assert (
        engine_workers(
            EngineConfig(), ModelConfig(), tmp_path / "probe.log", coordinator, Bar("t", 0, None)
        )
        == []
    )
    assert (
        resolved_identity(
            EngineConfig(), "auto", environment.engines_on_gpu(coordinator), BUILTIN_MODEL, False
        )["engine"]
        == engine
    )


def _scontrol(folder: Path, script: str) -> str:
    """Returns a PATH with this script as scontrol."""
    (folder / "scontrol").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "scontrol").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def _resolve(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> tuple[str, int]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name in (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that its changes are undone
        if not os.environ[name]:
            monkeypatch.delenv(name)
    return environment.resolve_environment(Ranks(5, 1, 8, 4))


def test_the_launchers_address_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _resolve(monkeypatch, {"MASTER_ADDR": "127.0.0.2", "MASTER_PORT": "1234"}) == (
        "127.0.0.2",
        1234,
    )


def test_a_host_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        EnvironmentProblem, match=r"nowhere.invalid, the host of the rendezvous, has no address"
    ):
        _resolve(monkeypatch, {"MASTER_ADDR": "nowhere.invalid"})


def test_sruns_ranks_meet_at_the_first_node_by_a_port_of_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = _scontrol(tmp_path, 'echo localhost; echo "$3" >&2')
    step = {
        "PATH": path,
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "n[1-2]",
    }
    host, port = _resolve(monkeypatch, step)
    assert host == "localhost" and 10_000 <= port < 30_000
    assert [
        os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    ] == ["5", "8", "1", "4"]
    assert _resolve(monkeypatch, step)[1] == port
    assert _resolve(monkeypatch, step | {"SLURM_STEP_ID": "1"})[1] != port
    assert _resolve(monkeypatch, step | {"SLURM_JOB_ID": "1234568"})[1] != port


@pytest.mark.parametrize(
    ("script", "nodes", "message"),
    [
        (
            "echo nowhere.invalid",
            "n[1-2]",
            r"nowhere.invalid \(of the job's nodes n\[1-2\]\), the host of the rendezvous, has no "
            r"address",
        ),
        (
            "echo Invalid hostlist >&2; exit 1",
            "n[1",
            r"scontrol cannot expand the node list n\[1: Invalid hostlist",
        ),
        (None, "n1", "scontrol, which expands the node list n1, cannot be run"),
        (None, "", "MASTER_ADDR is not set, and SLURM has set no node list"),
    ],
)
def test_a_node_list_that_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str | None, nodes: str, message: str
) -> None:
    path = str(tmp_path) if script is None else _scontrol(tmp_path, script)
    with pytest.raises(EnvironmentProblem, match=message) as caught:
        _resolve(monkeypatch, {"PATH": path, "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": nodes})
    assert "Export MASTER_ADDR" in str(caught.value)


def test_a_free_port_is_outside_of_the_range_that_the_kernel_assigns() -> None:
    """Otherwise any connection of this host may take it before it is used."""
    ports = {environment.free_port() for _ in range(50)}
    assert len(ports) > 40 and min(ports) >= 10_000 and max(ports) < 30_000


def test_a_port_in_use_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(environment, "_FIRST_PORT", port)
        monkeypatch.setattr(environment, "_NUM_PORTS", 1)
        with pytest.raises(EnvironmentProblem, match=f"no port from {port} to {port} is free"):
            environment.free_port()
