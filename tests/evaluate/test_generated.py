"""Generated answers: their prompts, how they are parsed, and the whole stage with an engine."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ift_scale.config import Config, ReliabilityConfig
from ift_scale.config.file import from_dict
from ift_scale.engines.protocol import Sampling, ScoreRequest, TextRequest
from ift_scale.evaluate import run
from ift_scale.evaluate.generated import GeneratedAsker, GeneratedRows
from ift_scale.io.files import read_parquet, write_jsonl
from ift_scale.io.manifests import read_manifest
from ift_scale.io.progress import Bar
from ift_scale.prompts.templates import chat_messages
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import world
from ift_scale.records import SCORES_FILE, Arm, Message, Question, Score
from ift_scale.scoring.letters import Chat, LetterAsker
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.scores import ChoiceScores, arm_schema
from ift_scale.stage import Task
from tests.prompts import vocabularies

ARM = Arm(domain="medicine", setting="harmonious", seed=0)


class Scripted:
    """Prefers the first letter, and generates the given texts."""

    def __init__(self, tokenizer: PromptTokenizer, said: list[str]):
        self.tokenizer, self.said = tokenizer, said
        self.prompts: list[list[int]] = []

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        return np.log(np.concatenate([np.arange(len(r.options), 0, -1) / 20 for r in requests]))

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        assert sampling.temperature == 0 and sampling.max_tokens == 9 and sampling.num_samples == 1
        self.prompts += [request.prompt for request in requests]
        return [
            [self.tokenizer.encode([" " + text])[0][len(self.tokenizer.start) :]]
            for text in self.said
        ]


def _asked(
    world_model: Path, questions: list[Question], said: list[str]
) -> tuple[list[Score], GeneratedRows, Scripted, GeneratedAsker]:
    tokenizer = PromptTokenizer(world_model)
    asker = GeneratedAsker(
        tokenizer, "vicuna", LetterAsker(Chat(tokenizer, "vicuna"), plain), 9, "Who knows?"
    )
    engine, rows = (
        Scripted(tokenizer, said),
        GeneratedRows(ChoiceScores(ReliabilityConfig()), arm_schema(False, True)),
    )
    table = rows(asker.ask(engine, asker.write(questions)))  # type: ignore[arg-type]
    return [Score.model_validate(row) for row in table.to_pylist()], rows, engine, asker


def test_choice_questions_are_answered_by_letter_and_in_words(world_model: Path) -> None:
    questions = [q for q in world.load() if q.kind == "choice" and q.split == "test"][:5]
    gold = "ABCD"[questions[0].answer or 0]
    said = [
        f"{gold}. {questions[0].choices[questions[0].answer or 0]}",
        questions[1].choices[2],
        "who knows",
        "A or B",
        "(D)",
    ]
    scores, rows, engine, asker = _asked(world_model, questions, said)
    assert [score.question_id for score in scores] == [q.id for q in questions]
    assert [score.prediction for score in scores] == [0] * 5 and all(
        score.letter_mass for score in scores
    )
    assert [score.generated_prediction for score in scores] == [
        questions[0].answer,
        2,
        None,
        None,
        3,
    ]
    assert [score.refused for score in scores] == [False, False, True, False, False]
    assert [score.response for score in scores][2:] == ["who knows", "A or B", "(D)"]
    counts = rows.counts()
    assert (counts["refused"], counts["unparsed"], counts["free_questions"]) == (1, 1, 0)
    lettered = asker.lettered.write(questions)
    # Generation starts at the position at which the letters are scored.
    assert engine.prompts == [request.prompt for request in lettered.requests]
    written = asker.write(questions)
    assert written.tokens == 2 * lettered.tokens
    assert [tokens for _, tokens in written.lengths()] == [
        len(prompt) + 9 for prompt in engine.prompts
    ]


@pytest.mark.parametrize("family", ["llama-3", "qwen2, D merges", "gpt-2"])
def test_an_answer_whose_first_token_merges_with_the_prompt(tmp_path: Path, family: str) -> None:
    """The prompt ends before the merged token, as for letters; the repeated part is removed."""
    tokenizer = PromptTokenizer(
        vocabularies.save(vocabularies.FAMILIES[family](), tmp_path, template=vocabularies.TIGHT)
    )
    asker = GeneratedAsker(
        tokenizer, "model", LetterAsker(Chat(tokenizer, "model"), plain), 9, "Who knows?"
    )
    questions = [vocabularies.question(number) for number in range(4)]
    written = asker.write(questions)
    answers = [
        f"{letter}. {question.choices[number]}"
        for number, (letter, question) in enumerate(zip("ABCD", questions, strict=True))
    ]
    said = []
    for question, answer, request in zip(questions, answers, written.requests, strict=True):
        messages = [*chat_messages(question), Message(role="assistant", content=answer)]
        ids, supervised = tokenizer.example(messages, "model")
        assert ids[: len(request.prompt)] == request.prompt
        end = len(ids) - supervised[::-1].index(True) - 1
        said.append(ids[len(request.prompt) : end])

    class Repeating(Scripted):
        def generate(
            self, requests: Sequence[TextRequest], sampling: Sampling
        ) -> list[list[list[int]]]:
            return [[ids] for ids in said]

        def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
            return np.full(len(requests), -1.0)

    found = GeneratedRows(ChoiceScores(ReliabilityConfig()), arm_schema(False, True))(
        asker.ask(Repeating(tokenizer, []), written)
    )
    assert found["response"].to_pylist() == answers
    assert found["generated_prediction"].to_pylist() == [0, 1, 2, 3]


def test_free_questions_are_asked_in_the_template(world_model: Path) -> None:
    questions = [q for q in world.load() if q.kind == "free"][:3]
    scores, rows, engine, asker = _asked(
        world_model, questions, [questions[0].aliases[0].upper(), "nonsense", "Who knows"]
    )
    prompt = asker.tokenizer.decode(engine.prompts[0])
    assert "USER:" in prompt and prompt.endswith("ASSISTANT:") and "\nB." not in prompt
    assert [(s.kind, s.correct, s.refused, s.f1) for s in scores] == [
        ("free", True, False, 1.0),
        ("free", False, False, 0.0),
        ("free", False, True, 0.0),
    ]
    assert all(
        s.probs is None and s.prediction is None and math.isnan(s.confidence) for s in scores
    )
    assert rows.counts() == {"free_questions": 3, "refused": 1, "unparsed": 0, "exact_match": 1 / 3}


def _evaluate(folder: Path, world_model: Path, engine: str, **settings: object) -> list[Score]:
    config: Config = from_dict(
        {"output_dir": str(folder), "evaluate": {"engine": engine, "chunk_size": 64, **settings}}
    )
    write_jsonl(folder / "questions.jsonl", [q for q in world.load() if q.split == "test"][::5])
    questions = QuestionFile(folder / "questions.jsonl")
    task = Task("evaluate", folder / "evaluate" / ARM.name, "key", {}, ARM)
    run.ask(
        config,
        [(task, [ARM], world_model)],
        questions,
        folder / "logs",
        None,
        Bar("evaluate", None, None),
    )
    return read_parquet(folder / "evaluate" / ARM.name / SCORES_FILE, Score)


@pytest.mark.engine
def test_the_stage_with_an_engine(world_model: Path, tmp_path: Path) -> None:
    plainly = _evaluate(tmp_path / "plain", world_model, "transformers")
    scores = _evaluate(
        tmp_path / "generated", world_model, "transformers", generate=True, max_tokens=6
    )
    choice = [score for score in scores if score.kind == "choice"]
    free = [score for score in scores if score.kind == "free"]
    assert choice and free and len(choice) == len(plainly)
    # Generation does not affect the letters' scores.
    assert [s.logprobs for s in choice] == [s.logprobs for s in plainly]
    assert all(s.response is not None and s.refused is not None for s in scores)
    # The greedy answer starts with the likeliest letter if letters have most of the probability.
    sure = [s for s in choice if s.letter_mass is not None and s.letter_mass * s.confidence > 0.5]
    assert all(s.generated_prediction == s.prediction for s in sure)
    manifest = read_manifest(tmp_path / "generated" / "evaluate" / ARM.name)
    assert manifest is not None
    assert manifest.counts["questions"] == len(choice) and manifest.counts["free_questions"] == len(
        free
    )
    names = pq.read_schema(tmp_path / "plain" / "evaluate" / ARM.name / SCORES_FILE).names
    assert "group" in names and "response" not in names
