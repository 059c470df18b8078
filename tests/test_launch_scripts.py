"""The shell scripts and configurations that a person runs as they are."""

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
def test_every_job_that_works_saves_before_its_end_and_goes_on(script: Path) -> None:
    text = script.read_text()
    options = [line.split()[1] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(option.startswith("--") for option in options)
    if "launch/slurm.sh" in text:
        assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(options)


def test_a_container_command_comes_after_the_options_of_srun(tmp_path: Path) -> None:
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\necho "$*"\nexit 1\n')
    srun.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "IFT_SCALE_HOME": str(tmp_path),
        "IFT_SCALE_SRUN": "--exclusive apptainer exec image.sif",
        "MASTER_ADDR": "node-01",
    }
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    script = "source launch/slurm.sh; share ift-scale probe"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    command = "--exclusive apptainer exec image.sif ift-scale probe"
    assert done.stdout.splitlines() == [
        f"--kill-on-bad-exit=0 --wait=0 {command}",
        f"--kill-on-bad-exit=1 --wait=60 {command}",
    ]
    assert done.returncode == 1


def test_the_example_of_a_hostfile_is_one() -> None:
    assert hostfile.read(ROOT / "launch" / "hostfile.example") == {"node-01": 8, "node-02": 8}
