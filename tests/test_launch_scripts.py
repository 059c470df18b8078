"""The shell scripts and configurations that users run unchanged."""

import subprocess
from pathlib import Path

import pytest

from ift_scale.train.launch import hostfile

ROOT = Path(__file__).parent.parent


SOURCED = ("env.sh", "slurm.sh")


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.*h")), ids=lambda p: p.name)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert bool(script.stat().st_mode & 0o111) == (script.name not in SOURCED), (
        "must be executable, unless it is sourced"
    )


@pytest.mark.parametrize("script", sorted((ROOT / "launch").glob("*.sbatch")), ids=lambda p: p.name)
def test_every_long_job_saves_before_its_end_and_is_requeued(script: Path) -> None:
    text = script.read_text()
    options = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(option.startswith("--") for option in options)
    if "launch/slurm.sh" in text:
        assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(options)


def test_the_example_hostfile_is_valid() -> None:
    assert hostfile.read(ROOT / "launch" / "hostfile.example") == {"node-01": 8, "node-02": 8}
