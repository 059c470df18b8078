"""The training path of `ift-scale plan`: how a model's micro-batches are computed, and why."""

import shutil
import tempfile
from pathlib import Path

from ift_scale.config.train import TrainConfig
from ift_scale.io.progress import say
from ift_scale.train.proof import stored


def print_path(config: Path, train: TrainConfig, trust_remote_code: bool = False) -> None:
    """Prints the path. Raises DataError for a model that cannot be trained.

    `config`: a config.json, in a folder with the model's own code if it has any; a file of another
    name is a config.json without such code.
    """
    first, *others = _lines(config, train, trust_remote_code)
    say(f"path       {first}")
    for line in others:
        say(f"           {line}")


def _lines(config: Path, train: TrainConfig, trust_remote_code: bool) -> list[str]:
    if config.name == "config.json":
        proof = stored.proof_of(config.parent, train.max_length, trust_remote_code)
    else:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(config, Path(folder) / "config.json")
            proof = stored.proof_of(Path(folder), train.max_length)
    return stored.describe(proof, train)
