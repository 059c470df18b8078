"""Cases of instructions: general ones, users' own data, and the sets of the paper's authors."""

import csv
import gzip
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.fuzz.case import Case, Content, Kind, Random, copied
from benchmarks.fuzz.configs import lines
from benchmarks.fuzz.data import _parquet, readers, rows_of
from benchmarks.fuzz.mutate import mutated
from ift_scale.cli import main

_READ = "read.jsonl"


def _alpaca(number: int) -> dict[str, Any]:
    return {
        "instruction": f"Name the number {number}.",
        "input": "In words." if number % 2 else "",
        "output": f"It is number {number}.",
    }


def _messages(number: int) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": f"What is {number}?"},
        {"role": "assistant", "content": f"A number, {number}."},
    ]
    system = [{"role": "system", "content": "Be brief."}] if number % 2 else []
    return {"messages": [*system, *turns], "weight": 1.0 + number % 2}


def _sharegpt(number: int) -> dict[str, Any]:
    turns = [
        ("human", f"Say {number}."),
        ("gpt", f"{number}!"),
        ("human", "Again."),
        ("gpt", "No."),
    ]
    return {"conversations": [{"from": who, "value": text} for who, text in turns]}


def _completion(number: int) -> dict[str, Any]:
    return {"prompt": f"{number} and one make", "completion": f" {number + 1}."}


FORMATS = {
    make.__name__.strip("_"): [make(number) for number in range(5)]
    for make in (_alpaca, _messages, _sharegpt, _completion)
}


def _as_csv(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(
        {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
    )
    return out.getvalue().encode()


def _file(rows: list[dict[str, Any]], suffix: str) -> bytes:
    if suffix in ("csv", "tsv"):
        return _as_csv(rows, "," if suffix == "csv" else "\t")
    if suffix == "json":
        return json.dumps(rows, indent=1).encode()
    if suffix == "parquet":
        return _parquet(rows)
    return gzip.compress(lines(rows), mtime=0) if suffix == "jsonl.gz" else lines(rows)


_SUFFIXES = ("jsonl", "jsonl", "jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz")


@readers.command("instructions")
@click.argument("path")
@click.option("--skip", is_flag=True)
@click.option("--text", is_flag=True)
@click.option("--split")
def read_instructions(path: str, skip: bool, text: bool, split: str | None) -> None:
    """Reads a source of instructions as `sft` and `screen` do."""
    from ift_scale.config.instructions import InstructionSource
    from ift_scale.instructions.read import Skipped, read

    source = InstructionSource(
        path=path,
        split=split,
        on_error="skip" if skip else "stop",
        tools="text" if text else "refuse",
    )
    report = Skipped()
    found = [
        {"texts": [message.content for message in one.messages], "weight": one.weight}
        for one in read(source, report)
    ]
    Path(_READ).write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    click.echo(report.summary(path))
    click.echo(f"rows: {report.num_read + report.reasons.total()}")


@readers.command("general")
@click.argument("path", type=click.Path(path_type=Path))
def read_general(path: Path) -> None:
    """Reads general instructions as the construct stage does."""
    from ift_scale.construct import general
    from ift_scale.instructions.read import Skipped

    report = Skipped()
    found = [
        {"texts": [message.content for message in example.messages], "weight": 1.0}
        for example in general.load(path, report).values()
    ]
    Path(_READ).write_text("".join(json.dumps(one) + "\n" for one in found), encoding="utf-8")
    click.echo(report.summary(str(path)))
    click.echo(f"rows: {report.num_read}")


_USED = {
    *("messages", "role", "content", "conversations", "conversation", "from", "value", "system"),
    *("instruction", "output", "response", "input", "context", "history", "prompt", "completion"),
    *("text", "type", "weight", "name", "id", "tool_call_id"),
}


def _as_given(case: Case, folder: Path, output: str) -> str | None:
    """Checks that every row was read or named, every text is there, unused columns are named."""
    content = case.files[case.mutable[0]]
    rows = rows_of(content) if isinstance(content, bytes) and content[:4] != b"PAR1" else None
    if rows is None or case.mutable[0].endswith(("csv", "tsv", "parquet")):
        return None
    if f"rows: {len(rows)}\n" not in output:
        return f"{len(rows)} rows, but: {output[-200:]}"
    if "left out" in output:
        return None
    read = (folder / _READ).read_text(encoding="utf-8")
    kept = "\n".join(text for line in read.splitlines() for text in json.loads(line)["texts"])
    weights = [json.loads(line)["weight"] for line in read.splitlines()]
    for number, row in enumerate(rows):
        for name, part in row.items():
            if name not in _USED and part not in (None, "") and name not in output:
                return f"column {name!r} was dropped"
            if (
                (lost := _lost(part, kept))
                and name not in output
                and name in _USED - {"id", "name"}
            ):
                return f"the text {lost!r} of {name} is not in what was read"
        weight = row.get("weight", 1)
        if (
            len(weights) == len(rows)
            and weight not in (None, "")
            and float(weight) != weights[number]
        ):
            return f"weight {weight!r} was read as {weights[number]}"
    return None


def _lost(value: Any, kept: str) -> str | None:
    """Returns a text of a message that is not in `kept`; None if all are."""
    if isinstance(value, str):
        return value if value.strip() and value not in kept and not value.startswith("[") else None
    if isinstance(value, list):
        return next((lost for part in value if (lost := _lost(part, kept))), None)
    if isinstance(value, dict):
        texts = (value.get(name) for name in ("content", "value", "text"))
        return next((lost for part in texts if (lost := _lost(part, kept))), None)
    return None


def _case(command: list[str], rows: list[dict[str, Any]], suffix: str) -> Case:
    name = f"own.{suffix}"
    return Case({name: _file(rows, suffix)}, [*command, name], readers, [name])


def _changed(random: Random, case: Case) -> Case:
    if case.mutable[0].endswith("gz") and random.random() < 0.7:
        name = case.mutable[0]
        content = case.files[name]
        assert isinstance(content, bytes)
        inner = Case({"x.jsonl": gzip.decompress(content)}, [], None, ["x.jsonl"])
        mutated(random, inner)
        found = inner.files["x.jsonl"]
        case.files[name] = gzip.compress(found, mtime=0) if isinstance(found, bytes) else found
        case.changed += inner.changed
    else:
        mutated(random, case)
    written = copied(case)
    case.oracle = partial(_as_given, written)
    return case


def _general(random: Random) -> Case:
    rows = FORMATS[random.choice(("alpaca", "alpaca", "messages", "sharegpt", "completion"))]
    rows = [{name: value for name, value in row.items() if name != "weight"} for row in rows]
    if random.random() < 0.1:
        name = random.choice(("weight", "topic", "systm"))
        rows = [{**row, name: 2} for row in rows]
    return _changed(random, _case(["general"], rows, random.choice(_SUFFIXES)))


def _own(random: Random) -> Case:
    options = random.choice(((), (), (), ("--skip",), ("--text",), ("--split", "train[:3]")))
    rows = FORMATS[random.choice(list(FORMATS))]
    if "--split" in options:
        options = ("--split", random.choice(_SPLITS))
    case = _changed(random, _case(["instructions", *options], rows, random.choice(_SUFFIXES)))
    if "--split" in options:
        case.oracle = None
    return case


_SPLITS = (
    "train", "train[:3]", "train[7:9]", "train[:1000]", "train[-1:]", "test", "train[",
    "train[a:b]",
    "train[3:1]", "train[:50%]", "train+train", " ", "train[:0]", "train[1]", "train[::2]",
)  # fmt: skip

_RELEASED = {
    "id": 1,
    "question": "Which one is it?",
    "choices": ["this", "that", "both", "none"],
    "answer": 1,
    "explanation": "It is that.",
    "correct": False,
    "pred": 0,
    "probs": [0.92, 0.02, 0.02, 0.04],
    "golden_prob": 0.02,
    "pred_prob": 0.92,
    "output": 1,
    "model_exp": "It is this.",
}
_FILES = (
    "consistent-correct-exp-sample",
    "inconsistent-golden-exp",
    "inconsistent-predict-model-exp",
)


def _sets() -> dict[str, Content]:
    harmonious = {
        "correct": True,
        "pred": 1,
        "probs": [0.02, 0.92, 0.02, 0.04],
        "golden_prob": 0.92,
    }
    return {
        f"official/model/law/{stem}.jsonl": lines(
            [
                _RELEASED
                | {"id": f"{stem[:2]}{number}", "question": f"Which one is {number}, {stem[:2]}?"}
                | ({} if stem.startswith("in") else harmonious)
                | ({"output": 0} if "predict" in stem else {})
                for number in range(4)
            ]
        )
        for stem in _FILES
    }


def _official(random: Random) -> Case:
    files = _sets()
    folder = random.choice(("official", "official/model"))
    return mutated(random, Case(files, ["official", folder], main, list(files)))


def _valid_general() -> list[Case]:
    return [_case(["general"], FORMATS["alpaca"], suffix) for suffix in set(_SUFFIXES)]


def _valid_own() -> list[Case]:
    cases = [
        _case(["instructions"], rows, suffix)
        for suffix in sorted(set(_SUFFIXES))
        for rows in FORMATS.values()
    ]
    for case in cases:
        case.oracle = partial(_as_given, case)
    return cases


KINDS = (
    Kind("general instructions", _general, _valid_general),
    Kind("own instructions", _own, _valid_own),
    Kind("authors' sets", _official, lambda: [Case(_sets(), ["official", "official"], main)]),
)
