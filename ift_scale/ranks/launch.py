"""The secret of a launch and the port of its store: how the ranks get to know them.

A launcher of ours sets the secret in the environment of the ranks that it starts on this node.
Other launchers (srun, torchrun, DeepSpeed over several hosts) give the ranks nothing that other
users cannot see. Rank 0 then writes a file that only its user can read into the run's folder, which
all nodes share, and deletes it when all ranks have joined.
"""

import hashlib
import json
import os
import stat
from pathlib import Path

from ift_scale.io.files import translate_disk_errors
from ift_scale.ranks import environment
from ift_scale.ranks.environment import Ranks

# What distinguishes launches that share a folder, and is the same on all ranks of one.
_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
)
_FILE_BYTES = 4096


class Launch:
    """The secret and the port. Ranks other than 0 may have to `read` them from `file` first.

    `folder`: of the run. `host`, `port`: of the rendezvous, as the launcher gave them.
    """

    def __init__(self, folder: Path, ranks: Ranks, host: str, port: int):
        self.port = port
        names = [os.environ.get(name, "") for name in _VARIABLES]
        own = hashlib.sha256(json.dumps([*names, host, port]).encode()).hexdigest()[:16]
        self.file = folder.absolute() / f".launch-{own}.json"
        # torchrun's agent occupies MASTER_PORT with a store that has no secret, so that the ranks
        # have to find another port in the file.
        port_is_taken = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        given = None if port_is_taken else os.environ.get(environment.SECRET)
        self._shares = given is None and ranks.world_size > 1
        if given is None and ranks.is_rank_zero:
            given = environment.new_secret()
        self._secret = given
        if port_is_taken and ranks.is_rank_zero:
            self.port = environment.free_port()

    @property
    def known(self) -> bool:
        return self._secret is not None

    @property
    def secret(self) -> bytes:
        assert self._secret is not None
        return self._secret.encode()

    def publish(self) -> None:
        """On rank 0, when its store listens: writes the file, unless the launcher set the secret.

        The file replaces one left by a killed launch.
        """
        if not self._shares:
            return
        with translate_disk_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self.file.with_suffix(".new")
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"secret": self._secret, "port": self.port}, file)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(self.file)

    def read(self) -> None:
        """On other ranks: reads the file, unless the launcher set the secret.

        Raises OSError if it is missing, or does not belong to this user alone: someone else could
        then have written it to attract the ranks to a store of theirs.
        """
        if not self._shares:
            return
        descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise PermissionError(f"{self.file}: not a file of this user")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError(f"{self.file}: other users can read or write it")
            try:
                fields = json.loads(file.read(_FILE_BYTES))
                self._secret, self.port = str(fields["secret"]), int(fields["port"])
            except (ValueError, KeyError, TypeError):
                raise OSError(f"{self.file}: damaged") from None

    def withdraw(self) -> None:
        """On rank 0, after all ranks have joined or failed to: deletes the file."""
        if self._shares:
            self.file.unlink(missing_ok=True)
