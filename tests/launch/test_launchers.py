"""The train command started by torchrun and by deepspeed, once a rank."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.small import ARMS, LONG, ROOT, arguments, losses

pytestmark = pytest.mark.engine

LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
    "deepspeed": ["deepspeed.launcher.runner", "--num_accelerators", "2", "--num_gpus", "2", "--no_local_rank", "--module"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_ranks_of_any_launcher_train_the_same(trained: Path, copy: Path, launcher: str) -> None:
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "ift_scale.cli", "train", *arguments(copy, LONG)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"DS_ACCELERATOR": "cpu"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "train: 2 arms" in done.stdout
    for arm in ARMS:
        assert losses(copy, arm) == losses(trained, arm)
