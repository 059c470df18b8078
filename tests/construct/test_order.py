"""Sets depend on questions and seed, not on file order; reordered letters are equal in all sets."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ift_scale.config import Config, ConstructConfig
from ift_scale.construct import domain as domains
from ift_scale.construct import general, run
from ift_scale.construct.arms import arms_of
from ift_scale.construct.even_letters import common_profile, even_letters
from ift_scale.construct.invented import invent
from ift_scale.io.files import read_jsonl
from ift_scale.io.manifests import read_manifest
from ift_scale.prompts.texts import TextKey
from ift_scale.records import Example, Question, Score, Text
from ift_scale.scoring.question_file import GroupKey
from ift_scale.stage import Task
from ift_scale.treatments import BY_NAME

Made = tuple[dict[str, Question], dict[str, Score]]
SETTINGS = [*BY_NAME, "mixture-0.2", "unknown-0.25"]
SELECTION = {"letters": "selection", "confidence": "selection", "length": "selection", "bins": 3}


def _files(
    made: Made, folder: Path, order: random.Random | None, **construct: object
) -> dict[str, str]:
    """Digests of a construct stage's files with all inputs in the order that `order` draws."""
    questions, scores, texts = [], {}, {}
    for name in ("d", "e"):
        for id, question in made[0].items():
            new = f"{name}/{id}"
            questions.append(
                question.model_copy(update={"id": new, "domain": name, "subject": name})
            )
            scores[new] = made[1][id].model_copy(update={"question_id": new, "domain": name})
            text = Text(
                question_id=new, kind="context", target=None, author="dataset", text=f"About {id}."
            )
            texts[TextKey(new, "context", None, "external")] = text
    instructions = general.path_of(ConstructConfig().general)
    assert instructions is not None
    lines = instructions.read_text().splitlines(keepends=True)
    lines += lines[:2]  # equal rows
    if order:
        for rows in (questions, lines):
            order.shuffle(rows)
        scores, texts = (
            dict(order.sample(list(pairs.items()), len(pairs))) for pairs in (scores, texts)
        )  # type: ignore[assignment]
    folder.mkdir()
    (folder / "general.jsonl").write_text("".join(lines))
    settings = {
        "settings": SETTINGS,
        "size": 24,
        "seeds": [0, 1],
        "across_domains": True,
    } | construct
    settings |= {"general": {"path": str(folder / "general.jsonl"), "share": 0.5}}
    config = Config.model_validate({"output_dir": str(folder), "construct": settings})
    arms = arms_of(config, [GroupKey.of(question) for question in questions])
    task = Task("construct", folder / "construct", "key", {})
    run.build(config, task, arms, questions, scores, texts, invent(questions, []))
    manifest = read_manifest(folder / "construct")
    assert manifest is not None
    return manifest.files


@pytest.mark.parametrize("matching", [{}, {"letters": "reorder"}, SELECTION])
def test_a_shuffled_pool_gives_the_same_sets_byte_for_byte(
    domain: Made, tmp_path: Path, matching: dict[str, Any]
) -> None:
    construct: dict[str, Any] = {"matching": matching}
    if matching == SELECTION:
        construct |= {
            "settings": ["harmonious", "incompatible", "self_aligning", "mixture-0.2"],
            "size": None,
            "seeds": [0],
        }
    found = _files(domain, tmp_path / "a", None, **construct)
    assert _files(domain, tmp_path / "b", random.Random(1), **construct) == found
    assert (
        len(found)
        == 3 * len(construct.get("settings", SETTINGS)) * len(construct.get("seeds", (0, 1))) + 1
    )


def test_one_question_more_changes_a_set_by_one(domain: Made) -> None:
    def ids(gone: str | None, setting: str) -> set[str]:
        pool = [question for question in domain[0].values() if question.id != gone]
        config = ConstructConfig.model_validate({"settings": SETTINGS, "size": 24})
        return {
            item.question_id
            for item in domains.load("d", config, pool, domain[1], {}).set_of(setting, 0, 24)
        }

    for setting in ("harmonious", "incompatible", "natural", "unknown-0.25"):
        whole = ids(None, setting)
        for gone in sorted(whole)[:3]:
            assert len(ids(gone, setting) & whole) == 23


def _of_several_lengths(made: Made) -> Made:
    """The same with 3 to 6 options; wrong answers have more, so profiles differ."""
    draw = random.Random(9)
    questions, scores = {}, {}
    for id, question in made[0].items():
        score = made[1][id]
        assert (
            question.answer is not None and score.prediction is not None and score.probs is not None
        )
        least = max(3, question.answer + 1, score.prediction + 1)
        count = min(6, least + draw.choice((0, 1) if score.correct else (0, 1, 2, 3)))
        choices = [f"option {number} of {id}" for number in range(count)]
        questions[id] = question.model_copy(update={"choices": choices})
        probs = [*score.probs, 0.0, 0.0][:count]
        scores[id] = score.model_copy(update={"probs": probs})
    return questions, scores


@pytest.mark.parametrize("size", [None, 31])
def test_reordered_letters_are_equal_with_varying_numbers_of_options(
    domain: Made, size: int | None
) -> None:
    questions, scores = _of_several_lengths(domain)
    settings = [
        "harmonious",
        "incompatible",
        "self_aligning",
        "mixture-0.4",
        "natural",
        "refuse_unknown",
        "discard_unknown",
    ]
    config = ConstructConfig.model_validate(
        {"settings": settings, "size": size, "matching": {"letters": "reorder"}}
    )
    loaded = domains.load("d", config, list(questions.values()), scores, {})
    letters: dict[str, Counter[str]] = {}
    lengths: dict[str, Counter[int]] = {}
    for setting in settings:
        chosen = loaded.set_of(setting, 0, loaded.size)
        examples = loaded.examples(setting, chosen, loaded.letters(setting, 0, loaded.size))
        letters[setting] = Counter(
            str(example.meta.target) for example in examples if example.meta.target
        )
        lengths[setting] = Counter(len(questions[item.question_id].choices) for item in chosen)
        for item, example in zip(chosen, examples, strict=True):
            target = loaded.builder.target(item)
            if target is None:
                assert example.messages[-1].content == config.refusal
                continue
            text = f"{example.meta.target}. {questions[item.question_id].choices[target]}"
            assert (
                example.messages[-1].content == text
                and f"\n{text}\n" in example.messages[0].content
            )
            assert all(
                f". {option}\n" in example.messages[0].content
                for option in questions[item.question_id].choices
            )
    assert lengths["harmonious"] != lengths["incompatible"]  # or else nothing would be shown
    same = [
        letters[s]
        for s in ("harmonious", "incompatible", "self_aligning", "mixture-0.4", "natural")
    ]
    assert all(found == same[0] for found in same) and sum(same[0].values()) == loaded.size
    assert letters["refuse_unknown"] == letters["discard_unknown"]
    assert (
        len(same[0]) >= 4
        and max(same[0][letter] for letter in "ABC") - min(same[0][letter] for letter in "ABC") <= 3
    )


def test_the_common_profile_is_what_every_set_can_serve() -> None:
    assert common_profile([[4, 4, 3], [5, 3, 3]]) == [3, 3, 4] and common_profile([[2, 9]]) == [
        2,
        9,
    ]
    long = {f"q{number}": 5 for number in range(12)}
    found = even_letters(long, [2] * 4 + [4] * 8, "key")
    assert Counter(found.values()) == {
        0: 4,
        1: 4,
        2: 2,
        3: 2,
    }  # two letters twice each, four letters twice each
    # One question replaced by another moves few of the others' letters.
    other = {id: 5 for id in long if id != "q3"} | {"new": 5}
    moved = even_letters(other, [2] * 4 + [4] * 8, "key")
    assert sum(moved[id] != found[id] for id in long if id in other) <= 5


def test_the_order_of_examples_is_random(domain: Made, tmp_path: Path) -> None:
    """Questions and general instructions are mixed; questions are not in drawing order."""
    _files(domain, tmp_path / "a", None, settings=["incompatible"])
    rows = read_jsonl(tmp_path / "a" / "construct" / "d-incompatible-seed0.jsonl", Example)
    general_first = [row.meta.setting == "general" for row in rows][:24]
    assert 4 < sum(general_first) < 20
    assert json.loads((tmp_path / "a" / "general.jsonl").read_text().splitlines()[0])["output"]
