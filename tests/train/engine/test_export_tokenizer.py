"""The exported tokenizer: the template of training, and a pad token other than the end."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Message
from ift_scale.train.engine.export_tokenizer import exported_tokenizer, separate_pad_from_eos


def _tokenizer(**special: str) -> PreTrainedTokenizerFast:
    inner = Tokenizer(
        models.WordLevel({"<unk>": 0, "</s>": 1, "<pad>": 2, "a": 3}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", **special)


@pytest.mark.parametrize(
    ("special", "pad", "config_pad"),
    [
        ({"pad_token": "<pad>", "unk_token": "<unk>"}, "<pad>", 2),  # unchanged
        ({"pad_token": "</s>", "unk_token": "<unk>"}, "<unk>", 0),
        ({"pad_token": "</s>"}, None, None),
        ({"pad_token": "</s>", "unk_token": "</s>"}, None, None),  # as in GPT-2
        ({}, None, None),
    ],
)
def test_a_pad_token_that_is_the_end_is_replaced(
    tmp_path: Path, special: dict[str, str], pad: str | None, config_pad: int | None
) -> None:
    tokenizer = _tokenizer(**special)
    config = SimpleNamespace(pad_token_id=tokenizer.pad_token_id)
    separate_pad_from_eos(tokenizer, config)
    tokenizer.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read.pad_token == pad and read.eos_token == "</s>" and config.pad_token_id == config_pad


def test_the_template_of_training_goes_with_the_weights(tmp_path: Path, world_model: Path) -> None:
    """Exported twice, as by two arms of a launch; its prompts are ours, including BOS."""
    tokenizer = PromptTokenizer(world_model)
    messages = [Message(role="user", content="Say one."), Message(role="assistant", content="one")]
    for _ in range(2):
        exported_tokenizer(tokenizer, "vicuna", SimpleNamespace(pad_token_id=None)).save_pretrained(
            tmp_path
        )
    read = AutoTokenizer.from_pretrained(tmp_path)
    rendered = read.apply_chat_template(
        [m.model_dump() for m in messages], tokenize=True, return_dict=False
    )
    assert (
        rendered == tokenizer.example(messages, "vicuna")[0]
        and rendered.count(read.bos_token_id) == 1
    )
