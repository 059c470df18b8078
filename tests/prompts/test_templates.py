"""The prompts, character by character and token by token."""

import json
import random
import shutil
from pathlib import Path

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from ift_scale.config import MmluSource
from ift_scale.engines.protocol import ScoreRequest
from ift_scale.errors import DataError
from ift_scale.prompts.templates import (
    TEMPLATES,
    Demonstrations,
    chat_messages,
    few_shot_prefix,
    few_shot_prompt,
    open_prefix,
    open_text,
    question_text,
    response_text,
)
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import View, plain
from ift_scale.questions import mmlu
from ift_scale.records import Message, Question
from ift_scale.scoring.cloze import FewShotTexts
from ift_scale.scoring.letters import Chat, FewShot, LetterAsker
from ift_scale.scoring.options import WHOLE_PROMPTS, Continuations, LetterTokens


def _question(number: int = 0, split: str = "test", **changes: object) -> Question:
    settings = {
        "id": f"q{number}",
        "domain": "engineering",
        "subject": "engineering",
        "collection": "pool",
        "split": split,
        "question": f"What is {number}?",
        "choices": ["one", "two", "three", "four"],
        "answer": number % 4,
    }
    return Question(**(settings | changes))  # type: ignore[arg-type]


def test_few_shot_prompt_is_the_papers() -> None:
    shown = _question(1, "dev")
    prompt = few_shot_prompt(_question(2), [shown])
    assert prompt == (
        "The following are multiple choice questions about engineering. Please choose the"
        " correct answer. \n\n"
        "What is 1?\nA. one\nB. two\nC. three\nD. four\nAnswer:B. two\n\n"
        "What is 2?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )


def test_demonstrations_are_shuffled_as_in_the_papers_code() -> None:
    dev = [_question(i, "dev") for i in range(10)]
    random.seed(42)
    order = list(range(10))
    random.shuffle(order)
    shown = Demonstrations(dev, num_shots=5, seed=42).of(_question(3))
    assert [q.id for q in shown] == [f"q{i}" for i in order[:5]]


def test_a_pool_and_a_benchmark_subject_of_one_name_share_no_demonstrations() -> None:
    pool = [_question(i, "dev", domain="jurisprudence") for i in range(5)]
    subject = [
        _question(i + 10, "dev", collection="benchmark", subject="jurisprudence") for i in range(5)
    ]
    demonstrations = Demonstrations([*pool, *subject], 5, 42)
    assert {q.id for q in demonstrations.of(_question(3, domain="jurisprudence"))} == {
        q.id for q in pool
    }


def test_too_few_demonstrations() -> None:
    with pytest.raises(
        DataError,
        match=r"needs 5 demonstrations and has 2 dev questions.*lower probe.num_shots",
    ):
        Demonstrations([_question(i, "dev") for i in range(2)], 5, 42).of(_question(3))


def test_benchmark_subjects_are_named_in_words() -> None:
    question = _question(0, collection="benchmark", subject="abstract_algebra")
    assert "questions about abstract algebra." in few_shot_prompt(question, [])


CORPUS = [
    few_shot_prompt(_question(i), [_question(i + j, "dev") for j in range(3)])
    + response_text(_question(i), i % 4, "letter_text")
    for i in range(40)
]
CORPUS += ["A chat. USER: hi ASSISTANT: hi", *[f"{c} {c} {c}" for c in "ABCD"]] * 60


def _byte_level(add_bos: bool) -> PreTrainedTokenizerFast:
    """GPT-2 and Qwen style."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _sentencepiece_decoder() -> decoders.Decoder:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def _sentencepiece_style() -> PreTrainedTokenizerFast:
    """Llama-2 style: a space is put before the text, words begin with it."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    tokenizer.decoder = _sentencepiece_decoder()
    special = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _llama2_style(add_bos: bool) -> PreTrainedTokenizerFast:
    """As Llama-2's: the whole text is one word to the BPE, spaces are marks, line breaks bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = _sentencepiece_decoder()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # Only for training, so no merge crosses a word or a line: SentencePiece merges within words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Split("▁", "merged_with_next"),
            pre_tokenizers.Punctuation("isolated"),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    )
    plain = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None}
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _merging() -> PreTrainedTokenizerFast:
    """A vocabulary unlike any real one: a demonstration's end and a question's start merge."""
    tokenizer = Tokenizer.from_str(_byte_level(add_bos=False).backend_tokenizer.to_str())
    tokenizer.add_tokens(["two\n\nWhat", "\n\nWhere"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


FAMILIES = {
    "byte-level": lambda: _byte_level(add_bos=False),
    "byte-level with BOS": lambda: _byte_level(add_bos=True),
    "sentencepiece": _sentencepiece_style,
    "llama-2": lambda: _llama2_style(add_bos=True),
    "llama-2 without BOS": lambda: _llama2_style(add_bos=False),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PromptTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    FAMILIES[request.param]().save_pretrained(folder)
    return PromptTokenizer(folder)


def test_bos_comes_once_at_the_tokenizers_position(tokenizer: PromptTokenizer) -> None:
    (ids,) = tokenizer.encode(["What is 1?"])
    assert ids == tokenizer.tokenizer("What is 1?").input_ids
    assert ids.count(tokenizer.tokenizer.bos_token_id) == len(tokenizer.start) <= 1


def test_letters_are_the_tokens_after_the_prompt(tokenizer: PromptTokenizer) -> None:
    prompt = few_shot_prompt(_question(2), [])
    (request,) = LetterTokens(tokenizer, WHOLE_PROMPTS).after([prompt], [4])
    assert isinstance(request, ScoreRequest) and request.prompt == tokenizer.encode([prompt])[0]
    assert len(set(request.options)) == 4
    for letter, token in zip("ABCD", request.options, strict=True):
        assert tokenizer.encode([prompt + letter])[0] == [*request.prompt, token]


@pytest.mark.parametrize("template", ["vicuna", "chatml"])
def test_evaluation_asks_from_the_tokens_that_training_shows(
    tokenizer: PromptTokenizer, template: str
) -> None:
    if template == "chatml" and "<|im_start|>" not in tokenizer.tokenizer.get_vocab():
        pytest.skip("this family has no ChatML marks")
    question = _question(2)
    answer = Message(role="assistant", content=response_text(question, 2, "letter_text"))
    ids, supervised = tokenizer.example([*chat_messages(question), answer], template)
    prompt_text = tokenizer.render(chat_messages(question), template, generation=True)
    (prompt,) = tokenizer.encode([prompt_text])
    assert ids[: len(prompt)] == prompt
    assert supervised == [
        i >= len(prompt) and i < len(prompt) + sum(supervised) for i in range(len(ids))
    ]
    # The first supervised token is the letter that evaluation scores, the last is EOS.
    (request,) = Chat(tokenizer, template).requests([question], [View(0, (0, 1, 2, 3))])
    assert request.prompt == prompt and request.options[2] == ids[len(prompt)]
    assert ids[len(prompt) + sum(supervised) - 1] == tokenizer.tokenizer.eos_token_id


@pytest.mark.parametrize("whole", [False, True])
def test_a_prefix_tokenised_once_gives_the_tokens_of_the_whole_prompt(
    tokenizer: PromptTokenizer, whole: bool
) -> None:
    shown = [_question(i, "dev") for i in range(5)]
    starts = [
        "What is",
        "_____ is",
        "(a) When",
        " a space before",
        "\n\na line before",
        "7 is",
        "'s",
        "É is",
        "\tTab",
    ]
    asked = [_question(i, question=start + f" {i}?") for i, start in enumerate(starts * 15)]
    prefix = tokenizer.prefix(few_shot_prefix("engineering", shown))
    found = tokenizer.encode_after(prefix, [question_text(question) for question in asked], whole)
    expected = tokenizer.encode([few_shot_prompt(question, shown) for question in asked])
    assert [before + behind for before, behind in found] == expected
    shared = sum(
        before is prefix.ids for before, _ in found
    )  # one object, so that an engine sees that it is shared
    assert shared == sum(not q.question[0].isspace() for q in asked) or whole
    assert (
        whole or len({id(before) for before, _ in found}) == 2
    )  # those that begin with white space share a shorter one


def test_real_mmlu_prompts_have_the_tokens_of_the_whole(
    tokenizer: PromptTokenizer, shared_data: Path
) -> None:
    questions = [
        q
        for _, q in mmlu.load(
            MmluSource(kind="mmlu", path=str(shared_data / "mmlu"), max_per_subject=3), seed=0
        )
    ]
    demonstrations = Demonstrations(questions, 5, 42)
    asked = sorted((q for q in questions if q.split == "test"), key=lambda q: q.topic)
    requests = LetterAsker(FewShot(tokenizer, demonstrations), plain).write(asked).requests
    whole = tokenizer.encode(
        [few_shot_prompt(question, demonstrations.of(question)) for question in asked]
    )
    assert [request.prompt for request in requests] == whole
    assert (
        len({id(request.prefix) for request in requests}) <= 2 * 57
    )  # most share their topic's one prefix


def test_a_tokenizer_that_joins_lines_is_noticed(tmp_path: Path) -> None:
    _merging().save_pretrained(tmp_path)
    tokenizer = PromptTokenizer(tmp_path)
    prefix = tokenizer.prefix(few_shot_prefix("engineering", [_question(1, "dev")]))
    text = question_text(_question(2))
    with pytest.raises(
        DataError, match=r"differently before a question: 'What is 2.*Set whole_prompts to true"
    ):
        tokenizer.encode_after(prefix, [text])
    ((before, behind),) = tokenizer.encode_after(prefix, [text], whole=True)
    assert before + behind == tokenizer.encode([prefix.text + text])[0]
    # The same for prompts without options, which have a prefix of their own.
    dev = [_question(1, "dev", question="What is this")]
    dev[0] = dev[0].model_copy(update={"choices": ["one", "two"], "answer": 1})
    tokenizer.tokenizer.backend_tokenizer.add_tokens(["two\n\nQuestion"])
    shown, asked = Demonstrations(dev, 1, 42), _question(2)
    with pytest.raises(DataError, match="Set whole_prompts to true"):
        FewShotTexts(tokenizer, shown).requests(asked, asked.choices)
    texts = FewShotTexts(tokenizer, shown, whole_prompts=True)
    (first, *_) = texts.requests(asked, asked.choices)
    assert first.prompt == tokenizer.encode([open_prefix("", dev) + open_text(_question(2))])[0]
    # Tokens that join line breaks appear in the few characters before every text.
    ((before, behind),) = tokenizer.encode_after(prefix, ["Where is it?"])
    assert before + behind == tokenizer.encode([prefix.text + "Where is it?"])[0]


def test_a_template_that_writes_bos_again_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _byte_level(add_bos=True).save_pretrained(tmp_path)
    tokenizer = PromptTokenizer(tmp_path)
    doubled = "{{ bos_token }}{% for m in messages %}{{ bos_token + m['content'] }}{% endfor %}"
    monkeypatch.setitem(TEMPLATES, "vicuna", doubled)
    with pytest.raises(
        DataError,
        match=r"field 'bos_token': <s> occurs a second time inside the prompt .*remove it there",
    ):
        tokenizer.encode([tokenizer.render(chat_messages(_question(1)), "vicuna", generation=True)])


def test_continuations_are_the_tokens_after_the_prompt(tokenizer: PromptTokenizer) -> None:
    prompt, texts = open_text(_question(3)), [" one", " three four"]
    (ids,), whole = tokenizer.encode([prompt]), tokenizer.whole_prompt(prompt)
    for text, request in zip(
        texts, Continuations(tokenizer).requests([], ids, prompt, texts, whole), strict=True
    ):
        assert (
            tokenizer.encode([prompt + text])[0] == ids + request.continuation
            and request.prompt == ids
        )


def test_a_line_ends_at_every_token_with_a_line_break(tokenizer: PromptTokenizer) -> None:
    ends = set(tokenizer.line_end_tokens)
    assert tokenizer.tokenizer.eos_token_id in ends
    for text in ("two\n", "two\n\nQuestion: x"):
        ids = tokenizer.encode([text])[0]
        first = next(n for n, token in enumerate(ids) if token in ends)
        assert tokenizer.decode(ids[:first]).strip() == "two"


def test_only_the_assistants_turns_are_supervised(tokenizer: PromptTokenizer) -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    ids, supervised = tokenizer.example([Message(role=r, content=c) for r, c in turns], "vicuna")  # type: ignore[arg-type]
    learnt = tokenizer.tokenizer.decode(
        [i for i, s in zip(ids, supervised, strict=True) if s]
    ).replace(" ", "")
    assert learnt == "two</s>four</s>"


def test_letters_that_collapse_to_one_token_are_refused(tmp_path: Path) -> None:
    """A vocabulary of words in which C and D are unknown: both would be read off the same token."""
    words = ["<unk>", "</s>", "What", "is", "1", "?", "Answer", ":", "A", "B", ".", "a"]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(tmp_path)
    found = LetterTokens(PromptTokenizer(tmp_path), WHOLE_PROMPTS)
    (request,) = found.after(["What is 1?\nAnswer:"], [3])
    assert request.options == [8, 9, 0]  # C alone is a token of its own
    with pytest.raises(
        DataError,
        match=r"field 'option letters': have no distinct tokens: .*choose a model or template",
    ):
        found.after(["What is 1?\nAnswer:"], [4])


@pytest.mark.parametrize("content", [None, "", '{"a":', "[1]", "null", "{}", '{"model": 3}'])
def test_a_missing_or_damaged_tokenizer_is_reported(
    tmp_path: Path, world_model: Path, content: str | None
) -> None:
    shutil.copy(world_model / "config.json", tmp_path)
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    problem = "has no tokenizer that transformers can load"
    if content in ("", '{"a":', "[1]", "null"):
        problem = "tokenizer.json.*: not (valid JSON|a JSON object)"
    with pytest.raises(DataError, match=problem):
        PromptTokenizer(str(tmp_path))
