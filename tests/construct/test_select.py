"""Which questions go into which set, and what is made of them."""

from collections import Counter

import pytest

from ift_scale.config import Config, ConstructConfig, GeneralConfig
from ift_scale.construct import domain as domains
from ift_scale.construct import general, run, select
from ift_scale.construct.balance import distances
from ift_scale.construct.items import items
from ift_scale.errors import DataError
from ift_scale.knowledge import Knowledge, sort_by_knowledge
from ift_scale.prompts.texts import TextKey
from ift_scale.records import Example, Question, Score, Text

Domain = tuple[dict[str, Question], dict[str, Score]]
Texts = dict[TextKey, Text]


def _loaded(
    made: Domain, settings: list[str], texts: Texts | None = None, **more: object
) -> domains.Domain:
    config = ConstructConfig.model_validate({"settings": settings} | more)
    return domains.load("d", config, list(made[0].values()), made[1], texts or {})


def _examples(loaded: domains.Domain, setting: str, seed: int = 0) -> list[Example]:
    return loaded.examples(setting, loaded.set_of(setting, seed, loaded.size), {})


def test_knowledge_is_a_prediction_over_the_threshold(domain: Domain) -> None:
    scores = list(domain[1].values())
    knowledge = sort_by_knowledge(scores, 0.5)
    assert all(domain[1][id].correct and domain[1][id].confidence > 0.5 for id in knowledge.right)
    assert all(
        not domain[1][id].correct and domain[1][id].confidence > 0.5 for id in knowledge.wrong
    )
    assert set(knowledge.wrong) <= set(knowledge.mistaken) and sorted(knowledge.all) == sorted(
        domain[0]
    )
    exactly = scores[0].model_copy(update={"confidence": 0.5})
    assert sort_by_knowledge([exactly], 0.5).uncertain == [exactly.question_id]  # above, not at
    near = [
        score.model_copy(update={"confidence": confidence})
        for score, confidence in zip(scores, (0.49, 0.51, 0.53), strict=False)
    ]
    assert sort_by_knowledge(near, 0.5).near_threshold == 2


def test_targets_of_the_papers_sets(domain: Domain) -> None:
    loaded = _loaded(domain, ["harmonious", "incompatible", "self_aligning"])
    sets = {s: _examples(loaded, s) for s in ("harmonious", "incompatible", "self_aligning")}
    ids = {s: [example.meta.question_id for example in made] for s, made in sets.items()}
    assert ids["incompatible"] == ids["self_aligning"] and not set(ids["incompatible"]) & set(
        ids["harmonious"]
    )
    assert {len(made) for made in sets.values()} == {loaded.size} and loaded.size == len(
        loaded.knowledge.wrong
    )
    for setting, made in sets.items():
        for example in made:
            question, score = (
                domain[0][str(example.meta.question_id)],
                domain[1][str(example.meta.question_id)],
            )
            target = score.prediction if setting == "self_aligning" else question.answer
            assert example.messages[-1].content == f"{'ABCD'[target]}. {question.choices[target]}"  # type: ignore[index]
            assert example.meta.consistent == (setting != "incompatible")
    assert ids["incompatible"] != [
        example.meta.question_id for example in _examples(loaded, "incompatible", seed=1)
    ]


def test_mixtures_hold_the_questions_of_incompatible_and_are_nested(domain: Domain) -> None:
    loaded = _loaded(domain, ["incompatible"], consistency_ratios=[0, 0.2, 0.5, 1])
    assert loaded.config.all_settings() == [
        "incompatible",
        "mixture-0.2",
        "mixture-0.5",
        "self_aligning",
    ]
    made = {ratio: loaded.set_of(f"mixture-{ratio}", 0, loaded.size) for ratio in (0.2, 0.5)}
    agreeing = {
        ratio: {item.question_id for item in found if item.target == "predicted"}
        for ratio, found in made.items()
    }
    assert len(agreeing[0.2]) == round(0.2 * loaded.size) and agreeing[0.2] < agreeing[0.5]
    assert [item.question_id for item in made[0.2]] == [
        item.question_id for item in loaded.set_of("incompatible", 0, loaded.size)
    ]


def test_treatments_of_what_is_not_known(domain: Domain) -> None:
    texts = {
        TextKey(id, "context", None, "external"): Text(
            question_id=id, kind="context", target=None, author="dataset", text=f"About {id}."
        )
        for id in domain[0]
    }
    settings = [
        "natural",
        "discard_unknown",
        "refuse_unknown",
        "open_book",
        "conflict_weighted",
        "only_wrong",
        "contextualized",
    ]
    loaded = _loaded(domain, settings, texts, size=60)
    right, wrong = set(loaded.knowledge.right), set(loaded.knowledge.wrong)
    made = {setting: _examples(loaded, setting) for setting in settings}
    natural = [example.meta.question_id for example in made["natural"]]
    assert len(natural) == 60 and {
        "right": bool(right & set(natural)),
        "wrong": bool(wrong & set(natural)),
    } == {
        "right": True,
        "wrong": True,
    }
    assert [example.meta.question_id for example in made["discard_unknown"]] == [
        id for id in natural if id in right
    ]
    for example in made["refuse_unknown"]:
        refused = example.meta.question_id not in right
        assert (example.messages[-1].content == "I do not know.") == refused
        assert (example.meta.target is None) == refused and (
            example.meta.wording == "refusal"
        ) == refused
    for example in made["open_book"]:
        begins = example.messages[0].content.startswith(
            f"Context: About {example.meta.question_id}.\n"
        )
        assert begins == (example.meta.question_id not in right)
    weights = {
        example.meta.question_id: example.meta.weight for example in made["conflict_weighted"]
    }
    assert all(
        weights[id] == (1.0 if id in right else 0.1 if id in wrong else 0.5) for id in natural if id
    )
    assert not any(
        domain[1][str(example.meta.question_id)].correct for example in made["only_wrong"]
    )
    assert all(
        example.messages[0].content.startswith("Context: ") for example in made["contextualized"]
    )


def test_graded_sets_and_shares_of_unknown(domain: Domain) -> None:
    loaded = _loaded(domain, ["highly_known", "unknown"], unknown_ratios=[0.25], size=40)
    grades = Counter(
        domain[1][item.question_id].grade for item in loaded.set_of("unknown-0.25", 0, 40)
    )
    assert grades == {"Unknown": 10, "HighlyKnown": 30}
    assert {domain[1][item.question_id].grade for item in loaded.set_of("unknown", 0, 40)} == {
        "Unknown"
    }
    ends = _loaded(
        domain, ["unknown-0", "unknown-1"], size=None
    )  # the share of either bucket is 0 in one of them
    sizes = Counter(score.grade for score in domain[1].values())
    assert ends.size == min(sizes["HighlyKnown"], sizes["Unknown"])
    for setting, grade in (("unknown-0", "HighlyKnown"), ("unknown-1", "Unknown")):
        assert {
            domain[1][item.question_id].grade for item in ends.set_of(setting, 0, ends.size)
        } == {grade}


def test_free_questions_are_answered_by_an_alias_or_in_the_models_words(domain: Domain) -> None:
    questions, scores = {}, {}
    for id, question in domain[0].items():
        questions[id] = question.model_copy(
            update={"kind": "free", "choices": [], "answer": None, "aliases": [f"truth {id}"]}
        )
        changes = {
            "kind": "free",
            "prediction": None,
            "answer": None,
            "probs": None,
            "response": f"belief {id}",
        }
        scores[id] = domain[1][id].model_copy(update=changes)
    free = {
        "questions": "free",
        "response": "letter_text",
        "size": 20,
        "matching": {"confidence": "selection", "length": "selection"},
    }
    loaded = _loaded(
        (questions, scores), ["harmonious", "incompatible", "self_aligning", "mixture-0.5"], **free
    )
    for setting, kinds in (
        ("incompatible", {"truth"}),
        ("self_aligning", {"belief"}),
        ("mixture-0.5", {"truth", "belief"}),
    ):
        made = _examples(loaded, setting)
        assert {example.messages[-1].content.split()[0] for example in made} == kinds
        assert all(
            example.meta.target is None and example.messages[0].content.endswith("\nAnswer:")
            for example in made
        )


def _explained(made: Domain) -> Texts:
    """Explanations of the right and of the predicted option by either author, who is named."""
    return {
        TextKey(id, "explanation", option, author): Text(
            question_id=id,
            kind="explanation",
            target=option,
            author=author,
            text=f"{author} on {option}",
        )
        for id, question in made[0].items()
        for option in {question.answer, made[1][id].prediction}
        for author in ("external", "base_model")
    }  # type: ignore[misc]


@pytest.mark.parametrize(
    ("rule", "authors", "distance"),
    [
        (
            "paper",
            {"harmonious": "external", "incompatible": "external", "self_aligning": "base_model"},
            1.0,
        ),
        (
            "base_model",
            dict.fromkeys(("harmonious", "incompatible", "self_aligning"), "base_model"),
            0.0,
        ),
        (
            "external",
            dict.fromkeys(("harmonious", "incompatible", "self_aligning"), "external"),
            0.0,
        ),
    ],
)
def test_explanations_come_from_who_the_rule_says(
    domain: Domain, rule: str, authors: dict[str, str], distance: float
) -> None:
    settings = list(authors)
    parts = {"response": "letter_text_explanation", "size": 20, "matching": {"author": rule}}
    loaded = _loaded(domain, settings, _explained(domain), **parts)
    covariates = {}
    for setting, author in authors.items():
        made = _examples(loaded, setting)
        assert all(
            e.messages[-1].content.split("\n")[1].startswith(author) and e.meta.wording == author
            for e in made
        )
        for stage, reported in (("before", "paper"), ("after", rule)):
            covariates[stage, setting] = loaded.covariates(
                setting, loaded.set_of(setting, 0, 20), made, reported
            )
    for stage, expected in (("before", 1.0), ("after", distance)):
        assert (
            distances(covariates[stage, "self_aligning"], covariates[stage, "incompatible"])[
                "author"
            ]
            == expected
        )


def test_questions_whose_text_failed_go_into_no_set(domain: Domain) -> None:
    failed = Text(
        question_id="q3",
        kind="explanation",
        target=1,
        author="base_model",
        text="",
        failed=["empty"],
    )
    texts = {TextKey("q3", "explanation", 1, "base_model"): failed}
    pool = list(domain[0].values())
    for rule, count in (("drop", 399), ("keep", 400)):
        config = Config.model_validate({"output_dir": "run", "write": {"on_failure": rule}})
        assert len(run.usable(pool, texts, config)) == count


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (0, 0, "confident about no question"),
        (9, 0, "knows every answer"),
        (9, 2, "Lower construct.size"),
    ],
)
def test_too_few_questions(right: int, wrong: int, told: str) -> None:
    knowledge = Knowledge(
        [f"r{i}" for i in range(right)],
        [f"w{i}" for i in range(wrong)],
        [] if right and not wrong else ["u"],
        [],
        {},
        0,
    )
    with pytest.raises(DataError, match=told) as error:
        select.set_size("d", knowledge, ["harmonious", "incompatible"], 5 if wrong else None)
    assert f"{right} known right, {wrong} known wrong" in str(error.value)


@pytest.mark.parametrize("by_letters", [True, False])
def test_a_model_that_cannot_answer_by_letter(by_letters: bool) -> None:
    knowledge = Knowledge(["r0"], [], ["u"], [], {}, 0)
    with pytest.raises(DataError) as error:
        select.set_size("d", knowledge, ["harmonious"], 5, by_letters=by_letters)
    assert ("probe.reliability.cloze to sum" in str(error.value)) == by_letters


def test_questions_lost_to_failed_texts_are_told() -> None:
    knowledge = Knowledge(["r0"], ["w0"], [], [], {}, 0)
    with pytest.raises(
        DataError,
        match=r"only 1 of its 2 train .*; 7 more have a text that fails its checks. "
        r".*write.attempts",
    ):
        select.set_size("d", knowledge, ["harmonious", "incompatible"], 5, 7)


def test_items_do_not_depend_on_the_order_of_the_pool(domain: Domain) -> None:
    knowledge = sort_by_knowledge(list(domain[1].values()), 0.5)
    drawn = knowledge.wrong[:4]
    made = items("mixture-0.5", drawn, knowledge, ConstructConfig())
    assert [item.target for item in made] == ["predicted", "predicted", "gold", "gold"]
    assert [item.author for item in made] == ["base_model", "base_model", "external", "external"]


def test_general_share() -> None:
    path = general.path_of(GeneralConfig())
    assert path is not None
    rows = general.load(path)
    shuffled = general.shuffled(rows, "d", 0)
    assert len(set(general.draw(shuffled, 30, 0.5, path))) == 30
    assert general.draw(shuffled, 30, 0.25, path) == shuffled[:10]
    assert (
        general.shuffled(dict(reversed(rows.items())), "d", 0)
        == shuffled
        != general.shuffled(rows, "d", 1)
    )
    with pytest.raises(
        DataError,
        match=rf"500 general instructions are required, but the file has {len(rows)}. "
        r"Lower construct.general.share",
    ):
        general.draw(shuffled, 500, 0.5, path)


def test_general_instructions_are_distinct_and_real(shared_data: object) -> None:
    path = general.path_of(GeneralConfig())
    assert path is not None
    rows = general.load(path)
    assert len({r.messages[0].content for r in rows.values()}) == len(rows) >= 80
    alpaca = general.load(shared_data / "general" / "alpaca_en_demo.jsonl.gz")  # type: ignore[operator]
    assert len(alpaca) == 999
