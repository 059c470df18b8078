"""The construct stage from end to end, without an engine: sets, balance and exports."""

import json
from collections import Counter
from pathlib import Path

import datasets
import pandas as pd
import pytest

from ift_scale.config import Config
from ift_scale.construct import run
from ift_scale.construct.arms import arms_of
from ift_scale.errors import DataError
from ift_scale.io.files import read_jsonl
from ift_scale.io.manifests import read_manifest
from ift_scale.records import Example, Question, Score
from ift_scale.scoring.question_file import GroupKey
from ift_scale.stage import Task


def _made(
    domain: tuple[dict[str, Question], dict[str, Score]], folder: Path, **construct: object
) -> Config:
    """Two domains of the same questions, all arms of one seed or two."""
    questions, scores = [], {}
    for name in ("d", "e"):
        for id, question in domain[0].items():
            questions.append(
                question.model_copy(update={"id": f"{name}/{id}", "domain": name, "subject": name})
            )
            scores[f"{name}/{id}"] = domain[1][id].model_copy(
                update={"question_id": f"{name}/{id}", "domain": name}
            )
    config = Config.model_validate(
        {"output_dir": str(folder), "construct": {"size": 20} | construct}
    )
    arms = arms_of(config, [GroupKey.of(question) for question in questions])
    run.build(
        config, Task("construct", folder / "construct", "key", {}), arms, questions, scores, {}
    )
    return config


def test_two_runs_write_the_same(
    domain: tuple[dict[str, Question], dict[str, Score]], tmp_path: Path
) -> None:
    settings = {
        "seeds": [0, 1],
        "consistency_ratios": [0.2],
        "across_domains": True,
        "matching": {"letters": "selection"},
    }
    for name in ("a", "b"):
        _made(domain, tmp_path / name, **settings)
    manifests = [read_manifest(tmp_path / name / "construct") for name in ("a", "b")]
    assert manifests[0] and manifests[1] and manifests[0].files == manifests[1].files
    assert len(manifests[0].files) == 3 * 4 * 2 + 1 and manifests[0].counts["d/set_size"] == 20


def test_sets_smaller_than_a_batch_are_reported(
    domain: tuple[dict[str, Question], dict[str, Score]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _made(domain, tmp_path)
    reported = capsys.readouterr().out
    assert (
        "construct: d: the sets of harmonious, incompatible, self_aligning have 40 examples, "
        "fewer than" in reported
    )
    assert "train.global_batch_size = 256" in reported and reported.count("construct: ") == 2


def test_arms_across_domains_take_from_each(
    domain: tuple[dict[str, Question], dict[str, Score]], tmp_path: Path
) -> None:
    _made(domain, tmp_path, across_domains=True, general={"path": None, "share": 0})
    rows = read_jsonl(tmp_path / "construct" / "pooled-incompatible-seed0.jsonl", Example)
    assert sorted(row.meta.domain for row in rows if row.meta.domain) == ["d"] * 10 + ["e"] * 10
    with pytest.raises(DataError, match="requires at least two domains"):
        _made(domain, tmp_path, across_domains=True, domains=["d"])


def test_arms_across_domains_are_matched_too(
    domain: tuple[dict[str, Question], dict[str, Score]], tmp_path: Path
) -> None:
    """Half of a matched set is not matched: each domain's share is drawn separately.

    Shares of unknown questions are exact too.
    """
    _made(
        domain,
        tmp_path,
        across_domains=True,
        matching={"letters": "selection"},
        general={"path": None, "share": 0},
        size=21,
    )
    table = pd.read_csv(tmp_path / "construct" / "balance.csv")
    letters = table[(table.covariate == "letter") & (table.stage == "after")]
    assert set(letters.domain) == {"d", "e", "pooled"} and (letters.distance == 0).all()
    _made(domain, tmp_path, across_domains=True, settings=["unknown-0.25"], size=40)
    rows = read_jsonl(tmp_path / "construct" / "pooled-unknown-0.25-seed0.jsonl", Example)
    grades = Counter(
        domain[1][row.meta.question_id.partition("/")[2]].grade
        for row in rows
        if row.meta.question_id
    )
    assert grades == {"Unknown": 10, "HighlyKnown": 30}


def test_reordering_evens_letters_out_and_the_balance_says_so(
    domain: tuple[dict[str, Question], dict[str, Score]], tmp_path: Path
) -> None:
    _made(
        domain,
        tmp_path,
        matching={"letters": "reorder"},
        domains=["d"],
        size=100,
        general={"path": None, "share": 0},
    )
    table = pd.read_csv(tmp_path / "construct" / "balance.csv")
    letters = table[(table.covariate == "letter") & (table.stage == "after")]
    assert (letters.value == 0.25).all() and (letters.distance == 0).all()
    before = table[
        (table.covariate == "letter")
        & (table.stage == "before")
        & (table.setting == "self_aligning")
    ]
    assert before.distance.iloc[0] > 0.05
    for row in read_jsonl(tmp_path / "construct" / "d-self_aligning-seed0.jsonl", Example):
        if row.meta.question_id:
            letter, text = row.messages[1].content.split(". ", 1)
            assert letter == row.meta.target and f"\n{letter}. {text}\n" in row.messages[0].content
            score = domain[1][row.meta.question_id.removeprefix("d/")]
            assert (
                text
                == domain[0][row.meta.question_id.removeprefix("d/")].choices[score.prediction or 0]
            )


def test_exports_are_read_by_others(
    domain: tuple[dict[str, Question], dict[str, Score]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    _made(
        domain,
        tmp_path,
        export=["sharegpt", "huggingface"],
        domains=["d"],
        settings=["harmonious", "refuse_unknown"],
    )
    folder = tmp_path / "construct"
    own = read_jsonl(folder / "d-harmonious-seed0.jsonl", Example)
    shared = json.loads((folder / "sharegpt" / "d-harmonious-seed0.json").read_text())
    assert [turn["from"] for turn in shared[0]["conversations"]] == ["human", "gpt"]
    assert [row["conversations"][1]["value"] for row in shared] == [
        example.messages[1].content for example in own
    ]
    loaded = datasets.load_dataset(
        str(folder / "huggingface"),
        "d-refuse_unknown-seed0",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(loaded) == len(read_jsonl(folder / "d-refuse_unknown-seed0.jsonl", Example))
    assert {"setting", "target", "weight"} <= set(loaded[0]["meta"])
    assert (
        "| d-harmonious-seed0 | 40 | harmonious |"
        in (folder / "huggingface" / "README.md").read_text()
    )


def test_the_authors_sets_are_taken_as_they_are(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "official_groups" / "llama-2-7b"
    general = shared_data / "general" / "alpaca_en_demo.jsonl.gz"
    construct = {
        "official": str(folder),
        "response": "letter_text_explanation",
        "general": {"path": str(general)},
    }
    config = Config.model_validate({"output_dir": str(tmp_path), "construct": construct})
    tested = [
        GroupKey("choice", "pool", domain, domain, "test", 4)
        for domain in ("engineering", "history", "law")
    ]
    arms = arms_of(config, tested)
    assert [arm.name for arm in arms] == [
        "engineering-harmonious-seed0",
        "engineering-incompatible-seed0",
        "engineering-self_aligning-seed0",
        "history-harmonious-seed0",
        "history-incompatible-seed0",
    ]
    run.build(config, Task("construct", tmp_path / "construct", "key", {}), arms[:3], [], {}, {})
    rows = read_jsonl(tmp_path / "construct" / "engineering-self_aligning-seed0.jsonl", Example)
    assert len(rows) == 2 * 738 and sum(row.meta.wording == "general" for row in rows) == 738
    table = pd.read_csv(tmp_path / "construct" / "balance.csv")
    assert (
        table[(table.setting == "self_aligning") & (table.covariate == "letter")].distance.iloc[0]
        > 0.1
    )
