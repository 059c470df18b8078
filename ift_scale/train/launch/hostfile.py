"""How many ranks there will be; DeepSpeed hostfiles, `HOST slots=N` a line. What is wrong is told before anything is started."""

import os
import re
import shlex
import shutil
import socket
from pathlib import Path

from ift_scale.config import Config, impossible_combinations
from ift_scale.errors import ConfigError, DataError, EnvironmentProblem, Place
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks

_LINE = re.compile(r"(\S+)\s+slots=([1-9]\d*)\s*(#.*)?")
# What ranks need to know and DeepSpeed, which hands on NCCL's and Python's variables only, would not tell the other hosts.
_HANDED_ON = (
    "GLOO_", "HF_", "IFT_SCALE_", "TORCH_", "TRITON_", "WANDB_", "MLFLOW_", "DEEPSPEED_TIMEOUT", "DS_ACCELERATOR",
    "OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM", "LD_LIBRARY_PATH",
)  # fmt: skip

_SECRET = re.compile(
    "TOKEN|KEY|SECRET|PASSWORD"
)  # DeepSpeed writes what it hands on into a command line that all can see


def read(path: Path) -> dict[str, int]:
    """The ranks of each host. DataError for a line that DeepSpeed would not take."""
    hosts: dict[str, int] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            raise DataError(
                Place(path, number),
                "is no host",
                "Write HOST slots=N, with N the ranks of that host",
                text,
            )
        if found[1] in hosts:
            raise DataError(
                Place(path, number),
                "names a host that stands above",
                "Give each host one line",
                found[1],
            )
        hosts[found[1]] = int(found[2])
    if not hosts:
        raise DataError(Place(path), "names no host", "Write a line HOST slots=N for each")
    return hosts


def check(path: Path) -> dict[str, int]:
    """The hosts, where they can be started from here. DataError where this host has other GPUs than its line says."""
    hosts = read(path)
    visible = len(environment.visible_devices())
    for host, slots in hosts.items():
        if is_here(host) and visible and slots > visible:
            problem = f"gives {host}, which is this host, {slots} ranks, and {visible} GPUs are visible here"
            raise DataError(
                Place(path),
                problem,
                "Write as many slots as there are GPUs, or look at CUDA_VISIBLE_DEVICES",
            )
    if len(hosts) > 1 and shutil.which("pdsh") is None:
        raise EnvironmentProblem(
            "several hosts are started by pdsh, which is not installed here (Debian: apt-get install pdsh)"
        )
    return hosts


def with_ranks(config: Config, ranks: Ranks | None) -> Config:
    """The configuration with `train.num_ranks` as they are: those that a launcher has started, else those of the hostfile.

    ConfigError where so many cannot train as the configuration says.
    """
    train = config.train
    if ranks is not None and ranks.world_size > 1:
        count = ranks.world_size
    elif train.hostfile is not None:
        count = sum(check(Path(train.hostfile)).values())
        if "num_ranks" in train.model_fields_set and train.num_ranks != count:
            problem = f"train.num_ranks: {train.num_ranks}, and {train.hostfile} gives {count} ranks; leave it out, or mend the file"
            raise ConfigError("settings", [problem])
    else:
        return config
    settled = config.model_copy(update={"train": train.model_copy(update={"num_ranks": count})})
    problems = impossible_combinations(settled)
    if problems:
        raise ConfigError("settings", problems)
    return settled


def is_here(host: str) -> bool:
    """Whether this is the host that it names."""
    return host in ("localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn())


def write_environment(path: Path, changes: dict[str, str]) -> None:
    """A file of variables for DeepSpeed to export on every host (DS_ENV_FILE): the user's own, and what ranks need of ours.

    Secrets among ours are left out; who wants them on the other hosts has them in ~/.deepspeed_env.
    """
    own = Path.home() / ".deepspeed_env"
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    ours = {
        name: value
        for name, value in (os.environ | changes).items()
        if name.startswith(_HANDED_ON) and not _SECRET.search(name)
    }
    named = {line.split("=", 1)[0] for line in lines}
    lines += [
        f"{name}={shlex.quote(value)}"
        for name, value in sorted(ours.items())
        if name not in named and "\n" not in value
    ]
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write("".join(line + "\n" for line in lines if line.strip()))
