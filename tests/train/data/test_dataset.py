import json
from pathlib import Path

import pytest

from ift_scale.config import TrainConfig
from ift_scale.errors import DataError
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset
from ift_scale.train.data.tokenize import tokenize


def _write(path: Path, *answers: str) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {i}."},
                {"role": "assistant", "content": answer},
            ],
            "meta": {"setting": "general", "wording": "general"},
        }
        for i, answer in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_long_example_is_an_error_or_truncated_and_counted(
    tmp_path: Path, world_model: Path
) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "copper " * 80)
    tokenizer = PromptTokenizer(world_model)
    strict = TrainConfig(max_length=64, tokens_per_micro_batch=64)
    with pytest.raises(
        DataError,
        match=r"set.jsonl:2: field 'messages': \d+ tokens, over 64. Raise train.max_length",
    ):
        tokenize(path, tokenizer, "vicuna", strict)
    cut = tokenize(path, tokenizer, "vicuna", strict.model_copy(update={"too_long": "truncate"}))
    assert cut.num_truncated == 1 and cut.lengths.tolist()[1] == 64
    with pytest.raises(
        DataError, match=r"set.jsonl:1: .*has no answer token .*Raise train.max_length"
    ):
        tokenize(
            path,
            tokenizer,
            "vicuna",
            strict.model_copy(update={"too_long": "truncate", "max_length": 10}),
        )


@pytest.mark.parametrize("role", ["user", "system"])
def test_a_set_without_one_supervised_token(tmp_path: Path, world_model: Path, role: str) -> None:
    path = tmp_path / "set.jsonl"
    row = {
        "messages": [{"role": role, "content": "Say one."}],
        "meta": {"setting": "general", "wording": "general"},
    }
    path.write_text((json.dumps(row) + "\n") * 3)
    with pytest.raises(
        DataError,
        match=r"set.jsonl:1: .*has no answer token .*Add an assistant turn",
    ):
        tokenize(path, PromptTokenizer(world_model), "vicuna", TrainConfig())


def test_an_empty_set_is_smaller_than_a_step(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text("")
    tokens = tokenize(path, PromptTokenizer(world_model), "vicuna", TrainConfig())
    with pytest.raises(DataError, match="0 examples are fewer than one optimizer step"):
        dataset.check_enough(len(tokens.lengths), 0, path, TrainConfig(global_batch_size=1))


def test_supervised_counts(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "oak and tin")
    tokens = tokenize(path, PromptTokenizer(world_model), "vicuna", TrainConfig())
    assert tokens.supervised_counts.tolist() == [2, 4]  # the words and the end of the sequence


def test_the_whole_text_is_supervised_if_set(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "oak and tin")
    tokens = tokenize(path, PromptTokenizer(world_model), "vicuna", TrainConfig(supervise="all"))
    assert tokens.supervised.all()
    # No row predicts the first token, and the last row predicts nothing.
    assert tokens.supervised_counts.tolist() == (tokens.lengths - 1).tolist()
    assert tokens.computed_lengths.tolist() == (tokens.lengths - 1).tolist()


def test_weights_of_examples_are_kept(tmp_path: Path, world_model: Path) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "oak and tin")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["meta"]["weight"] = 0.25
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = PromptTokenizer(world_model)
    assert tokenize(path, tokenizer, "vicuna", TrainConfig()).weights.tolist() == [1, 0.25]
    rows[1]["meta"]["weight"] = 0
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"set.jsonl:2: field 'meta.weight'"):
        tokenize(path, tokenizer, "vicuna", TrainConfig())


def test_a_template_that_refuses_an_example_names_its_line(
    tmp_path: Path, world_model: Path
) -> None:
    path = tmp_path / "set.jsonl"
    _write(path, "copper", "oak")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = PromptTokenizer(world_model)
    tokenizer.tokenizer.chat_template = (
        "{% for m in messages %}"
        "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ ' ' + m['role'] + ': ' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' assistant:' }}{% endif %}"
    )
    with pytest.raises(
        DataError,
        match=r"set.jsonl:2: field 'messages': .*no system role.*evaluate.template",
    ):
        tokenize(path, tokenizer, "model", TrainConfig())


def test_a_set_smaller_than_a_step() -> None:
    path = Path("set.jsonl")
    dataset.check_enough(2, 0, path, TrainConfig(global_batch_size=2))
    with pytest.raises(
        DataError,
        match=r"set.jsonl: 2 examples are fewer than .* train.global_batch_size = 3\. Lower",
    ):
        dataset.check_enough(2, 0, path, TrainConfig(global_batch_size=3))
    with pytest.raises(
        DataError,
        match=r"2 examples, after 5 are held out .*\. Lower train.validation.share, lower",
    ):
        dataset.check_enough(2, 5, path, TrainConfig(global_batch_size=3))
