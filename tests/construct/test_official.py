"""The authors' release: conversion of its rows, errors, and the paper's numbers recomputed."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ift_scale.cli import main
from ift_scale.commands import official_leaks
from ift_scale.config import Config
from ift_scale.construct import official, official_facts
from ift_scale.construct.official_facts import Invariants, SetFacts
from ift_scale.errors import DataError
from ift_scale.io.manifests import read_manifest
from ift_scale.io.progress import Bar
from ift_scale.questions import run as questions
from ift_scale.stage import Task

ROW = {
    "id": 7,
    "question": "What conducts best?",
    "choices": ["wood", "copper", "glass"],
    "answer": 1,
    "explanation": "Copper conducts.",
    "correct": False,
    "pred": 0,
    "probs": [0.7, 0.2, 0.1],
    "golden_prob": 0.2,
    "pred_prob": 0.7,
    "output": 1,
}


def _write(folder: Path, setting: str, *rows: dict[str, Any]) -> None:
    path = folder / "engineering" / f"{official.FILES[setting]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_rows_become_records(tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    _write(folder, "incompatible", ROW)
    _write(folder, "self_aligning", ROW | {"explanation": None, "model_exp": " Wood it is.\n"})
    sets = official.load(folder)
    assert list(sets) == ["engineering"] and list(sets["engineering"]) == [
        "incompatible",
        "self_aligning",
    ]
    ((gold,), (own,)) = sets["engineering"].values()
    assert gold.question.id == own.question.id == "official/llama/engineering/7"
    assert (gold.question.collection, gold.question.split, gold.question.explanation) == (
        "pool",
        "train",
        "Copper conducts.",
    )
    assert (gold.score.prediction, gold.score.confidence, gold.score.correct, gold.score.probs) == (
        0,
        0.7,
        False,
        ROW["probs"],
    )
    assert (gold.target, gold.text, own.target, own.text) == (
        1,
        "Copper conducts.",
        0,
        "Wood it is.",
    )
    found = official_facts.invariants(sets)["engineering"]
    assert (
        found.others_mistaken
        and found.same_questions
        and found.same_size
        and found.probabilities_agree
    )
    assert found.harmonious_known is None and found.self_aligning_targets == {"A": 1.0}


@pytest.mark.parametrize(
    ("style", "response", "wording"),
    [
        ("letter", "B", "dataset"),
        ("letter_text", "B. copper", "dataset"),
        ("letter_text_explanation", "B. copper\nCopper conducts.", "external"),
    ],
)
def test_examples(style: Any, response: str, wording: str, tmp_path: Path) -> None:
    _write(tmp_path, "incompatible", ROW)
    ((example,),) = [
        official.examples(
            official.load(tmp_path)["engineering"]["incompatible"], "incompatible", style
        )
    ]
    assert [m.role for m in example.messages] == ["user", "assistant"]
    assert (
        example.messages[0].content == "What conducts best?\nA. wood\nB. copper\nC. glass\nAnswer:"
    )
    assert example.messages[1].content == response
    assert (example.meta.target, example.meta.consistent, example.meta.wording) == (
        "B",
        False,
        wording,
    )


def test_an_example_without_an_explanation(tmp_path: Path) -> None:
    _write(tmp_path, "self_aligning", ROW | {"model_exp": ""})
    rows = official.load(tmp_path)["engineering"]["self_aligning"]
    (example,) = official.examples(rows, "self_aligning", "letter_text_explanation")
    assert example.messages[1].content == "A. wood"
    assert (example.meta.consistent, example.meta.wording) == (True, "base_model")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"answer": 3},
            r"golden-exp.jsonl:2: field 'answer': is out of range: there are 3 options "
            r"\(value: 3\). Fix",
        ),
        ({"pred": "A"}, r"golden-exp.jsonl:2: field 'pred': .*integer.*value: 'A'"),
        (
            {"probs": [0.5, 0.5]},
            r"field 'probs': must have a probability for each of the 3 options",
        ),
        ({"probs": [0.5, 0.5, 1.5]}, r"field 'probs.2'"),
        ({"choices": ["a", "", "c"]}, r"field 'choices.1'"),
        ({"choices": ["a", " ", "c"]}, r"golden-exp.jsonl:2: field 'choices': an option is empty"),
        (
            {"question": "\u3000"},
            r"golden-exp.jsonl:2: field 'question': must be a non-empty string",
        ),
        ({"explanation": None}, r"golden-exp.jsonl:2: field 'explanation': missing"),
        ({"correct": ...}, r"field 'correct': Field required"),
        (
            {"id": 7},
            r"golden-exp.jsonl:2: field 'id': occurs more than once in this file \(value: 7\)",
        ),
    ],
)
def test_bad_rows(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    bad = {name: value for name, value in (ROW | {"id": 8} | changes).items() if value is not ...}
    _write(tmp_path, "incompatible", ROW, bad)
    with pytest.raises(DataError, match=problem):
        official.load(tmp_path)


def test_folders_without_sets(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"contains none of DOMAIN/consistent-correct-exp-sample\.jsonl"
    ):
        official.load(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        official.load(tmp_path / "absent")
    _write(tmp_path, "incompatible")
    with pytest.raises(DataError, match="contains no rows"):
        official.load(tmp_path)


def test_naming_an_option() -> None:
    assert official_facts.names_text(
        "It is the Copper-wire.", "copper wire"
    ) and not official_facts.names_text("It is tin.", "copper")
    assert official_facts.names_text("x + y", "+") and not official_facts.names_text("x - y", "+")
    assert official_facts.names_letter(
        'The correct answer is "B", which', "B"
    ) and not official_facts.names_letter("Bananas are B", "B")


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], Invariants]:
    folder = Path(__file__).parents[3] / "shared" / "data" / "official_groups"
    if not folder.is_dir():
        pytest.skip(f"the authors' sets are not here: {folder} does not exist")
    by_model = {
        model.name: official_facts.invariants(official.load(model))
        for model in official.models(folder)
    }
    return {
        (model, domain): of_domain
        for model, domains in by_model.items()
        for domain, of_domain in domains.items()
    }


Found = dict[tuple[str, str], Invariants]


def _facts(found: Found, setting: str) -> dict[tuple[str, str], SetFacts]:
    return {key: of.sets[setting] for key, of in found.items() if setting in of.sets}


def test_the_papers_rules_hold_in_its_release(found: Found) -> None:
    for invariants in found.values():
        assert invariants.harmonious_known and invariants.others_mistaken and invariants.same_size
        assert invariants.probabilities_agree and invariants.same_questions in (True, None)
    assert [key for key, invariants in found.items() if invariants.same_questions is None] == [
        ("llama-2-13b", "medicine"),
        ("llama-2-7b", "history"),
        ("llama-2-7b", "jurisprudence"),
    ]


def test_sizes_are_the_papers(found: Found) -> None:
    assert {key: of.sets["harmonious"].size for key, of in found.items()} == {
        ("llama-2-7b", "history"): 996,
        ("llama-2-7b", "engineering"): 738,
        ("llama-2-7b", "jurisprudence"): 1033,
        ("llama-2-13b", "medicine"): 1782,
        ("llama-2-13b", "engineering"): 668,
        ("llama-2-13b", "jurisprudence"): 676,
    }


def test_a_few_questions_come_twice_in_a_set(found: Found) -> None:
    repeated = {
        (*key, setting): facts.repeated
        for key, of in found.items()
        for setting, facts in of.sets.items()
    }
    assert {name: count for name, count in repeated.items() if count} == {
        ("llama-2-13b", "engineering", "incompatible"): 2,
        ("llama-2-13b", "engineering", "self_aligning"): 2,
        ("llama-2-7b", "engineering", "harmonious"): 1,
        ("llama-2-7b", "history", "harmonious"): 1,
        ("llama-2-7b", "jurisprudence", "harmonious"): 1,
        ("llama-2-7b", "jurisprudence", "incompatible"): 2,
    }


def test_letter_bias_passes_for_knowledge(found: Found) -> None:
    """S's file is missing here, so its targets are I's predictions; elsewhere the two agree."""
    jurisprudence = found["llama-2-7b", "jurisprudence"]
    assert jurisprudence.sets["incompatible"].targets["A"] == pytest.approx(0.03, abs=0.005)
    assert jurisprudence.self_aligning_targets["A"] == pytest.approx(0.86, abs=0.005)
    for invariants in found.values():
        if "self_aligning" in invariants.sets:
            assert (
                invariants.sets["incompatible"].predictions
                == invariants.sets["self_aligning"].targets
            )


def test_confidence_differs(found: Found) -> None:
    """Medians of the predicted probability; the paper gives 0.64 to 0.90 for H over 4 models."""
    known = {
        key: round(facts.median_confidence, 3) for key, facts in _facts(found, "harmonious").items()
    }
    assert (
        min(known.values()) == 0.643
        and max(known.values()) == known["llama-2-13b", "engineering"] == 0.747
    )
    mistaken = [
        round(facts.median_confidence, 3) for facts in _facts(found, "incompatible").values()
    ]
    assert sorted(mistaken) == [0.575, 0.578, 0.582, 0.582, 0.583, 0.619]


def test_explanations_that_never_name_their_target(found: Found) -> None:
    """Up to 9% of I in Xiezhi's domains, as in the paper; 32% in medicine (MedMCQA's texts)."""
    silent = {
        key: round(1 - facts.names_text, 3) for key, facts in _facts(found, "incompatible").items()
    }
    assert silent.pop(("llama-2-13b", "medicine")) == 0.316
    assert min(silent.values()) == 0.051 and max(silent.values()) == 0.088


def test_explanations_of_the_predicted_option(found: Found) -> None:
    """The paper gives 73 to 79% for S; here 73 to 81% by text or letter, and less by text alone."""
    own = _facts(found, "self_aligning")
    by_text = {key: round(facts.names_text, 3) for key, facts in own.items()}
    assert by_text == {
        ("llama-2-13b", "engineering"): 0.684,
        ("llama-2-13b", "jurisprudence"): 0.615,
        ("llama-2-7b", "engineering"): 0.748,
    }
    assert [round(facts.names_target, 3) for facts in own.values()] == [0.735, 0.734, 0.813]
    assert [facts.without_text for facts in own.values()] == [0, 0, 14]


def test_the_command_prints_the_table(found: Found, shared_data: Path) -> None:
    reported = (
        CliRunner()
        .invoke(main, ["official", str(shared_data / "official_groups" / "llama-2-7b")])
        .output
    )
    assert "llama-2-7b engineering: H right and above 0.5: yes" in reported
    assert (
        "self_aligning: no file; according to I's predictions, its targets are 86%/3%/3%/7%"
        in reported
    )


def test_pool_tests_in_the_sets(shared_data: Path) -> None:
    """The paper's 147 of 250 history tests need the whole jurisprudence pool; 72 are in ours."""
    models = official.models(shared_data / "official_groups")
    found = official_leaks.leaks(models, shared_data / "pools")
    assert found[:3] == [
        ("history", "jurisprudence", 72, 250),
        ("jurisprudence", "history", 54, 250),
        ("engineering", "history", 7, 250),
    ]
    assert "     72 of 250 history in jurisprudence" in official_leaks.table(found)
    with pytest.raises(DataError, match="contains no pool"):
        official_leaks.leaks(models, shared_data / "absent")


def test_a_pool_whose_train_questions_the_sets_bring(pool: Path, tmp_path: Path) -> None:
    (pool / "train.jsonl").unlink()
    sources = [{"kind": "paper", "domain": "engineering", "path": str(pool)}]
    settings = {
        "output_dir": str(tmp_path),
        "questions": {"sources": sources},
        "construct": {"official": str(tmp_path / "llama")},
    }
    task = Task("questions", tmp_path / "out", "key", {})
    questions.gather(Config.model_validate(settings), task, Bar("questions", None, None))
    manifest = read_manifest(tmp_path / "out")
    assert manifest and manifest.counts == {"pool/dev/choice": 5, "pool/test/choice": 3}
    with pytest.raises(DataError, match=r"no file train\.jsonl"):
        settings["construct"] = {}
        questions.gather(Config.model_validate(settings), task, Bar("questions", None, None))
