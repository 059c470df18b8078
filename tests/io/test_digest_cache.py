"""Digests of large files: the whole content counts, and only unchanged files use the cache."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ift_scale.errors import DataError
from ift_scale.io import digest_cache, manifests
from ift_scale.io.manifests import file_digest, folder_digest

SIZE = 6 << 20  # with the threshold below, "large" in several chunks


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifests, "_SHA256_BYTES", 5 << 20)
    monkeypatch.setattr(digest_cache, "_STAMP_RESOLUTION_NS", -(10**12))  # every file counts as old
    return tmp_path / "cache" / "ift-scale" / "digests"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list with one item per read of a file's content."""
    calls: list[int] = []
    real = digest_cache._blake3
    monkeypatch.setattr(
        digest_cache, "_blake3", lambda descriptor: calls.append(descriptor) or real(descriptor)
    )  # type: ignore[func-returns-value]
    return calls


def _write(path: Path, size: int = SIZE) -> Path:
    path.write_bytes(os.urandom(1 << 20) * (size >> 20))
    return path


def _edit(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("offset", [0, 1 << 20, SIZE // 2, SIZE - (1 << 20) - 1, SIZE - 1])
def test_every_byte_of_a_large_file_counts(cache: Path, tmp_path: Path, offset: int) -> None:
    path = _write(tmp_path / "model.safetensors")
    before, folder_before = file_digest(path), folder_digest(tmp_path)
    _edit(path, offset)
    assert file_digest(path) != before
    assert folder_digest(tmp_path) != folder_before


def test_the_digest_is_blake3_of_the_content(cache: Path, tmp_path: Path) -> None:
    from blake3 import blake3

    path = _write(tmp_path / "model.safetensors", 7 << 20)
    assert file_digest(path) == "blake3-" + blake3(path.read_bytes()).hexdigest()
    small = tmp_path / "config.json"
    small.write_text("{}")
    # The digest in the manifests of finished runs.
    assert file_digest(small) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_an_unchanged_file_is_not_read_again(
    cache: Path, tmp_path: Path, hashed: list[int]
) -> None:
    path = _write(tmp_path / "a.safetensors")
    first = file_digest(path)
    assert file_digest(path) == first and len(hashed) == 1
    assert len(list(cache.glob("*.json"))) == 1


def test_an_edit_that_keeps_size_and_modification_time_is_noticed(
    cache: Path, tmp_path: Path, hashed: list[int]
) -> None:
    path = _write(tmp_path / "a.safetensors")
    first, status = file_digest(path), path.stat()
    _edit(path, SIZE // 2)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_mtime_ns == status.st_mtime_ns and path.stat().st_size == status.st_size
    assert file_digest(path) != first and len(hashed) == 2


def test_another_file_under_the_same_name_is_noticed(cache: Path, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.safetensors")
    first = file_digest(path)
    _write(tmp_path / "b.safetensors").replace(path)
    assert file_digest(path) != first


def test_a_recently_changed_file_is_not_cached(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent.parent))
    path = _write(tmp_path / "a.safetensors")
    digest_cache.digest(path, "blake3")
    assert not list(cache.glob("*.json"))


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"null",
        b"[1]",
        b"\xff\xfe",
        b'{"path": 1}',
        b'{"digest": "blake3-0", "path": "elsewhere", "stamp": []}',
    ],
)
def test_a_damaged_entry_is_ignored_and_replaced(
    cache: Path, tmp_path: Path, hashed: list[int], damage: bytes
) -> None:
    path = _write(tmp_path / "a.safetensors")
    first = file_digest(path)
    (entry,) = cache.glob("*.json")
    entry.write_bytes(damage)
    assert file_digest(path) == first and len(hashed) == 2
    assert file_digest(path) == first and len(hashed) == 2


def _a_file_in_the_way(cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("")


def _no_home(cache: Path) -> None:
    os.environ["XDG_CACHE_HOME"] = "/proc/no-such-folder"


@pytest.mark.parametrize("spoil", [_a_file_in_the_way, _no_home])
def test_a_read_only_cache_only_costs_time(
    cache: Path, tmp_path: Path, hashed: list[int], spoil: Callable[[Path], None]
) -> None:
    spoil(cache)
    path = _write(tmp_path / "a.safetensors")
    assert file_digest(path) == file_digest(path) and len(hashed) == 2


def test_a_file_that_changes_while_it_is_read_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.safetensors")

    def changing(descriptor: int) -> str:
        with path.open("ab") as file:
            file.write(b"more")
        return "0"

    monkeypatch.setattr(digest_cache, "_blake3", changing)
    with pytest.raises(
        DataError, match=r"a.safetensors: changed while it was read. Wait until it is complete"
    ):
        file_digest(path)
    assert not list(cache.glob("*.json"))


def test_only_one_of_several_processes_hashes_the_file(
    cache: Path, tmp_path: Path, hashed: list[int]
) -> None:
    """Threads stand in for processes, because the lock belongs to the open file."""
    path = _write(tmp_path / "a.safetensors")
    started = threading.Barrier(4)

    def digest(number: int) -> str:
        started.wait()
        return file_digest(path)

    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(digest, range(4)))
    assert len(found) == 1 and len(hashed) == 1


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert digest_cache.folder() == tmp_path / ".cache" / "ift-scale" / "digests"


def _anonymous_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024


def test_threads_keep_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every new thread may get a heap of its own, which would keep its buffer of 4 MiB."""
    monkeypatch.setattr(digest_cache, "folder", lambda name="digests": None)
    path = tmp_path / "file"
    path.write_bytes(bytes(2 << 20))
    digest_cache.digest(path, "sha256")
    before = _anonymous_mib()
    for _ in range(4):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: digest_cache.digest(path, "sha256"), range(8)))
    assert _anonymous_mib() - before < 4
