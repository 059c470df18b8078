"""The number of ranks, and hostfiles that cannot be used."""

from pathlib import Path

import pytest

from ift_scale.config.file import from_dict
from ift_scale.config.train import TrainConfig
from ift_scale.errors import ConfigError, DataError, EnvironmentProblem
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks
from ift_scale.train.launch import hostfile, launcher


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "n1 slots=8\nn2 slot=8\n",
            "hosts:2: is not a host (value: 'n2 slot=8'). Write HOST slots=N",
        ),
        ("n1 slots=0\n", "hosts:1: is not a host"),
        ("n1 slots=8\n\nn1 slots=8\n", "hosts:3: duplicate host (value: 'n1')"),
        ("# nothing\n", "hosts: has no hosts"),
    ],
)
def test_a_hostfile_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        hostfile.read(_file(tmp_path, text))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "-oProxyCommand=touch${IFS}/tmp/x",
        "$(touch)",
        "`touch`",
        "n1;touch",
        "n1|touch",
        "a/../b",
        "user@n1",
        "n1\x1b[2J",
        "n\u0661",
        "n1&",
        "'n1'",
    ],
)
def test_a_host_that_a_shell_would_execute_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(DataError, match="is not a host") as caught:
        hostfile.read(_file(tmp_path, f"{host} slots=1\n"))
    assert "\x1b" not in str(caught.value)


def test_names_and_addresses_are_hosts(tmp_path: Path) -> None:
    hosts = ["node-01.cluster.local", "10.0.0.1", "fe80::1", "gpu_1"]
    text = "".join(f"{host} slots=2\n" for host in hosts)
    assert list(hostfile.read(_file(tmp_path, text))) == hosts


def test_a_launch_has_a_secret_that_no_command_line_shows() -> None:
    first, second = (
        launcher.commands(TrainConfig(num_ranks=2, launcher=kind), 1, [])
        for kind in ("deepspeed", "direct")
    )
    secrets = set()
    for commands in (first, second):
        for command, changes in commands:
            secret = changes[environment.SECRET]
            assert secret is not None and len(secret) == 64 and secret not in " ".join(command)
            secrets.add(secret)
    assert len(secrets) == 2  # one for each launch, the same for all of its ranks


def test_a_hostfile_that_disagrees_with_this_hosts_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "visible_devices", lambda: ("0", "1", "2", "3"))
    assert hostfile.check(_file(tmp_path, "localhost slots=4\n")) == {"localhost": 4}
    with pytest.raises(
        DataError, match=r"gives this host \(localhost\) 8 slots, but 4 GPUs are visible"
    ):
        hostfile.check(_file(tmp_path, "localhost slots=8\n"))


def test_several_hosts_need_pdsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="apt-get install pdsh"):
        hostfile.check(_file(tmp_path, "n1 slots=1\nn2 slots=1\n"))


def test_the_hostfile_sets_the_number_of_ranks(tmp_path: Path) -> None:
    path = _file(tmp_path, "localhost slots=3\n")
    train = {"hostfile": str(path), "global_batch_size": 4}
    assert (
        hostfile.with_ranks(from_dict({"output_dir": "x", "train": train}), None).train.num_ranks
        == 3
    )
    with pytest.raises(ConfigError, match=r"train.num_ranks: 2, but .*hosts has 3 slots"):
        hostfile.with_ranks(from_dict({"output_dir": "x", "train": train | {"num_ranks": 2}}), None)


def test_a_batch_too_small_for_the_launchers_ranks() -> None:
    config = from_dict({"output_dir": "x", "train": {"global_batch_size": 4}})
    assert hostfile.with_ranks(config, Ranks(0, 0, 4, 4)).train.num_ranks == 4
    with pytest.raises(ConfigError, match=r"4 examples are fewer than train.num_ranks = 8"):
        hostfile.with_ranks(config, Ranks(0, 0, 8, 8))


def test_a_single_host_elsewhere_is_not_taken_for_this_one(tmp_path: Path) -> None:
    def command(text: str) -> list[str]:
        train = {"hostfile": str(_file(tmp_path, text)), "num_ranks": 1}
        return launcher.commands(from_dict({"output_dir": "x", "train": train}).train, 1, [])[0][0]

    assert "--force_multi" in command("elsewhere slots=1\n")
    assert "--force_multi" not in command("localhost slots=1\n")


def test_the_ranks_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nGLOO_SOCKET_IFNAME=mine\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {
        "GLOO_SOCKET_IFNAME": "ib0",
        "WANDB_NAME": "two words",
        "WANDB_API_KEY": "x",
        "HF_TOKEN": "x",
        "MLFLOW_TRACKING_URI": "https://me:hunter2@tracker.example",
        "IFT_SCALE_LAUNCH_SECRET": "x",
        "OTHER": "x",
    }.items():
        monkeypatch.setenv(name, value)
    hostfile.write_environment(tmp_path / "written", {"DS_ACCELERATOR": "cpu"})
    lines = (tmp_path / "written").read_text().splitlines()
    assert lines[:2] == ["NCCL_DEBUG=INFO", "GLOO_SOCKET_IFNAME=mine"]
    assert {"DS_ACCELERATOR=cpu", "WANDB_NAME='two words'"} <= set(lines)
    assert not any(line.endswith("=x") or line == "GLOO_SOCKET_IFNAME=ib0" for line in lines)
    assert "hunter2" not in "\n".join(lines)
    assert (tmp_path / "written").stat().st_mode & 0o077 == 0
