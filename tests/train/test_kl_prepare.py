"""The divergence from the base model around training: texts, caches, refused settings."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ift_scale.config.file import from_dict
from ift_scale.config.train import KLConfig, TrainConfig, settings_of_result
from ift_scale.errors import ConfigError, DataError
from ift_scale.estimate import memory
from ift_scale.estimate.memory import Setting, Workload
from ift_scale.estimate.shape import ModelShape
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset
from ift_scale.train.kl import prepare, store
from ift_scale.train.kl.penalty import text_examples
from ift_scale.train.model.path import TrainingPath


def _config(folder: Path, path: Path, **train: Any) -> Any:
    kl = {"weight": 0.1, "text": {"path": str(path)}}
    return from_dict({"output_dir": str(folder), "train": train | {"kl": kl}})


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.txt"])
def test_every_token_of_a_text_but_the_first_counts(
    tmp_path: Path, world_model: Path, name: str
) -> None:
    texts = ["The garlic is white.\nIt grows.", "hello " * 200]
    path = tmp_path / name
    if name.endswith("txt"):
        path.write_text("\n\n" + "\n\n\n".join(texts) + "\n")
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = PromptTokenizer(world_model)
    config = _config(tmp_path, path, max_length=64, tokens_per_micro_batch=64)
    found = dataset.load(prepare._text_tokens(path, config, tmp_path / "cache", tokenizer))
    whole = tokenizer.encode([texts[0]])[0]
    assert found.example(0).tolist() == whole and found.lengths.tolist() == [len(whole), 64]
    assert found.supervised_counts.tolist() == [len(whole) - 1, 63] and found.num_truncated == 1


def test_of_instructions_the_responses_count(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "general.jsonl"
    path.write_text(json.dumps({"prompt": "Say hello.", "completion": "hello"}) + "\n")
    tokenizer = PromptTokenizer(world_model)
    found = dataset.load(prepare._text_tokens(path, _config(tmp_path, path), tmp_path, tokenizer))
    assert 0 < int(found.supervised_counts[0]) < int(found.lengths[0]) - 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "one"}\n{"text": 3}\n', r"t.jsonl:2: field 'text': must be a text \(value: 3\)"),
        ('{"text": "one two"}\n{"text": ""}\n', "t.jsonl:2: has fewer than two tokens"),
    ],
)
def test_bad_texts_are_refused(
    tmp_path: Path, world_model: Path, content: str, message: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        config = _config(tmp_path, path)
        prepare._text_tokens(path, config, tmp_path / "cache", PromptTokenizer(world_model))


@pytest.mark.parametrize(
    ("kl", "message"),
    [
        ({"text": {"path": "/none.txt"}}, r"train.kl.text.path: no such file \(value: '/none.txt'"),
        ({"base": "copy"}, "train.kl.weight: 0 without train.kl.text, so the rest .* no effect"),
        ({"weight": -1.0}, "greater than or equal to 0"),
        ({"weight": 1.0, "top_k": 0}, "greater than 0"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, kl: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"output_dir": str(tmp_path), "train": {"kl": kl}})


def test_a_model_that_cannot_be_evaluated_is_refused(tmp_path: Path) -> None:
    path = TrainingPath(name="single", evaluates=False)
    config = _config(tmp_path, Path(__file__))
    with pytest.raises(ConfigError, match=r"train.kl: the base model's distributions are unknown"):
        prepare.check_path(path, config)


def test_the_key_has_the_settings_but_not_where_the_text_is(tmp_path: Path) -> None:
    assert "kl" not in settings_of_result(TrainConfig())
    kl = settings_of_result(_config(tmp_path, Path(__file__)).train)["kl"]
    assert kl["weight"] == 0.1 and set(kl["text"]) == {"weight", "batch_size"}


def test_a_cache_of_another_base_or_tokenizer_is_recognised(tmp_path: Path) -> None:
    identity = {"version": 1, "base model": "a", "tokenizer": "b", "tokens": "c", "top_k": 2}
    folder = store.folder_of(tmp_path, identity)
    assert store.problem_of(folder, identity) == "missing"
    store.create(folder, 5, 2)
    assert store.problem_of(folder, identity) == "damaged"  # killed before it was complete
    store.seal(folder, identity)
    assert store.problem_of(folder, identity) is None
    for name in ("base model", "tokenizer"):
        assert store.problem_of(folder, identity | {name: "z"}) == f"of another {name}"
        assert store.folder_of(tmp_path, identity | {name: "z"}) != folder
    np.load(folder / "ids.npy", mmap_mode="r+")[0] = 7
    assert store.problem_of(folder, identity) == "damaged"
    for content in (b"", b"[]", b'{"identity": \xff}'):
        (folder / "identity.json").write_bytes(content)
        assert store.problem_of(folder, identity) == "damaged"


def test_texts_come_in_passes_over_the_file() -> None:
    steps = text_examples(7, 3, 14, seed=5)
    assert len(steps) == 14 and all(len(set(step)) == len(step) <= 3 for step in steps)
    drawn = [number for step in steps for number in step]
    assert min(drawn.count(number) for number in range(7)) >= 5
    assert text_examples(7, 3, 14, seed=5) == steps != text_examples(7, 3, 14, seed=6)
    assert all(sorted(step) == [0, 1] for step in text_examples(2, 64, 3, seed=0))


def test_a_frozen_copy_is_in_the_memory_model() -> None:
    shape = ModelShape.dense(64, 128, 4, 4, 2, 16, 500, tied=False)
    kl = KLConfig(weight=1.0, base="copy")
    plain, copy = (
        memory.estimate(
            Workload.of(TrainConfig(kl=one), shape, 2, True), Setting(3, "none", "none")
        )
        for one in (KLConfig(), kl)
    )
    assert copy.weights - plain.weights == 2 * shape.parameters and copy.loss > plain.loss
