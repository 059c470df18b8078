"""The items of sets without options: scored as evaluation scores, in every form."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from ift_scale.config import EngineConfig, ReliabilityConfig
from ift_scale.config.engines import ClozeScore
from ift_scale.config.learnt import LearntConfig
from ift_scale.engines.protocol import EngineSpec
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.learnt.asking import FormAsker
from ift_scale.learnt.items import Presentation
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import world
from ift_scale.records import Question
from ift_scale.scoring.blocks import softmax
from ift_scale.scoring.cloze import ChatTexts, Cloze
from ift_scale.scoring.letters import Chat, LetterAsker
from ift_scale.scoring.scores import ChoiceScores

CONTEXT = "Context: Remedies are plants.\n"


@pytest.fixture(scope="module")
def engine(world_model: Path) -> TransformersEngine:
    config = EngineConfig(engine="transformers")
    return TransformersEngine(EngineSpec(str(world_model), "float32", config))


@pytest.mark.parametrize("score", get_args(ClozeScore))
def test_every_form_has_the_answer_that_evaluation_gives_to_its_question(
    engine: TransformersEngine, world_model: Path, score: ClozeScore
) -> None:
    tokenizer = PromptTokenizer(world_model)
    writer = Chat(tokenizer, "vicuna", "text")
    texts = Cloze(ChatTexts(tokenizer, "vicuna"), score)
    questions = [q for q in world.load() if q.split == "train" and q.kind == "choice"][:40:8]
    shown = {q.id: [Presentation((0, 1, 2, 3), CONTEXT)] for q in questions}
    asker = FormAsker(tokenizer, writer, texts, shown, {}, LearntConfig(), 8)
    written = asker.write(questions)
    rows = asker.ask(engine, written).to_pylist()
    # As trained, without the context, two paraphrases, with options, and freely.
    assert len(rows) == 6 * len(questions)
    assert len(list(written.lengths())) == (4 * 4 + 1 + 1) * len(questions)
    assert written.num_requests >= len(list(written.lengths())) and written.tokens > 0
    evaluated = LetterAsker(writer, plain, texts)

    def as_evaluated(form: str, question: Question, text: str) -> None:
        (row,) = [
            r for r in rows if (r["question_id"], r["form"], r["number"]) == (question.id, form, 0)
        ]
        asked = [question.model_copy(update={"question": text})]
        decide_by = "plain" if form == "with options" else "cloze"
        scores = ChoiceScores(ReliabilityConfig(cloze=score, decide_by=decide_by))
        (expected,) = scores.rows(evaluated.ask(engine, evaluated.write(asked))).to_pylist()
        assert row["prediction"] == expected["prediction"] and row["response"] is None
        np.testing.assert_allclose(softmax(np.array(row["logprobs"])), expected["probs"], atol=1e-5)

    for question in questions:
        as_evaluated("as trained", question, CONTEXT + question.question)
        as_evaluated("without context", question, question.question)
        as_evaluated("with options", question, CONTEXT + question.question)
    free = [row for row in rows if row["form"] == "free"]
    assert all(row["logprobs"] is None and row["response"] is not None for row in free)
