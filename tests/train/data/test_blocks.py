"""Tokens of a large set: by blocks and processes the same as at once, kept after a kill, in flat
memory."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ift_scale.config import Config, TrainConfig
from ift_scale.errors import DataError
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import blocks, dataset
from ift_scale.train.data.cache import TOKENS, share_tokens, tokenized
from ift_scale.train.data.tokenize import tokenize
from tests.waiting import LIMIT_SECONDS, wait_for

CONFIG = Config(output_dir="unused", train=TrainConfig(global_batch_size=1, too_long="truncate"))


def _row(number: int) -> str:
    # Lengths vary, and characters of several bytes cross the ends of blocks.
    answer = "copper 銅 " * (number * 7 % 13 + 1)
    messages = [("user", f"Say {number}."), ("assistant", answer)]
    row = {
        "messages": [{"role": role, "content": content} for role, content in messages],
        "meta": {"setting": "s", "wording": "general", "weight": 1 + number % 3},
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _set(path: Path, num: int) -> Path:
    path.write_text("".join(map(_row, range(num))), encoding="utf-8")
    return path


def _same(found: dataset.TokenizedSet, expected: dataset.TokenizedSet) -> bool:
    names = ("ids", "supervised", "offsets", "weights")
    pairs = [(getattr(found, name), getattr(expected, name)) for name in names]
    same = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    return same and found.num_truncated == expected.num_truncated


@pytest.mark.parametrize("num_bytes", [211, 1000, 1 << 20])
def test_blocks_give_the_tokens_of_the_whole_file(
    num_bytes: int, world_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokenizer = _set(tmp_path / "set.jsonl", 8), PromptTokenizer(world_model)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", num_bytes)
    found = dataset.load(tokenized(path, tmp_path / TOKENS, tokenizer, CONFIG))
    expected = tokenize(path, tokenizer, "vicuna", CONFIG.train)
    assert _same(found, expected)
    monkeypatch.setattr(dataset, "_EXAMPLES_AT_ONCE", 5)
    for name in ("computed_lengths", "first_rows", "supervised_counts"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    assert [entry.name for entry in (tmp_path / TOKENS).glob(".*.blocks")] == []


@pytest.mark.engine
def test_processes_give_the_tokens_of_the_whole_file(
    world_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokenizer = _set(tmp_path / "set.jsonl", 300), PromptTokenizer(world_model)
    expected = tokenize(path, tokenizer, "vicuna", CONFIG.train)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 5000)
    monkeypatch.setattr(blocks, "BYTES_PER_PROCESS", 10_000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    here: list[int] = []

    def counted(*args: Any) -> dataset.TokenizedSet:
        here.append(args[4])
        return tokenize(*args)

    monkeypatch.setattr(blocks, "tokenize", counted)
    notes: list[str] = []
    found = tokenized(path, tmp_path / TOKENS, tokenizer, CONFIG, notes.append)
    assert _same(dataset.load(found), expected)
    assert notes[-1] == f"tokenising {len(notes)} of {len(notes)} blocks" and len(notes) > 5
    assert 0 < len(set(here)) == len(here) < len(notes)  # this process and others, each block once


@pytest.mark.parametrize("num_bytes", [333, 1 << 20])
def test_the_first_bad_line_is_named(
    num_bytes: int, world_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [_row(number) for number in range(9)]
    for number in (5, 7):
        lines[number] = lines[number].replace('"assistant"', '"user"')
    path = tmp_path / "set.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", num_bytes)
    with pytest.raises(DataError, match=r"set.jsonl:6: field 'messages': has no answer token"):
        tokenized(path, tmp_path / TOKENS, PromptTokenizer(world_model), CONFIG)


def test_finished_blocks_are_kept(
    world_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, tokenizer = _set(tmp_path / "set.jsonl", 12), PromptTokenizer(world_model)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 400)
    calls: list[int] = []

    def killed(*args: object) -> dataset.TokenizedSet:
        calls.append(int(str(args[4])))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return tokenize(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "tokenize", killed)
    with pytest.raises(KeyboardInterrupt):
        tokenized(path, tmp_path / TOKENS, tokenizer, CONFIG)
    calls.append(-1)
    found = tokenized(path, tmp_path / TOKENS, tokenizer, CONFIG)
    assert calls[:6] == [0, 400, 800, 1200, -1, 1200] and 0 not in calls[5:]
    monkeypatch.setattr(blocks, "tokenize", tokenize)
    assert _same(dataset.load(found), tokenize(path, tokenizer, "vicuna", CONFIG.train))
    other = tmp_path / "other"
    share_tokens(other, [tmp_path / "none", tmp_path])
    assert (other / TOKENS / found.name / "ids.npy").samefile(found / "ids.npy")


SCRIPT = """
import sys
from pathlib import Path
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import blocks, cache, dataset
from tests.train.data.test_blocks import CONFIG

if __name__ == "__main__":
    blocks.BLOCK_BYTES, blocks.BYTES_PER_PROCESS = int(sys.argv[4]), int(sys.argv[5])
    path, model, folder = map(Path, sys.argv[1:4])
    note = lambda text: print(text, flush=True)
    found = cache.tokenized(path, folder, PromptTokenizer(model), CONFIG, note)
    tokens = dataset.load(found)
    tokens.computed_lengths, tokens.supervised_counts, tokens.first_rows
    status = Path("/proc/self/status").read_text()
    print(next(line for line in status.splitlines() if line.startswith("RssAnon")))
"""


def _started(folder: Path, *arguments: object) -> "subprocess.Popen[str]":
    script = folder / "script.py"
    script.write_text(SCRIPT)
    root = str(Path(__file__).parents[3])
    return subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.engine
def test_a_killed_process_leaves_its_blocks_and_no_child(world_model: Path, tmp_path: Path) -> None:
    path, cache = _set(tmp_path / "set.jsonl", 20_000), tmp_path / TOKENS
    arguments = (path, world_model, cache, 1 << 18, 1 << 19)
    process = _started(tmp_path, *arguments)
    assert process.stdout is not None and process.stdout.readline().startswith("tokenising 1 of")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {entry.name for entry in next(cache.glob(".*.blocks")).iterdir()}
    assert kept
    lives = [Path(f"/proc/{child}/exe") for child in children]
    wait_for(lambda: not any(path.exists() for path in lives), "a child outlives its parent")
    again = _started(tmp_path, *arguments)
    output, _ = again.communicate(timeout=LIMIT_SECONDS)
    lines = [line for line in output.splitlines() if line.startswith("tokenising")]
    total = int(lines[-1].split()[3])
    assert len(lines) <= total - len([name for name in kept if "incomplete" not in name])
    (folder,) = [entry for entry in cache.iterdir() if not entry.name.startswith(".")]
    tokens = tokenize(path, PromptTokenizer(world_model), "vicuna", CONFIG.train)
    assert _same(dataset.load(folder), tokens)


@pytest.mark.engine
def test_memory_does_not_grow_with_the_set(world_model: Path, tmp_path: Path) -> None:
    """Ten times the examples: only 8-byte numbers per example more, not their tokens."""
    anonymous = []
    for num in (4_000, 40_000):
        path = _set(tmp_path / f"{num}.jsonl", num)
        process = _started(tmp_path, path, world_model, tmp_path / TOKENS, 1 << 20, 1 << 40)
        output, _ = process.communicate(timeout=LIMIT_SECONDS)
        anonymous.append(int(output.split()[-2]) * 1024)
    assert anonymous[1] - anonymous[0] < 36_000 * 100 + (16 << 20)


def test_an_error_names_the_line_of_the_users_own_file(world_model: Path, tmp_path: Path) -> None:
    rows = [json.loads(_row(number)) for number in range(40)]
    for number, row in enumerate(rows):
        row["meta"]["source"] = f"my/data.json:{7 * number}"
    rows[30]["messages"][1]["content"] = "copper " * 5000
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(max_length=512)
    for start in (0, 3000):
        with pytest.raises(
            DataError, match=r"^my/data.json:210: field 'messages': \d+ tokens, over"
        ):
            tokenize(path, PromptTokenizer(world_model), "vicuna", config, start)


def test_damaged_tokens_are_made_again(
    world_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, cache = _set(tmp_path / "a.jsonl", 8), tmp_path / TOKENS
    tokenizer = PromptTokenizer(world_model)
    folder = tokenized(path, cache, tokenizer, CONFIG)
    content = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(content) == {
        "ids.npy",
        "supervised.npy",
        "offsets.npy",
        "weights.npy",
        "counts.json",
    }
    for name, before in content.items():
        flipped = bytearray(before)
        flipped[len(before) * 3 // 4] ^= 1
        for damaged in (bytes(flipped), before[:-3], b"", None):
            (folder / name).unlink()
            if damaged is not None:
                (folder / name).write_bytes(damaged)
            capsys.readouterr()
            assert tokenized(path, cache, tokenizer, CONFIG) == folder
            said = " ".join(capsys.readouterr().out.split())
            assert f"{folder}: damaged tokens; a.jsonl is tokenised again" in said
            assert {file.name: file.read_bytes() for file in folder.iterdir()} == content
    tokenized(path, cache, tokenizer, CONFIG)
    assert capsys.readouterr().out == ""
