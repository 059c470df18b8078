"""The shell scripts and configurations that a person runs as they are."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sh")), ids=lambda p: p.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert script.stat().st_mode & 0o111, "must be executable"


def test_ranks_script_without_a_job_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([str(ROOT / "launch" / "ranks.sh"), str(tmp_path), "2"], capture_output=True, text=True)
    assert done.returncode == 2 and "run 'ift-scale train CONFIG' once first" in done.stderr
