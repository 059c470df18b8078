"""The sbatch scripts of launch/ on a real SLURM of two nodes, as they are: probing, training, pre-emption, failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launch.slurm import DAEMONS, Slurm

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
SMALL = (
    "construct.domains=[medicine]", "construct.settings=[harmonious, incompatible]", "construct.size=24", "construct.seeds=[0]",
    "probe.engine=transformers", "evaluate.engine=transformers", "probe.chunk_size=160", "evaluate.chunk_size=100",
    "train.live.every=0", "train.log_every=1",
)  # fmt: skip
ARMS = ("medicine-harmonious-seed0", "medicine-incompatible-seed0")
LONG = "train.epochs=40"  # 120 steps
# One rank a node, since this machine has two cores; all else is the scripts' own.
SMALLER = ("--ntasks-per-node=1", "--chdir", str(ROOT))


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [name for name in DAEMONS if shutil.which(name) is None and not Path("/usr/sbin", name).exists()]
    if missing or os.geteuid() != 0:
        reason = f"no SLURM here: {', '.join(missing) or 'its daemons need root'} (Debian: slurmctld slurmd slurm-client munge)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield cluster.start()
    finally:
        cluster.close()


def _arguments(folder: Path, *overrides: str) -> list[str]:
    sets = [f"output_dir={folder}", *SMALL, *overrides]
    return ["configs/demo.yaml", *(part for text in sets for part in ("--set", text))]


def _here(stage: str, folder: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "ift_scale.cli", stage, *_arguments(folder, *overrides)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def _submit(slurm: Slurm, script: str, nodes: int, folder: Path, *overrides: str, options: tuple[str, ...] = ()) -> str:
    environment = slurm.environment | {"IFT_SCALE_HOME": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    job = (f"--nodes={nodes}", *SMALLER, f"--output={folder.parent}/%x.log", *options, str(ROOT / "launch" / script))
    return slurm.submit(*job, *_arguments(folder, *overrides), env=environment, cwd=ROOT)


def _log(folder: Path, script: str) -> str:
    return (folder.parent / f"ift-{script}.log").read_text()


def _losses(folder: Path, arm: str) -> list[float]:
    rows = (folder / "train" / arm / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


def _weights(folder: Path, arm: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "train" / arm / "model" / "model.safetensors")


def _wait_for_step(folder: Path, arm: str, step: int) -> None:
    """Until the launch that goes on now has told of this step of the arm."""
    events, deadline = folder / "logs" / "train-events.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline:
        told = [json.loads(line) for line in events.read_text().splitlines() if line.endswith("}")] if events.exists() else []
        begun = [number for number, event in enumerate(told) if event["event"] == "arm" and event["name"] == arm]
        if begun and any(event["event"] == "step" and event["step"] >= step for event in told[begun[-1] :]):
            return
        time.sleep(0.02)
    raise AssertionError(f"{arm} has not come to step {step}")


def _task(folder: Path, number: int) -> int:
    """Process id of a task of the step that works in this folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            own = f"output_dir={folder}".encode() in words and b"python" in words[0]
            if own and f"SLURM_PROCID={number}".encode() in variables:
                return int(entry.name)
    raise AssertionError(f"task {number} does not run")


@pytest.fixture(scope="module")
def probed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run probed by one process, its sets constructed."""
    folder = tmp_path_factory.mktemp("one") / "run"
    for stage in ("questions", "probe", "write", "construct"):
        _here(stage, folder)
    return folder


@pytest.fixture(scope="module")
def trained(probed: Path) -> Path:
    """The same trained by the deepspeed launcher on one node of two ranks, uninterrupted."""
    _here("train", probed, LONG)
    return probed


def _copy(probed: Path, folder: Path) -> Path:
    shutil.copytree(probed, folder, ignore=shutil.ignore_patterns("train", "evaluate", "logs"))
    return folder


def test_probing_over_two_nodes_gives_the_file_of_one_process(slurm: Slurm, probed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = slurm.wait(_submit(slurm, "probe.sbatch", 2, folder))
    assert ended["JobState"] == "COMPLETED", _log(folder, "probe")
    assert (folder / "probe" / "probe.parquet").read_bytes() == (probed / "probe" / "probe.parquet").read_bytes()


def test_two_nodes_interrupted_and_requeued_train_what_deepspeed_trains(slurm: Slurm, trained: Path, tmp_path: Path) -> None:
    folder = _copy(trained, tmp_path / "run")
    job = _submit(slurm, "train.sbatch", 2, folder, LONG)
    _wait_for_step(folder, ARMS[0], 20)
    slurm("scancel", "--signal=USR1", job)  # every process of the step
    _wait_for_step(folder, ARMS[1], 20)
    slurm("scancel", "--batch", "--signal=USR1", job)  # the script alone, as at the time limit
    ended = slurm.wait(job)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "2", _log(folder, "train")
    for arm in ARMS:
        assert _losses(folder, arm) == _losses(trained, arm)
        expected = _weights(trained, arm)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in _weights(folder, arm).items())
    assert _log(folder, "train").count("the job goes back into the queue") == 2


def test_a_job_that_lost_a_node_goes_on_with_the_other(slurm: Slurm, trained: Path, tmp_path: Path) -> None:
    folder = _copy(trained, tmp_path / "run")
    one_arm = (LONG, "construct.settings=[harmonious]")
    _here("construct", folder, *one_arm)
    job = _submit(slurm, "train.sbatch", 2, folder, *one_arm, options=("--export=ALL,IFT_SCALE_MAX_RESTARTS=0",))
    _wait_for_step(folder, ARMS[0], 20)
    slurm("scancel", "--signal=USR1", job)
    ended = slurm.wait(job)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "75:0", _log(folder, "train")
    ended = slurm.wait(_submit(slurm, "train.sbatch", 1, folder, *one_arm))
    assert ended["JobState"] == "COMPLETED", _log(folder, "train")
    assert _losses(folder, ARMS[0]) == pytest.approx(_losses(trained, ARMS[0]), rel=1e-5)


def test_a_sweep_deals_the_arms_to_an_array_and_skips_what_is_done(slurm: Slurm, probed: Path, tmp_path: Path) -> None:
    folder = _copy(probed, tmp_path / "run")
    for _ in range(2):
        job = _submit(slurm, "sweep.sbatch", 1, folder, options=("--array=0-1", f"--output={tmp_path}/%x_%a.log"))
        for task in (f"{job}_0", f"{job}_1"):
            assert slurm.wait(task)["JobState"] == "COMPLETED"
    logs = [(tmp_path / f"ift-sweep_{task}.log").read_text() for task in (0, 1)]
    for arm, log in zip(ARMS, logs, strict=True):
        assert (folder / "evaluate" / arm / "scores.parquet").is_file()
        assert log.count("1 of 1 arms done already") == 2  # trained, evaluated


def test_a_killed_rank_ends_the_job_with_a_failure(slurm: Slurm, probed: Path, tmp_path: Path) -> None:
    folder = _copy(probed, tmp_path / "run")
    job = _submit(slurm, "train.sbatch", 2, folder, LONG)
    _wait_for_step(folder, ARMS[0], 10)
    os.kill(_task(folder, 1), signal.SIGKILL)
    killed = time.monotonic()
    ended = slurm.wait(job, seconds=60)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] != "0:0", _log(folder, "train")
    assert time.monotonic() - killed < 60


def test_a_node_list_without_an_address_is_told(slurm: Slurm, probed: Path) -> None:
    command = [sys.executable, "-m", "ift_scale.cli", "train", *_arguments(probed)]
    lost = ["env", "--unset=MASTER_ADDR", "SLURM_STEP_NODELIST=nowhere[1-2]"]
    done = slurm("srun", "--nodes=2", "--ntasks=2", *lost, *command, cwd=ROOT)
    assert done.returncode == 3
    assert "the first node of the job's list nowhere[1-2], nowhere1, has no address" in done.stderr
