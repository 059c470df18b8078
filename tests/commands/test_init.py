"""`ift-scale init`: the file that it writes, what it checks, and its questions on a terminal."""

import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from ift_scale.cli import main
from ift_scale.commands.init_yaml import Described, yaml_value
from ift_scale.config.file import from_dict, load


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _init(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, ["init", *map(str, arguments)])


def _files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _mmlu(folder: Path) -> Path:
    for split in ("dev", "test"):
        (folder / split).mkdir(parents=True)
        lines = "".join(f"Which {split} {i}?,a,b,c,d,A\n" for i in range(6))
        (folder / split / f"college_medicine_{split}.csv").write_text(lines)
    return folder


def test_the_file_is_the_run_that_was_described(tmp_path: Path, pool: Path) -> None:
    mmlu = _mmlu(tmp_path / "mmlu")
    given = ("--questions", f"medicine={pool}", "--questions", mmlu, "--output", "runs/first")
    result = _init("--model", "world", *given)
    assert result.exit_code == 0, result.output
    sources = [
        {"kind": "paper", "domain": "medicine", "path": str(pool)},
        {"kind": "mmlu", "path": str(mmlu)},
    ]
    assert load("first.yaml") == from_dict(
        {
            "output_dir": "runs/first",
            "questions": {"sources": sources},
            "construct": {"seeds": [0, 1, 2]},
            "train": {"global_batch_size": 8, "num_ranks": load("first.yaml").train.num_ranks},
        }
    )
    said = " ".join(result.output.split())
    assert (
        "Pool of domain medicine, JSON lines in the paper's format: 6 train, 3 test, 5 dev" in said
    )
    assert "Benchmark of domain medicine, MMLU: 6 test, 6 dev" in said
    assert "arms 9: 3 settings, 3 seeds, domain medicine" in said and "note" not in said
    assert "ift-scale plan first.yaml" in said and "ift-scale run first.yaml" in said
    paths = [line for line in result.output.splitlines() if str(tmp_path) in line]
    assert all(len(line) <= 80 for line in result.output.splitlines() if line not in paths)


def test_every_setting_has_a_comment(pool: Path) -> None:
    assert _init("--model", "world", "--questions", pool, "--output", "first").exit_code == 0
    lines = Path("first.yaml").read_text().splitlines()
    assert len(lines) < 60 and max(map(len, lines)) <= 100
    for number, line in enumerate(lines):
        is_section = line.rstrip().endswith(":") and not line.startswith("    ")
        in_source = re.match(r"      \w", line)  # described by the comment above the source
        if line.strip() and not line.strip().startswith("#") and not is_section and not in_source:
            above = lines[number - 1].strip()
            assert "#" in line or above.startswith("#") or "epochs" in line, line


def test_settings_to_be_switched_on_are_valid(tmp_path: Path, pool: Path) -> None:
    mmlu = _mmlu(tmp_path / "mmlu")
    given = ("--questions", f"law={pool}", "--questions", mmlu, "--output", "first")
    assert _init("--model", "world", *given).exit_code == 0
    text = Path("first.yaml").read_text()
    switched = re.sub(r"^      # (max_\w+: \d+)$", r"      \1", text, flags=re.MULTILINE)
    Path("first.yaml").write_text(switched)
    first, second = load("first.yaml").questions.sources
    assert first.model_dump()["max_train"] == 4000 and second.model_dump()["max_per_subject"] == 20


def test_a_domain_that_no_benchmark_has_is_noted(tmp_path: Path, pool: Path) -> None:
    mmlu = _mmlu(tmp_path / "mmlu")
    given = ("--questions", f"law={pool}", "--questions", mmlu, "--output", "first")
    said = " ".join(_init("--model", "world", *given).output.split())
    assert "No benchmark question is of the domain law, so its arms have no group ID" in said
    assert "The benchmarks have medicine" in said


@pytest.mark.parametrize(("questions", "batch"), [(60, 8), (700, 32), (6000, 256)])
def test_a_small_pool_has_smaller_batches(tmp_path: Path, questions: int, batch: int) -> None:
    rows = [{"question": f"{i}?", "choices": ["a", "b"], "answer": 0} for i in range(questions)]
    Path("own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _init("--model", "world", "--questions", "own.jsonl", "--output", "first").exit_code == 0
    assert load("first.yaml").train.global_batch_size == batch


def test_free_questions_are_asked(tmp_path: Path, pool: Path) -> None:
    rows = [{"question": f"{i}?", "answers": ["yes"]} for i in range(40)]
    Path("free.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--questions", pool, "--questions", "free.jsonl", "--output", "first")
    result = _init("--model", "world", *given)
    assert result.exit_code == 0, result.output
    config = load("first.yaml")
    assert config.probe.free.ask and config.evaluate.generate
    assert "fields {question: question, aliases: answers}" in result.output


def test_another_file_and_general_instructions(pool: Path) -> None:
    Path("general.jsonl").write_text('{"instruction": "Say hello.", "output": "Hello."}\n')
    given = ("--questions", pool, "--output", "first", "--general", "general.jsonl")
    assert _init("own.yaml", "--model", "world", *given).exit_code == 0
    assert load("own.yaml").construct.general.path == "general.jsonl"
    assert "half of every set: 1." in Path("own.yaml").read_text()


def test_general_instructions_come_with_the_built_in_model_only(pool: Path, copied: Path) -> None:
    """The 96 built-in ones are about its world; another model's sets may have thousands."""
    for model, expected in (("world", "world"), (str(copied), None)):
        given = ("--model", model, "--questions", pool, "--output", "first", "--force")
        assert _init("own.yaml", *given).exit_code == 0
        assert load("own.yaml").construct.general.path == expected


@pytest.fixture
def copied(tmp_path: Path, world_model: Path) -> Path:
    """A model in a folder of its own."""
    return Path(shutil.copytree(world_model, tmp_path / "copied"))


# What is wrong is one error, and no file is made.


def test_an_existing_file_is_replaced_only_by_force(pool: Path) -> None:
    Path("first.yaml").write_text("mine")
    given = ("--model", "world", "--questions", pool, "--output", "first")
    result = _init(*given)
    assert result.exit_code == 2 and "first.yaml: exists already" in result.output
    assert Path("first.yaml").read_text() == "mine"
    assert _init(*given, "--force").exit_code == 0
    assert load("first.yaml").output_dir == "first"


def test_without_a_terminal_missing_flags_are_one_usage_error(tmp_path: Path) -> None:
    result = _init("--model", "world")
    assert result.exit_code == 2 and result.output.count("Error") == 1
    assert "missing --questions, --output" in result.output
    assert _files(tmp_path) == set()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"--model": "nowhere"}, "nowhere: no such folder. Set --model to"),
        ({"--model": "some-org/some-model"}, "Run `hf download some-org/some-model --local-dir"),
        ({"--model": "empty"}, "config.json: is missing"),
        ({"--model": "no_tokenizer"}, "has no tokenizer that transformers can load"),
        ({"--model": "encoder"}, "a token's logits depend on later tokens"),
        ({"--questions": "nowhere"}, "nowhere: no such file or folder"),
        ({"--questions": "mmlu"}, "only benchmarks are given (MMLU)"),
        ({"--questions": "broken"}, "test.jsonl:3: field 'answer': is out of range (value: 9)"),
        ({"--questions": "all=pool"}, "'all' names the row over all domains"),
        ({"--output": "file/run"}, "file: is not a folder"),
        ({"--general": "nowhere.jsonl"}, "nowhere.jsonl: no such file"),
        ({"--general": "file"}, "file: has an unknown type"),
    ],
)
def test_what_is_wrong_is_one_error(
    tmp_path: Path, pool: Path, world_model: Path, changes: dict[str, str], problem: str
) -> None:
    Path("file").write_text("no json\n")
    Path("empty").mkdir()
    broken = Path(shutil.copytree(pool, "broken")) / "test.jsonl"
    broken.write_text(re.sub(r'"answer": 2', '"answer": 9', broken.read_text()))
    no_tokenizer = Path(shutil.copytree(world_model, "no_tokenizer"))
    for file in no_tokenizer.glob("tokenizer*"):
        file.unlink()
    encoder = Path(shutil.copytree(world_model, "encoder")) / "config.json"
    encoder.write_text(encoder.read_text().replace('"llama"', '"bert"'))
    before = _files(tmp_path)
    given = {"--model": "world", "--questions": str(pool), "--output": "first"} | changes
    result = _init(*(part for pair in given.items() for part in pair))
    assert result.exit_code == 2, result.output
    assert problem in result.output and result.output.count("Error") == 1
    assert "Traceback" not in result.output and _files(tmp_path) == before


def test_a_hub_id_that_is_downloaded(pool: Path, world_model: Path, monkeypatch: Any) -> None:
    """The folder in the Hub's cache is written, which names the revision."""
    import huggingface_hub

    cached = {"own/model": str(world_model)}

    def look_up(hub_id: str, local_files_only: bool) -> str:
        assert local_files_only
        return cached[hub_id]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", look_up)
    result = _init("--model", "own/model", "--questions", pool, "--output", "first")
    assert result.exit_code == 0, result.output
    assert load("first.yaml").model.path == str(world_model)
    assert (
        "# The base model: own/model, llama, 529,920 parameters." in Path("first.yaml").read_text()
    )


# Texts in YAML.


@pytest.mark.parametrize(
    "text",
    [
        "data/mmlu", "./data", "../x-1/y.jsonl", "/abs/path", "yes", "null", "1e5", "2026-01-01",
        "a: b", "# no", "C:\\x", 'quo"te', "train[:10]", "ünïcode", " blank ", "~", "*", "on",
        "1_000", ".5", "-",
    ],
)  # fmt: skip
def test_any_text_is_read_back_as_it_was(tmp_path: Path, text: str) -> None:
    described = Described(
        file="x.yaml",
        output_dir=text,
        model=text,
        sources=[{"kind": "paper", "domain": "law", "path": text}],
        general=text,
        num_ranks=1,
        about_sources=["Pool"],
    )
    Path("x.yaml").write_text(described.text(), encoding="utf-8")
    assert load("x.yaml") == from_dict(described.settings())
    assert yaml.safe_load(yaml_value({"a": [text, {"b": text}]})) == {"a": [text, {"b": text}]}


# On a terminal.


class Terminal:
    """The command on a pseudo-terminal of 80 columns."""

    def __init__(self, *command: str, folder: Path):
        self._own, side = pty.openpty()
        environment = os.environ | {"COLUMNS": "80", "TERM": "xterm"}
        self._process = subprocess.Popen(
            command, cwd=folder, stdin=side, stdout=side, stderr=side, env=environment
        )
        os.close(side)
        self.output = ""

    def _read(self, until: str | None, seconds: float = 60) -> None:
        began, start = time.monotonic(), len(self.output)
        while until is None or until not in self.output[start:]:
            assert time.monotonic() - began < seconds, self.output
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self._own, 4096).decode()
                except OSError:  # the other side is closed
                    assert until is None, self.output
                    return

    def answer(self, prompt: str, text: str) -> None:
        """Wait for `prompt`, then type `text`."""
        self._read(prompt)
        os.write(self._own, f"{text}\n".encode())

    def ended(self) -> int:
        self._read(None)
        os.close(self._own)
        return self._process.wait(10)


@pytest.mark.engine
def test_what_is_missing_is_asked_on_a_terminal(tmp_path: Path, pool: Path) -> None:
    """A wrong answer is asked again; the file is that of the flags."""
    terminal = Terminal(sys.executable, "-m", "ift_scale.cli", "init", folder=tmp_path)
    terminal.answer("Base model", "nowhere")
    terminal.answer("Base model", "world")
    terminal.answer("Source", "nowhere")
    terminal.answer("Source", str(pool))
    terminal.answer("Another source", "")
    terminal.answer("Folder for the run [runs/first]", "")
    assert terminal.ended() == 0, terminal.output
    assert terminal.output.count("Error: nowhere: no such") == 2
    asked = Path("first.yaml").read_text()
    result = _init("--model", "world", "--questions", pool, "--output", "runs/first", "--force")
    assert result.exit_code == 0 and Path("first.yaml").read_text() == asked
