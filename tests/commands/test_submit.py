"""Jobs that `ift-scale submit` requests, with scripts in place of SLURM's commands."""

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ift_scale.commands.submit import SlurmJob, check_folders, jobs, script_text
from ift_scale.config import Config
from ift_scale.config.file import from_dict
from ift_scale.errors import ConfigError, EnvironmentProblem

ROOT = Path(__file__).parents[2]


def _config(**cluster: Any) -> Config:
    return from_dict({"output_dir": "runs/x", "cluster": cluster})


def test_stages_wait_for_each_other() -> None:
    assert [(job.name, job.after) for job in jobs(_config())] == [
        ("questions", None),
        ("probe", "questions"),
        ("sets", "probe"),
        ("train", "sets"),
        ("evaluate", "train"),
        ("report", "evaluate"),
    ]


def _job(name: str, **cluster: Any) -> SlurmJob:
    return next(job for job in jobs(_config(**cluster)) if job.name == name)


def test_the_settings_are_the_jobs_options() -> None:
    options = _job(
        "train",
        partition="gpu",
        account="a",
        nodes=4,
        gpus_per_node=8,
        time="1-00:00:00",
        options=["--exclusive"],
    ).options
    expected = {
        "--partition=gpu",
        "--account=a",
        "--nodes=4",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--time=1-00:00:00",
        "--exclusive",
        "--requeue",
        "--signal=B:USR1@120",
    }
    assert expected <= set(options)
    assert not any("gpus" in option for option in _job("train", gpus_per_node=0).options)
    assert "--ntasks-per-node=1" in _job("train", gpus_per_node=0).options
    assert {"--nodes=1", "--ntasks-per-node=1"} <= set(_job("report", nodes=4).options)


def test_a_sweep_is_an_array() -> None:
    job = _job("sweep", sweep=16, at_once=4)
    assert "--array=0-15%4" in job.options and job.script == "sweep"
    assert "%A_%a" in script_text(job, Path("logs"))


@pytest.mark.parametrize("sweep", [0, 3])
def test_scripts_are_those_of_the_folder_with_other_options(sweep: int) -> None:
    for job in jobs(_config(nodes=3, sweep=sweep)):
        text = script_text(job, Path("logs"))
        assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
        source = (ROOT / "launch" / f"{job.script}.sbatch").read_text().splitlines()
        kept = [line for line in text.splitlines() if not line.startswith("#SBATCH")]
        assert kept == [line for line in source if not line.startswith("#SBATCH")]
        named = [
            line.split()[1].split("=")[0]
            for line in text.splitlines()
            if line.startswith("#SBATCH")
        ]
        assert len(named) == len(set(named))


def _submit(tmp_path: Path, sbatch: str, *options: str) -> subprocess.CompletedProcess:
    """Runs `ift-scale submit` with this script as sbatch and a sinfo that has two gpu nodes.

    Calls are logged to the file `calls`.
    """
    for name, script in {"sinfo": "echo gpu 2", "sbatch": sbatch, "scancel": ""}.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    command = [
        sys.executable,
        "-m",
        "ift_scale.cli",
        "submit",
        "configs/demo.yaml",
        "--set",
        f"output_dir={tmp_path}/run",
        *options,
    ]
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_jobs_are_submitted_in_order_with_the_settings_of_the_command(tmp_path: Path) -> None:
    done = _submit(tmp_path, f"grep -c sbatch {tmp_path}/calls", "--set", "cluster.partition=gpu")
    assert done.returncode == 0, done.stderr
    calls = [
        line for line in (tmp_path / "calls").read_text().splitlines() if line.startswith("sbatch")
    ]
    assert len(calls) == 6 and "--dependency" not in calls[0]
    assert all(
        f"--dependency=afterok:{number}" in call for number, call in enumerate(calls[1:], start=1)
    )
    assert all(
        call.endswith(f"--set output_dir={tmp_path}/run --set cluster.partition=gpu")
        for call in calls
    )
    assert sorted(path.stem for path in (tmp_path / "run" / "slurm").iterdir()) == [
        "evaluate",
        "probe",
        "questions",
        "report",
        "sets",
        "train",
    ]
    assert "train: job 4, after 3" in done.stdout


def test_a_dry_run_calls_nothing_and_writes_nothing(tmp_path: Path) -> None:
    done = _submit(tmp_path, "exit 1", "--dry-run")
    assert (
        done.returncode == 0
        and "--dependency=afterok:<train>" in done.stdout
        and "#SBATCH --nodes=1" in done.stdout
    )
    assert not (tmp_path / "calls").exists() and not (tmp_path / "run").exists()


def test_an_unknown_partition(tmp_path: Path) -> None:
    done = _submit(tmp_path, "exit 1", "--set", "cluster.partition=gpuu")
    assert done.returncode == 2
    assert "cluster.partition: SLURM has no partition 'gpuu'; did you mean 'gpu'?" in done.stderr
    assert "sbatch" not in (tmp_path / "calls").read_text()


def test_more_nodes_than_the_partition_has(tmp_path: Path) -> None:
    done = _submit(tmp_path, "exit 1", "--set", "cluster.partition=gpu", "--set", "cluster.nodes=3")
    assert (
        done.returncode == 2
        and "cluster.nodes: 3 nodes requested, but partition gpu has 2" in done.stderr
    )


def test_a_refused_job_cancels_the_others(tmp_path: Path) -> None:
    done = _submit(
        tmp_path,
        f"n=$(grep -c sbatch {tmp_path}/calls)\n"
        'if [ "$n" -lt 3 ]; then echo "$n"; else echo over quota >&2; exit 1; fi',
    )
    assert done.returncode == 3
    assert (
        "sbatch refused the job sets: over quota; cancelled the jobs 1, 2 that were submitted"
        in done.stderr
    )
    assert "scancel 1 2" in (tmp_path / "calls").read_text()


def test_a_study_is_submitted_by_variant() -> None:
    command = [
        sys.executable,
        "-m",
        "ift_scale.cli",
        "submit",
        "configs/world_study.yaml",
        "--dry-run",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "these variants: paper, matched" in done.stderr
    done = subprocess.run(
        [*command, "--variant", "matched"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "--variant matched" in done.stdout


@pytest.mark.parametrize("field", ["partition", "account", "qos"])
@pytest.mark.parametrize(
    "value", ["gpu\n#SBATCH --wrap=id", "a b", "$(id)", "%j", "a;id", "--wrap=id", "'a'", "a#b"]
)
def test_a_name_that_sbatch_would_read_otherwise_is_refused(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"cluster.{field}"):
        _config(**{field: value})
    assert _config(**{field: "gpu-a_1,b.c"})


@pytest.mark.parametrize("value", ["--exclusive\nrm -rf x", "rm", "--comment='open", "", "\x1b[2J"])
def test_an_option_that_is_more_than_options_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.options"):
        _config(options=[value])


def test_options_and_folders_are_quoted() -> None:
    """sbatch reads a line as a shell would, but replaces % in file names."""
    options = ["--comment=$(id) `id` #x", "--comment='a b'", "--mem 4G -t 5"]
    job = _job("train", options=options)
    text = script_text(job, Path("/runs/50% of $(id) #1/logs"))
    lines = [shlex.split(line) for line in text.splitlines() if line.startswith("#SBATCH")]
    arguments = [argument for _, *parts in lines for argument in parts]
    assert "--output=/runs/50%% of $(id) #1/logs/%x-%j.log" in arguments
    assert {"--comment=a b", "--mem", "4G", "-t", "5"} <= set(arguments)
    body = [line for line in text.splitlines() if not line.startswith("#SBATCH")]
    assert not any("$(id)" in line for line in body)


@pytest.mark.parametrize("name", ["a\nb", "a\\b"])
def test_a_folder_that_sbatch_cannot_be_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="output_dir"):
        check_folders(tmp_path / name, tmp_path)
    with pytest.raises(EnvironmentProblem, match="comma"):
        check_folders(tmp_path, tmp_path / "a,LD_PRELOAD=x")
