"""Locks of killed compilations, for which torch would wait forever."""

import os
from pathlib import Path

import pytest

from ift_scale.train.launch import extensions


def test_only_old_locks_are_removed(tmp_path: Path) -> None:
    for name, age in {"fused_adam": 3600, "utils": 60}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        os.utime(tmp_path / name / "lock", (1e9 - age, 1e9 - age))
    assert extensions.drop_stale_locks(tmp_path, 1e9) == [tmp_path / "fused_adam" / "lock"]
    assert (
        not (tmp_path / "fused_adam" / "lock").exists() and (tmp_path / "utils" / "lock").exists()
    )


def test_each_environment_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/tmp/mine")
    assert extensions.folder() == Path("/tmp/mine")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert "torch_extensions" in str(extensions.folder())
