"""Published styles of chat templates: supervised tokens, letters, and refused conversations."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ift_scale.errors import DataError
from ift_scale.prompts.served import template_source
from ift_scale.prompts.templates import chat_messages, response_text
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import View
from ift_scale.records import Message, Question
from ift_scale.scoring.letters import Chat

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m['role'] + '<|stop|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] +"
    " '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (  # an empty block of thoughts in the last turn, as Qwen3's
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (  # no system role, strict alternation, no generation prompt
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles"
    " must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] =="
    " 'assistant' else m['role'] %}"
    "{{ '<turn>' + role + '\n' + m['content'] | trim + '<turn_end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}"
)
BETWEEN = (  # the end of the sequence between turns, and none at the end
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% if not loop.last %}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nassistant:' }}{% endif %}"
)
PLAIN = (  # nothing marks the end of a turn
    "{% for m in messages %}{{ '### ' + m['role'] + '\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)
SPECIAL = [
    "<s>",
    "</s>",
    "<|start|>",
    "<|stop|>",
    "<|eot|>",
    "<|im_start|>",
    "<|im_end|>",
    "<turn>",
    "<turn_end>",
    "<think>",
    "</think>",
]

# template, EOS, the supervised part of the answer "A. one".
STYLES: dict[str, tuple[str, str, str]] = {
    "llama-3": (LLAMA3, "<|eot|>", "A. one<|eot|>"),
    "llama-3 base": (LLAMA3, "</s>", "A. one<|eot|></s>"),
    "chatml": (CHATML, "<|im_end|>", "A. one<|im_end|>"),
    "chatml base": (CHATML, "</s>", "A. one<|im_end|></s>"),
    "thinking base": (THINKING, "</s>", "A. one<|im_end|></s>"),
    "mistral": (MISTRAL, "</s>", " A. one</s>"),
    "gemma base": (GEMMA, "</s>", "A. one<turn_end></s>"),
    "plain": (PLAIN, "</s>", "A. one</s>"),
}
FORCED = {"thinking base": "<think>\n\n</think>\n\n"}
QUESTION = Question(
    id="q",
    domain="d",
    subject="d",
    collection="pool",
    split="test",
    question="What?",
    choices=["one", "two", "three", "four"],
    answer=0,
)
ANSWERED = [
    *chat_messages(QUESTION),
    Message(role="assistant", content=response_text(QUESTION, 0, "letter_text")),
]


def _tokenizer(
    folder: Path, template: Any, eos: str | None = "</s>", adds_bos: bool = True, **more: Any
) -> PromptTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["user assistant What is one two three A B C D"] * 20, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, chat_template=template, **more
    )
    whole.save_pretrained(folder)
    return PromptTokenizer(folder)


def _learnt(tokenizer: PromptTokenizer, messages: list[Message], template: str = "model") -> str:
    ids, supervised = tokenizer.example(messages, template)
    return tokenizer.tokenizer.decode([i for i, s in zip(ids, supervised, strict=True) if s])


@pytest.mark.parametrize("style", STYLES)
def test_a_turn_is_learnt_to_the_end_of_the_sequence(tmp_path: Path, style: str) -> None:
    template, eos, learnt = STYLES[style]
    tokenizer = _tokenizer(tmp_path, template, eos)
    ids, supervised = tokenizer.example(ANSWERED, "model")
    assert _learnt(tokenizer, ANSWERED) == learnt
    assert (
        ids.count(tokenizer.tokenizer.bos_token_id)
        == 1
        == ids[:1].count(tokenizer.tokenizer.bos_token_id)
    )
    # Evaluation's prompt is the tokens before the first supervised one, the letter it scores.
    text = tokenizer.render(chat_messages(QUESTION), "model", generation=True)
    (prompt,) = tokenizer.encode([text])
    assert (
        text.endswith(FORCED.get(style, ""))
        and ids[: len(prompt)] == prompt
        and supervised.index(True) == len(prompt)
    )
    (request,) = Chat(tokenizer, "model").requests([QUESTION], [View(0, (0, 1, 2, 3))])
    assert request.prompt == prompt and request.options[0] == ids[len(prompt)]
    (last,) = [place for place, learns in enumerate(supervised) if learns][-1:]
    assert ids[last] == tokenizer.tokenizer.eos_token_id
    assert tokenizer.tokenizer.decode(ids[last + 1 :]).strip() == ""


@pytest.mark.parametrize("style", STYLES)
def test_several_turns_each_to_its_end(tmp_path: Path, style: str) -> None:
    template, eos, learnt = STYLES[style]
    messages = [
        Message(role="user", content="one"),
        Message(role="assistant", content="A. one"),
        *ANSWERED,
    ]
    added = eos if style.endswith("base") or style == "plain" else ""
    assert (
        _learnt(_tokenizer(tmp_path, template, eos), messages)
        == learnt.removesuffix(added) + learnt
    )


def test_an_end_that_is_written_between_turns_only(tmp_path: Path) -> None:
    messages = [
        Message(role=r, content=c)
        for r, c in [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    ]  # type: ignore[arg-type]
    assert _learnt(_tokenizer(tmp_path, BETWEEN), messages) == " b</s> d</s>"


def test_a_conversation_that_the_user_ends_gets_no_end(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, CHATML)
    messages = [*ANSWERED, Message(role="user", content="two")]
    assert (
        _learnt(tokenizer, messages) == "A. one<|im_end|>"
        and tokenizer.tokenizer.eos_token_id not in tokenizer.example(messages, "model")[0]
    )


def test_the_end_is_learnt_if_the_pad_token_is_the_same(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, MISTRAL, pad_token="</s>")
    assert tokenizer.tokenizer.pad_token_id == tokenizer.tokenizer.eos_token_id
    assert _learnt(tokenizer, ANSWERED) == " A. one</s>" == _learnt(tokenizer, ANSWERED, "vicuna")


def test_a_system_role_if_the_template_has_one(tmp_path: Path) -> None:
    messages = [Message(role="system", content="Be brief."), *ANSWERED]
    assert _learnt(_tokenizer(tmp_path / "a", CHATML), messages) == "A. one<|im_end|></s>"
    with pytest.raises(
        ValueError, match="the chat template refuses the conversation: roles must alternate"
    ):
        _tokenizer(tmp_path / "b", MISTRAL).example(messages, "model")


def test_a_missing_template_or_end_is_reported_with_the_remedy(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path / "a", None)
    with pytest.raises(
        DataError,
        match=r"a: field 'chat_template': the tokenizer has none.*Set evaluate.template to"
        r" vicuna or chatml, or",
    ):
        tokenizer.example(ANSWERED, "model")
    assert _learnt(tokenizer, ANSWERED, "vicuna") == " A. one</s>"
    with pytest.raises(
        DataError, match=r"field 'eos_token': is missing: no answer could learn to end"
    ):
        _tokenizer(tmp_path / "b", LLAMA3, eos=None).example(ANSWERED, "model")


def test_a_generation_prompt_that_no_turn_begins_with_is_refused(tmp_path: Path) -> None:
    opened = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
    with pytest.raises(
        DataError, match=r"an assistant's turn does not begin like the template.s generation prompt"
    ):
        _tokenizer(tmp_path, opened).render(chat_messages(QUESTION), "model", generation=True)


def test_a_template_that_writes_the_date_writes_one_day_always(tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, "{{ strftime_now('%d %b %Y') + '\n' }}" + CHATML)
    assert tokenizer.render(ANSWERED, "model").startswith("26 Jul 2024\n<|im_start|>user")


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template", ["vicuna", "model"])
def test_whoever_is_given_the_template_gets_the_tokens_of_training(
    tmp_path: Path, template: str, adds_bos: bool
) -> None:
    own = CHATML.replace("<|im_end|>", "</s>")
    tokenizer = _tokenizer(tmp_path, own, adds_bos=adds_bos)
    source = template_source(tokenizer, template)
    tokenizer.tokenizer.chat_template = source
    rendered = tokenizer.tokenizer.apply_chat_template(
        [m.model_dump() for m in ANSWERED], tokenize=True, return_dict=False
    )
    assert rendered == tokenizer.example(ANSWERED, template)[0]
    assert (
        template_source(_tokenizer(tmp_path, source, adds_bos=adds_bos), "model") == source
    )  # not twice
