"""The sbatch scripts of launch/ on a real SLURM: probing, training, pre-emption, failures."""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from tests.launch.slurm import DAEMONS, Slurm
from tests.launch.small import (
    ARMS,
    LONG,
    ROOT,
    arguments,
    command,
    losses,
    processes,
    run,
    wait_for_step,
    weights,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.engine

# One rank per node, because this machine has two cores; everything else is as in the scripts.
SMALLER = ("--ntasks-per-node=1", "--chdir", str(ROOT))


@pytest.fixture(scope="module")
def slurm(
    tmp_path_factory: pytest.TempPathFactory, lacking: Callable[[str], NoReturn]
) -> Iterator[Slurm]:
    missing = [
        name
        for name in DAEMONS
        if shutil.which(name) is None and not Path("/usr/sbin", name).exists()
    ]
    if missing or os.geteuid() != 0:
        lacking(
            f"no SLURM: {', '.join(missing) or 'its daemons need root'} "
            "(to run these tests, as root on Debian: apt-get install slurmctld slurmd slurm-client "
            "munge, then make test)"
        )
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster.start()
    finally:
        cluster.close()


def _environment(slurm: Slurm) -> dict[str, str]:
    return slurm.environment | {
        "IFT_SCALE_HOME": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def _submit(
    slurm: Slurm,
    script: str,
    nodes: int,
    folder: Path,
    *overrides: str,
    options: tuple[str, ...] = (),
) -> str:
    job = (
        f"--nodes={nodes}",
        *SMALLER,
        f"--output={folder.parent}/%x.log",
        *options,
        str(ROOT / "launch" / script),
    )
    return slurm.submit(*job, *arguments(folder, *overrides), env=_environment(slurm), cwd=ROOT)


def _log(folder: Path, script: str) -> str:
    return (folder.parent / f"ift-{script}.log").read_text()


def test_two_nodes_interrupted_and_requeued_train_what_deepspeed_trains(
    slurm: Slurm, trained: Path, copy: Path
) -> None:
    job = _submit(slurm, "train.sbatch", 2, copy, LONG)
    wait_for_step(copy, ARMS[0], 15)
    slurm("scancel", "--signal=USR1", job)  # every process of the step
    wait_for_step(copy, ARMS[1], 15)
    slurm("scancel", "--batch", "--signal=USR1", job)  # only the script, as at the time limit
    ended = slurm.wait(job)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "2", _log(copy, "train")
    for arm in ARMS:
        assert losses(copy, arm) == losses(trained, arm)
        expected = weights(trained, arm)
        assert all(
            torch.equal(tensor, expected[name]) for name, tensor in weights(copy, arm).items()
        )
    assert _log(copy, "train").count("the job is requeued") == 2


def test_a_job_that_lost_a_node_resumes_on_the_other(
    slurm: Slurm, trained: Path, copy: Path
) -> None:
    one_arm = (LONG, "construct.settings=[harmonious]")
    run("construct", copy, *one_arm)
    job = _submit(
        slurm, "train.sbatch", 2, copy, *one_arm, options=("--export=ALL,IFT_SCALE_MAX_RESTARTS=0",)
    )
    wait_for_step(copy, ARMS[0], 15)
    slurm("scancel", "--signal=USR1", job)
    ended = slurm.wait(job)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "75:0", _log(copy, "train")
    ended = slurm.wait(_submit(slurm, "train.sbatch", 1, copy, *one_arm, "train.num_ranks=1"))
    assert ended["JobState"] == "COMPLETED", _log(copy, "train")
    assert losses(copy, ARMS[0]) == pytest.approx(losses(trained, ARMS[0]), rel=1e-5)


def test_submitted_stages_run_in_order_and_a_sweep_divides_the_arms(
    slurm: Slurm, tmp_path: Path
) -> None:
    """Interrupts the array's last task, which has the array's id; dependent jobs wait."""
    folder = tmp_path / "run"
    sizes = (
        "cluster.gpus_per_node=0",
        "cluster.nodes=1",
        "cluster.cpus_per_rank=1",
        "cluster.sweep=2",
        "cluster.partition=main",
    )
    two_a_node = ("cluster.ranks_per_node=2", LONG)
    done = slurm(*command("submit", folder, *sizes, *two_a_node), env=_environment(slurm), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    ids = dict(re.findall(r"(\w+): job (\d+)", done.stdout))
    assert list(ids) == ["questions", "probe", "sets", "sweep", "report"]
    wait_for_step(folder, ARMS[1], 15, part="-part1of2")
    slurm("scancel", "--batch", "--signal=USR1", f"{ids['sweep']}_1")
    reported = slurm.wait(ids["report"])
    logs = {path.name: path.read_text() for path in (folder / "logs").glob("ift-*.log")}
    assert reported["JobState"] == "COMPLETED", logs
    assert (folder / "report" / "index.html").is_file()
    for task, arm in enumerate(ARMS):
        assert len(losses(folder, arm)) == 60
        log = logs[f"ift-sweep-{ids['sweep']}_{task}.log"]
        assert "train: 1 arms" in log and log.count("the job is requeued") == task


def test_a_rank_killed_in_probing_only_costs_its_share(slurm: Slurm, tmp_path: Path) -> None:
    folder, alone, small_chunks = tmp_path / "run", tmp_path / "alone", "probe.chunk_size=20"
    run("questions probe", alone, small_chunks)
    job = _submit(slurm, "probe.sbatch", 2, folder, small_chunks)
    wait_for(lambda: len(list(folder.glob("probe/shards/*/*.parquet"))) >= 4, "no shards came")
    os.kill(next(processes(f"output_dir={folder} ", "SLURM_PROCID=1")), signal.SIGKILL)
    ended = slurm.wait(job)
    assert ended["JobState"] == "COMPLETED", _log(folder, "probe")
    assert (folder / "probe" / "probe.parquet").read_bytes() == (
        alone / "probe" / "probe.parquet"
    ).read_bytes()


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, copy: Path) -> None:
    job = _submit(slurm, "train.sbatch", 2, copy, LONG)
    wait_for_step(copy, ARMS[0], 10)
    slurm("scancel", job)
    assert slurm.wait(job)["JobState"] == "CANCELLED" and slurm.show(job)["Restarts"] == "0", _log(
        copy, "train"
    )


def test_a_killed_rank_ends_the_job_with_a_failure(slurm: Slurm, copy: Path) -> None:
    job = _submit(slurm, "train.sbatch", 2, copy, LONG)
    wait_for_step(copy, ARMS[0], 10)
    os.kill(next(processes(f"output_dir={copy} ", "SLURM_PROCID=1")), signal.SIGKILL)
    killed = time.monotonic()
    ended = slurm.wait(job)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] != "0:0", _log(copy, "train")
    assert time.monotonic() - killed < 60


def test_a_node_list_without_an_address_is_reported(slurm: Slurm, probed: Path) -> None:
    lost = ["env", "SLURM_STEP_NODELIST=nowhere[1-2]"]
    done = slurm("srun", "--nodes=2", "--ntasks=2", *lost, *command("train", probed), cwd=ROOT)
    assert done.returncode == 3
    assert (
        "nowhere1 (of the job's nodes nowhere[1-2]), the host of the rendezvous, has no address"
        in done.stderr
    )
