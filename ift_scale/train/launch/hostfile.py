"""DeepSpeed hostfiles (`HOST slots=N` per line) and the number of ranks.

All errors are reported before anything is started.
"""

import os
import re
import shlex
import shutil
import socket
from pathlib import Path

from ift_scale.config import Config, impossible_combinations
from ift_scale.errors import ConfigError, DataError, EnvironmentProblem, Place, has_user_info
from ift_scale.io import text_file
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks

# DeepSpeed puts hosts into command lines of pdsh and ssh: a name or an address, nothing else.
_LINE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.:-]*)\s+slots=([1-9][0-9]{0,4})\s*(#.*)?", re.ASCII)
# Variables (or their prefixes) that ranks need. DeepSpeed forwards only NCCL's and Python's.
_FORWARDED = (
    "GLOO_",
    "HF_",
    "IFT_SCALE_",
    "TORCH_",
    "TRITON_",
    "WANDB_",
    "MLFLOW_",
    "DEEPSPEED_TIMEOUT",
    "DS_ACCELERATOR",
    "OMP_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "LD_LIBRARY_PATH",
)
# DeepSpeed puts forwarded variables into a command line that all users of a host can see.
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL")


def read(path: Path) -> dict[str, int]:
    """Returns the number of ranks of each host. Raises DataError for an invalid line."""
    hosts: dict[str, int] = {}
    for number, line in enumerate(text_file.lines(path), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match, place = _LINE.fullmatch(text), Place(path, number)
        if match is None:
            remedy = (
                "Write HOST slots=N: a host's name (letters, digits, dots, hyphens) or address, and"
                " the number of ranks on it"
            )
            raise DataError(place, "is not a host", remedy, text)
        host = match[1]
        if host in hosts:
            raise DataError(place, "duplicate host", "Give each host one line", host)
        hosts[host] = int(match[2])
    if not hosts:
        raise DataError(Place(path), "has no hosts", "Write one line HOST slots=N per host")
    return hosts


def check(path: Path) -> dict[str, int]:
    """Returns the hosts after checking that ranks can be started on them.

    Raises DataError if this host has fewer GPUs than slots, EnvironmentProblem without pdsh.
    """
    hosts = read(path)
    visible = len(environment.visible_devices())
    for host, slots in hosts.items():
        if is_local(host) and visible and slots > visible:
            problem = f"gives this host ({host}) {slots} slots, but {visible} GPUs are visible"
            remedy = "Write as many slots as there are GPUs, or check CUDA_VISIBLE_DEVICES"
            raise DataError(Place(path), problem, remedy)
    if len(hosts) > 1 and shutil.which("pdsh") is None:
        raise EnvironmentProblem(
            "starting ranks on several hosts needs pdsh, which is not installed here"
            " (Debian: apt-get install pdsh)"
        )
    return hosts


def with_ranks(config: Config, ranks: Ranks | None) -> Config:
    """Returns the configuration with `train.num_ranks` from the launcher, else from the hostfile.

    Raises ConfigError if the configuration does not work with that number of ranks.
    """
    train = config.train
    if ranks is not None and ranks.world_size > 1:
        count = ranks.world_size
    elif train.hostfile is not None:
        count = sum(check(Path(train.hostfile)).values())
        if "num_ranks" in train.model_fields_set and train.num_ranks != count:
            problem = (
                f"train.num_ranks: {train.num_ranks}, but {train.hostfile} has {count} slots;"
                " omit the setting, or fix the file"
            )
            raise ConfigError("settings", [problem])
    else:
        return config
    updated = config.model_copy(update={"train": train.model_copy(update={"num_ranks": count})})
    problems = impossible_combinations(updated)
    if problems:
        raise ConfigError("settings", problems)
    return updated


def is_local(host: str) -> bool:
    """True if `host` is this host."""
    return host in ("localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn())


def write_environment(path: Path, changes: dict[str, str]) -> None:
    """Write the variables that DeepSpeed exports on every host (DS_ENV_FILE).

    These are the user's own in ~/.deepspeed_env, and those of this environment that ranks need,
    without secrets. Secrets for other hosts belong in ~/.deepspeed_env.
    """
    own = Path.home() / ".deepspeed_env"
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    ours = {
        name: value
        for name, value in (os.environ | changes).items()
        if name.startswith(_FORWARDED) and not _SECRET.search(name) and not has_user_info(value)
    }
    named = {line.split("=", 1)[0] for line in lines}
    lines += [
        f"{name}={shlex.quote(value)}"
        for name, value in sorted(ours.items())
        if name not in named and "\n" not in value
    ]
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines if line.strip()))
