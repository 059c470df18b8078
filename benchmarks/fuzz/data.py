"""Cases of data: pools, other sources of questions, instructions, and the authors' sets."""

import csv
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.fuzz.case import Case, Content, Kind, Random, copied
from benchmarks.fuzz.configs import POOL, ROWS, lines
from benchmarks.fuzz.mutate import mutated
from ift_scale.cli import main
from ift_scale.commands.options import ErrorReportingGroup
from ift_scale.questions import arc, cmmlu, entity_questions, medmcqa, medqa, popqa, truthfulqa

QUESTIONS = "run/questions/questions.jsonl"
_SETTINGS = {"output_dir": "run", "questions": {"audit": {"near": False}}}


@click.group(cls=ErrorReportingGroup)
def readers() -> None:
    """Reads one kind of file as the commands do that need a model for the rest."""


def settings(*sources: dict[str, Any]) -> bytes:
    """Returns a configuration with these sources."""
    questions = {**_SETTINGS["questions"], "sources": list(sources)}  # type: ignore[dict-item]
    return yaml.safe_dump({**_SETTINGS, "questions": questions}).encode()


def rows_of(content: Content) -> list[Any] | None:
    """Returns the JSON values of a file, one per line, or None if it is not JSON lines."""
    if not isinstance(content, bytes):
        return None
    try:
        raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, OSError, EOFError):
        return None
    return found[0] if len(found) == 1 and isinstance(found[0], list) else found


def questions_read(folder: Path) -> list[dict[str, Any]]:
    """Returns the questions that the stage wrote."""
    text = (folder / QUESTIONS).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def _pool(random: Random) -> Case:
    case = Case({"c.yaml": _PAPER, **POOL}, ["questions", "c.yaml"], main, list(POOL))
    mutated(random, case)
    written = copied(case)
    case.oracle = lambda folder, output: _as_in_pool(written, folder)
    return case


_PAPER = settings({"kind": "paper", "domain": "law", "path": "pool"})


def _as_in_pool(case: Case, folder: Path) -> str | None:
    """Compares the texts and answers of the pool's files with the questions that were read."""
    read = {question["id"]: question for question in questions_read(folder)}
    num_rows = 0
    for name in POOL:
        rows = rows_of(case.files[name])
        if rows is None:
            return None
        num_rows += len(rows)
        for row in rows:
            question = read.get(f"law/{Path(name).stem}/{row['id']}")
            if question is None:
                return f"{name}: the row {row['id']!r} was left out"
            for field in ("question", "choices"):
                if question[field] != row[field]:
                    return f"{name}: {field} {row[field]!r} was read as {question[field]!r}"
            if question.get("explanation") != (row.get("explanation") or None):
                return f"{name}: explanation {row.get('explanation')!r} was changed"
            answer = row["answer"]
            if isinstance(answer, bool | float) or (
                isinstance(answer, int) and answer != question["answer"]
            ):
                return f"{name}: answer {answer!r} was read as {question['answer']!r}"
    return None if num_rows == len(read) else f"{num_rows} rows, {len(read)} questions"


def _csv(rows: Iterable[Iterable[Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


_SPLITS = {"dev": "dev", "train": "train", "test": "test"}
_CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: dev, path: dev.*}
  - {split: train, path: train.*}
  - {split: test, path: test.*}
---
# Data
"""
_ALL = [row for rows in ROWS.values() for row in rows]


def _hub(**more: Any) -> dict[str, Any]:
    return {"kind": "huggingface", "path": "data", "domain": "law", "splits": _SPLITS, **more}


def _tables() -> dict[str, tuple[dict[str, Any], dict[str, Content]]]:
    """Returns (source, files) by name, each with the same 10 questions unless it says otherwise."""
    head = ["id", "question", "A", "B", "C", "D", "answer"]
    table = {
        split: [
            head,
            *([r["id"], r["question"], *r["choices"], "ABCD"[r["answer"]]] for r in rows),
        ]
        for split, rows in ROWS.items()
    }
    lettered = _hub(fields={"choices": list("ABCD"), "id": "id"})
    choices = _hub(fields={"id": "id", "explanation": "explanation"})
    mmlu = [{"subject": "anatomy", **row} for row in _ALL]
    letters = [
        [r["question"], *r["choices"], "ABCD"[r["answer"]]] for r in ROWS["dev"] + ROWS["test"]
    ]
    agronomy = ["Question", "A", "B", "C", "D", "Answer"]
    return {
        "csv": (lettered, {f"data/{s}.csv": _csv(t) for s, t in table.items()}),
        "tsv": (lettered, {f"data/{s}.tsv": _csv(t, "\t") for s, t in table.items()}),
        "csv.gz": (
            lettered,
            {f"data/{s}.csv.gz": gzip.compress(_csv(t), mtime=0) for s, t in table.items()},
        ),
        "jsonl": (choices, {f"data/{s}.jsonl": lines(r) for s, r in ROWS.items()}),
        "json": (
            choices,
            {f"data/{s}.json": json.dumps(r, indent=1).encode() for s, r in ROWS.items()},
        ),
        "jsonl.gz": (
            choices,
            {f"data/{s}.jsonl.gz": gzip.compress(lines(r), mtime=0) for s, r in ROWS.items()},
        ),
        "parquet": (choices, {f"data/{s}.parquet": _parquet(r) for s, r in ROWS.items()}),
        "card": (
            choices,
            {"data/README.md": _CARD, **{f"data/{s}.jsonl": lines(r) for s, r in ROWS.items()}},
        ),
        "MMLU, csv": (
            {"kind": "mmlu", "path": "data"},
            {
                "data/dev/anatomy_dev.csv": _csv(letters[:3]),
                "data/test/anatomy_test.csv": _csv(letters[3:]),
            },
        ),
        "MMLU, jsonl": (
            {"kind": "mmlu", "path": "data"},
            {"data/dev.jsonl": lines(mmlu[:3]), "data/test.jsonl": lines(mmlu[3:7])},
        ),
        "cmmlu": (
            {"kind": "cmmlu", "path": "data", "subjects": ["agronomy"]},
            {
                "data/dev/agronomy.csv": _csv([agronomy, list(cmmlu.EXAMPLE.values())]),
                "data/test/agronomy.csv": _csv(
                    [agronomy, *([*row[:5], row[5]] for row in letters)]
                ),
            },
        ),
        "arc": _published("arc", arc.EXAMPLE, ("train", "validation", "test")),
        "medmcqa": _published("medmcqa", medmcqa.EXAMPLE, ("train", "validation"), 14),
        "medqa": _published("medqa", medqa.EXAMPLE, ("train", "test"), 12),
        "truthfulqa": _published("truthfulqa", truthfulqa.EXAMPLE, ("validation",), 12),
        "popqa": _published("popqa", popqa.EXAMPLE, ("test",), 14),
        "entity_questions": (
            {"kind": "entity_questions", "path": "data", "subjects": ["P36"]},
            {
                f"data/{s}/P36.{s}.json": json.dumps([entity_questions.EXAMPLE] * 3).encode()
                for s in ("dev", "train", "test")
            },
        ),
    }


def _published(
    kind: str, example: dict[str, Any], splits: Iterable[str], count: int = 4
) -> tuple[dict[str, Any], dict[str, Content]]:
    """Returns the source of a published dataset, and files with its example under several ids."""
    rows = [
        {**example, "question": f"{number}: {example['question']}"}
        | ({"id": f"{example['id']}-{number}"} if "id" in example else {})
        for number in range(count)
    ]
    return {"kind": kind, "path": "data"}, {f"data/{split}.jsonl": lines(rows) for split in splits}


_PAPER_SOURCE = {"kind": "paper", "domain": "law", "path": "pool"}


def _source_case(source: dict[str, Any], files: dict[str, Content]) -> Case:
    """A benchmark needs a pool next to it."""
    has_pool = source["kind"] == "huggingface"
    sources = [source] if has_pool else [_PAPER_SOURCE, source]
    every = {"c.yaml": settings(*sources), **({} if has_pool else POOL), **files}
    return Case(every, ["questions", "c.yaml"], main, list(files))


def _source(random: Random) -> Case:
    tables = _tables()
    name = random.choice(list(tables))
    case = mutated(random, _source_case(*tables[name]))
    case.changed.insert(0, name)
    written = copied(case)
    case.oracle = lambda folder, output: _as_many(written, folder)
    return case


def _as_many(case: Case, folder: Path) -> str | None:
    """Compares the number of rows in the files with that of questions read or named as left out."""
    num_rows = len(_ALL) if any(name in case.files for name in POOL) else 0
    for name in case.mutable:
        if name.endswith("README.md"):
            continue
        count = _num_rows(name, case.files[name])
        if count is None:
            return None
        num_rows += count
    manifest = json.loads((folder / "run/questions/manifest.json").read_text(encoding="utf-8"))
    left = sum(n for name, n in manifest["counts"].items() if name.startswith("left out"))
    read = len(questions_read(folder))
    return None if read + left == num_rows else f"{num_rows} rows, {read} read, {left:g} left out"


def _num_rows(name: str, content: Content) -> int | None:
    if not isinstance(content, bytes):
        return None
    if ".parquet" in name:
        return None if content[:4] != b"PAR1" else _parquet_rows(content)
    if ".json" in name:
        found = rows_of(content)
        if found is None:
            try:
                found = json.loads(content.decode("utf-8-sig"))
            except ValueError:
                return None
        return len(found) if isinstance(found, list) else 1
    try:
        raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        text = raw.decode("utf-8-sig")
    except (ValueError, OSError, EOFError):
        return None
    delimiter = "\t" if ".tsv" in name else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    num_full = sum(1 for row in rows if row)
    return num_full if "_dev.csv" in name or "_test.csv" in name else max(0, num_full - 1)


def _parquet_rows(content: bytes) -> int | None:
    from pyarrow import ArrowException, parquet

    try:
        return int(parquet.ParquetFile(io.BytesIO(content)).metadata.num_rows)
    except (ArrowException, OSError, ValueError):
        return None


def _valid_pool() -> list[Case]:
    case = Case({"c.yaml": _PAPER, **POOL}, ["questions", "c.yaml"], main)
    case.oracle = lambda folder, output: _as_in_pool(case, folder)
    return [case]


def _valid_sources() -> list[Case]:
    cases = [_source_case(*table) for table in _tables().values()]
    for case in cases:
        case.oracle = lambda folder, output, case=case: _as_many(case, folder)  # type: ignore[misc]
    return cases


KINDS = (
    Kind("pools of the paper's format", _pool, _valid_pool),
    Kind("other sources", _source, _valid_sources),
)
