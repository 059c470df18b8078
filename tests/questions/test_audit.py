"""Duplicate questions: equal and near ones, the sets compared, and the rows removed."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ift_scale.config import AuditConfig, Config
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError, DataError
from ift_scale.io.files import read_jsonl, write_jsonl
from ift_scale.io.manifests import read_manifest
from ift_scale.io.progress import Bar
from ift_scale.questions import audit, audit_result, run
from ift_scale.questions.similarity import Normal, SimilarIndex, bands
from ift_scale.records import QUESTIONS_FILE, Question
from ift_scale.stage import Task

TEXT = (
    "Which treaty ended the long war between the two northern kingdoms in the year of"
    " the great flood?"
)
OPTIONS = ["The treaty of Ore", "The treaty of Elm", "The peace of Ash", "The truce of Oak"]


def _question(
    id: str, domain: str, split: str, text: str = TEXT, choices: list[str] = OPTIONS, **more: object
) -> Question:
    settings = {"subject": domain, "collection": "pool", "answer": 0, **more}
    return Question(id=id, domain=domain, split=split, question=text, choices=choices, **settings)  # type: ignore[arg-type]


def _audit(
    folder: Path, questions: list[Question], **settings: object
) -> tuple[audit_result.AuditResult, list[tuple[str, str, str]]]:
    write_jsonl(folder / "questions.jsonl", questions)
    found = audit.audit(folder / "questions.jsonl", AuditConfig(**settings), folder)  # type: ignore[arg-type]
    pairs = read_jsonl(folder / audit.PAIRS, audit_result.Pair)
    return found, [(pair.id, pair.other_id, pair.kind) for pair in pairs]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The _____ was “built”, in 1,890!", ["the", "was", "built", "in", "1", "890"]),
        ("x - 1 = 2", ["x", "-", "1", "=", "2"]),
        ("肉牛 ABC", ["肉", "牛", "abc"]),
        ("ﬁne Ⅳ", ["fine", "iv"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert Normal.of(text, []).text.split() == expected


def test_equal_whatever_the_order_of_the_options_their_case_and_punctuation() -> None:
    other = Normal.of(TEXT.upper().replace("?", " ____."), OPTIONS[::-1])
    assert other.digest() == Normal.of(TEXT, OPTIONS).digest()
    assert Normal.of("x - 1", ["a"]).digest() != Normal.of("x + 1", ["a"]).digest()
    assert Normal.of("a", ["b", "c d"]).digest() != Normal.of("a", ["b c", "d"]).digest()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    count, rows = bands(threshold, 128)
    assert count * rows <= 128 and 1 - (1 - threshold**rows) ** count >= 0.99


def test_near_pairs_are_those_of_the_true_similarity() -> None:
    index = SimilarIndex(0.8, 128)
    base = set(range(1000, 1100))
    shares = [1.0, 0.95, 0.9, 0.85, 0.81, 0.79, 0.7, 0.4, 0.0]
    for number, share in enumerate(shares):
        # |A and B| / |A or B| = share, with |A| = |B| = 100
        common = round(200 * share / (1 + share))
        index.add(
            number,
            set(range(1000, 1000 + common))
            | set(range(5000 + 500 * number, 5100 + 500 * number - common)),
        )
    found = dict(index.similar(base))
    assert sorted(found) == [0, 1, 2, 3, 4] and found[0] == 1.0
    assert all(
        similarity >= 0.8 and abs(similarity - shares[number]) < 0.01
        for number, similarity in found.items()
    )
    assert index.similar(set()) == []


def test_pairs_between_train_tests_and_benchmarks(tmp_path: Path) -> None:
    near = TEXT.replace("flood", "fire")
    questions = [
        _question("t1", "history", "train"),
        _question("t2", "law", "train", choices=OPTIONS[::-1]),
        _question(
            "t3", "law", "train", "Another question, of which there is no second one at all?"
        ),
        _question("d1", "history", "dev", "What do dev questions ask?"),
        _question("h1", "history", "test"),
        _question("h2", "history", "test", "What do dev questions ask?"),
        _question("h3", "history", "test", choices=["no", "yes"]),
        _question("b1", "history", "test", near, collection="benchmark"),
        _question("b2", "history", "train", collection="benchmark"),
    ]
    found, pairs = _audit(tmp_path, questions)
    assert set(pairs) == {
        ("h2", "d1", "exact"),
        ("h1", "b1", "near"),
        ("h1", "t1", "exact"),
        ("b1", "t1", "near"),
        ("h1", "t2", "exact"),
        ("b1", "t2", "near"),
        ("t1", "t2", "exact"),
    }
    rows = {(row["cell"], row["in"]): row for row in found.rows()}
    leaked = rows["pool/test/history", "pool/train/law"]
    assert (leaked["items"], leaked["of"], leaked["exact_pairs"], leaked["same_text_items"]) == (
        1,
        3,
        1,
        2,
    )
    assert found.counts() == {
        "duplicates: history test in history dev": 1,
        "duplicates: history test in benchmark history test": 1,
        "duplicates: history test in history train": 1,
        "duplicates: benchmark history test in history train": 1,
        "duplicates: history test in law train": 1,
        "duplicates: benchmark history test in law train": 1,
        "duplicates: history train in law train": 1,
    }
    summary = json.loads((tmp_path / "audit.json").read_text())
    assert summary["cells"]["pool/test/history"] == 3 and summary["settings"]["threshold"] == 0.8
    reported = audit.table(summary)
    assert "1 of 3 pool/test/history in pool/train/law (1 exact, 0 near, 2 same text)" in reported


def test_equal_only(tmp_path: Path) -> None:
    _, pairs = _audit(
        tmp_path,
        [_question("t", "a", "train"), _question("h", "a", "test", TEXT.replace("flood", "fire"))],
        near=False,
    )
    assert pairs == []


def _leaking_pool(pool: Path) -> Config:
    rows = [json.loads(line) for line in (pool / "test.jsonl").read_text().splitlines()]
    with (pool / "train.jsonl").open("a") as file:
        file.write(json.dumps(rows[1] | {"id": "copy"}) + "\n")
    return from_dict(
        {
            "output_dir": "x",
            "questions": {"sources": [{"kind": "paper", "domain": "made", "path": str(pool)}]},
        }
    )


@pytest.mark.parametrize(
    ("side", "left"), [("none", (7, 3)), ("train", (6, 3)), ("held_out", (7, 2))]
)
def test_the_named_side_is_left_out_and_counted(
    pool: Path, tmp_path: Path, side: str, left: tuple[int, int]
) -> None:
    config = _leaking_pool(pool)
    config.questions.audit.remove = side  # type: ignore[assignment]
    run.gather(config, Task("questions", tmp_path / "out", "key", {}), Bar("questions", None, None))
    counts = Counter(q.split for q in read_jsonl(tmp_path / "out" / QUESTIONS_FILE, Question))
    assert (counts["train"], counts["test"], counts["dev"]) == (*left, 5)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and set(manifest.files) == {
        "audit.json",
        "audit.jsonl",
        "equal_options.jsonl",
        "questions.jsonl",
    }
    assert manifest.counts["duplicates: made test in made train"] == 1
    assert manifest.counts.get("left out: duplicates", 0) == (0 if side == "none" else 1)
    assert (manifest.counts["pool/train/choice"], manifest.counts["pool/test/choice"]) == left


def test_a_pool_of_nothing_but_duplicates(pool: Path, tmp_path: Path) -> None:
    config = _leaking_pool(pool)
    config.questions.audit.remove = "held_out"
    (pool / "test.jsonl").write_text((pool / "test.jsonl").read_text().splitlines()[1] + "\n")
    with pytest.raises(DataError, match=r"has no test question\. The audit removed all"):
        run.gather(
            config, Task("questions", tmp_path / "out", "key", {}), Bar("questions", None, None)
        )


GENOTYPES = ["BB BB", "BB Bb", "Bb Bb", "Bb bb"]


@pytest.mark.parametrize(
    ("choices", "answer", "expected"),
    [
        (["a", "b", "a", "c"], 0, ("A", ["C"], True)),
        (["a", "b", "a", "a"], 3, ("D", ["A", "C"], True)),
        (["a", "b", "b", "c"], 0, None),  # two wrong options that are equal leave the answer clear
        (["a  b", "a b\n", "c", "d"], 1, ("B", ["A"], True)),
        (["a\u00a0b", "a b", "c"], 0, ("A", ["B"], True)),
        (["The lung", "the Lung", "c"], 0, ("A", ["B"], False)),
        (["ﬁne", "fine"], 0, ("A", ["B"], False)),
        (["x²", "x2"], 1, ("B", ["A"], False)),
        (GENOTYPES, 1, ("B", ["A", "C", "D"], False)),
        (["-1", "1"], 0, None),
        (["(a", "a)"], 0, None),
        (["x < y", "x > y"], 0, None),
    ],
)
def test_options_equal_to_the_right_one(
    choices: list[str], answer: int, expected: object, tmp_path: Path
) -> None:
    found, _ = _audit(tmp_path, [_question("t", "a", "train", choices=choices, answer=answer)])  # type: ignore[arg-type]
    listed = read_jsonl(tmp_path / audit.EQUAL_OPTIONS, audit_result.EqualOptions)
    assert [(row.answer, row.equal, row.exact) for row in listed] == (
        [] if expected is None else [expected]
    )
    # Only an exact copy can be left out: BB Bb and Bb Bb are different answers.
    assert list(found.ambiguous) == ([0] if expected is not None and expected[2] else [])  # type: ignore[index]


def test_equal_options_are_counted_by_cell_and_printed(tmp_path: Path) -> None:
    twice = ["a", "a", "b"]
    questions = [
        _question("d", "law", "dev", "Of dev?", twice),
        _question("t1", "law", "train", "First of train?", twice),
        _question("t2", "law", "train", "Second of train?", ["a", "A", "b"]),
        _question("t3", "law", "train", "Third of train?", ["a", "b"]),
        _question("h", "law", "test", "Of test?", twice),
    ]
    found, _ = _audit(tmp_path, questions)
    assert found.equal_options() == {
        "pool/dev/law": {"exact": 1, "normalised": 1, "of": 1},
        "pool/test/law": {"exact": 1, "normalised": 1, "of": 1},
        "pool/train/law": {"exact": 1, "normalised": 2, "of": 3},
    }
    assert found.counts() == {
        "equal options: law dev": 1,
        "equal options: law test": 1,
        "equal options: law train": 1,
    }
    assert set(found.ambiguous) == {1, 4}  # never the demonstration
    printed = audit.table(json.loads((tmp_path / "audit.json").read_text()))
    assert (
        "1 of 3 pool/train/law have an option equal to the right one (2 when ignoring case"
        in printed
    )


def _add(pool: Path, split: str, row: dict[str, object]) -> None:
    with (pool / f"{split}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@pytest.mark.parametrize(
    ("remove", "left", "reasons"),
    [
        ("none", (8, 5), {}),
        ("equal_options", (7, 4), {"left out: equal options": 2}),
        ("demonstrated", (8, 4), {"left out: demonstrations": 1}),
        (
            ["equal_options", "demonstrated", "train"],
            (6, 3),
            {
                "left out: equal options": 2,
                "left out: demonstrations": 1,
                "left out: duplicates": 1,
            },
        ),
    ],
)
def test_removal_by_setting(
    pool: Path, tmp_path: Path, remove: object, left: tuple[int, int], reasons: dict[str, int]
) -> None:
    config = _leaking_pool(pool).model_dump(mode="json")
    dev = json.loads((pool / "dev.jsonl").read_text().splitlines()[0])
    _add(pool, "test", dev | {"id": "demonstration"})
    for split in ("train", "test"):
        _add(
            pool,
            split,
            {
                "id": "equal",
                "question": f"Which of {split}?",
                "choices": ["a", "b", "a "],
                "answer": 2,
            },
        )
    config["questions"]["audit"]["remove"] = remove
    run.gather(
        from_dict(config),
        Task("questions", tmp_path / "out", "key", {}),
        Bar("questions", None, None),
    )
    counts = Counter(q.split for q in read_jsonl(tmp_path / "out" / QUESTIONS_FILE, Question))
    assert (counts["train"], counts["test"], counts["dev"]) == (*left, 5)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert {
        name: count for name, count in manifest.counts.items() if name.startswith("left out")
    } == reasons


@pytest.mark.parametrize(
    ("remove", "problem"),
    [
        (["train", "held_out"], "two sides of the same pairs"),
        (["none", "train"], "at most once"),
        (["train", "train"], "at most once"),
        ([], "remove"),
        ("dev", "remove"),
    ],
)
def test_settings_of_remove_that_are_refused(remove: object, problem: str) -> None:
    audit_settings = {"sources": [{"kind": "world"}], "audit": {"remove": remove}}
    with pytest.raises(ConfigError, match=problem):
        from_dict({"output_dir": "x", "questions": audit_settings})


def test_the_counts_of_the_real_data(shared_data: Path, tmp_path: Path) -> None:
    sources = [
        {
            "kind": "paper",
            "domain": "engineering",
            "path": str(shared_data / "pools" / "engineering"),
        },
        {"kind": "mmlu", "path": str(shared_data / "mmlu")},
    ]
    settings = {"near": False, "remove": ["equal_options", "demonstrated"]}
    config = from_dict({"output_dir": "x", "questions": {"sources": sources, "audit": settings}})
    run.gather(config, Task("questions", tmp_path / "out", "key", {}), Bar("questions", None, None))
    equal = json.loads((tmp_path / "out" / "audit.json").read_text())["equal_options"]
    assert equal["pool/train/engineering"] == {"exact": 9, "normalised": 9, "of": 4829}
    tests = [row for cell, row in equal.items() if cell.startswith("benchmark/test/")]
    # Three of MMLU's seven differ in case, which is their point: genotypes and predicate logic.
    assert (sum(row["exact"] for row in tests), sum(row["normalised"] for row in tests)) == (4, 7)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    left = Counter(
        q.collection + q.split for q in read_jsonl(tmp_path / "out" / QUESTIONS_FILE, Question)
    )
    assert left["pooltrain"] == 4829 - 9 and left["pooltest"] == 250 - 1
    assert left["benchmarktest"] == 14_042 - 4 - manifest.counts["left out: demonstrations"]
    assert manifest.counts["left out: demonstrations"] >= 5 and left["benchmarkdev"] == 285
