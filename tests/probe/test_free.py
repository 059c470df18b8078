"""Free questions: their prompts, and the scores of their answers."""

import random
from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import FreeConfig, ProbeConfig, ReliabilityConfig
from ift_scale.engines.protocol import Sampling, TextRequest
from ift_scale.io.files import write_jsonl
from ift_scale.io.manifests import digest_of
from ift_scale.probe import free
from ift_scale.probe.selection import shuffled_by_topic
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Question, Score
from ift_scale.scoring.question_file import QuestionFile


def _question(number: int, split: str, kind: str = "free") -> Question:
    settings = {
        "domain": "d",
        "subject": "d",
        "collection": "pool",
        "question": f"What is {number}?",
    }
    free_parts = (
        {"aliases": ["copper", "Cu"]}
        if kind == "free"
        else {"choices": ["iron", "copper"], "answer": 1}
    )
    return Question(id=f"q{number}", split=split, kind=kind, **settings, **free_parts)  # type: ignore[arg-type]


def test_a_question_is_asked_with_every_draw_and_scored(world_model: object) -> None:
    tokenizer = PromptTokenizer(world_model)  # type: ignore[arg-type]
    config = ProbeConfig(
        num_shots=2,
        reliability=ReliabilityConfig(demonstration_draws=2),
        free=FreeConfig(ask=True, num_samples=2, max_tokens=9),
    )
    dev = [_question(i, "dev", "choice") for i in range(5)]
    asker = free.FreeAsker(tokenizer, Demonstrations(dev, 2, 42), config)
    written = asker.write([_question(7, "test"), _question(8, "test")])
    prompts = [tokenizer.decode(request.prompt) for request in written.requests]
    assert len(set(prompts)) == 4 and all(
        "Question: What is" in p and "Answer: copper" in p for p in prompts
    )

    class Scripted:
        def generate(
            self, requests: Sequence[TextRequest], sampling: Sampling
        ) -> list[list[list[int]]]:
            assert sampling.max_tokens == 9 and tokenizer.tokenizer.eos_token_id in sampling.stop
            if sampling.temperature == 0:  # question 7 with both draws right, question 8 with none
                said = [["The copper"], ["iron"], ["cu"], ["lead"]]
            else:
                said = [
                    ["copper", "Copper."],
                    ["iron", "copper"],
                    ["iron", "copper"],
                    ["iron", "tin"],
                ]
                assert sampling.num_samples == 2
            return [[tokenizer.encode([" " + text])[0] for text in texts] for texts in said]

    table = asker.ask(Scripted(), written)  # type: ignore[arg-type]
    first, second = (Score.model_validate(row) for row in free.rows(table).to_pylist())
    assert (first.kind, first.response, first.correct, first.f1) == (
        "free",
        "The copper",
        True,
        1.0,
    )
    assert (first.greedy_right, first.sampled_right, first.grade) == (1.0, 0.75, "HighlyKnown")
    assert first.confidence == 0.75 and first.samples == ["copper", "Copper.", "iron", "copper"]
    assert (second.correct, second.greedy_right, second.sampled_right, second.grade) == (
        False,
        0.0,
        0.25,
        "WeaklyKnown",
    )
    assert second.probs is None and second.prediction is None
    assert digest_of(first.model_dump())


def test_answers_are_sampled_in_an_order_that_no_file_gives(tmp_path: Path) -> None:
    """One random stream serves a chunk, so its questions must not depend on the file's order."""

    def chunks(name: str, order: random.Random | None) -> tuple[list[str], list[str]]:
        asked = [
            _question(n, "test").model_copy(
                update={"domain": domain, "subject": domain, "id": f"{domain}/{n}"}
            )
            for domain in ("d", "e")
            for n in range(30)
        ]
        if order:
            order.shuffle(asked)
        write_jsonl(tmp_path / name, asked)
        file = QuestionFile(tmp_path / name)
        rows = file.select(lambda group: True)
        return [q.id for q in file.read(rows)], [
            q.id for q in file.read(shuffled_by_topic(file, rows, 0))
        ]

    (as_found, ranked), (shuffled, again) = chunks("a", None), chunks("b", random.Random(2))
    assert ranked == again and as_found != shuffled and sorted(ranked) == sorted(as_found)
    assert ranked != as_found and [id[0] for id in ranked] == ["d"] * 30 + ["e"] * 30
