"""A training rank that hangs without dying ends the run, which names it."""

from pathlib import Path

import pytest

from ift_scale.errors import EnvironmentProblem
from tests.train.launch.test_stop import Run

pytestmark = pytest.mark.engine

# Imported by every Python process; makes the fourth micro-batch of rank 1 hang.
HANGING_LOADER = """
import os, sys, threading, time

def patch():
    name = "ift_scale.train.engine.deepspeed"
    while not hasattr(sys.modules.get(name), "run_step"):
        time.sleep(0.01)
    module, calls = sys.modules[name], []
    collate = module.collate

    def read_from_a_dead_disk(*arguments):
        calls.append(None)
        if len(calls) == 4:
            time.sleep(3600)
        return collate(*arguments)

    module.collate = read_from_a_dead_disk

if os.environ.get("RANK") == "1":
    threading.Thread(target=patch, daemon=True).start()
"""


def test_a_rank_that_hangs_in_the_data_loader(
    tmp_path: Path, world_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HANGING_LOADER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = Run(tmp_path / "run", world_model, hang_timeout=6.0)
    with pytest.raises(EnvironmentProblem) as caught:
        run()
    message = str(caught.value)
    assert "no rank has advanced for 6 s: rank 1 on " in message
    assert "did not arrive, it is loading micro-batch " in message
    assert "(step 4 of arm d-harmonious-seed3) (ift_scale/train/engine/deepspeed.py:" in message
    assert "in run_step). Rank 0 is " in message and "Check the file system with" in message
    log = (run.logs / "train.log").read_text()
    assert "in read_from_a_dead_disk" in log
    assert all(f"rank {rank} on " in log for rank in range(2))
    assert log.count("the Python stack of every thread") == 2
    with pytest.raises(AssertionError, match="no such rank"):
        run.rank(1)
