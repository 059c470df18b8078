"""`ift-scale import`: the weights and tokens of the folder, and damaged or unsupported files."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ift_scale.cli import main
from ift_scale.commands import gguf_file, import_gguf
from ift_scale.errors import DataError, EnvironmentProblem
from tests.commands import small_gguf

pytestmark = pytest.mark.engine


def _import(path: object, folder: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["import", str(path), str(folder), *more])


def _imported(tmp_path: Path, **settings: Any) -> tuple[Path, dict[str, np.ndarray]]:
    values = small_gguf.write(tmp_path / "small.gguf", **settings)
    result = _import(tmp_path / "small.gguf", tmp_path / "model")
    assert result.exit_code == 0, result.output
    return tmp_path / "model", values


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_weights_are_bitwise_the_files(tmp_path: Path, architecture: str, kind: str) -> None:
    folder, values = _imported(tmp_path, architecture=architecture, kind=kind)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == {small_gguf.hf_name(name) for name in values}
    for name, stored in values.items():
        expected = _unpermuted(name, stored) if architecture == "llama" else stored
        written = weights[small_gguf.hf_name(name)]
        assert written.dtype == np.float32
        assert np.array_equal(written.view(np.uint32), expected.view(np.uint32)), name


def _unpermuted(name: str, stored: np.ndarray) -> np.ndarray:
    """Inverts `small_gguf.permuted` through the row numbers that it moves."""
    if stored.ndim == 1:
        return stored
    rows = np.arange(len(stored), dtype=np.float32)[:, None]
    order = small_gguf.permuted(name, rows)[:, 0].astype(int)
    weight = np.empty_like(stored)
    weight[order] = stored
    return weight


def test_the_folder_is_a_plain_model_that_computes_as_its_weights(tmp_path: Path) -> None:
    """Float weights: the logits are those of a model built from the original weights."""
    folder, _ = _imported(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and config["tie_word_embeddings"] is True
    assert not [name for name in config if "quant" in name or name.startswith("_")]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "readable to all alike"
    model = AutoModelForCausalLM.from_pretrained(folder)
    original = type(model)(model.config).eval()
    weights = {
        small_gguf.hf_name(name): torch.from_numpy(value)
        for name, value in small_gguf.hf_weights("llama").items()
    }
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    original.load_state_dict(weights)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    head = np.ones((len(small_gguf.TOKENS), small_gguf.HIDDEN), np.float32)
    folder, _ = _imported(tmp_path, extra={"output.weight": head})
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    assert np.array_equal(load_file(folder / "model.safetensors")["lm_head.weight"], head)


def test_the_tokenizer_is_the_files(tmp_path: Path) -> None:
    folder, _ = _imported(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == small_gguf.TOKENS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, None)
    assert tokenizer.chat_template == small_gguf.TEMPLATE
    # Digits are split off first, so the blank line before one is a single token.
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("the\n\n12  3").input_ids)
    assert pieces == ["t", "he", "\u010a\u010a", "1", "2", "\u0120\u0120", "3"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], return_dict=False)
    assert chat[0] == 1 and chat[-2] == 2


@pytest.mark.parametrize(("pre", "added"), [("gpt-2", False), ("llama-bpe", True)])
def test_without_a_setting_bos_is_added_as_llama_cpp_does(
    tmp_path: Path, pre: str, added: bool
) -> None:
    folder, _ = _imported(
        tmp_path, changed={"tokenizer.ggml.pre": pre}, without=["tokenizer.ggml.add_bos_token"]
    )
    assert (AutoTokenizer.from_pretrained(folder)("x").input_ids[0] == 1) == added


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", "a", "b", "ab", "\u2581ab"]
    tokens = pieces + [f"<extra{n}>" for n in range(len(small_gguf.TOKENS) - len(pieces))]
    changed = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(number) for number in range(len(tokens))],
        "tokenizer.ggml.token_type": [3 if n in (1, 2) else 1 for n in range(len(tokens))],
    }
    folder, _ = _imported(
        tmp_path,
        changed=changed,
        without=["tokenizer.ggml.merges", "tokenizer.ggml.pre", "tokenizer.ggml.add_bos_token"],
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab").input_ids) == ["<s>", "\u2581ab"]


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.half)])
def test_the_precision_can_be_chosen(tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    small_gguf.write(tmp_path / "small.gguf", kind="Q8_0")
    assert _import(tmp_path / "small.gguf", tmp_path / "model", "--dtype", dtype).exit_code == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").dtype == kind


def test_a_finished_folder_is_kept_and_another_is_refused(tmp_path: Path) -> None:
    folder, _ = _imported(tmp_path)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert "already imported" in _import(tmp_path / "small.gguf", folder).output
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    result = _import(tmp_path / "small.gguf", folder, "--dtype", "float16")
    assert result.exit_code == 2 and "exists and is not empty" in result.output
    assert not list(tmp_path.glob(".*"))


_NAN = {"blk.0.attn_norm.weight": np.full(small_gguf.HIDDEN, np.nan, np.float32)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "rwkv7"}, "'general.architecture': is not an architecture that transf"),
        ({"architecture": "t5"}, "is not an architecture that transformers reads"),
        ({"without": ["llama.block_count"]}, "'llama.block_count': is missing"),
        ({"changed": {"llama.block_count": 2**31}}, "'llama.block_count': does not fit"),
        ({"changed": {"llama.expert_count": 2**31}}, "'llama.expert_count': does not fit"),
        ({"changed": {"llama.block_count": "2"}}, "must be an integer"),
        ({"changed": {"llama.embedding_length": 2**30}}, "values, and the model that its metadata"),
        ({"changed": {"llama.attention.head_count": 0}}, "transformers cannot read it"),
        ({"changed": {"llama.rope.scaling.type": "yarn"}}, "is not read by transformers"),
        ({"changed": {"split.count": 3}}, "is part of a split model"),
        ({"without": ["blk.1.ffn_up.weight"]}, "values, and the model that its metadata"),
        ({"without": ["token_embd.weight"]}, "values, and the model that its metadata"),
        ({"extra": {"rope_freqs.weight": np.ones(8, np.float32)}}, "rope_freqs.weight"),
        ({"extra": _NAN}, "'model.layers.0.input_layernorm.weight': has non-finite values"),
        ({"without": ["tokenizer.ggml.model"]}, "no tokenizer in the file"),
        ({"without": ["tokenizer.ggml.tokens"]}, "no tokenizer in the file"),
        ({"changed": {"tokenizer.ggml.model": "bert"}}, "is not a type that transformers builds"),
        ({"changed": {"tokenizer.ggml.pre": "viking"}}, "no known way to split a text into words"),
        ({"without": ["tokenizer.ggml.pre"]}, "no known way to split a text into words"),
        ({"changed": {"tokenizer.ggml.eos_token_id": 9999}}, "must be below the number of tokens"),
        ({"changed": {"tokenizer.ggml.add_eos_token": 3}}, "must be true or false"),
        (
            {"changed": {"tokenizer.ggml.tokens": ["a"] * len(small_gguf.TOKENS)}},
            "transformers cannot read it",
        ),
        ({"changed": {"tokenizer.ggml.merges": ["q\u0120"]}}, "transformers cannot read it"),
    ],
)
def test_a_file_that_cannot_be_imported_exactly(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    small_gguf.write(tmp_path / "small.gguf", **settings)
    result = _import(tmp_path / "small.gguf", tmp_path / "model")
    assert result.exit_code == 2 and said in result.output, result.output
    assert f"Error: {tmp_path}/small.gguf: " in result.output
    assert len(result.output.split("Error: ")[1].splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


def test_a_type_that_cannot_be_dequantised(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    small_gguf.write(path)
    content = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    path.write_bytes(content[:at] + (26).to_bytes(4, "little") + content[at + 4 :])  # I32
    result = _import(path, tmp_path / "model")
    assert result.exit_code == 2
    assert "'blk.0.ffn_up.weight': has a type that cannot be dequantised (value: 'I32')" in (
        result.output
    )
    assert "Q4_K" in result.output and "I32," not in result.output.split("only:")[1]


def test_files_that_are_no_gguf_and_names_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("{}")
    small_gguf.write(tmp_path / "big.gguf")
    big = bytearray((tmp_path / "big.gguf").read_bytes())
    big[4:8] = big[4:8][::-1]
    (tmp_path / "big.gguf").write_bytes(big)
    for name, said in {
        "empty.gguf": "is not a GGUF file",
        "text.gguf": "is not a GGUF file",
        "big.gguf": "is written for big-endian machines",
        "": "is a folder",
        "missing.gguf": "no such file and no installed package",
    }.items():
        result = _import(tmp_path / name, tmp_path / "model")
        assert result.exit_code == 2 and said in result.output, result.output
    result = _import("click", tmp_path / "model")
    assert result.exit_code == 2 and "the installed package has 0 .gguf files" in result.output


def test_a_missing_package_and_a_full_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_gguf.write(tmp_path / "small.gguf")
    monkeypatch.setattr(import_gguf.host, "available", lambda: 1000.0)
    with pytest.raises(EnvironmentProblem, match=r"needs .* GB of memory, and 0.0 GB"):
        import_gguf.import_gguf(str(tmp_path / "small.gguf"), tmp_path / "model", "float32")
    monkeypatch.setitem(__import__("sys").modules, "gguf.constants", None)
    with pytest.raises(EnvironmentProblem, match="pip install gguf"):
        gguf_file.read_gguf(tmp_path / "small.gguf")


def test_every_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "small.gguf"
    small_gguf.write(path)
    content = path.read_bytes()
    cuts = [*range(0, 400, 7), *random.Random(0).sample(range(400, len(content)), 60)]
    for length in (*cuts, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"cut short|is not a GGUF file"):
            gguf_file.read_gguf(path)


def test_a_hundred_damaged_files_end_in_words_or_in_a_complete_model(tmp_path: Path) -> None:
    """Most damage is in the header."""
    small_gguf.write(tmp_path / "good.gguf", kind="Q8_0")
    good = (tmp_path / "good.gguf").read_bytes()
    tensors = gguf_file.read_gguf(tmp_path / "good.gguf").tensors
    header = len(good) - sum(tensor.num_bytes for tensor in tensors)
    codes = {0: 0, 2: 0}
    count = int(os.environ.get("IFT_SCALE_FUZZ", "100"))
    for seed in range(count):
        source = random.Random(seed)
        damaged = bytearray(good)
        for _ in range(source.choice((1, 1, 2, 8))):
            at = source.randrange(header if source.random() < 0.9 else len(good))
            flipped = damaged[at] ^ (1 << source.randrange(8))
            damaged[at] = source.choice((0, 1, 0xFF, 0x7F, flipped))
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        result = _import(path, tmp_path / str(seed))
        assert result.exit_code in codes, (seed, result.output, result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), seed
        codes[result.exit_code] += 1
    assert codes[2] > count / 2 and not list(tmp_path.glob(".*"))


def test_every_architecture_in_the_list_is_one_of_gguf() -> None:
    from gguf import MODEL_ARCH_NAMES

    known = import_gguf.architectures()
    assert known.keys() - {"mistral"} <= set(MODEL_ARCH_NAMES.values())
    assert all("block_count" in fields for fields in known.values())
