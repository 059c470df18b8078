"""Changed files of finished results, through the command line: refused, restored, accepted.

The run has every stage's artifact under its right key, with made-up content, so that no engine
starts. The cases are taken from the manifests, so a new stage or file is covered by itself.
"""

import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ift_scale.cli import main
from ift_scale.config.file import load
from ift_scale.errors import ArtifactError
from ift_scale.io.manifests import MANIFEST, read_manifest
from ift_scale.pipeline import Pipeline
from ift_scale.stage import Context
from ift_scale.stages import STAGES
from tests.test_keys import ROOT, keys_of

CONFIG = str(ROOT / "configs" / "demo.yaml")
SETTINGS = [
    "construct.domains=[rivers]",
    "construct.settings=[harmonious, incompatible]",
    "construct.seeds=[0]",
    "learnt.on=true",
    "write.paraphrases={kind: base_model, engine: transformers}",
    "hidden.on=true",
]
MADE = [stage.name for stage in STAGES if stage.name != "report"]


def _overrides(run: Path) -> tuple[str, ...]:
    return (*SETTINGS, f"output_dir={run}")


def _command(stage: str, run: Path) -> Result:
    sets = [part for text in _overrides(run) for part in ("--set", text)]
    return CliRunner().invoke(main, [stage, CONFIG, *sets])


def _context(run: Path) -> Context:
    return Pipeline(load(CONFIG, _overrides(run))).context


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("integrity") / "run"
    keys_of(load(CONFIG, _overrides(run)))
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def _files(run: Path) -> Iterator[tuple[str, Path, str]]:
    """The stage, artifact and name of every file in the manifests."""
    for path in sorted(run.rglob(MANIFEST)):
        manifest = read_manifest(path.parent)
        assert manifest is not None
        for name in manifest.files:
            yield manifest.stage, path.parent, name


def _readers(context: Context, stage: str, name: str) -> list[str]:
    """The stages that read a file, by what they declare."""
    return [
        reader.name
        for reader in context.stages.values()
        if any(fnmatchcase(f"{stage}/{name}", pattern) for pattern in reader.reads)
    ]


def _keys(run: Path, stage: str) -> set[str]:
    """The stage's keys; none if an earlier result is out of date."""
    try:
        return {task.key for task in _context(run).tasks(stage)}
    except ArtifactError as error:
        assert "was made with other settings or inputs" in str(error)
        return set()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _edit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Q?", b"R?") if b"Q?" in content else content + b"\n")


@pytest.mark.engine
@pytest.mark.parametrize("damage", [_flip, _truncate, _empty, _edit])
def test_every_command_that_reads_a_changed_file_refuses_it(
    run: Path, damage: Callable[[Path], None]
) -> None:
    context = _context(run)
    covered = set()
    for stage, folder, name in _files(run):
        path = folder / name
        before = path.read_bytes()
        damage(path)
        for command in {stage, *_readers(context, stage, name)}:
            result = _command(command, run)
            assert result.exit_code == 2, (path, command, result.output)
            assert f"{path}: changed after `ift-scale {stage}` wrote it" in result.output
            assert f"remove it and run `ift-scale {stage}`" in result.output
            assert f"run `ift-scale accept {folder}`" in result.output
            covered.add((stage, command))
        path.write_bytes(before)
        done = _command(stage, run)
        assert done.exit_code == 0 and "done already" in done.output, done.output
    assert {stage for stage, _ in covered} == set(MADE)
    assert {command for _, command in covered} == {stage.name for stage in STAGES}


def test_two_files_that_changed_places_are_refused(run: Path) -> None:
    first, second, *_ = sorted((run / "construct").glob("*-seed*.jsonl"))
    first.write_text("1\n")
    second.write_text("2\n")
    result = CliRunner().invoke(main, ["accept", str(run / "construct")])
    assert result.exit_code == 0, result.output
    other = first.with_name("other")
    first.rename(other)
    second.rename(first)
    other.rename(second)
    for command in ("construct", "train"):
        result = _command(command, run)
        assert result.exit_code == 2
        assert f"{first} (and 1 more files there): changed" in result.output


def test_an_input_that_is_missing_is_named_when_it_is_needed(run: Path) -> None:
    (run / "probe" / "probe.parquet").unlink()
    assert "construct: done already" in _command("construct", run).output
    (run / "construct" / "balance.csv").unlink()
    result = _command("construct", run)
    assert result.exit_code == 2
    assert f"{run / 'probe' / 'probe.parquet'}: missing, although `ift-scale probe`" in (
        result.output
    )


@pytest.mark.engine
def test_an_accepted_edit_is_kept_and_what_depends_on_it_is_out_of_date(
    finished: Path, tmp_path: Path
) -> None:
    for number, (stage, folder, name) in enumerate(_files(finished)):
        run = shutil.copytree(finished, tmp_path / str(number))
        folder = run / folder.relative_to(finished)
        before = {reader: _keys(run, reader) for reader in _readers(_context(run), stage, name)}
        assert before, name
        _edit(folder / name)
        result = CliRunner().invoke(main, ["accept", str(folder)])
        assert result.exit_code == 0 and f"accepted: {folder / name}" in result.output
        manifest = read_manifest(folder)
        assert manifest is not None and [edit.files for edit in manifest.edited] == [[name]]
        assert manifest.edited[0].artifact == str(folder.relative_to(run))
        if name != "questions.jsonl":  # its artifact is then made of another file
            assert "done already" in _command(stage, run).output
        # Not every reader: live measurements, for example, do not change the weights.
        assert any(_keys(run, reader) != keys for reader, keys in before.items()), name
        again = CliRunner().invoke(main, ["accept", str(folder)])
        assert f"{folder}: no file was changed" in again.output


@pytest.mark.parametrize(
    ("folder", "problem"),
    [(".", "not a finished artifact, it has no manifest.json"), ("probe", "missing, and")],
)
def test_what_cannot_be_accepted_is_refused(run: Path, folder: str, problem: str) -> None:
    (run / "probe" / "probe.parquet").unlink()
    result = CliRunner().invoke(main, ["accept", str(run / folder)])
    assert result.exit_code == 2 and problem in result.output


def test_an_edited_result_is_not_reused_by_another_variant(run: Path, tmp_path: Path) -> None:
    _edit(run / "questions" / "audit.json")
    assert CliRunner().invoke(main, ["accept", str(run / "questions")]).exit_code == 0
    settings = load(CONFIG, (*SETTINGS, f"output_dir={tmp_path / 'other'}"))
    pipeline = Pipeline(settings, siblings=[run])
    (task,) = pipeline.context.tasks("questions")
    assert not pipeline._adopts(task)
