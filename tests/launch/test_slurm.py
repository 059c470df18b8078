"""The sbatch scripts of launch/ on a real SLURM of two nodes, as they are: probing, training, pre-emption, failures."""

import os
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
from tests.launch.small import ARMS, LONG, ROOT, arguments, command, losses, processes, run, wait_for_step, weights

pytestmark = pytest.mark.engine

# One rank a node, since this machine has two cores; all else is the scripts' own.
SMALLER = ("--ntasks-per-node=1", "--chdir", str(ROOT))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, lacking: Callable[[str], NoReturn]) -> Iterator[Slurm]:
    missing = [name for name in DAEMONS if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]
    if missing or os.geteuid() != 0:
        lacking(f"no SLURM here: {', '.join(missing) or 'its daemons need root'} (Debian: slurmctld slurmd slurm-client munge)")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster.start()
    finally:
        cluster.close()


def _submit(slurm: Slurm, script: str, nodes: int, folder: Path, *overrides: str, options: tuple[str, ...] = ()) -> str:
    environment = slurm.environment | {"IFT_SCALE_HOME": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    job = (f"--nodes={nodes}", *SMALLER, f"--output={folder.parent}/%x.log", *options, str(ROOT / "launch" / script))
    return slurm.submit(*job, *arguments(folder, *overrides), env=environment, cwd=ROOT)


def _log(folder: Path, script: str) -> str:
    return (folder.parent / f"ift-{script}.log").read_text()


def test_probing_over_two_nodes_gives_the_file_of_one_process(slurm: Slurm, probed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = slurm.wait(_submit(slurm, "probe.sbatch", 2, folder))
    assert ended["JobState"] == "COMPLETED", _log(folder, "probe")
    assert (folder / "probe" / "probe.parquet").read_bytes() == (probed / "probe" / "probe.parquet").read_bytes()


def test_two_nodes_interrupted_and_requeued_train_what_deepspeed_trains(slurm: Slurm, trained: Path, copy: Path) -> None:
    job = _submit(slurm, "train.sbatch", 2, copy, LONG)
    wait_for_step(copy, ARMS[0], 15)
    slurm("scancel", "--signal=USR1", job)  # every process of the step
    wait_for_step(copy, ARMS[1], 15)
    slurm("scancel", "--batch", "--signal=USR1", job)  # the script alone, as at the time limit
    ended = slurm.wait(job)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "2", _log(copy, "train")
    for arm in ARMS:
        assert losses(copy, arm) == losses(trained, arm)
        expected = weights(trained, arm)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(copy, arm).items())
    assert _log(copy, "train").count("the job goes back into the queue") == 2


def test_a_job_that_lost_a_node_goes_on_with_the_other(slurm: Slurm, trained: Path, copy: Path) -> None:
    one_arm = (LONG, "construct.settings=[harmonious]")
    run("construct", copy, *one_arm)
    job = _submit(slurm, "train.sbatch", 2, copy, *one_arm, options=("--export=ALL,IFT_SCALE_MAX_RESTARTS=0",))
    wait_for_step(copy, ARMS[0], 15)
    slurm("scancel", "--signal=USR1", job)
    ended = slurm.wait(job)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "75:0", _log(copy, "train")
    ended = slurm.wait(_submit(slurm, "train.sbatch", 1, copy, *one_arm, "train.num_ranks=1"))
    assert ended["JobState"] == "COMPLETED", _log(copy, "train")
    assert losses(copy, ARMS[0]) == pytest.approx(losses(trained, ARMS[0]), rel=1e-5)


def test_a_sweep_deals_the_arms_to_an_array_and_skips_what_is_done(slurm: Slurm, copy: Path) -> None:
    for _ in range(2):
        job = _submit(slurm, "sweep.sbatch", 1, copy, options=("--array=0-1", f"--output={copy.parent}/%x_%a.log"))
        for task in (f"{job}_0", f"{job}_1"):
            assert slurm.wait(task)["JobState"] == "COMPLETED"
    logs = [(copy.parent / f"ift-sweep_{task}.log").read_text() for task in (0, 1)]
    for arm, log in zip(ARMS, logs, strict=True):
        assert (copy / "evaluate" / arm / "scores.parquet").is_file()
        assert log.count("1 of 1 arms done already") == 2  # trained, evaluated


def test_a_killed_rank_ends_the_job_with_a_failure(slurm: Slurm, copy: Path) -> None:
    job = _submit(slurm, "train.sbatch", 2, copy, LONG)
    wait_for_step(copy, ARMS[0], 10)
    os.kill(next(processes(f"output_dir={copy} ", "SLURM_PROCID=1")), signal.SIGKILL)
    killed = time.monotonic()
    ended = slurm.wait(job, seconds=60)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] != "0:0", _log(copy, "train")
    assert time.monotonic() - killed < 60


def test_a_node_list_without_an_address_is_told(slurm: Slurm, probed: Path) -> None:
    lost = ["env", "--unset=MASTER_ADDR", "SLURM_STEP_NODELIST=nowhere[1-2]"]
    done = slurm("srun", "--nodes=2", "--ntasks=2", *lost, *command("train", probed), cwd=ROOT)
    assert done.returncode == 3
    assert "the first node of the job's list nowhere[1-2], nowhere1, has no address" in done.stderr
