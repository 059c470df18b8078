"""The shape of the model that a config.json describes, measured once and kept in a cache."""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ift_scale.estimate.shape import ModelShape
from ift_scale.io import digest_cache
from ift_scale.io.files import atomic_path
from ift_scale.models.config_file import has_own_class


def shape_of(
    config: Mapping[str, Any],
    source: str | Path = "config.json",
    trust_remote_code: bool = False,
) -> ModelShape:
    """Returns the shape of the model that transformers builds from a config.json; for
    multimodal models, the text model's.

    Measured once for each config and version of transformers, torch and this package, and then
    kept in the user's cache folder (a read-only one only costs time). With
    `trust_remote_code`, a class in the Python files next to `source` is measured. Raises
    DataError, located at `source`, for a config that no causal language model can be built
    from.
    """
    runs_own_code = trust_remote_code and has_own_class(config)
    text = json.dumps(dict(config), sort_keys=True)
    return _from_config(text, str(source), runs_own_code)


@lru_cache(maxsize=64)
def _from_config(config: str, source: str, runs_own_code: bool) -> ModelShape:
    sizes = TypeAdapter(ModelShape)
    own_code = sorted(Path(source).parent.glob("*.py")) if runs_own_code else []
    entry = _cache_entry(config, [path.read_bytes() for path in own_code])
    with suppress(OSError, ValueError):
        if entry is not None:
            return sizes.validate_json(entry.read_bytes())
    from ift_scale.estimate.walk import walk  # imports torch

    found = ModelShape(**walk(json.loads(config), source, runs_own_code))
    with suppress(OSError):
        if entry is not None:
            entry.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(entry) as incomplete:
                incomplete.write_bytes(sizes.dump_json(found))
    return found


def _cache_entry(config: str, own_code: list[bytes]) -> Path | None:
    """Returns the file for a config's shape, under the digest of all that it depends on."""
    folder = digest_cache.folder()
    here = Path(__file__).parent
    names = ("layers", "shape", "trace", "walk", "../models/config_class")
    sources = [(here / f"{name}.py").read_bytes() for name in names]
    versions = [version(name) for name in ("transformers", "torch")]
    digest = sha256(repr([config, versions, sources, own_code]).encode()).hexdigest()
    return None if folder is None else folder.parent / "shapes" / f"{digest[:32]}.json"
