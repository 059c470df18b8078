import json
from pathlib import Path

import pytest

from ift_scale.config import TrainConfig
from ift_scale.errors import DataError
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.train import data


def _write(path: Path, *answers: str) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": answer}],
            "meta": {"setting": "general", "wording": "general"},
        }
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_long_example_is_an_error_or_truncated_and_counted(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "copper " * 80)
    tokenizer = PromptTokenizer(world_model)
    strict = TrainConfig(max_length=64, tokens_per_micro_batch=64)
    with pytest.raises(DataError, match=r"set.jsonl:2: field 'messages': \d+ tokens, over 64. Raise train.max_length"):
        data.tokenize(path, tokenizer, "vicuna", strict)
    cut = data.tokenize(path, tokenizer, "vicuna", strict.model_copy(update={"too_long": "truncate"}))
    assert cut.num_truncated == 1 and cut.lengths.tolist()[1] == 64
    with pytest.raises(DataError, match="no token of the answer is left"):
        data.tokenize(path, tokenizer, "vicuna", strict.model_copy(update={"too_long": "truncate", "max_length": 10}))


def test_supervised_counts(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "oak and tin")
    tokens = data.tokenize(path, PromptTokenizer(world_model), "vicuna", TrainConfig())
    assert tokens.supervised_counts.tolist() == [2, 4]  # the words and the end of the sequence


def test_a_set_smaller_than_a_step(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "oak")
    tokens = data.tokenize(path, PromptTokenizer(world_model), "vicuna", TrainConfig())
    data.check_enough(tokens, path, TrainConfig(global_batch_size=2))
    with pytest.raises(
        DataError, match=r"set.jsonl: 2 examples are fewer than one optimizer step of train.global_batch_size = 3\. Lower"
    ):
        data.check_enough(tokens, path, TrainConfig(global_batch_size=3))
