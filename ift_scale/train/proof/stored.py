"""The proof of a model folder, stored in the user's cache folder.

A proof is valid for the digest of the class' source, of config.json, of the packages' versions and
of the trainer's own code. Looking it up imports neither torch nor transformers.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata, util
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ift_scale.config.train import TrainConfig
from ift_scale.engines.model_folder import (
    TOKENIZER_CONFIG,
    has_own_tokenizer,
    refuse_quantised,
)
from ift_scale.errors import DataError, Place
from ift_scale.io import digest_cache
from ift_scale.io.files import write_text
from ift_scale.models.config_file import has_own_class, model_config
from ift_scale.train.proof.verdict import Proof

_PACKAGES = ("torch", "transformers")
# Packages whose presence changes the code that transformers runs.
_OPTIONAL = ("flash-attn", "flash-linear-attention", "mamba-ssm", "causal-conv1d", "kernels")
_OWN_CODE = ("train", "engines", "models", "config/train.py", "estimate/layers.py")
# Fields of config.json that no model depends on.
_IRRELEVANT = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}


def proof_of(folder: Path, max_length: int, trust_remote_code: bool = False) -> Proof:
    """Returns the proof of a folder's class and config, from the cache if nothing has changed.

    `max_length`: length in tokens that no example exceeds. The folder's own code runs in a child
    process, and only with `trust_remote_code`; its tokenizer's, too, which is loaded there. Raises
    DataError for a model that cannot be trained, with the reason.
    """
    refuse_quantised(folder)
    settings = model_config(folder)
    runs_own_code = trust_remote_code and (has_own_class(settings) or has_own_tokenizer(folder))
    entry = _entry(folder, settings, max_length, runs_own_code)
    known = _recall(entry)
    if known is not None:
        return known
    proof = (_in_child if runs_own_code else compute)(folder, max_length)
    if entry is not None:
        with suppress(OSError):
            entry.parent.mkdir(parents=True, exist_ok=True)
            write_text(entry, proof.model_dump_json(indent=1))
    return proof


def compute(folder: Path, max_length: int, trust_remote_code: bool = False) -> Proof:
    """Returns the proof of a folder's class and config, computed now; imports torch."""
    import torch

    from ift_scale.engines.weight_checks import quiet
    from ift_scale.models import config_class
    from ift_scale.models.config_errors import refusing
    from ift_scale.train.model.experts import has_listed_experts
    from ift_scale.train.model.packed import class_and_config, without_cache
    from ift_scale.train.proof.prove import NotTrainable, one_thread, prove
    from ift_scale.train.proof.shrink import dropped_layers, shrink, tiny_model

    fields, source = model_config(folder), folder / "config.json"
    kind, settings = class_and_config(folder, trust_remote_code)
    for name, share in dropped_layers(settings).items():
        raise DataError(Place(source, field=name), _LAYERS_ARE_DROPPED, f"Set {name} to 0", share)

    def run_small_model(fields: dict[str, Any]) -> None:
        text = config_class.raw_settings(fields, source, trust_remote_code).get_text_config()
        small = tiny_model(kind, shrink(text, max_length), 0)
        small(input_ids=torch.arange(5, 13)[None], **without_cache(small))

    with quiet(), one_thread(), _in_relation(settings):
        model = config_class.build(fields, source, trust_remote_code)
        with refusing(source, fields, "train a small model of it", run_small_model):
            try:
                proof = prove(kind, settings, max_length)
            except NotTrainable as error:
                remedy = "Give a causal language model: each token's logits depend on earlier ones"
                place = Place(source, field="architectures")
                problem = f"cannot be trained: {error}"
                raise DataError(place, problem, remedy, kind.__name__) from error
    return proof.model_copy(update={"lists_experts": has_listed_experts(model)})


@contextmanager
def _in_relation(settings: Any) -> Iterator[None]:
    """Explains an error about a field by its relation to another one, if the config breaks it."""
    from ift_scale.train.proof.relations import broken

    try:
        yield
    except DataError as error:
        *parts, name = (error.place.field or "").split(".")
        fields = settings.to_dict()
        for part in parts:
            fields |= fields.get(part) or {}
        if problem := broken(fields, name):
            raise DataError(error.place, problem, error.remedy, error.value) from error
        raise


_LAYERS_ARE_DROPPED = (
    "in training, whole layers would be left out at random, for all examples of a pass together:"
    " results would depend on the packing, and ZeRO-3 stops if ranks draw different layers"
)


def _in_child(folder: Path, max_length: int) -> Proof:
    command = [sys.executable, "-m", "ift_scale.train.proof", str(folder), str(max_length)]
    with tempfile.TemporaryDirectory() as temporary:
        result = Path(temporary) / "proof.json"
        child = subprocess.run([*command, str(result)], capture_output=True, text=True, check=False)
        if result.is_file():
            text = result.read_text(encoding="utf-8")
            if child.returncode == 0:
                return Proof.model_validate_json(text)
            refused = json.loads(text)
            raise DataError(Place(**refused.pop("place")), **refused)
    raise DataError(
        Place(folder / "config.json", field="auto_map"),
        f"the folder's own code ended the process of the proof with exit code {child.returncode}",
        f"Run `{' '.join(command)}` for its output",
    )


def refusal(error: DataError) -> str:
    """Returns an error's parts as JSON, from which the parent process raises it again."""
    place = {"file": str(error.place.file), "line": error.place.line, "field": error.place.field}
    parts = {"problem": error.problem, "remedy": error.remedy, "value": error.value}
    return json.dumps({"place": place, **parts}, default=str)


def describe(proof: Proof, config: TrainConfig) -> list[str]:
    """Returns the path that training takes and why faster ones are not taken, a line each."""
    path = proof.fastest(config)
    how = f", {path.attention} attention" if path.attention else ""
    lines = [f"{proof.kind}: training path {path.name}{how} ({_MEANING[path.name]})"]
    lines += [f"not {v.path.name}: {v.reason}" for v in proof.faster_than(path)]
    if path.terms:
        lines.append(f"attention computes {', '.join(sorted(path.terms))}")
    return lines


_MEANING = {
    "pruned": "packed examples, last layer on supervised rows",
    "packed": "packed examples, the model's own layers",
    "padded": "padded batches, the model's own attention",
    "single": "one example at a time, the model's own code",
}


def _entry(
    folder: Path, settings: dict[str, Any], max_length: int, runs_own_code: bool
) -> Path | None:
    """Returns the cache's file for a folder, or None for users without a cache folder."""
    cache = digest_cache.folder("proofs")
    if cache is None:
        return None
    hasher = hashlib.sha256(str(max_length).encode())
    relevant = {name: value for name, value in settings.items() if name not in _IRRELEVANT}
    hasher.update(json.dumps(relevant, sort_keys=True).encode())
    for package in _PACKAGES:
        hasher.update(f"{package} {metadata.version(package)}".encode())
    for package in _OPTIONAL:
        with suppress(metadata.PackageNotFoundError):
            hasher.update(f"{package} {metadata.version(package)}".encode())
    for path in _sources(folder, str(settings.get("model_type")), runs_own_code):
        hasher.update(path.read_bytes())
    return cache / f"{hasher.hexdigest()[:32]}.json"


def _sources(folder: Path, model_type: str, runs_own_code: bool) -> Iterator[Path]:
    """Yields the files on which a proof depends: the class' and the trainer's own."""
    package, kernels = Path(__file__).parents[2], util.find_spec("ift_scale_kernels")
    assert kernels is not None and kernels.submodule_search_locations
    # An editable installation has an entry that is no folder, too.
    folders = [Path(path) for path in kernels.submodule_search_locations if Path(path).is_dir()]
    for path in [*(package / part for part in _OWN_CODE), *folders]:
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]
    if runs_own_code:
        yield from sorted(folder.rglob("*.py"))
        yield from folder.glob(TOKENIZER_CONFIG)
    models = Path(str(metadata.distribution("transformers").locate_file("transformers/models")))
    for name in ("modeling_utils", "modeling_rope_utils", "masking_utils"):
        yield models.parent / f"{name}.py"
    # A model type is its folder's name, or begins with it: gemma3_text is in gemma3.
    name = model_type.replace("-", "_")
    while name and not (models / name).is_dir():
        name = name.rpartition("_")[0]
    yield from sorted((models / name).glob("*.py")) if name else []


def _recall(entry: Path | None) -> Proof | None:
    if entry is None or not os.access(entry, os.R_OK):
        return None
    try:
        return Proof.model_validate_json(entry.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
