"""A run for launch tests: probed by one process with its sets constructed, and the same trained."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from tests.launch import small


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one") / "run"
    small.run("questions probe write construct", folder)
    return folder


@pytest.fixture(scope="session")
def trained(probed: Path) -> Path:
    """The run trained by the deepspeed launcher on one node with two ranks, uninterrupted."""
    small.run("train", probed, small.LONG)
    return probed


@pytest.fixture
def copy(probed: Path, tmp_path: Path) -> Path:
    """A copy of the probed run in which nothing is trained."""
    folder = tmp_path / "run"
    shutil.copytree(probed, folder, ignore=shutil.ignore_patterns("train", "evaluate", "logs"))
    return folder


@pytest.fixture(scope="session")
def lacking() -> Callable[[str], NoReturn]:
    """Skips a test that needs something this machine lacks; fails in CI, where it is installed."""

    def lacking(reason: str) -> NoReturn:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)

    return lacking
