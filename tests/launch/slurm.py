"""A real SLURM on this machine for tests: munge, slurmctld, and two slurmd as nodes n1 and n2.

Node names resolve in a mount namespace that only the daemons and their jobs see, so the machine
itself is not changed.
"""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from ift_scale.ranks.environment import free_port
from tests.waiting import wait_for

NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd", "unshare")

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=5
MinJobAge=3600
InactiveLimit=0
SchedulerParameters=sched_interval=1,sched_min_interval=100000,batch_sched_delay=1,defer_batch
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Slurm:
    """Two nodes that report 128 CPUs and eight GPUs each, so that the scripts run unchanged.

    `close` ends all daemons.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        for name in list(self.environment):
            if name.startswith(("SLURM_", "SBATCH_")) and name != "SLURM_CONF":
                del self.environment[name]
        self._daemons: list[subprocess.Popen] = []
        for part in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / part).mkdir()
        (folder / "hosts").write_text(
            "127.0.0.1 localhost " + " ".join([socket.gethostname(), *NODES]) + "\n"
        )
        (folder / "munge.key").write_bytes(os.urandom(256))
        (folder / "munge.key").chmod(0o600)
        host = socket.gethostname()
        place, has = (
            f"NodeHostname={host} NodeAddr=127.0.0.1",
            "CPUs=128 RealMemory=20000 Gres=gpu:8",
        )
        nodes = "\n".join(f"NodeName={node} {place} Port={free_port()} {has}" for node in NODES)
        text = _CONF.format(host=host, controller=free_port(), folder=folder, nodes=nodes)
        (folder / "slurm.conf").write_text(text)
        for number in range(8):
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")

    def start(self) -> "Slurm":
        files = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munge.pid",
            "log-file": "munge.log",
            "seed-file": "munge.seed",
        }
        munge = [f"--{name}={self.folder / file}" for name, file in files.items()]
        self._daemon("munged", "--foreground", "--force", *munge)
        wait_for((self.folder / "munge.socket").exists, "munge did not start")
        self._daemon("slurmctld", "-D", "-i", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, "-f", str(self.folder / "slurm.conf"))
        wait_for(
            lambda: self("sinfo", "-h", "-o", "%T %D").stdout.split() == ["idle", "2"],
            "the nodes are not idle",
            pause=0.2,
        )
        return self

    def _daemon(self, name: str, *arguments: str) -> None:
        """Starts a daemon that sees the test's hosts file instead of the machine's."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        program = shutil.which(name) or name
        command = [
            "unshare",
            "--mount",
            "bash",
            "-c",
            script,
            str(self.folder / "hosts"),
            program,
            *arguments,
        ]
        with (self.folder / f"{name}.out").open("a") as out:
            self._daemons.append(
                subprocess.Popen(command, stdout=out, stderr=out, env=self.environment)
            )

    def __call__(self, *command: str, **options: Any) -> subprocess.CompletedProcess:
        """Runs a SLURM command (or one that uses them) and returns its output."""
        settings = {
            "env": self.environment,
            "capture_output": True,
            "text": True,
            "timeout": 300,
        } | options
        return subprocess.run(command, **settings)

    def submit(self, *command: str, **options: Any) -> str:
        """Runs sbatch with these arguments; returns the job's id."""
        done = self("sbatch", "--parsable", *command, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """Returns scontrol's fields of a job: State, ExitCode, Restarts, ..."""
        text = self("scontrol", "show", "job", "-o", job).stdout
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def wait(self, job: str) -> dict[str, str]:
        """Waits until the job has ended (and is not only requeued)."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
        wait_for(
            lambda: self.show(job)["JobState"] in ended,
            lambda: f"job {job} goes on: {self.show(job)}",
            pause=0.2,
        )
        return self.show(job)

    def close(self) -> None:
        self("scancel", "--full", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
