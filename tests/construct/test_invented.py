"""Invented questions: the frame of real ones, about nothing, with answers at random."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ift_scale.config.engines import EvaluateConfig
from ift_scale.config.file import from_dict
from ift_scale.construct.invented import invent, words_of
from ift_scale.construct.run import build
from ift_scale.engines.protocol import EngineSpec
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.errors import ConfigError
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import world
from ift_scale.records import Arm, Question, Score
from ift_scale.scoring.letters import FewShot, LetterAsker
from ift_scale.stage import Task


def _pool() -> list[Question]:
    return [
        q for q in world.load() if (q.collection, q.split, q.kind) == ("pool", "train", "choice")
    ]


def _question(number: int, text: str, choices: list[str]) -> Question:
    about: Any = {"domain": "d", "subject": "d", "collection": "pool", "split": "train"}
    return Question(id=f"q{number}", question=text, choices=choices, answer=0, **about)


def test_in_the_world_exactly_the_names_are_invented() -> None:
    everything, pool = world.load(), _pool()
    made = invent(pool, everything)
    known = {
        word for q in everything for text in (q.question, *q.choices) for word in words_of(text)
    }
    options = {(q.domain, *q.choices) for q in pool}
    answers = Counter(made[q.id].answer for q in pool)
    assert set(answers) == {0, 1, 2, 3} and min(answers.values()) > 120  # of 640
    agrees = np.mean([made[q.id].answer == q.answer for q in pool])
    assert 0.19 < agrees < 0.31
    for question in pool:
        new = made[question.id]
        pairs = zip(question.question.split(), new.question.split(), strict=True)
        ((old_name, new_name),) = [pair for pair in pairs if pair[0] != pair[1]]
        assert words_of(new_name).isdisjoint(known) and len(new_name) == len(old_name)
        assert new_name.strip("?").istitle()
        assert (question.domain, *new.choices) in options
    assert made == invent(pool[::-1], everything)


def test_particular_words_are_replaced_in_every_script() -> None:
    texts = [
        f"Which drug of {name} treats DX{number} in the {city}? Not {name}."
        for number, (name, city) in enumerate(
            [("Анна", "北京"), ("Борис", "上海"), ("Вера", "广州"), ("Глеб", "深圳")]
        )
    ]
    pool = [_question(n, text, ["ja", "nein"]) for n, text in enumerate(texts)]
    made = invent(pool, [])
    for question in pool:
        words = made[question.id].question.split()
        assert [
            words[i] for i in (0, 1, 2, 4, 6, 7, 9)
        ] == "Which drug of treats in the Not".split()
        name, code, city, again = words[3], words[5], words[8].strip("?"), words[10].strip(".")
        assert name == again and name.istitle() and code.isupper()
        assert {name.lower(), code.lower(), city}.isdisjoint(words_of(" ".join(texts)))


def test_options_come_from_another_question_with_as_many() -> None:
    pool = [
        _question(n, f"What is w{n}x?", [f"{n}{k}" for k in range(2 + n % 2)]) for n in range(8)
    ]
    made = invent(pool, [])
    for question in pool:
        new = made[question.id]
        assert len(new.choices) == len(question.choices) and new.choices != question.choices
    assert len({tuple(new.choices) for new in made.values()}) == 8  # each once


def test_a_set_has_the_form_of_the_others_and_no_confidence(
    tmp_path: Path, domain: tuple[dict[str, Question], dict[str, Score]]
) -> None:
    questions, scores = domain
    names = ["format_only", "incompatible", "natural"]
    config = from_dict(
        {
            "output_dir": str(tmp_path),
            "construct": {"settings": names, "size": 20, "matching": {"letters": "reorder"}},
        }
    )
    arms = [Arm(domain="d", setting=name, seed=0) for name in names]
    pool = list(questions.values())
    task = Task("construct", tmp_path / "construct", "key", {}, None)
    build(config, task, arms, pool, dict(scores), {}, invent(pool, []))
    sets = {
        name: [
            row
            for line in (tmp_path / "construct" / f"d-{name}-seed0.jsonl").read_text().splitlines()
            if (row := json.loads(line))["meta"]["setting"] != "general"
        ]
        for name in names
    }
    assert [len(rows) for rows in sets.values()] == [20, 20, 20]
    letters = [Counter(row["meta"]["target"] for row in rows) for rows in sets.values()]
    assert letters[0] == letters[1] == letters[2]
    ids = [{row["meta"]["question_id"] for row in sets[name]} for name in names]
    assert ids[0] == {f"invented/{id}" for id in ids[2]}  # those of `natural`
    for row in sets["format_only"]:
        user, assistant = (message["content"] for message in row["messages"])
        assert f"\n{assistant}\n" in user and "consistent" not in row["meta"]
    rows = (tmp_path / "construct" / "balance.csv").read_text().splitlines()
    own = [row for row in rows if "format_only" in row]
    assert any("length" in row for row in own) and not any("confidence" in row for row in own)


@pytest.mark.parametrize(
    ("construct", "remedy"),
    [
        ({"response": "letter_text_explanation"}, "construct.response to letter_text"),
        ({"questions": "free"}, "construct.questions to choice"),
    ],
)
def test_forms_that_an_invented_question_cannot_have_are_refused(
    construct: dict[str, Any], remedy: str
) -> None:
    construct |= {"settings": ["format_only"]}
    with pytest.raises(ConfigError, match=f"format_only has invented questions.*{remedy}"):
        from_dict(
            {"output_dir": "runs/x", "construct": construct, "probe": {"free": {"ask": True}}}
        )


@pytest.mark.engine
def test_the_base_model_is_at_chance(world_model: Path) -> None:
    """It is right by chance, and sure of fewer than of the real questions."""
    pool = _pool()[::4]
    made = invent(pool, world.load())
    demonstrations = Demonstrations([q for q in world.load() if q.split == "dev"], 5, 42)
    asker = LetterAsker(FewShot(PromptTokenizer(world_model), demonstrations, False), plain)
    engine = TransformersEngine(
        EngineSpec(str(world_model), "float32", EvaluateConfig(engine="transformers"))
    )
    right, sure = {}, {}
    for name, asked in (("real", pool), ("invented", [made[q.id] for q in pool])):
        table = asker.ask(engine, asker.write(asked))
        logprobs = np.array(table["logprobs"].to_pylist())
        probs = np.exp(logprobs) / np.exp(logprobs).sum(1, keepdims=True)
        right[name] = np.mean(probs.argmax(1) == [q.answer for q in asked])
        sure[name] = np.mean(probs.max(1) > 0.5)
    assert right["real"] > 0.5 and 0.15 < right["invented"] < 0.35  # 160 questions
    assert sure["invented"] < sure["real"] - 0.1
