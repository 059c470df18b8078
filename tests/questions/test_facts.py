"""`kind: facts`: right and wrong options, splits by entity, limits, licenses."""

import re
from collections import Counter, defaultdict
from importlib import resources
from pathlib import Path

import pytest

from ift_scale.config.file import from_dict
from ift_scale.config.questions import FactsSource
from ift_scale.errors import ConfigError
from ift_scale.prompts.answer_parsing import exact_match, normalise
from ift_scale.questions import facts, sources
from ift_scale.records import Question

ROOT = Path(__file__).parent.parent.parent
FACTS, RELATIONS = facts.facts(), facts.relations()
POOLS = {name for name, relation in RELATIONS.items() if relation.collection == "pool"}


def _load(**settings: object) -> list[Question]:
    return list(facts.load(FactsSource.model_validate({"kind": "facts", **settings}), 42))


QUESTIONS = _load()
# Wrong options that are the answer for no country: the country's name or the data forbid it.
OTHER_UNITS = {"afghani", "boliviano", "leone", "lev"}
LANGUAGES = {fact.answer for fact in FACTS if fact.relation == "language"} | set(
    "Albanian Amharic Armenian Azerbaijani Bangla Czech Greek Icelandic Indonesian Korean Lao "
    "Macedonian Polish Serbian Slovak Turkish Turkmen Vietnamese".split()
)
CHOICE = [question for question in QUESTIONS if question.kind == "choice"]
FREE = [question for question in QUESTIONS if question.kind == "free"]


def test_counts() -> None:
    assert len(CHOICE) == len(FREE) == len(FACTS) and 2000 <= len(FACTS) <= 3000
    sizes = Counter((q.domain, q.collection, q.split) for q in CHOICE)
    for domain in ("geography", "society", "chemistry"):
        assert sizes[domain, "pool", "train"] >= 240
        assert sizes[domain, "pool", "test"] >= 140
        assert sizes[domain, "pool", "dev"] >= 10
        assert sizes[domain, "benchmark", "test"] >= 100
    assert sizes["aviation", "benchmark", "test"] >= 150 and "aviation" not in {
        q.domain for q in CHOICE if q.collection == "pool"
    }
    assert not [q for q in QUESTIONS if q.collection == "benchmark" and q.split == "train"]
    dev = Counter(q.topic for q in CHOICE if q.split == "dev")
    assert min(dev.values()) >= 5 and dev.keys() == {q.topic for q in CHOICE}


def test_no_entity_is_in_two_splits() -> None:
    split_of: dict[tuple[str, str], set[str]] = defaultdict(set)
    for fact in FACTS:
        split_of[RELATIONS[fact.relation].entity, fact.key].add(fact.split)
    assert len(split_of) > 700 and all(len(found) == 1 for found in split_of.values())
    # A country is one entity in geography and in society.
    assert {RELATIONS[name].domain for name in POOLS if RELATIONS[name].entity == "country"} == {
        "geography",
        "society",
    }


def test_no_question_occurs_twice() -> None:
    for asked in (CHOICE, FREE):
        assert max(Counter(normalise(q.question) for q in asked).values()) == 1
    assert max(Counter(question.id for question in QUESTIONS).values()) == 1


def test_one_option_is_right() -> None:
    right: dict[tuple[str, str], list[str]] = {}
    for fact in FACTS:
        right[fact.relation, fact.key] = fact.aliases or [fact.answer]
    for fact in FACTS:
        options = [fact.answer, *fact.others]
        assert len({normalise(option) for option in options}) == len(options) == 4, fact
        for other in fact.others:
            assert not exact_match(other, right[fact.relation, fact.key]), fact
    for question in CHOICE:
        assert question.answer is not None and len(question.choices) == 4


def test_wrong_options_are_of_the_answers_kind() -> None:
    """Each is the answer to the same question about another entity, or a city or script."""
    answers: dict[str, set[str]] = defaultdict(set)
    for fact in FACTS:
        answers[fact.relation].add(fact.answer)
    answers["capital_of"] |= answers["border"] | answers["cities"] | answers["calling_codes"]
    names = answers["capital_of"] | {f.subject for f in FACTS if f.relation == "continent"}
    names |= {f.subject for f in FACTS if f.relation == "currency"}
    names |= {f.subject for f in FACTS if f.relation == "calling_code"}
    symbols = {fact.key for fact in FACTS if RELATIONS[fact.relation].entity == "element"}
    elements = {fact.answer for fact in FACTS if fact.relation == "symbol_of"}
    for fact in FACTS:
        others = set(fact.others)
        match fact.relation:
            case "capital_of" | "border" | "cities" | "calling_codes":
                assert others <= names, fact
            case "symbol":
                assert others <= symbols
            case "symbol_of" | "number_of" | "element_order":
                assert others <= elements
            case "number" | "period" | "group":
                assert all(0 < int(other) <= 120 for other in others)
                assert fact.relation != "number" or all(
                    abs(int(other) - int(fact.answer)) <= 8 for other in others
                )
            case "calling_code":
                assert all(re.fullmatch(r"\+\d{1,3}", other) for other in others)
                assert {len(other) for other in others} == {len(fact.answer)}
            case "currency":
                assert others <= answers["currency"] | OTHER_UNITS, fact
            case "language":
                assert others <= LANGUAGES, fact
            case "continent" | "element_blocks" | "element_series":
                assert others <= answers[fact.relation], fact
            case "capital":
                assert others & names <= {"Djibouti", "Luxembourg", "Monaco", "San Marino"}
            case "scripts":
                assert others <= answers["scripts"] | {"Greek", "Hebrew"}
            case _:
                assert fact.relation == "airports" and others <= answers["airports"]


def test_answers_aliases_and_explanations() -> None:
    free = {question.id.removesuffix("/free"): question for question in FREE}
    for question in CHOICE:
        assert question.answer is not None
        answer, alone = question.choices[question.answer], free[question.id]
        assert exact_match(answer, alone.aliases) and not alone.choices
        assert question.explanation is not None and answer in question.explanation
        assert question.explanation.endswith(".") and "{" not in question.explanation
        assert question.question.endswith("?") and "  " not in question.question
        assert "these" not in alone.question
        assert (alone.split, alone.subject) == (question.split, question.subject)
    known = {fact.id: fact.aliases for fact in FACTS}
    assert "Nay Pyi Taw" in known["facts/capital/MM"]
    assert {"aluminium", "aluminum"} <= set(known["facts/symbol_of/Al"])
    assert {"France", "Belgium"} <= set(known["facts/border/LU"])


def test_letters_are_even() -> None:
    shares = Counter(question.answer for question in CHOICE)
    assert min(shares.values()) > 0.22 * len(CHOICE)


def test_limits_and_domains() -> None:
    chosen = _load(domains=["chemistry"], max_train=40, max_test=30, max_per_subject=10)
    sizes = Counter(
        (q.collection, q.subject * (q.collection == "benchmark"), q.split, q.kind) for q in chosen
    )
    for kind in ("choice", "free"):
        assert sizes["pool", "", "train", kind] == 40 and sizes["pool", "", "test", kind] == 30
        assert sizes["benchmark", "element_blocks", "test", kind] == 10
    assert {q.domain for q in chosen} == {"chemistry"}
    ids = {q.id for q in chosen if q.kind == "choice"}
    assert {q.id.removesuffix("/free") for q in chosen} == ids <= {q.id for q in CHOICE}


def test_in_a_configuration() -> None:
    config = from_dict({"output_dir": "x", "questions": {"sources": [{"kind": "facts"}]}})
    placed = list(sources.placed(config))
    assert len(placed) == len(QUESTIONS) and str(placed[0][1]) == "facts"
    with pytest.raises(ConfigError, match="none of them is a pool"):
        from_dict(
            {
                "output_dir": "x",
                "questions": {"sources": [{"kind": "facts", "domains": ["aviation"]}]},
            }
        )


def test_every_package_of_the_facts_has_its_license() -> None:
    text = (resources.files("ift_scale.questions") / "facts_sources.md").read_text("utf-8")
    listed = (ROOT / "benchmarks" / "facts.txt").read_text().split()
    for line in listed:
        name, version = line.split("==")
        (row,) = [row for row in text.splitlines() if f"/project/{name}/" in row]
        assert f"| {version} |" in row and re.search(r"MIT|Apache|BSD", row)
    assert "CC BY 4.0" in text and "Unicode License" in text


def test_the_documentation_has_the_counts() -> None:
    page = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
    sizes = Counter((q.domain, q.collection, q.split) for q in CHOICE)
    for domain in ("geography", "society", "chemistry", "aviation"):
        pool = ", ".join(str(sizes[domain, "pool", split]) for split in ("dev", "train", "test"))
        row = re.search(rf"^\| {domain} \| (.+?) \| .* \| (.+?) \| ", page, re.MULTILINE)
        assert row is not None and row[1] in (pool, "none")
        benchmark = (sizes[domain, "benchmark", split] for split in ("dev", "test"))
        assert row[2] == ", ".join(map(str, benchmark))
