"""Training without SLURM: torchrun and deepspeed on one host, and a hostfile over two with pdsh.

The hosts are network namespaces with their own addresses and an sshd each. They share this
machine's files, like nodes.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.launch.small import ARMS, LONG, ROOT, arguments, losses, processes, wait_for_step
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.engine

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "net0"
NEEDED = ("ip", "sshd", "ssh", "ssh-keygen", "pdsh", "unshare")


class Hosts:
    """Two hosts connected by a virtual cable."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.names = [f"ift{os.getpid()}n{number}" for number in (1, 2)]
        self._daemons: list[subprocess.Popen] = []
        for key in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True
            )
        (folder / "ssh_config").write_text(
            f"IdentityFile {folder}/user\nStrictHostKeyChecking no\n"
            "UserKnownHostsFile /dev/null\nLogLevel ERROR\n"
        )
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\n"
            "PermitRootLogin yes\nPidFile none\n"
        )
        (folder / "hostfile").write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))

    def start(self) -> "Hosts":
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd needs it for privilege separation
        for name in self.names:
            _ip("netns", "add", name)
        here, there = self.names
        _ip(
            "link",
            "add",
            INTERFACE,
            "netns",
            here,
            "type",
            "veth",
            "peer",
            "name",
            INTERFACE,
            "netns",
            there,
        )
        for name, address in zip(self.names, ADDRESSES, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for link in ("lo", INTERFACE):
                _ip("-n", name, "link", "set", link, "up")
            sshd = [
                shutil.which("sshd") or "/usr/sbin/sshd",
                "-D",
                "-e",
                "-f",
                str(self.folder / "sshd_config"),
            ]
            with (self.folder / "sshd.log").open("a") as log:
                self._daemons.append(
                    subprocess.Popen(["ip", "netns", "exec", name, *sshd], stdout=log, stderr=log)
                )
        return self

    def command(self, *command: str) -> list[str]:
        """Returns the command that runs on the first host, whose ssh knows the others."""
        script = 'mount --bind "$0" /etc/ssh/ssh_config && exec "$@"'
        mounted = [
            "unshare",
            "--mount",
            "bash",
            "-c",
            script,
            str(self.folder / "ssh_config"),
            *command,
        ]
        return ["ip", "netns", "exec", self.names[0], *mounted]

    def close(self) -> None:
        for daemon in self._daemons:
            daemon.terminate()
            daemon.wait(timeout=10)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture(scope="module")
def hosts(
    tmp_path_factory: pytest.TempPathFactory, lacking: Callable[[str], NoReturn]
) -> Iterator[Hosts]:
    missing = [
        name
        for name in NEEDED
        if shutil.which(name) is None and not Path("/usr/sbin", name).exists()
    ]
    if missing or os.geteuid() != 0:
        lacking(
            f"cannot create hosts: {', '.join(missing) or 'network namespaces need root'} "
            "(to run these tests, as root on Debian: apt-get install iproute2 openssh-server pdsh, "
            "then make test)"
        )
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        yield made.start()
    finally:
        made.close()


def _start(hosts: Hosts, folder: Path, *overrides: str) -> subprocess.Popen:
    script = [
        str(ROOT / "launch" / "multi_node.sh"),
        str(hosts.folder / "hostfile"),
        *arguments(folder, *overrides),
    ]
    # Finds ift-scale if the virtual environment is not activated.
    found = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment: dict[str, Any] = os.environ | {"GLOO_SOCKET_IFNAME": INTERFACE, "PATH": found}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = hosts.command(*script)
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        command, cwd=ROOT, env=environment, **streams
    )


def test_two_hosts_train_what_one_trains(hosts: Hosts, trained: Path, copy: Path) -> None:
    ranks = _start(hosts, copy, LONG)
    said, _ = ranks.communicate(timeout=LIMIT_SECONDS)
    assert ranks.returncode == 0, said
    assert "2 ranks joined" in said or "train: 2 arms" in said
    for arm in ARMS:
        assert losses(copy, arm) == pytest.approx(losses(trained, arm), rel=1e-6)


def test_a_rank_killed_on_another_host_ends_the_command(hosts: Hosts, copy: Path) -> None:
    ranks = _start(hosts, copy, LONG)
    wait_for_step(copy, ARMS[0], 10)
    os.kill(next(processes(f"ift_scale.train.worker {copy.resolve()}", "RANK=1")), signal.SIGKILL)
    killed = time.monotonic()
    said, _ = ranks.communicate(timeout=LIMIT_SECONDS)
    assert ranks.returncode == 3 and time.monotonic() - killed < 60, said
    # Rank 0 hosts the store that reports the failure, so it leaves a few seconds later.
    wait_for(
        lambda: not list(processes(f"ift_scale.train.worker {copy.resolve()}", "RANK=0")),
        "rank 0 goes on",
    )


def test_the_ranks_of_torchrun_train_the_same(trained: Path, copy: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "ift_scale.cli",
        "train",
        *arguments(copy, LONG),
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 2 arms" in done.stdout
    for arm in ARMS:
        assert losses(copy, arm) == losses(trained, arm)
