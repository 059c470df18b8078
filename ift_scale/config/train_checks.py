"""Checks of the train settings that need several of them."""

from pathlib import Path

from ift_scale.config.keeping import (
    epoch_problems,
    freeze_problems,
    kl_problems,
    share_problems,
)
from ift_scale.config.train import TrainConfig, ValidationConfig, precision_in_force


def train_problems(train: TrainConfig) -> list[str]:
    """Returns one message per impossible combination of the train settings."""
    return [
        *_batch_problems(train),
        *_zero_problems(train),
        *_launch_problems(train),
        *_validation_problems(train.validation),
        *freeze_problems(train.freeze),
        *share_problems("average", train.average),
        *share_problems("restore", train.restore),
        *epoch_problems(train),
        *kl_problems(train.kl),
    ]


def _batch_problems(train: TrainConfig) -> list[str]:
    problems = []
    if train.global_batch_size < train.num_ranks:
        problems.append(
            f"train.global_batch_size: {train.global_batch_size} examples are fewer than "
            f"train.num_ranks = {train.num_ranks}; raise it to at least {train.num_ranks}"
        )
    if train.tokens_per_micro_batch < train.max_length:
        problems.append(
            f"train.tokens_per_micro_batch: {train.tokens_per_micro_batch} cannot hold an example "
            f"of train.max_length = {train.max_length}; raise the first or lower the second"
        )
    if train.live.early_stopping is not None and train.live.every == 0:
        problems.append(
            "train.live.early_stopping: needs measurements; set train.live.every to auto or a "
            "number of steps"
        )
    return problems


def _zero_problems(train: TrainConfig) -> list[str]:
    problems, has_hpz = [], isinstance(train.hpz, int)
    if train.zero_stage == 0 and precision_in_force(train) == "bfloat16":
        problems.append(
            f"train.zero_stage: 0 with train.precision = {train.precision} (bfloat16 here) keeps "
            "no float32 gradients in DeepSpeed; use stage 1, 2 or 3"
        )
    if train.compile and train.zero_stage == 3:
        problems.append(
            "train.compile: not verified with the hooks that train.zero_stage = 3 places inside "
            "the layers; set train.compile to false or train.zero_stage to auto"
        )
    elif train.compile and (has_hpz or train.offload == "all"):
        needs_zero3 = f"train.hpz = {train.hpz}" if has_hpz else "train.offload = all"
        problems.append(
            f"train.compile: not verified with ZeRO-3, which {needs_zero3} needs; set that to "
            "auto, or train.compile to false"
        )
    if train.compile and train.activation_checkpointing == "selective":
        problems.append(
            "train.compile: selective checkpointing does not apply to compiled layers; set "
            "train.activation_checkpointing to full or none"
        )
    if has_hpz and train.zero_stage not in ("auto", 3):
        problems.append(
            f"train.hpz: {train.hpz} needs ZeRO-3, which partitions the weights "
            f"(train.zero_stage = {train.zero_stage}); set one of them to auto"
        )
    if has_hpz and train.offload == "all":
        problems.append(
            f"train.hpz: {train.hpz} keeps a second copy of the weights on the devices, but "
            "train.offload = all moves them to the host; set one of them to auto"
        )
    return problems


def _launch_problems(train: TrainConfig) -> list[str]:
    problems = []
    if train.hostfile is not None and train.launcher != "deepspeed":
        problems.append(
            "train.hostfile: only the deepspeed launcher reads it; set train.launcher to deepspeed"
        )
    if train.hostfile is not None and not Path(train.hostfile).is_file():
        problems.append(
            f"train.hostfile: no such file (value: {train.hostfile!r}); without it DeepSpeed would "
            "silently run on this node only"
        )
    return problems


def _validation_problems(validation: ValidationConfig) -> list[str]:
    problems = []
    if validation.share is not None and validation.path is not None:
        problems.append(
            f"train.validation: share = {validation.share} and path = {validation.path!r} are "
            "both set; remove one of them"
        )
    for name in ("keep_best", "early_stopping"):
        if getattr(validation, name) and not validation.is_on:
            problems.append(
                f"train.validation.{name}: needs validation examples; set train.validation.share "
                "or train.validation.path"
            )
    if validation.path is not None and not Path(validation.path).is_file():
        problems.append(
            f"train.validation.path: no such file (value: {validation.path!r}); give the path of "
            "an existing file"
        )
    return problems
