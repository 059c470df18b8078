import os
import subprocess
import sys
from pathlib import Path

import pytest

from ift_scale.errors import ArtifactError, DataError, EnvironmentProblem
from ift_scale.io import manifests
from ift_scale.io.files import atomic_folder, atomic_path, read_jsonl, remove_incomplete, write_text
from ift_scale.io.locks import locked
from ift_scale.io.manifests import MANIFEST, is_done, read_manifest, write_manifest
from ift_scale.records import Message


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("killed")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "stage"
    with atomic_folder(target) as temporary:
        (temporary / "x").write_text("1")
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "x").write_text("2")
        raise RuntimeError("killed")
    assert (target / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["stage"]


def test_incomplete_files_of_killed_runs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "train" / ".arm.incomplete").mkdir(parents=True)
    (tmp_path / "train" / ".arm.incomplete" / "x").write_text("")
    (tmp_path / ".a.json.incomplete-123").write_text("")
    (tmp_path / "whole").write_text("")
    remove_incomplete(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["train", "whole"]


def _finished(folder: Path) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "data.txt").write_text("content")
        write_manifest(temporary, "test", "key", {}, {}, {"rows": 1}, {"total": 0.1})


def test_done_means_same_key_and_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    assert not is_done(folder, "key")
    _finished(folder)
    assert is_done(folder, "key")
    assert not is_done(folder, "another key")
    (folder / "data.txt").write_text("changed")
    assert not is_done(folder, "key")
    (folder / "data.txt").unlink()
    assert not is_done(folder, "key")


def test_a_manifest_records_how_the_artifact_was_made(tmp_path: Path) -> None:
    _finished(tmp_path / "stage")
    manifest = read_manifest(tmp_path / "stage")
    assert manifest is not None
    assert list(manifest.files) == ["data.txt"]
    assert "torch" in manifest.versions and "python" in manifest.versions
    assert "cores" in manifest.machine


def test_a_damaged_manifest_is_reported(tmp_path: Path) -> None:
    _finished(tmp_path / "stage")
    (tmp_path / "stage" / MANIFEST).write_text("{}")
    with pytest.raises(ArtifactError, match="not a manifest"):
        is_done(tmp_path / "stage", "key")


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from ift_scale.io.locks import locked\n"
    code += "with locked(Path(sys.argv[1])): print('in', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None and other.stdout.readline() == "in\n"
    with (
        pytest.raises(
            ArtifactError, match=f"another run is working in this folder .pid {other.pid}"
        ),
        locked(tmp_path),
    ):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path):  # the kernel has released it
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_disk(tmp_path: Path) -> None:
    """On a real file system of 64 KiB: one clear error, no incomplete file, the old file kept."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount here: {mounted.stderr.strip()}")
    try:
        write_text(disk / "a.txt", "old")
        with pytest.raises(
            EnvironmentProblem, match=r"the disk is full.*set output_dir to another"
        ) as caught:
            write_text(disk / "a.txt", "x" * 200_000)
        assert caught.value.exit_code == 3
        assert (disk / "a.txt").read_text() == "old"
        with (
            pytest.raises(EnvironmentProblem, match="the disk is full"),
            atomic_folder(disk / "stage") as temporary,
        ):
            (temporary / "big").write_text("x" * 200_000)
        assert [p.name for p in disk.iterdir()] == ["a.txt"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_edited_record_is_reported_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"role": "user", "content": "a"}\n{"role": "robot", "content": "b"}\n')
    with pytest.raises(DataError, match=r"m.jsonl:2: field 'role'"):
        read_jsonl(path, Message)


def test_shards_of_finished_artifacts_are_removed(tmp_path: Path) -> None:
    for name in ("probe", "evaluate/arm", "evaluate/other"):
        (tmp_path / name / "shards" / "key-8").mkdir(parents=True)
        (tmp_path / name / "shards" / "key-8" / "000000.parquet").touch()
    for name in ("probe", "evaluate/arm"):
        (tmp_path / name / "manifest.json").touch()
    texts = tmp_path / "write" / "shards" / "0000.jsonl"
    texts.parent.mkdir(parents=True)
    texts.touch()
    (tmp_path / "write" / "manifest.json").touch()
    manifests.remove_merged_shards(tmp_path)
    assert {path.parent.name for path in tmp_path.rglob("shards")} == {"other", "write"}
    assert texts.is_file()  # generated texts are no shards: the next run of the stage finds them
