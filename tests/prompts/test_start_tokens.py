"""Tokens that a tokenizer puts before a text: BOS, others or several, once, and none after it."""

import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from ift_scale.engines.model_folder import resolve
from ift_scale.errors import DataError
from ift_scale.prompts.served import template_source
from ift_scale.prompts.templates import (
    Demonstrations,
    chat_messages,
    few_shot_prompt,
    open_prefix,
    open_text,
)
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.records import Message
from ift_scale.scoring.cloze import FewShotTexts
from ift_scale.scoring.letters import Chat, FewShot
from tests.prompts import vocabularies

QUESTIONS = [vocabularies.question(number) for number in range(4)]
DEMONSTRATIONS = Demonstrations(
    [vocabularies.question(100 + number, split="dev") for number in range(3)], 2, 42
)
VIEWS = [plain(question)[0] for question in QUESTIONS]
ANSWERED = [*chat_messages(QUESTIONS[0]), Message(role="assistant", content="A. one")]
GLM = (  # writes its start tokens itself, as GLM-4's
    "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# The tokens before a text and after it.
STARTS = {
    "BOS": ("<s>", ""),
    "GLM": ("[gMASK] <sop>", ""),
    "BOS and another": ("<s> <|user|>", ""),
    "nothing": ("", ""),
    "T5": ("", "</s>"),
    "BERT": ("<s>", "</s>"),
    "BOS twice at the end": ("[gMASK] <sop>", "</s> </s>"),
    "the token that ends a text": ("</s>", ""),
}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return vocabularies.byte_level(vocabularies.LLAMA3)


@pytest.fixture(params=list(STARTS))
def tokenizer(request: pytest.FixtureRequest, bpe: Tokenizer, tmp_path: Path) -> PromptTokenizer:
    start, end = STARTS[request.param]
    copy = Tokenizer.from_str(bpe.to_str())
    return PromptTokenizer(vocabularies.save(copy, tmp_path, start, end, GLM))


def _own(tokenizer: PromptTokenizer, text: str) -> list[int]:
    """The tokenizer's own ids of a text, without those after it."""
    ids = tokenizer.tokenizer(text).input_ids
    ends = len(ids)
    while ids[ends - 1] == tokenizer.tokenizer.eos_token_id:
        ends -= 1
    return ids[:ends]


def test_every_prompt_begins_as_the_tokenizer_begins_a_text(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.tokenizer.convert_ids_to_tokens(tokenizer.start) == _start_of(tokenizer)
    asked = FewShot(tokenizer, DEMONSTRATIONS).requests(QUESTIONS, VIEWS)
    for question, request in zip(QUESTIONS, asked, strict=True):
        whole = _own(tokenizer, few_shot_prompt(question, DEMONSTRATIONS.of(question)))
        assert request.prompt == whole[:-1]  # without the colon, which merges with the letters
    texts = FewShotTexts(tokenizer, DEMONSTRATIONS)
    (text, *_) = texts.requests(QUESTIONS[0], QUESTIONS[0].choices)
    assert text.prompt == _own(
        tokenizer, open_prefix("", DEMONSTRATIONS.of(QUESTIONS[0])) + open_text(QUESTIONS[0])
    )
    (chat, *_) = Chat(tokenizer, "vicuna").requests(QUESTIONS, VIEWS)
    rendered = tokenizer.render(chat_messages(QUESTIONS[0]), "vicuna", generation=True)
    assert chat.prompt == _own(tokenizer, rendered)
    assert tokenizer.example(ANSWERED, "vicuna")[0][: len(chat.prompt)] == chat.prompt


def _start_of(tokenizer: PromptTokenizer) -> list[str]:
    ids = tokenizer.tokenizer("a").input_ids
    return tokenizer.tokenizer.convert_ids_to_tokens(
        ids[: ids.index(tokenizer.tokenizer.convert_tokens_to_ids("a"))]
    )


def test_a_template_that_writes_the_start_itself_gets_it_once(
    bpe: Tokenizer, tmp_path: Path
) -> None:
    tokenizer = PromptTokenizer(vocabularies.save(bpe, tmp_path, "[gMASK] <sop>", template=GLM))
    ids, _ = tokenizer.example(ANSWERED, "model")
    pieces = tokenizer.tokenizer.convert_ids_to_tokens(ids)
    assert (
        pieces[:3] == ["[gMASK]", "<sop>", "<|user|>"]
        and pieces.count("[gMASK]") == pieces.count("<sop>") == 1
    )
    (request,) = Chat(tokenizer, "model").requests(QUESTIONS[:1], VIEWS[:1])
    assert ids[: len(request.prompt)] == request.prompt
    assert template_source(tokenizer, "model") == GLM


def test_whoever_is_given_the_template_gets_the_start_too(tokenizer: PromptTokenizer) -> None:
    expected = tokenizer.example(ANSWERED, "vicuna")[0]
    tokenizer.tokenizer.chat_template = template_source(tokenizer, "vicuna")
    messages = [message.model_dump() for message in ANSWERED]
    assert (
        tokenizer.tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        == expected
    )


def test_a_template_may_write_bos_before_each_turn(bpe: Tokenizer, tmp_path: Path) -> None:
    template = (  # Llama-2's
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' +"
        " m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = PromptTokenizer(vocabularies.save(bpe, tmp_path, "<s>", template=template))
    pieces = tokenizer.tokenizer.convert_ids_to_tokens(
        tokenizer.example([*ANSWERED, *ANSWERED], "model")[0]
    )
    assert [place for place, piece in enumerate(pieces) if piece == "<s>"] == [
        0,
        pieces.index("</s>") + 1,
    ]


@pytest.mark.parametrize("written", ["<sop>", "[gMASK]", "x[gMASK]<sop>"])
def test_a_template_that_writes_part_of_the_start_again_is_refused(
    bpe: Tokenizer, tmp_path: Path, written: str
) -> None:
    template = GLM.replace("[gMASK]<sop>", written)
    tokenizer = PromptTokenizer(
        vocabularies.save(bpe, tmp_path, "[gMASK] <sop>", template=template)
    )
    with pytest.raises(
        DataError,
        match=r"(<sop>|\[gMASK\]) occurs a second time inside the prompt .*remove it there",
    ):
        Chat(tokenizer, "model").requests(QUESTIONS[:1], VIEWS[:1])


def test_a_long_text_causes_no_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers warns of indexing errors, though the text may be truncated before it is used."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    ids = PromptTokenizer(resolve("world")).tokenizer("word " * 1100).input_ids
    assert len(ids) > 1024 and not caplog.text
