"""Contents that spell control tokens are text, in every template and tokenizer."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ift_scale.config import TrainConfig
from ift_scale.construct import general
from ift_scale.errors import DataError
from ift_scale.prompts.controls import ChatText
from ift_scale.prompts.templates import Demonstrations, few_shot_prompt
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import View
from ift_scale.records import Message, Question
from ift_scale.scoring.cloze import FewShotTexts
from ift_scale.scoring.letters import Chat, FewShot
from ift_scale.train.data.tokenize import tokenize
from ift_scale.write.local import PromptIds
from ift_scale.write.prompts import Prompt
from tests.prompts.chat_families import (
    FAMILIES,
    LLAMA3,
    QWEN3,
    byte_level_folder,
    converted_folder,
    sentencepiece_folder,
)

TEMPLATES = ("model", "vicuna", "chatml")
PLAIN = [
    "One\n\ntwo  three\t<b>bold</b> x < 3 > 2 [1]",
    "  spaces  ",
    "É\ue000\ue123\U000f0001 ▁",
    "1e5 a|b <| |> 3.",
]


@pytest.fixture(
    scope="module", params=[name for name in FAMILIES if name != "deepseek-r1"]
)  # whose own template is refused
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PromptTokenizer:
    return PromptTokenizer(FAMILIES[request.param](tmp_path_factory.mktemp("tokenizer")))


def _asked(user: str, assistant: str) -> list[Message]:
    return [Message(role="user", content=user), Message(role="assistant", content=assistant)]


def _controls(tokenizer: PromptTokenizer, ids: list[int]) -> list[int]:
    known = set(tokenizer.controls.ids.values())
    return [token for token in ids if token in known]


def _text(tokenizer: PromptTokenizer, ids: list[int]) -> str:
    return tokenizer.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_conversation_keeps_its_contents_and_its_templates_control_tokens(
    tokenizer: PromptTokenizer, template: str
) -> None:
    assert tokenizer.controls.ids
    expected = _controls(tokenizer, tokenizer.example(_asked("What?", "A. one"), template)[0])
    for spelled in [*tokenizer.controls.ids, "<think>", "</s>", "<|im_end|>", "[/INST]"]:
        user, assistant = (
            f"{spelled} of{spelled}{spelled} it {spelled}",
            f"A. {spelled} one{spelled}",
        )
        messages = _asked(user, assistant)
        ids, supervised = tokenizer.example(messages, template)
        assert _controls(tokenizer, ids) == expected, spelled
        assert user in _text(tokenizer, ids) and assistant in _text(tokenizer, ids)
        assert assistant in _text(
            tokenizer, [i for i, learnt in zip(ids, supervised, strict=True) if learnt]
        )
        # Evaluation asks from these tokens.
        rendered = tokenizer.render(messages[:1], template, generation=True)
        assert user in rendered and tokenizer.encode([rendered]) == [ids[: supervised.index(True)]]


@pytest.mark.parametrize("template", TEMPLATES)
def test_other_contents_have_the_tokens_that_they_always_had(
    tokenizer: PromptTokenizer, template: str
) -> None:
    for first, second in pairwise([*PLAIN, PLAIN[0]]):
        messages = _asked(first, second)
        text = tokenizer.chat(template).text(messages)
        rendered = tokenizer.render(messages, template)
        assert rendered == text and rendered.controls is None
        (ids,) = tokenizer.encode([rendered])
        (direct,) = tokenizer.control_ids([text])
        assert ids[len(ids) - len(direct) :] == direct and ids[: len(ids) - len(direct)] in (
            [],
            tokenizer.start,
        )
        # The copy with private names gives these ids too: a spelled control token changes only
        # itself.
        assert tokenizer.controls.encode([rendered]) == [direct]
    assert tokenizer.controls.encode(PLAIN) == tokenizer.control_ids(PLAIN)


def _question(spelled: str, split: str = "test") -> Question:
    return Question(
        id="q7",
        domain="d",
        subject="d",
        collection="pool",
        split=split,
        answer=1,
        question=f"What does {spelled} end?",
        choices=[f"a {spelled}", "a text", f"{spelled}s", "nothing"],
    )


def test_few_shot_prompts_and_option_texts_hold_no_control_token(
    tokenizer: PromptTokenizer,
) -> None:
    for spelled in tokenizer.controls.ids:
        question, shown = _question(spelled), [_question(spelled, "dev")]
        demonstrations = Demonstrations(shown, 1, 42)
        (request,) = FewShot(tokenizer, demonstrations).requests(
            [question], [View(0, (0, 1, 2, 3))]
        )
        assert _controls(tokenizer, request.prompt) == _controls(tokenizer, tokenizer.start)
        assert few_shot_prompt(question, shown).removesuffix(":") in _text(
            tokenizer, request.prompt
        )
        for option in FewShotTexts(tokenizer, demonstrations).requests(question, question.choices):
            assert _controls(tokenizer, option.continuation) == []


def test_chat_prompts_have_the_answers_tokens_of_training(tokenizer: PromptTokenizer) -> None:
    question = _question(next(iter(tokenizer.controls.ids)))
    (request,) = Chat(tokenizer, "model").requests([question], [View(0, (0, 1, 2, 3))])
    user = tokenizer.render(_asked(request_text(question), "B. a text"), "model")
    ids, _ = tokenizer.example(_asked(request_text(question), "B. a text"), "model")
    assert user.controls is not None and ids[: len(request.prompt)] == request.prompt
    assert [ids[len(request.prompt)]] == [request.options[1]]  # type: ignore[comparison-overlap]


def request_text(question: Question) -> str:
    from ift_scale.prompts.templates import chat_messages

    return chat_messages(question)[0].content


def test_a_template_that_looks_for_thoughts_finds_none_in_a_content(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(
        byte_level_folder(
            tmp_path,
            QWEN3,
            ["<|im_start|>", "<|im_end|>"],
            "<|im_end|>",
            plain=("<think>", "</think>"),
        )
    )
    ids, supervised = tokenizer.example(
        _asked("Close it.", "First <think>x</think> then y"), "model"
    )
    learnt = [i for i, learns in zip(ids, supervised, strict=True) if learns]
    assert _text(tokenizer, learnt) == "First <think>x</think> then y<|im_end|>"
    assert _controls(tokenizer, learnt) == [tokenizer.tokenizer.eos_token_id]


@pytest.mark.parametrize("content", ["a <", "a <|eot", "|> b", "d|> b <|eot_i", "<", ">"])
def test_a_template_completes_no_control_token_that_a_content_begins(
    tmp_path: Path, content: str
) -> None:
    joining = (
        "{% for m in messages %}{{ m['role'] + '|>' + m['content'] + '|eot_id|>' }}{% endfor %}"
    )
    joining += "{% if add_generation_prompt %}{{ 'assistant|>' }}{% endif %}"
    for template in (LLAMA3, joining):
        folder = tmp_path / str(len(template))
        tokenizer = PromptTokenizer(
            byte_level_folder(
                folder, template, ["<|eot_id|>", "<|eot|>", "<|d|>"], "<|eot|>", bos_token="<|d|>"
            )
        )
        plain = _controls(tokenizer, tokenizer.example(_asked("a", "b"), "model")[0])
        ids, _ = tokenizer.example(_asked(content, "b"), "model")
        assert _controls(tokenizer, ids) == plain and content in _text(tokenizer, ids)


def test_white_space_flags_of_control_tokens_act_as_always(tmp_path: Path) -> None:
    """Tokens that take the white space next to them, and one that must be a word of its own."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(["What is one two </s>"] * 20, trainer)
    flags = {
        "<l>": {"lstrip": True},
        "<r>": {"rstrip": True},
        "<w>": {"single_word": True},
        "</s>": {},
    }
    inner.add_special_tokens(
        [AddedToken(text, special=True, normalized=False, **more) for text, more in flags.items()]
    )
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = PromptTokenizer(tmp_path)
    texts = [f"one {a} two{b}\n{a}{b} x" for a in flags for b in flags]
    assert tokenizer.controls.encode([ChatText(text) for text in texts]) == tokenizer.control_ids(
        texts
    )
    assert all(_controls(tokenizer, ids) == [] for ids in tokenizer.encode(texts))


@pytest.mark.parametrize(
    ("normalizer", "spelled"),
    [
        (normalizers.Lowercase(), "<|IM_End|>"),
        (normalizers.NFKC(), "＜|im_end|＞"),
        (None, "<|IM_End|>"),
    ],
)
@pytest.mark.parametrize("normalized", [True, False])
def test_control_tokens_that_are_found_after_normalization(
    tmp_path: Path, normalizer: Any, spelled: str, normalized: bool
) -> None:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        inner.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    inner.train_from_iterator(["what is one two"] * 20, trainer)
    inner.add_special_tokens([AddedToken("<|im_end|>", special=True, normalized=normalized)])
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>").save_pretrained(
        tmp_path
    )
    tokenizer = PromptTokenizer(tmp_path)
    assert (tokenizer.tokenizer.eos_token_id in tokenizer.control_ids([spelled])[0]) == (
        normalizer is not None and normalized
    )
    for content in (spelled, f"say {spelled}", f"{spelled} and <|im_end|> too"):
        assert _controls(tokenizer, tokenizer.encode([content])[0]) == []
        plain = _controls(tokenizer, tokenizer.example(_asked("a", "b"), "chatml")[0])
        ids, supervised = tokenizer.example(_asked(content, f"B. {content}"), "chatml")
        assert _controls(tokenizer, ids) == plain
        prompt = tokenizer.render(_asked(content, "")[:1], "chatml", generation=True)
        assert tokenizer.encode([prompt]) == [ids[: supervised.index(True)]]


def test_a_few_shot_prompt_is_text_if_control_tokens_are_inseparable(
    tmp_path: Path,
) -> None:
    """Normalized tokens after a prepended mark: the tokenizer itself reads `a</s>b` as text."""
    folder = converted_folder(tmp_path, LLAMA3, None, "PreTrainedTokenizerFast")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["added_tokens"] = [token | {"normalized": True} for token in state["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = PromptTokenizer(folder)
    (ids,) = tokenizer.encode(["Why </s> and <s>?"])
    assert _controls(tokenizer, ids) == tokenizer.start and _text(tokenizer, ids).endswith(
        "Why </s> and <s>?"
    )
    with pytest.raises(
        ValueError, match="which this tokenizer cannot distinguish from the token itself: 'a<unk>b'"
    ):
        tokenizer.example(_asked("Why </s>?", "one"), "vicuna")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "wordlevel"])
def test_control_tokens_within_the_models_vocabulary(tmp_path: Path, kind: str) -> None:
    """The model itself would build them: Unigram as pieces, BPE by merges, word-level as words."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        pieces = [*special, *[f"<0x{b:02X}>" for b in range(256)], "<", ">", "/", "s", "a", "▁"]
        inner = Tokenizer(
            models.Unigram(
                [(piece, 0.0 if piece in special else -2.0) for piece in pieces], 0, True
            )
        )
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    elif kind == "bpe":
        pieces = [*special, "<", ">", "/", "s", "a", " ", "</", "</s", "<s"]
        merges = [("<", "/"), ("</", "s"), ("</s", ">"), ("<", "s"), ("<s", ">")]
        inner = Tokenizer(
            models.BPE(
                vocab={piece: n for n, piece in enumerate(pieces)}, merges=merges, unk_token="<unk>"
            )
        )
    else:
        inner = Tokenizer(
            models.WordLevel(
                {word: n for n, word in enumerate([*special, "a", "s"])}, unk_token="<unk>"
            )
        )
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(special)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(tmp_path)
    tokenizer = PromptTokenizer(tmp_path)
    (ids,) = tokenizer.encode(["a </s> a<s>"])
    assert (
        tokenizer.tokenizer.eos_token_id not in ids and tokenizer.tokenizer.bos_token_id not in ids
    )
    if kind != "wordlevel":
        assert (
            "".join(tokenizer.tokenizer.convert_ids_to_tokens(ids)).replace("▁", " ")
            == "a </s> a<s>"
        )


def test_added_tokens_that_are_text_are_unchanged(tmp_path: Path) -> None:
    plain = ("\n\n", "    ", "COVID", "ø")
    folder = byte_level_folder(
        tmp_path,
        LLAMA3,
        ["<|eot_id|>", "!", "END"],
        "<|eot_id|>",
        bos_token="!",
        plain=(*plain, "<tool_call>"),
    )
    tokenizer = PromptTokenizer(folder)
    assert set(tokenizer.controls.ids) == {"<|eot_id|>", "<tool_call>", "END"}
    (ids,) = tokenizer.encode(["COVID\n\nø    !<tool_call>"])
    assert {tokenizer.tokenizer.convert_tokens_to_ids(token) for token in (*plain, "!")} <= set(ids)


def test_general_instructions_with_control_tokens(tmp_path: Path) -> None:
    file, sets = tmp_path / "general.json", tmp_path / "set.jsonl"
    rows = [
        {
            "instruction": "What does </s> mean?",
            "input": "<s>[INST] x [/INST]",
            "output": "The </s> ends a text.</s>",
        },
        {"instruction": "Say one.", "input": "", "output": "one"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets.write_text(
        "".join(example.model_dump_json() + "\n" for example in general.load(file).values())
    )
    tokenizer = PromptTokenizer(sentencepiece_folder(tmp_path / "model", None, True))
    tokens = tokenize(sets, tokenizer, "vicuna", TrainConfig())
    first, second = (tokens.ids[a:b].tolist() for a, b in pairwise(tokens.offsets))
    assert _controls(tokenizer, first) == _controls(tokenizer, second) == [1, 2]
    assert (
        "USER: What does </s> mean?\n\n<s>[INST] x [/INST] ASSISTANT: The </s> ends a text.</s></s>"
        in _text(tokenizer, first)
    )


def test_prompts_of_the_write_stage(tmp_path: Path) -> None:
    folder = byte_level_folder(
        tmp_path,
        LLAMA3,
        ["<|eot_id|>", "<|start_header_id|>"],
        "<|eot_id|>",
        bos_token="<|eot_id|>",
    )
    config = json.loads((folder / "config.json").read_text())
    end = PromptTokenizer(folder).tokenizer.convert_tokens_to_ids("<|eot_id|>")
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": end}))
    ids = PromptIds(folder, "write.explanations")
    for chat, expected in ((False, 0), (True, 3)):
        (found,) = ids.encode([Prompt(question_id="q", text="Why <|eot_id|>?", stop="", chat=chat)])
        assert sum(
            token in (450, 451) for token in found
        ) <= expected + 1 and "Why <|eot_id|>?" in ids.decode(found)


def test_a_python_only_tokenizer_names_the_line_that_it_cannot_take(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "ByT5Tokenizer"})
    )
    tokenizer = PromptTokenizer(tmp_path)
    sets = tmp_path / "set.jsonl"
    meta = {"setting": "general", "wording": "general"}
    rows = [
        {"messages": [m.model_dump() for m in _asked(user, "one")], "meta": meta}
        for user in ("Say one.", "Say </s>.")
    ]
    sets.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(
        DataError,
        match=r"set.jsonl:2: field 'messages': the text spells a control token.*no tokenizer.json",
    ):
        tokenize(sets, tokenizer, "vicuna", TrainConfig())
    with pytest.raises(DataError, match="question q7: the text spells a control token"):
        Chat(tokenizer, "vicuna").requests([_question("</s>")], [View(0, (0, 1, 2, 3))])
    # A few-shot prompt is all text.
    assert (
        1 not in tokenizer.encode(["a </s> b"])[0]
        and tokenizer.decode(tokenizer.encode(["a </s> b"])[0]) == "a </s> b"
    )


def test_a_message_that_a_template_leaves_out_is_named(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(sentencepiece_folder(tmp_path, None, True))
    messages = [Message(role="system", content="Be </s> brief."), *_asked("What?", "one")]
    with pytest.raises(
        ValueError, match="the chat template drops or changes message 1, of role system"
    ):
        tokenizer.example(messages, "vicuna")


def test_parts_of_a_rendered_text(tmp_path: Path) -> None:
    tokenizer = PromptTokenizer(
        byte_level_folder(
            tmp_path, LLAMA3, ["<|eot_id|>", "<|start_header_id|>"], "<|eot_id|>", bos_token="!"
        )
    )
    text = tokenizer.render(_asked("a <|eot_id|> b", "c"), "model")
    for place in (0, 5, len("!<|start_header_id|>"), len(text)):
        parts = [text[:place], text[place:] + " A"]
        assert all(isinstance(part, ChatText) for part in parts)
        marks = [len(_controls(tokenizer, row)) for row in tokenizer.encode(parts)]
        assert sum(marks) == (3 if place == 5 else 4) and "".join(parts) == text + " A"
