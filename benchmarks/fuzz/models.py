"""Cases of models: folders with config, tokenizer, index and weights, and GGUF files."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import click

from benchmarks.fuzz.case import Case, Content, Kind, Random
from benchmarks.fuzz.data import readers
from benchmarks.fuzz.mutate import mutated
from benchmarks.fuzz.values import any_value, like
from ift_scale.cli import main
from ift_scale.engines.model_folder import INDEX, resolve

_HEADER = 8


@readers.command("model")
@click.argument("path")
def read_model(path: str) -> None:
    """Reads a model's folder as the stages do before they load weights."""
    from ift_scale.engines import model_folder, weight_checks
    from ift_scale.models import config_class
    from ift_scale.models.config_file import model_config
    from ift_scale.prompts.tokenizer import PromptTokenizer

    folder = model_folder.resolve(path)
    config_class.build(model_config(folder), folder / "config.json")
    weight_checks.check_for_vllm(folder)
    model_folder.has_chat_template(folder)
    model_folder.has_own_tokenizer(folder)
    model_folder.embedding_rows(folder)
    tokenizer = PromptTokenizer(folder)
    tokenizer.encode(["What is one?"])
    click.echo(f"{len(tokenizer.tokenizer)} tokens")


@lru_cache(maxsize=1)
def _world() -> dict[str, Content]:
    """Returns the embedded model's files, the weights in two shards with an index."""
    import torch
    from safetensors.torch import load, save

    folder = resolve("world")
    names = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
    files: dict[str, Content] = {f"model/{name}": (folder / name).read_bytes() for name in names}
    tensors = load((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # The shapes are checked, not the values; tensors of another type are smaller.
    halves = [{}, {}]  # type: list[dict[str, torch.Tensor]]
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        halves[number % 2][name] = tensor.to(torch.bfloat16)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    files[f"model/{INDEX}"] = json.dumps(index, indent=1).encode()
    files |= {
        f"model/{shard}": save(half, metadata={"format": "pt"})
        for shard, half in zip(shards, halves, strict=True)
    }
    assert config["model_type"]
    return files


_MUTABLE = (
    *("model/config.json",) * 5,
    *("model/tokenizer.json",) * 4,
    *("model/tokenizer_config.json",) * 3,
    *(f"model/{INDEX}",) * 3,
    *("model/model-00001-of-00002.safetensors",) * 3,
    "model/generation_config.json",
)


def _model(random: Random) -> Case:
    case = Case(dict(_world()), ["model", "model"], readers, list(_MUTABLE))
    name = random.choice(_MUTABLE)
    case.mutable = [name]
    if name.endswith("safetensors") and random.random() < 0.7:
        case.files[name] = _header(random, case, name)
    elif name.endswith("tokenizer.json") and random.random() < 0.5:
        case.files[name] = _tokenizer(random, case, name)
    elif random.random() < 0.05:
        del case.files[name]
        case.changed.append(f"without {name}")
    else:
        mutated(random, case)
    if random.random() < 0.05 and name == "model/config.json":
        case.program, case.argv = main, ["plan", "--model", "model"]
    return case


def _header(random: Random, case: Case, name: str) -> bytes:
    """Changes the header of a safetensors file, or its length."""
    content = case.files[name]
    assert isinstance(content, bytes)
    length = int.from_bytes(content[:_HEADER], "little")
    header = content[_HEADER : _HEADER + length]
    if random.random() < 0.2:
        odd = random.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        case.changed.append(f"header length {odd}")
        return odd.to_bytes(_HEADER, "little") + content[_HEADER:]
    inner = Case({"header.json": header.rstrip()}, [], None, ["header.json"])
    mutated(random, inner)
    found = inner.files["header.json"]
    case.changed += inner.changed
    changed = found if isinstance(found, bytes) else b"{}"
    return len(changed).to_bytes(_HEADER, "little") + changed + content[_HEADER + length :]


def _tokenizer(random: Random, case: Case, name: str) -> bytes:
    """Changes a value near the top of tokenizer.json, where the parts are described."""
    content = case.files[name]
    assert isinstance(content, bytes)
    state: dict[str, Any] = json.loads(content)
    part: Any = state
    for _ in range(random.choice((1, 1, 2, 3))):
        if not isinstance(part, dict | list) or not part:
            break
        key = random.choice(list(part) if isinstance(part, dict) else range(len(part)))
        parent, part = part, part[key]
    parent[key] = like(random, part) if random.random() < 0.5 else any_value(random)
    case.changed.append(f"tokenizer.json {key}")
    return json.dumps(state).encode("utf-8", "surrogatepass")


@readers.command("gguf")
@click.argument("path", type=click.Path(path_type=Path))
def read_gguf_file(path: Path) -> None:
    """Reads the header of a GGUF file as `import` does."""
    from ift_scale.commands.gguf_file import read_gguf

    click.echo(f"{read_gguf(path).num_values} values")


@lru_cache(maxsize=1)
def _gguf() -> bytes:
    """Returns a small GGUF file with a tokenizer, without the rest that a model needs."""
    import tempfile

    import numpy as np
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.gguf"
        writer = GGUFWriter(str(path), "llama")
        writer.add_block_count(1)
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"t{number}" for number in range(40)])
        writer.add_array("odd.array", [1, 2, 3])
        writer.add_tensor("token_embd.weight", np.ones((40, 32), dtype=np.float32))
        writer.add_tensor("output_norm.weight", np.ones(32, dtype=np.float16))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def _gguf_case(random: Random) -> Case:
    case = Case({"a.gguf": _gguf()}, ["gguf", "a.gguf"], readers, ["a.gguf"])
    if random.random() < 0.5:
        content = bytearray(_gguf())
        at = random.randrange(0, 900, 4)
        odd = random.choice((0, 1, 255, 2**31, 2**63, 2**64 - 1))
        size = random.choice((1, 4, 8))
        content[at : at + size] = odd.to_bytes(8, "little")[:size]
        case.files["a.gguf"] = bytes(content)
        case.changed.append(f"{size} bytes at {at} are {odd}")
    else:
        mutated(random, case)
    if random.random() < 0.1:
        case.program, case.argv = main, ["import", "a.gguf", "imported"]
    return case


def _valid_models() -> list[Case]:
    plan = Case(dict(_world()), ["plan", "--model", "model"], main)
    return [Case(dict(_world()), ["model", "model"], readers), plan]


def _valid_gguf() -> list[Case]:
    """A file whose header is complete, and which is no whole model."""
    files: dict[str, Content] = {"a.gguf": _gguf()}
    whole = Case(files, ["import", "a.gguf", "imported"], main, expected="refused")
    return [Case(files, ["gguf", "a.gguf"], readers), whole]


KINDS = (
    Kind("model folders", _model, _valid_models),
    Kind("GGUF files", _gguf_case, _valid_gguf),
)
