"""The training path of `ift-scale plan`: how a model's micro-batches are computed, and why."""

import shutil
import tempfile
from pathlib import Path

from ift_scale.config.train import TrainConfig
from ift_scale.errors import DataError, Place
from ift_scale.io.progress import say
from ift_scale.train.proof import stored
from ift_scale.train.proof.verdict import Proof
from ift_scale.train.zero_stage import NEEDS_ZERO_3, with_zero_stage


def proof_of(config: Path, train: TrainConfig, trust_remote_code: bool = False) -> Proof:
    """Returns the proof of a config.json's model. Raises DataError if it cannot be trained.

    `config`: a config.json, in a folder with the model's own code if it has any; a file of another
    name is a config.json without such code.
    """
    if config.name == "config.json":
        return stored.proof_of(config.parent, train.max_length, trust_remote_code)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(config, Path(folder) / "config.json")
        try:
            return stored.proof_of(Path(folder), train.max_length)
        except DataError as error:
            place = Place(config, error.place.line, error.place.field)
            raise DataError(place, error.problem, error.remedy, error.value) from error


def print_path(proof: Proof, train: TrainConfig, num_ranks: int) -> TrainConfig:
    """Prints the path. Returns the settings with the ZeRO stage that the model needs.

    Raises ConfigError if they exclude it (`with_zero_stage`).
    """
    first, *others = stored.describe(proof, train)
    on_ranks = train.model_copy(update={"num_ranks": num_ranks})
    stage = with_zero_stage(on_ranks, proof.lists_experts).zero_stage
    if stage != train.zero_stage:
        others.append(NEEDS_ZERO_3)
    say(f"path       {first}")
    for line in others:
        say(f"           {line}")
    return train.model_copy(update={"zero_stage": stage})
