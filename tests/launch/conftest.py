"""A run to launch from: probed by one process, its sets constructed; and the same trained, uninterrupted."""

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
    """By the deepspeed launcher on one node, two ranks."""
    small.run("train", probed, small.LONG)
    return probed


@pytest.fixture
def copy(probed: Path, tmp_path: Path) -> Path:
    """The probed run in a folder of its own, nothing trained."""
    folder = tmp_path / "run"
    shutil.copytree(probed, folder, ignore=shutil.ignore_patterns("train", "evaluate", "logs"))
    return folder


@pytest.fixture(scope="session")
def lacking() -> Callable[[str], NoReturn]:
    """What a test does where this machine lacks something: skip, or fail in CI, which has installed it."""

    def lacking(reason: str) -> NoReturn:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)

    return lacking
