"""The base model's distributions at the supervised rows of a token file, in files that every rank
maps into memory.

Each row has the K most probable tokens with their log-probabilities, and the log-probability of all
others together. Rows are in the order of the examples. The folder is named by the digest of what it
depends on, and contains the same as `identity.json`, so that a cache of another base model or
tokenizer is recognised.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ift_scale.errors import IFTScaleError
from ift_scale.io.files import read_json, write_json
from ift_scale.io.manifests import digest_of, file_digests
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.kl.parts import StoredTargets

VERSION = 1
_IDENTITY = "identity.json"
_ARRAYS = ("ids", "logprobs", "rest")
Identity = dict[str, Any]
"""All that the distributions depend on: digests of base model, tokenizer, tokens; settings."""


def folder_of(cache: Path, identity: Identity) -> Path:
    return cache / digest_of(identity)[:16]


def create(folder: Path, num_rows: int, k: int) -> None:
    """Creates the files, filled with zeros."""
    folder.mkdir(parents=True)
    for name, shape, dtype in (
        ("ids", (num_rows, k), np.int32),
        ("logprobs", (num_rows, k), np.float32),
        ("rest", (num_rows,), np.float32),
    ):
        path = folder / f"{name}.npy"
        np.lib.format.open_memmap(path, "w+", dtype, shape)  # type: ignore[no-untyped-call]


def load(folder: Path, tokens: TokenizedSet, mode: Any = "r") -> StoredTargets:
    """Returns the distributions of the rows of `tokens`; `mode` r+ is for writing them."""
    ids, logprobs, rest = (
        np.load(folder / f"{name}.npy", mmap_mode=mode, allow_pickle=False) for name in _ARRAYS
    )
    return StoredTargets(ids, logprobs, rest, tokens)


def seal(folder: Path, identity: Identity) -> None:
    """Records the identity and the digests of the complete files."""
    digests = file_digests([folder / f"{name}.npy" for name in _ARRAYS])
    write_json(folder / _IDENTITY, {"identity": identity, "digests": digests})


def problem_of(folder: Path, identity: Identity) -> str | None:
    """Returns why the folder cannot be used for `identity`; None if it can."""
    if not folder.exists():
        return "missing"
    try:
        found = read_json(folder / _IDENTITY)
        others = [name for name in identity if found["identity"].get(name) != identity[name]]
        if others:
            return f"of another {' and '.join(others)}"
        digests = file_digests([folder / f"{name}.npy" for name in _ARRAYS])
        return None if digests == found["digests"] else "damaged"
    except (OSError, IFTScaleError, ValueError, LookupError, TypeError, AttributeError):
        return "damaged"
