"""Cases of stored results: bench rows, manifests, shards, checkpoints and token caches."""

import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import click
import pyarrow as pa

from benchmarks.__main__ import main as benchmarks_main
from benchmarks.fuzz.case import Case, Content, Kind, Random, copied
from benchmarks.fuzz.configs import POOL
from benchmarks.fuzz.data import _PAPER, readers
from benchmarks.fuzz.mutate import mutated
from benchmarks.suite.registry import results_folder
from ift_scale.cli import main


def _files_of(folder: Path, name: str) -> dict[str, Content]:
    return {
        f"{name}/{path.relative_to(folder)}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# Bench rows.


@readers.command("rows")
@click.argument("path", type=click.Path(path_type=Path))
def read_rows(path: Path) -> None:
    """Reads stored rows, and writes what was read."""
    from benchmarks.suite.rows import read

    rows = [row.model_dump(mode="json") for row in read(path)]
    Path("read.json").write_text(json.dumps(rows), encoding="utf-8")


@lru_cache(maxsize=1)
def _some_rows() -> bytes:
    lines = (results_folder() / "probe.jsonl").read_bytes().splitlines(keepends=True)
    return b"".join(lines[:4])


def _rows(random: Random) -> Case:
    case = Case({"r.jsonl": _some_rows()}, ["rows", "r.jsonl"], readers, ["r.jsonl"])
    mutated(random, case)
    if random.random() < 0.1:
        case.files["s.jsonl"] = _some_rows()
        case.program, case.argv = benchmarks_main, ["compare", "r.jsonl", "s.jsonl"]
        return case
    written = copied(case)
    case.oracle = lambda folder, output: _rows_as_written(written, folder)
    return case


def _rows_as_written(case: Case, folder: Path) -> str | None:
    content = case.files["r.jsonl"]
    read = json.loads((folder / "read.json").read_text(encoding="utf-8"))
    if not isinstance(content, bytes):  # a folder without files has no rows
        return None if content == ("folder",) and not read else f"{content} was read as rows"
    try:
        text = content.decode(
            "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        )
        written = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError:
        return None
    if len(written) != len(read):
        return f"{len(written)} rows, {len(read)} read"
    for given, found in zip(written, read, strict=True):
        for name, value in given.items():
            if type(value) in (bool, str) and found[name] is not value and found[name] != value:
                return f"{name}: {value!r} was read as {found[name]!r}"
            if isinstance(value, bool) is not isinstance(found[name], bool):
                return f"{name}: {value!r} was read as {found[name]!r}"
    return None


# Manifests of a finished stage.


@lru_cache(maxsize=1)
def _run() -> dict[str, Content]:
    """Returns the files of a run whose questions stage is finished."""
    import os

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        Case({"c.yaml": _PAPER, **POOL}, [], main).write(Path(folder))
        os.chdir(folder)
        try:
            main.main(["questions", "c.yaml"], standalone_mode=False)
        finally:
            os.chdir(before)
        return _files_of(Path(folder), ".")


_MANIFEST = "./run/questions/manifest.json"
_READING = (
    ["show", "run"],
    ["accept", "run/questions"],
    ["questions", "c.yaml"],
)


def _manifest(random: Random) -> Case:
    files = _run()
    name = random.choice((_MANIFEST,) * 8 + ("./run/config.yaml", "./run/questions/audit.json"))
    case = Case(dict(files), list(random.choice(_READING)), main, [name])
    if random.random() < 0.15:
        case.mutable = ["./run/questions/questions.jsonl"]
    mutated(random, case)
    changed = case.mutable[0]
    if changed.endswith((".jsonl", "audit.json")) and case.argv[0] == "questions":
        case.oracle = lambda folder, output: _noticed(files, changed, folder)
    return case


def _noticed(files: dict[str, Content], name: str, folder: Path) -> str | None:
    """A changed result is refused, or it is made again."""
    same = (folder / name).read_bytes() == files[name]
    return None if same else f"{name} was changed, and the stage was done already"


# Shards of the probe.


@readers.command("shard")
@click.argument("path", type=click.Path(path_type=Path))
def read_shard_file(path: Path) -> None:
    """Reads a shard as merging does."""
    from ift_scale.scoring.shards import open_shard, read_shard

    with open_shard(path) as shard:
        meta = json.loads(shard.metadata.metadata[b"meta"])
        click.echo(f"{meta['tokens']} tokens")
    Path("read.json").write_text(json.dumps(read_shard(path).to_pylist()), encoding="utf-8")


@lru_cache(maxsize=1)
def _shard() -> tuple[bytes, list[dict[str, Any]]]:
    from ift_scale.scoring.shards import Shards

    rows = [
        {"id": f"q{number}", "logprobs": [[-1.5, -0.25 * number]], "answer": number % 2}
        for number in range(40)
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"meta": json.dumps({"tokens": 9})})
    with tempfile.TemporaryDirectory() as folder:
        shards = Shards(Path(folder), "k" * 16, 40)
        shards.write(0, table)
        return shards.path(0).read_bytes(), rows


def _shard_case(random: Random) -> Case:
    case = Case({"0.parquet": _shard()[0]}, ["shard", "0.parquet"], readers, ["0.parquet"])
    mutated(random, case)
    case.oracle = _as_stored
    return case


def _as_stored(folder: Path, output: str) -> str | None:
    read = json.loads((folder / "read.json").read_text(encoding="utf-8"))
    return None if read == _shard()[1] else "other rows were read than were stored"


# Checkpoints and tokens.


@readers.command("checkpoint")
def read_checkpoint() -> None:
    """Chooses the checkpoint that an arm resumes from."""
    from ift_scale.train.engine import checkpoint_manifest

    found = checkpoint_manifest.latest(_arm(Path()))
    chosen = "none" if found is None else str(found[0])
    Path("read.json").write_text(json.dumps(chosen), encoding="utf-8")


def _arm(folder: Path) -> Any:
    from ift_scale.records import Arm
    from ift_scale.train.job import ArmJob

    arm = Arm(domain="law", setting="harmonious", seed=0)
    return ArmJob(
        arm=arm, source="", tokens="", folder=str(folder / "arm"), key="key", inputs={"set": "s"}
    )


@lru_cache(maxsize=1)
def _checkpoints() -> dict[str, Content]:
    from ift_scale.io.manifests import file_digest
    from ift_scale.train.engine.checkpoint_manifest import CheckpointManifest, Progress, folder_of

    with tempfile.TemporaryDirectory() as root:
        for step in (1, 2):
            folder = folder_of(Path(_arm(Path(root)).folder)) / f"step-{step}"
            (folder / "state").mkdir(parents=True)
            state, metrics = folder / "state" / "a.pt", folder / "metrics.jsonl"
            state.write_bytes(bytes(range(256)) * step)
            metrics.write_text('{"loss": 1.0}\n' * step, encoding="utf-8")
            files = {str(path.relative_to(folder)): path for path in (state, metrics)}
            manifest = CheckpointManifest(
                progress=Progress(step=step),
                key="key",
                inputs={"set": "s"},
                zero_stage=2,
                offload="none",
                world_size=2,
                versions={},
                files={name: path.stat().st_size for name, path in files.items()},
                digests={name: file_digest(path) for name, path in files.items()},
            )
            text = manifest.model_dump_json(indent=1)
            (folder / "manifest.json").write_text(text, encoding="utf-8")
        return _files_of(Path(root), ".")


def _checkpoint(random: Random) -> Case:
    files = _checkpoints()
    names = [name for name in files if "manifest" in name] * 3 + list(files)
    case = Case(dict(files), ["checkpoint"], readers, names)
    mutated(random, case)
    case.oracle = lambda folder, output: _as_saved(files, folder)
    return case


def _as_saved(files: dict[str, Content], folder: Path) -> str | None:
    """The files of the checkpoint that was chosen are those that were saved."""
    chosen = json.loads((folder / "read.json").read_text(encoding="utf-8"))
    for name, content in files.items():
        own = name.removeprefix("./")
        is_loaded = own.startswith(f"{chosen}/") and "manifest" not in own
        if is_loaded and (folder / own).read_bytes() != content:
            return f"{own} was changed and is loaded"
    return None


@readers.command("tokens")
def read_tokens() -> None:
    """Uses stored tokens if they are intact."""
    from ift_scale.train.data import dataset

    intact = dataset.is_intact(Path("tokens"))
    if intact:
        dataset.load(Path("tokens"))
    Path("read.json").write_text(json.dumps(intact), encoding="utf-8")


@lru_cache(maxsize=1)
def _tokens() -> dict[str, Content]:
    import numpy as np

    from ift_scale.train.data.dataset import TokenizedSet, save

    tokens = TokenizedSet(
        ids=np.arange(60, dtype=np.int32),
        supervised=np.arange(60) % 2 == 0,
        offsets=np.array([0, 20, 60]),
        weights=np.ones(2),
        num_truncated=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        save(tokens, Path(folder) / "tokens")
        return _files_of(Path(folder) / "tokens", "tokens")


def _token_case(random: Random) -> Case:
    files = _tokens()
    case = Case(dict(files), ["tokens"], readers, list(files))
    mutated(random, case)
    case.oracle = lambda folder, output: _as_tokenised(files, folder)
    return case


def _as_tokenised(files: dict[str, Content], folder: Path) -> str | None:
    if not json.loads((folder / "read.json").read_text(encoding="utf-8")):
        return None
    changed = [
        name
        for name, content in files.items()
        if name.endswith(".npy") and (folder / name).read_bytes() != content
    ]
    return f"{changed} were changed and are used" if changed else None


def _valid_manifests() -> list[Case]:
    return [Case(dict(_run()), list(argv), main) for argv in _READING]


def _valid_rows() -> list[Case]:
    files: dict[str, Content] = {"r.jsonl": _some_rows()}
    both = Case(files, ["compare", "r.jsonl", "r.jsonl"], benchmarks_main)
    return [Case(files, ["rows", "r.jsonl"], readers), both]


KINDS = (
    Kind("bench rows", _rows, _valid_rows),
    Kind("manifests", _manifest, _valid_manifests),
    Kind(
        "shards",
        _shard_case,
        lambda: [
            Case({"0.parquet": _shard()[0]}, ["shard", "0.parquet"], readers, oracle=_as_stored)
        ],
    ),
    Kind("checkpoints", _checkpoint, lambda: [Case(dict(_checkpoints()), ["checkpoint"], readers)]),
    Kind("token caches", _token_case, lambda: [Case(dict(_tokens()), ["tokens"], readers)]),
)
