"""Loads DeepSpeed's checkpoint files without running code that they may contain.

They are pickles, and DeepSpeed loads them with `weights_only=False`: who can write to the run's
folder could run code as whoever resumes. torch's restricted loader creates tensors, containers and
the classes listed here only. `TORCH_FORCE_WEIGHTS_ONLY_LOAD` makes torch use it in DeepSpeed too.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from ift_scale.errors import ArtifactError

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
ALLOWED = (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)
"""Classes in DeepSpeed's files besides torch's own. Their constructors only keep values."""


@contextmanager
def restricted(folder: Path) -> Iterator[None]:
    """Makes every `torch.load` of the block restricted. `folder`: of the checkpoint, for errors.

    Raises ArtifactError if a file contains anything else.
    """
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            yield
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), "")
        raise ArtifactError(
            f"{folder}: a file of this checkpoint contains something that a checkpoint does not "
            f"need and that could run code ({reason.strip() or 'not readable'}). It was changed or "
            "made by another version; nothing of it was run. Remove the checkpoint's folder to "
            "resume from the one before."
        ) from None
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def mapped(path: Path) -> Any:
    """Returns the contents of a file, its tensors mapped into memory; see `restricted`."""
    with restricted(path):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
