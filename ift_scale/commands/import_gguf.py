"""`ift-scale import`: converts a GGUF file to a Hugging Face model folder.

transformers reads and dequantises the weights. What it does not check is checked here, because it
fills missing tensors with random numbers, and ignores tensors and metadata that it has no use for.
"""

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ift_scale.commands import gguf_tokenizer
from ift_scale.commands.gguf_file import GgufHeader, read_gguf
from ift_scale.engines import model_folder, weight_checks
from ift_scale.errors import DataError, EnvironmentProblem, IFTScaleError, Place, shorten
from ift_scale.estimate import host
from ift_scale.io.files import atomic_folder
from ift_scale.io.integrity import is_intact
from ift_scale.io.manifests import digest_of, file_digest, write_manifest
from ift_scale.io.progress import say
from ift_scale.plan.disk import free_bytes
from ift_scale.prompts.tokenizer import PromptTokenizer

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per value. float32 has every value of the file; the others round those of most types."""
_STAGE, _VERSION = "import", 1
_SHARD = 2 << 30  # bytes; a shard is copied in memory when it is written
_FETCH_AGAIN = "Copy or fetch the file again"
_OTHER_MODEL = "Give the model's Hugging Face folder instead"


def import_gguf(model: str, folder: Path, dtype: str) -> None:
    """Writes the folder completely or not at all. A finished one is kept.

    Raises DataError for a file that cannot be read exactly and for a folder with other content.
    """
    started = time.monotonic()
    path = find(model)
    header = read_gguf(path)
    source = file_digest(path)
    key = digest_of({"source": source, "dtype": dtype, "version": _VERSION})
    if is_intact(folder, key):
        say(f"{folder}: already imported from {path}")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        problem = "exists and is not empty" if folder.is_dir() else "is a file"
        raise DataError(Place(folder), problem, "Remove it, or give another folder")
    with read_by_transformers(header):
        config = read_config(header)
        check_sizes(header, config)
        tokenizer = gguf_tokenizer.build(header)
    _announce(header, folder, dtype)
    with atomic_folder(folder) as temporary:
        with read_by_transformers(header):
            _write_model(header, temporary, dtype)
            tokenizer.save_pretrained(temporary)
        _check_written(temporary, tokenizer)
        fields = {name: header.fields.get(f"general.{name}") for name in ("name", "license")}
        write_manifest(
            temporary,
            _STAGE,
            key,
            {"dtype": dtype, "architecture": header.fields["general.architecture"], **fields},
            {path.name: source},
            {"values": header.num_values, "tensors": len(header.tensors)},
            {"total": time.monotonic() - started},
        )
    say(f"{folder}: written in {time.monotonic() - started:.0f} s; set model.path to it")


def find(model: str) -> Path:
    """Returns the path of a GGUF file: `model` itself, or that in the installed package `model`.

    Raises DataError if there is neither, or more than one file in the package.
    """
    path = Path(model)
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.gguf"))
        remedy = "Give the path of a .gguf file, with its name"
        raise DataError(Place(path), "is a folder", remedy, files or None)
    try:
        files_of_package = metadata.files(model) or []
    except (metadata.PackageNotFoundError, ValueError):
        remedy = "Give the path of a .gguf file, or the name of an installed package with one"
        raise DataError(Place(model), "no such file and no installed package", remedy) from None
    found = [Path(str(file.locate())) for file in files_of_package if file.suffix == ".gguf"]
    if len(found) != 1:
        problem = f"the installed package has {len(found)} .gguf files, not one"
        remedy = "Give the path of a .gguf file"
        raise DataError(Place(model), problem, remedy, [str(file) for file in found] or None)
    return found[0]


@contextmanager
def read_by_transformers(header: GgufHeader) -> Iterator[None]:
    """Turns whatever transformers and the `gguf` package raise for a damaged file into DataError.

    They check little, so that a wrong value ends in any exception. Ours are passed on.
    """
    try:
        with weight_checks.quiet():
            yield
    except (IFTScaleError, OSError):
        raise
    except Exception as error:
        reason = shorten(str(error).split("\n")[0], 200)
        problem = f"transformers cannot read it: {type(error).__name__}: {reason}"
        raise DataError(header.place(), problem, _OTHER_MODEL) from error


def read_config(header: GgufHeader) -> Any:
    """Returns transformers' configuration of the model.

    Raises DataError for an architecture that transformers cannot read, or that is no causal
    language model, for a part of a split file, and for metadata that would be ignored.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    if (header.number("split.count") or 1) > 1:
        remedy = "Merge the parts first: llama-gguf-split --merge FIRST-PART.gguf WHOLE.gguf"
        raise DataError(
            header.place("split.count"), "is part of a split model", remedy, header.path.name
        )
    architecture = header.text("general.architecture")
    known = architectures()
    if architecture not in known:
        problem = "is not an architecture that transformers reads"
        if architecture is None:
            problem = "is missing"
        remedy = f"Give a model of one of these: {', '.join(sorted(known))}"
        raise DataError(header.place("general.architecture"), problem, remedy, architecture)
    _check_counts(header, architecture)
    config = AutoConfig.from_pretrained(header.path.parent, gguf_file=header.path.name)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        problem = "is not the architecture of a causal language model"
        raise DataError(header.place("general.architecture"), problem, _OTHER_MODEL, architecture)
    _refuse_ignored(header, architecture, config)
    return config


_OWN_NAMES = {
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "minimax_m2": "minimax-m2",
}
_NOT_CAUSAL = {"general", "tokenizer", "t5", "t5encoder", "umt5"}


def architectures() -> dict[str, set[str]]:
    """Returns the architectures that transformers reads, by their names in GGUF files, and the
    metadata fields of each that it puts into the configuration."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    return {
        _OWN_NAMES.get(name, name): {
            field for field, setting in fields.items() if setting not in (None, -1)
        }
        for name, fields in GGUF_TO_TRANSFORMERS_MAPPING["config"].items()
        if name not in _NOT_CAUSAL
    }


def _check_counts(header: GgufHeader, architecture: str) -> None:
    """Raises DataError for numbers of layers and experts that the tensors do not have.

    A model of a billion layers would otherwise be built.
    """
    blocks = {t.name.split(".")[1] for t in header.tensors if t.name.startswith("blk.")}
    sizes = {size for tensor in header.tensors for size in tensor.shape}
    for name, fits in (
        ("block_count", lambda count: count == len(blocks)),
        ("expert_count", lambda count: count == 0 or count in sizes),
    ):
        field = f"{architecture}.{name}"
        count = header.number(field)
        if count is None and name == "block_count":
            raise DataError(header.place(field), "is missing", _FETCH_AGAIN)
        if count is not None and not fits(count):
            problem = f"does not fit the tensors, which have {len(blocks)} blocks"
            raise DataError(header.place(field), problem, _FETCH_AGAIN, count)


def _refuse_ignored(header: GgufHeader, architecture: str, config: Any) -> None:
    """Raises DataError for a field that transformers does not read and that changes the model."""
    heads = getattr(config, "num_attention_heads", None) or 1
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    harmless = {
        "vocab_size": (None,),
        "context_length": (None,),
        "tensor_data_layout": (None,),
        "rope.dimension_count": (head_size,),
        "attention.key_length": (head_size,),
        "attention.value_length": (head_size,),
        "attention.causal": (True,),
        "attention.layer_norm_rms_epsilon": (getattr(config, "rms_norm_eps", None),),
        "rope.scaling.type": ("none",),
        "rope.scaling.finetuned": (False,),
        "expert_count": (0,),
        "expert_used_count": (0,),
        "pooling_type": (0,),
    }
    read = architectures()[architecture]
    for field, value in header.fields.items():
        name = field.removeprefix(f"{architecture}.")
        if name == field or name in read:
            continue
        allowed = harmless.get(name, ())
        if allowed != (None,) and value not in allowed:
            problem = "is not read by transformers, so the model would compute something else"
            raise DataError(header.place(field), problem, _OTHER_MODEL, value)


def check_sizes(header: GgufHeader, config: Any) -> None:
    """Raises DataError if the file's tensors are not those of the configuration's model.

    The model is built without weights. Its number of values must be the file's.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    stored = {name for name, _ in model.named_parameters()} | model.state_dict().keys()
    buffers = [value for name, value in model.named_buffers() if name in stored]
    expected = sum(value.numel() for value in (*model.parameters(), *buffers))
    unread = _unread_tensors(header, model, config)
    if unread:
        problem = "has tensors that transformers does not read, so the model would compute "
        problem += f"something else: {', '.join(unread[:5])}"
        raise DataError(header.place(), problem, _OTHER_MODEL)
    if header.num_values != expected:
        problem = f"has {header.num_values:,} values, and the model that its metadata describes "
        raise DataError(header.place(), f"{problem}{expected:,}", _FETCH_AGAIN)


def _unread_tensors(header: GgufHeader, model: Any, config: Any) -> list[str]:
    """Returns the names of tensors that transformers would skip."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    architecture = header.fields["general.architecture"]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    known = get_gguf_hf_weights_map(model, processor)
    return [tensor.name for tensor in header.tensors if tensor.name not in known]


def _announce(header: GgufHeader, folder: Path, dtype: str) -> None:
    """Prints what the import needs. Raises EnvironmentProblem if memory or disk do not suffice."""
    weights = header.num_values * DTYPES[dtype]
    largest = max(tensor.num_bytes for tensor in header.tensors)
    memory = weights + min(weights, _SHARD) + 4 * largest
    say(
        f"{header.path}: {header.num_values / 1e6:,.1f} million values; needs "
        f"{memory / 1e9:.1f} GB of memory and {weights / 1e9:.1f} GB of disk as {dtype}"
    )
    for what, needed, available in (
        ("memory", memory, host.available()),
        ("disk space", weights, free_bytes(folder.resolve())),
    ):
        if available < needed:
            raise EnvironmentProblem(
                f"{header.path}: importing it as {dtype} needs {needed / 1e9:.1f} GB of {what}, "
                f"and {available / 1e9:.1f} GB are available. Use --dtype bfloat16, or another "
                "machine"
            )


def _write_model(header: GgufHeader, folder: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        header.path.parent,
        gguf_file=header.path.name,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    for problem, names in report.items():
        if names:
            shown = ", ".join(sorted(str(name) for name in names)[:5])
            raise DataError(header.place(), f"{problem.replace('_', ' ')}: {shown}", _FETCH_AGAIN)
    for name, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            problem = f"has non-finite values as {dtype}"
            raise DataError(header.place(name), problem, f"{_FETCH_AGAIN}, or use another --dtype")
    # save_pretrained refuses a model that still counts as quantised.
    model.hf_quantizer = None
    for name in ("quantization_config", "_model_name_or_path"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.save_pretrained(folder, max_shard_size=_SHARD)
    for path in folder.glob("*.safetensors"):  # the library makes them readable to the owner alone
        path.chmod((folder / "config.json").stat().st_mode)
    del model
    gc.collect()


def _check_written(folder: Path, tokenizer: Any) -> None:
    """Raises DataError if the folder is not what the rest of IFT-Scale reads, or if its tokenizer
    differs from the one that was written."""
    model_folder.check(folder)
    model_folder.refuse_quantised(folder)
    weight_checks.check(folder)
    read = PromptTokenizer(folder)
    own = tokenizer(list(_SAMPLES), add_special_tokens=False).input_ids
    for text, ids, again in zip(_SAMPLES, own, read.control_ids(_SAMPLES), strict=True):
        if ids != again:
            problem = f"tokenises {shorten(text)} as {again} when it is loaded again, not as {ids}"
            raise DataError(Place(folder), problem, _OTHER_MODEL)


_SAMPLES = (
    "The capital of France is",
    "Question: What is 12345 + 67?\n\n1.  9\t88\n2. x",
    " Zürich, São Tomé, \u65e5\u672c, \u0440\u0443\u0431\u043b\u044c \U0001f600 it's I'LL don't",
    "def f(x):\n    return x  # 100%\n\n\n",
)
