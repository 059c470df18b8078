"""Option letters in every kind of vocabulary, against plain forward passes over whole prompts."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ift_scale.config import EngineConfig, MmluSource, PaperSource, ProbeConfig, ReliabilityConfig
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec, ScoreRequest
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.errors import DataError
from ift_scale.prompts.templates import (
    Demonstrations,
    chat_messages,
    few_shot_prefix,
    few_shot_prompt,
    open_prefix,
    open_text,
    question_text,
    response_text,
)
from ift_scale.prompts.tokenizer import PromptTokenizer, common_prefix
from ift_scale.prompts.views import plain, views_of
from ift_scale.questions import mmlu, paper
from ift_scale.records import LETTERS, Message, Question
from ift_scale.scoring.blocks import blocks
from ift_scale.scoring.cloze import ChatTexts, Cloze, FewShotTexts
from ift_scale.scoring.letters import Chat, FewShot, LetterAsker
from ift_scale.scoring.options import (
    WHOLE_PROMPTS,
    LetterTokens,
    SequenceRequest,
    are_distinct,
    option_logprobs,
)
from ift_scale.scoring.scores import ChoiceScores
from tests.prompts import published, vocabularies

QUESTIONS = [vocabularies.question(number, 3 if number == 1 else 4) for number in range(4)]
DEV = [vocabularies.question(100 + number, split="dev") for number in range(3)]
ORDERS = ReliabilityConfig(permutations="circular", prior_share=1.0, demonstration_draws=2)
_MERGED = [[":A"], [":B"], [":C"], [":D"]]
PUBLISHED = {
    "Llama-3": ("Answer", _MERGED),
    "Llama-4": ("Answer", _MERGED),
    "Qwen": ("Answer", _MERGED),
    "Mistral tekken": ("Answer", [[":A"], [":", "B"], [":C"], [":", "D"]]),
    "Mistral": (":", [["A"], ["B"], ["C"], ["D"]]),
}
"""The last token of the context, and each option's tokens."""
# With these the demonstrations show `A.` as one piece, and so it is scored.
WITH_PERIOD = {"metaspace bpe", "metaspace bpe, each part"}


class Model:
    """A folder's tokenizer with a random model: the engine, and plain forward passes."""

    def __init__(self, folder: Path, family: str):
        self.folder, self.family = folder, family
        self.tokenizer = PromptTokenizer(folder)
        self.model = vocabularies.random_model(folder, len(self.tokenizer.tokenizer))

    @cached_property
    def engine(self) -> TransformersEngine:
        return TransformersEngine(
            EngineSpec(str(self.folder), "float32", EngineConfig(engine="transformers"))
        )

    def expected(
        self, prompt: str, endings: Sequence[str], from_prompt: bool = False
    ) -> list[float]:
        """Returns each ending's log-probability after the token prefix that all texts share."""
        ids = [self.tokenizer.tokenizer(prompt + ending).input_ids for ending in endings]
        compared = [*ids, self.tokenizer.tokenizer(prompt).input_ids] if from_prompt else ids
        start = next(n for n in range(10_000) if len({tuple(row[: n + 1]) for row in compared}) > 1)
        return [self._logprob(row, start) for row in ids]

    @torch.no_grad()
    def _logprob(self, ids: list[int], start: int) -> float:
        kept = len(ids) - start + 1
        logprobs_TV = (
            self.model(torch.tensor([ids]), logits_to_keep=kept).logits[0].double().log_softmax(-1)
        )
        return sum(float(logprobs_TV[row, token]) for row, token in enumerate(ids[start:]))


@pytest.fixture(scope="module", params=list(vocabularies.FAMILIES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    vocabularies.save(vocabularies.FAMILIES[request.param](), folder, template=vocabularies.TIGHT)
    return Model(folder, request.param)


def _few_shot(model: Model, question: Question, order: Sequence[int], draw: int) -> list[float]:
    shown = Demonstrations(DEV, 2, 42).of(question, draw)
    ending = "." if model.family in WITH_PERIOD else ""
    prompt = few_shot_prefix("engineering", shown) + question_text(question, order)
    return model.expected(prompt, [letter + ending for letter in LETTERS[: len(order)]])


def test_letters_of_all_orders_and_draws(model: Model) -> None:
    """Every view's log-probabilities equal plain forward passes, and so do the scores."""
    asker = LetterAsker(FewShot(model.tokenizer, Demonstrations(DEV, 2, 42)), views_of(ORDERS))
    written = asker.write(QUESTIONS)
    table = asker.ask(model.engine, written)
    whole = LetterAsker(
        FewShot(model.tokenizer, Demonstrations(DEV, 2, 42), whole_prompts=True), views_of(ORDERS)
    )
    assert [(r.prompt, r.options) for r in whole.write(QUESTIONS).requests] == [
        (r.prompt, r.options) for r in written.requests
    ]
    for row, question in zip(table.to_pylist(), QUESTIONS, strict=True):
        count = len(question.choices)
        orders = [
            row["orders"][start : start + count] for start in range(0, len(row["orders"]), count)
        ]
        expected = [
            _few_shot(model, question, order, draw)
            for order, draw in zip(orders, row["draws"], strict=True)
        ]
        assert len(expected) >= count + 1  # every rotation, and the other draw
        np.testing.assert_allclose(row["logprobs"], np.concatenate(expected), atol=1e-4)
    scores = ChoiceScores(ORDERS)
    for block in blocks(table):
        scores.prior.add(block)
    assert {
        count: prior.shape for count in (3, 4) if (prior := scores.prior.of(count)) is not None
    } == {3: (3,), 4: (4,)}
    for score, question in zip(scores.rows(table).to_pylist(), QUESTIONS, strict=True):
        plain_expected = _few_shot(model, question, range(len(question.choices)), 0)
        assert score["letter_mass"] == pytest.approx(np.exp(plain_expected).sum(), rel=1e-3)
        assert 0 < score["letter_mass"] <= 1


@pytest.mark.parametrize("response", ["letter", "letter_text"])
@pytest.mark.parametrize("template", ["vicuna", "model"])
def test_letters_in_a_chat_template(model: Model, template: str, response: str) -> None:
    asker = LetterAsker(Chat(model.tokenizer, template, response), plain)
    written = asker.write(QUESTIONS)
    found = asker.ask(model.engine, written)["logprobs"].to_pylist()
    separator = " " if template == "vicuna" else ""
    for question, logprobs in zip(QUESTIONS, found, strict=True):
        prompt = model.tokenizer.render(chat_messages(question), template, generation=True)
        letters = [separator + letter for letter in LETTERS[: len(question.choices)]]
        bare = [model.tokenizer.encode([prompt + letter])[0] for letter in letters]
        text = [model.tokenizer.encode([prompt + letter + ". a"])[0] for letter in letters]
        alike = all(ids == more[: len(ids)] for ids, more in zip(bare, text, strict=True))
        ending = "" if alike or response == "letter" else "."
        np.testing.assert_allclose(
            logprobs, model.expected(prompt, [letter + ending for letter in letters]), atol=1e-4
        )


@pytest.mark.parametrize("response", ["letter", "letter_text"])
@pytest.mark.parametrize("template", ["vicuna", "model"])
def test_evaluation_asks_from_the_tokens_that_training_shows(
    model: Model, template: str, response: str
) -> None:
    """The context and an option's tokens begin the training example with that answer.

    Its supervised part begins no later than the tokens in which the options differ.
    """
    for question, request in zip(
        QUESTIONS,
        Chat(model.tokenizer, template, response).requests(
            QUESTIONS, [plain(q)[0] for q in QUESTIONS]
        ),
        strict=True,
    ):
        for target in range(len(question.choices)):
            answer = Message(role="assistant", content=response_text(question, target, response))
            ids, supervised = model.tokenizer.example([*chat_messages(question), answer], template)
            option = request.options[target]
            asked = request.prompt + (option if isinstance(option, list) else [option])
            assert ids[: len(asked)] == asked
            first = supervised.index(True)
            assert first < len(asked) and all(supervised[first : len(asked)])


@pytest.mark.parametrize("ended", [False, True])
def test_option_texts(model: Model, ended: bool) -> None:
    """After the longest prefix that prompt and texts share; also after the empty question.

    Where an option is the beginning of another, each has the blank line that ends it.
    """
    questions = list(QUESTIONS)
    if ended:
        longer = questions[0].choices[0] + " of the north"
        choices = [*questions[0].choices[:3], longer]
        questions = [questions[0].model_copy(update={"choices": choices})]
    texts = FewShotTexts(model.tokenizer, Demonstrations(DEV, 2, 42))
    asker = Cloze(texts, "pmi")
    table = asker.ask(model.engine, asker.write(questions))
    prefix = open_prefix("engineering", Demonstrations(DEV, 2, 42).of(questions[0]))
    for question, row in zip(questions, table.to_pylist(), strict=True):
        endings = [f" {choice}" for choice in question.choices]
        for name, text in (("cloze", question.question), ("empty", "")):
            asked = prefix + open_text(question.model_copy(update={"question": text}))
            assert row[name] == pytest.approx(_texts(model, asked, endings, ended), abs=2e-4)
        assert row["bytes"] == [len(choice.encode()) for choice in question.choices]


def _texts(model: Model, prompt: str, endings: Sequence[str], ended: bool) -> list[float]:
    encode = model.tokenizer.tokenizer
    rows = [encode(prompt + ending).input_ids for ending in endings]
    if ended:
        rows = [
            common_prefix([encode(f"{prompt}{ending}\n\n{word}").input_ids for word in "AB"])
            for ending in endings
        ]
    start = len(common_prefix([*rows, encode(prompt).input_ids]))
    return [model._logprob(row, start) for row in rows]


@pytest.mark.parametrize("template", ["vicuna", "model"])
def test_texts_in_a_template_are_a_training_examples_supervised_tokens(
    model: Model, template: str
) -> None:
    texts = ChatTexts(model.tokenizer, template)
    for question in QUESTIONS:
        asked = chat_messages(question.model_copy(update={"choices": []}))
        for text, request in zip(
            question.choices, texts.requests(question, question.choices), strict=True
        ):
            answer = Message(role="assistant", content=text)
            ids, supervised = model.tokenizer.example([*asked, answer], template)
            whole = request.suffix + request.continuation
            assert whole == ids[: len(whole)]
            assert len(request.suffix) <= supervised.index(True) and supervised[len(whole) - 1]
            rest = ids[len(whole) : len(ids) - supervised[::-1].index(True)]
            assert rest and model.tokenizer.decode(rest).strip() == "", "only the end of the turn"
        longer = [question.choices[0], question.choices[0] + " of the north"]
        for text, request in zip(longer, texts.requests(question, longer), strict=True):
            answer = Message(role="assistant", content=text)
            ids, supervised = model.tokenizer.example([*asked, answer], template)
            end = len(ids) - supervised[::-1].index(True)
            assert request.suffix + request.continuation == ids[:end]


@pytest.mark.engine  # for its half minute
@pytest.mark.parametrize("name", published.FAMILIES)
def test_published_vocabularies_on_real_questions(
    tmp_path: Path, shared_data: Path, name: str
) -> None:
    """5-shot prompts with the published vocabularies of Llama-3, Qwen and Mistral."""
    published.FAMILIES[name](tmp_path)
    model = Model(tmp_path, name)
    questions = [
        q
        for _, q in mmlu.load(
            MmluSource(kind="mmlu", path=str(shared_data / "mmlu"), max_per_subject=1), seed=0
        )
    ]
    pool = PaperSource(
        kind="paper",
        domain="engineering",
        path=str(shared_data / "pools/engineering"),
        max_test=6,
        max_train=1,
    )
    questions += [q for _, q in paper.load(pool, seed=0)]
    demonstrations = Demonstrations(questions, 5, 42)
    asked = sorted((q for q in questions if q.split == "test"), key=lambda q: q.topic)[::6]
    asker = LetterAsker(FewShot(model.tokenizer, demonstrations), plain)
    written = asker.write(asked)
    for question, logprobs in zip(
        asked, asker.ask(model.engine, written)["logprobs"].to_pylist(), strict=True
    ):
        letters = LETTERS[: len(question.choices)]
        expected = model.expected(few_shot_prompt(question, demonstrations.of(question)), letters)
        np.testing.assert_allclose(logprobs, expected, atol=1e-4)
    (request, *_) = written.requests
    pieces = model.tokenizer.tokenizer.convert_ids_to_tokens
    options = [
        pieces(option if isinstance(option, list) else [option]) for option in request.options
    ]
    assert pieces(request.prompt[-1:]) == [PUBLISHED[name][0]] and options == PUBLISHED[name][1]


@pytest.mark.engine
@pytest.mark.parametrize("family", ["llama-3", "qwen2, D merges", "metaspace bpe"])
def test_vllm_scores_merged_letters(tmp_path: Path, family: str) -> None:
    vocabularies.save(
        vocabularies.FAMILIES[family](),
        tmp_path / "model",
        start="[gMASK] <sop>",
        template=vocabularies.TIGHT,
    )
    model = Model(tmp_path / "model", family)
    spec = EngineSpec(str(model.folder), "float32", ProbeConfig(engine="vllm"))
    engine = EngineProcess(spec, tmp_path / "vllm.log").ready()
    try:
        asker = LetterAsker(
            FewShot(model.tokenizer, Demonstrations(DEV, 2, 42)),
            views_of(ORDERS),
            Cloze(FewShotTexts(model.tokenizer, Demonstrations(DEV, 2, 42)), "pmi"),
        )
        ours, reference = (asker.ask(e, asker.write(QUESTIONS)) for e in (engine, model.engine))
    finally:
        engine.close()
    for name in ("logprobs", "cloze", "empty"):
        found, expected = (
            np.asarray(table[name].combine_chunks().flatten()) for table in (ours, reference)
        )
        np.testing.assert_allclose(found, expected, atol=2e-3)
    ending = "." if family in WITH_PERIOD else ""
    prompt = few_shot_prompt(QUESTIONS[0], Demonstrations(DEV, 2, 42).of(QUESTIONS[0]))
    expected = model.expected(prompt, [letter + ending for letter in "ABCD"])
    np.testing.assert_allclose(ours["logprobs"][0].as_py()[:4], expected, atol=2e-3)


class _Counting:
    """A tokenizer that counts the prompts that are tokenised whole."""

    def __init__(self, tokenizer: PromptTokenizer):
        self.tokenizer, self.path = tokenizer.tokenizer, tokenizer.path
        self._inner, self.calls = tokenizer, 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._inner.encode(texts)

    def whole_prompt(self, prompt: str) -> Any:
        def whole(ending: str) -> list[int]:
            self.calls += 1
            return self._inner.encode([prompt + ending])[0]

        return whole


def test_letters_are_found_once_for_prompts_that_end_alike(model: Model) -> None:
    counting: Any = _Counting(model.tokenizer)
    prompts = [f"What is {number}?\nAnswer:" for number in range(500)]
    requests = LetterTokens(counting, WHOLE_PROMPTS).after(prompts, [4] * 500)
    assert counting.calls <= 3 * 12  # the first, and two that are compared
    assert len({id(request.options) for request in requests}) == 1  # so that they cross a pipe once
    exact = LetterTokens(model.tokenizer, WHOLE_PROMPTS, whole=True).after(prompts[::50], [4] * 10)
    assert [(r.prompt, r.options) for r in exact] == [(r.prompt, r.options) for r in requests[::50]]


class _Characters:
    """Each character is a token, but `:A`, `:B` and `x\\n:` are one; after a `z`, `:A` is two."""

    tokenizer, path = None, Path("t")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        merged = [text.replace("x\n:", "1").replace(":B", "2") for text in texts]
        return [
            [ord(c) for c in (text if "z" in text else text.replace(":A", "3"))] for text in merged
        ]

    def whole_prompt(self, prompt: str) -> Any:
        return lambda ending: self.encode([prompt + ending])[0]


def test_a_prompt_whose_tokens_end_differently_is_tokenised_whole() -> None:
    """Same last line, but other merged tokens: the boundary is computed again for this prompt."""
    tokenizer: Any = _Characters()
    requests = LetterTokens(tokenizer, WHOLE_PROMPTS).after(["q\n:", "x\n:", "y\n:"], [2, 2, 2])
    assert [(r.prompt, r.options) for r in requests] == [
        ([ord("q"), ord("\n")], [ord("3"), ord("2")]),
        ([ord("1")], [ord("A"), ord("B")]),
        ([ord("y"), ord("\n")], [ord("3"), ord("2")]),
    ]


def test_letters_that_differ_in_another_prompt_are_refused() -> None:
    tokenizer: Any = _Characters()
    with pytest.raises(
        DataError,
        match=r"tokenises the option letters after ':' differently.*Set whole_prompts to true",
    ):
        LetterTokens(tokenizer, WHOLE_PROMPTS).after(["q\n:", "z\n:"], [2, 2])
    (_, request) = LetterTokens(tokenizer, WHOLE_PROMPTS, whole=True).after(
        ["q\n:", "z\n:"], [2, 2]
    )
    assert request.options == [[ord(":"), ord("A")], [ord("2")]]


@pytest.mark.parametrize(
    ("options", "distinct"),
    [
        ([[1], [2]], True),
        ([[0], [1]], True),
        ([[1, 2], [1, 3], [2]], True),
        ([[1], [1]], False),
        ([[1, 2], [3], [1, 2]], False),
        ([[1, 2, 3], [4], [1, 2]], False),
        ([[], [1]], False),
    ],
)
def test_options_whose_probabilities_do_not_exclude_each_other(
    options: list[list[int]], distinct: bool
) -> None:
    assert are_distinct(options) is distinct


def test_requests_of_both_kinds_keep_their_order(model: Model) -> None:
    a, b, c = (
        ScoreRequest([1], [7, 8], [5, 6]),
        SequenceRequest([1], [7], [[8, 5], [9]]),
        ScoreRequest([], [1, 7, 8], [9]),
    )
    found = option_logprobs(model.engine, [a, b, c])
    one = model._logprob
    expected = [
        one([1, 7, 8, 5], 3),
        one([1, 7, 8, 6], 3),
        one([1, 7, 8, 5], 2),
        one([1, 7, 9], 2),
        one([1, 7, 8, 9], 3),
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert option_logprobs(model.engine, [b]).tolist() == pytest.approx(expected[2:4], abs=1e-4)
