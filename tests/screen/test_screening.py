"""The screen of the embedded world's planted beliefs, end to end, through the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks import bench_screen
from ift_scale.cli import main
from ift_scale.config.instructions import InstructionSource
from ift_scale.instructions.read import Skipped, read
from ift_scale.screen import asker
from ift_scale.world.facts import all_facts
from tests.screen.test_facts import serve  # noqa: F401
from tests.write.test_endpoint import Answer, Server

pytestmark = pytest.mark.engine
LEAST_AUC = {"choice": 0.99, "short": 0.93, "1 fact in two wordings": 0.82, "2 facts": 0.7}
"""The smallest acceptable areas, with 62 or 122 examples of each kind."""


def _run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["screen", "world", *arguments, "--engine", "transformers"])


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _row(asked: str, answer: str) -> dict[str, Any]:
    return bench_screen.Planted("", asked, answer, True).row


@pytest.fixture(scope="module")
def planted() -> list[bench_screen.Planted]:
    return list(bench_screen.planted(10))


@pytest.fixture(scope="module")
def screened(
    planted: list[bench_screen.Planted], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("screened")
    return folder, bench_screen.screened(planted, "world", folder)


@pytest.mark.parametrize("kind", LEAST_AUC)
def test_the_score_tells_known_from_contradicting(
    kind: str, planted: list[bench_screen.Planted], screened: tuple[Path, list[dict[str, Any]]]
) -> None:
    chosen = [
        (example.known, row["score"])
        for example, row in zip(planted, screened[1], strict=True)
        if example.kind == kind
    ]
    known, scores = (np.array(values) for values in zip(*chosen, strict=True))
    assert bench_screen.auc(scores, known.astype(bool)) >= LEAST_AUC[kind]


def test_all_results_are_written(
    planted: list[bench_screen.Planted], screened: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, rows = screened[0] / "screen", screened[1]
    assert [row["line"] for row in rows] == list(range(1, len(planted) + 1))
    assert all(row["reason"] for row in rows)
    page = (folder / "index.html").read_text()
    assert "<svg" in page and "contradicts the model" in page
    copies = [row for row in rows if row["duplicate_of"] is not None]
    kept = [r for r in rows if r["class"] != "contradicts" and r["duplicate_of"] is None]
    source = InstructionSource(path=str(folder / "filtered.jsonl"))
    filtered = list(read(source, Skipped()))
    assert len(filtered) == len(kept) and len(copies) < len(rows)
    assert [c.id for c in filtered] == [row["id"].split("-")[0] for row in kept]


def test_other_thresholds_and_treatments_ask_nothing_again(
    screened: tuple[Path, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker.BlockAsker, "ask", None)
    data, output = str(screened[0] / "data.jsonl"), str(screened[0] / "screen")
    result = _run(
        data,
        "--output",
        output,
        "--treatment",
        "refuse",
        "--set",
        "screen.confidence_threshold=0.9",
    )
    assert result.exit_code == 0, result.output
    lines = (screened[0] / "screen" / "filtered.jsonl").read_text().splitlines()
    assert any(json.loads(line)["messages"][-1]["content"] == "I do not know." for line in lines)


def test_a_stopped_screen_resumes_with_its_blocks(
    planted: list[bench_screen.Planted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _write(tmp_path / "data.jsonl", [example.row for example in planted[:60]])
    options = (data, "--output", str(tmp_path / "out"), "--set", "probe.chunk_size=16")
    asked: list[int] = []
    ask = asker.BlockAsker.ask

    def stops(self: Any, engine: Any, block: Any) -> Any:
        asked.append(len(block.questions))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(self, engine, block)

    monkeypatch.setattr(asker.BlockAsker, "ask", stops)
    assert _run(*options).exit_code == 75
    result = _run(*options)
    assert result.exit_code == 0, result.output
    assert asked == [16, 16, 16, 16, 12]
    whole = tmp_path / "whole"
    monkeypatch.setattr(asker.BlockAsker, "ask", ask)
    _run(data, "--output", str(whole), "--set", "probe.chunk_size=16")
    first, second = (pq.read_table(f / "screen.parquet") for f in (tmp_path / "out", whole))
    assert first.equals(second)


def test_test_questions_of_pools_are_found(tmp_path: Path) -> None:
    fact = next(fact for fact in all_facts() if fact.split == "test")
    rows = [_row("What is the capital of France?", "Paris"), _row(fact.question_text(), "x")]
    data = _write(tmp_path / "data.jsonl", rows)
    result = _run(data, "--output", str(tmp_path / "out"), "--pools", "world")
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "out" / "screen.parquet").to_pylist()
    assert table[0]["leak"] is None
    assert fact.id in table[1]["leak"] and "1 left out: asks a test question" in result.output


def test_a_judges_facts_are_asked(tmp_path: Path, serve: Callable[..., Server]) -> None:  # noqa: F811
    example = next(e for e in bench_screen.planted() if e.kind == "choice" and not e.known)
    question, *options = example.asked.removesuffix("\nAnswer:").split("\n")
    fact = {
        "question": question,
        "choices": [option[3:] for option in options],
        "answer": example.answer[0],
    }
    server = serve(lambda number, asked: Answer(json.dumps([fact])))
    long = _row("Tell me a lot.", "It is a long story that has more than eight words in it.")
    result = _run(
        _write(tmp_path / "data.jsonl", [long]),
        *("--output", str(tmp_path / "out")),
        *("--set", f"screen.judge={{base_url: '{server.url}', model: m}}"),
    )
    assert result.exit_code == 0, result.output
    (row,) = pq.read_table(tmp_path / "out" / "screen.parquet").to_pylist()
    assert (row["facts"], row["facts_contradicted"], row["class"]) == (1, 1, "contradicts")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "data.jsonl:2"),
        ({"messages": [{"role": "user", "content": "x"}]}, "last turn is not the assistant's"),
        ({"text": "x"}, "'messages': missing"),
    ],
)
def test_bad_rows_are_refused_by_line(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    data = _write(tmp_path / "data.jsonl", [_row("Who?", "Me"), row])
    result = _run(data, "--output", str(tmp_path / "out"))
    assert result.exit_code == 2 and said in result.output and "data.jsonl:2" in result.output
    assert "Traceback" not in result.output


def test_bad_settings_and_models_are_refused(tmp_path: Path) -> None:
    data = _write(tmp_path / "data.jsonl", [_row("Who?", "Me")])
    result = _run(data, "--output", str(tmp_path), "--set", "screen.judge={}")
    assert result.exit_code == 2 and "screen.judge.base_url: missing" in result.output
    result = _run(data, "--output", str(tmp_path), "--set", "screen.treatment=drop")
    assert result.exit_code == 2 and "known: discard, open_book" in result.output
    result = CliRunner().invoke(main, ["screen", "nowhere", data, "--output", str(tmp_path)])
    assert result.exit_code == 2 and "no such folder" in result.output


def test_a_prompt_beyond_the_context_is_not_asked(tmp_path: Path) -> None:
    rows = [_row("What is it? " + "willow " * 3000, "sage"), _row("What is it?", "sage")]
    result = _run(_write(tmp_path / "data.jsonl", rows), "--output", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    table = pq.read_table(tmp_path / "out" / "screen.parquet").to_pylist()
    assert [row["too_long"] for row in table] == [True, False]
    assert "longer than the model's context" in result.output
