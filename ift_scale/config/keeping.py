"""Checks of the train settings that keep what the base model knows, and their patterns."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ift_scale.config.train import KLConfig, TrainConfig

GROUPS = ("embeddings", "head", "norms", "attention", "mlp", "layers")
"""Groups of parameters that `train.freeze` knows by name."""
_OF_LAYERS = ("norms", "attention", "mlp", "layers")
_GROUP = re.compile(rf"({'|'.join(GROUPS)})(?::(\d+)(-(\d+)?)?)?")


def kl_problems(kl: KLConfig) -> list[str]:
    """Returns one message per setting of `train.kl` that has no effect or names no file."""
    if not kl.is_on and kl != KLConfig():
        return [
            "train.kl.weight: 0 without train.kl.text, so the rest of train.kl has no effect; "
            "set a weight, for example 0.1"
        ]
    if kl.text is not None and not Path(kl.text.path).is_file():
        return [
            f"train.kl.text.path: no such file (value: {kl.text.path!r}); give the path of an "
            "existing file"
        ]
    return []


@dataclass(frozen=True)
class LayerGroup:
    """A group of parameters, of the layers from `first` to `last`; None: from or to the end."""

    name: str
    first: int | None = None
    last: int | None = None

    def __str__(self) -> str:
        if self.first is None:
            return self.name
        return f"{self.name}:{self.first}-{'' if self.last is None else self.last}"


def layer_group(pattern: str) -> LayerGroup | None:
    """Returns the group that a pattern of `train.freeze` names: `mlp`, `mlp:3`, `mlp:0-5`,
    `mlp:6-`; None for a pattern of parameter names."""
    match = _GROUP.fullmatch(pattern)
    if match is None:
        return None
    first = None if match[2] is None else int(match[2])
    last = first if match[3] is None else None if match[4] is None else int(match[4])
    return LayerGroup(match[1], first, last)


def share_problems(name: str, shares: Sequence[float]) -> list[str]:
    """Returns one message per share of `train.NAME` that no arm can be named after."""
    problems = []
    for number, share in enumerate(shares):
        if round(share, 4) != share:
            problems.append(
                f"train.{name}[{number}]: {share} has more than four decimals, which arms are not "
                f"named after; round it to {round(share, 4):g}"
            )
        elif share in shares[:number]:
            problems.append(f"train.{name}[{number}]: {share} occurs twice; remove it once")
    return problems


def epoch_problems(train: TrainConfig) -> list[str]:
    """Returns one message per epoch of `train.export_epochs` that an arm may not reach, or that is
    the arm's last."""
    problems = []
    for number, epoch in enumerate(train.export_epochs):
        place = f"train.export_epochs[{number}]: {epoch}"
        if epoch in train.export_epochs[:number]:
            problems.append(f"{place} occurs twice; remove it once")
        elif epoch >= train.epochs:
            problems.append(
                f"{place} is not before the last epoch, train.epochs = {train.epochs}, whose "
                "weights are the trained arm's; remove it, or raise train.epochs"
            )
    for name in ("live", "validation"):
        if train.export_epochs and getattr(train, name).early_stopping is not None:
            problems.append(
                f"train.export_epochs: train.{name}.early_stopping may end an arm before these "
                "epochs; remove one of them"
            )
    return problems


def freeze_problems(patterns: Sequence[str]) -> list[str]:
    """Returns one message per pattern that can match nothing, whatever the model."""
    problems = []
    for number, pattern in enumerate(patterns):
        place, group = f"train.freeze[{number}]", layer_group(pattern)
        name, colon, _ = pattern.partition(":")
        if group is None and colon and name in GROUPS:
            problems.append(
                f"{place}: '{pattern}' is not a range of layers; write {name}:3, {name}:0-5 or "
                f"{name}:6-"
            )
        elif group is not None and group.first is not None and name not in _OF_LAYERS:
            problems.append(
                f"{place}: '{pattern}': no layers can be chosen of this group; write '{name}'"
            )
        elif group is not None and group.last is not None and group.last < (group.first or 0):
            problems.append(f"{place}: '{pattern}' ends before it begins; swap the two layers")
    return problems
