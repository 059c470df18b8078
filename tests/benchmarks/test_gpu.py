"""The GPU's benchmark where there is no GPU: it starts with what a bare training machine has, and says what it lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# A None in sys.modules is a package that is not installed.
BARE = """
import runpy, sys
sys.modules |= dict.fromkeys(["vllm", "datasets", "trl", "liger_kernel", "flash_attn", "pandas", "pyarrow", "statsmodels"])
sys.argv = ["gpu_train.py", "--tiny"]
sys.path.insert(0, FOLDER)
runpy.run_path(FOLDER + "/gpu_train.py", run_name="__main__")
"""


@pytest.mark.engine
def test_training_steps_are_measured_on_a_bare_machine() -> None:
    code = BARE.replace("FOLDER", repr(str(BENCHMARKS)))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    (told,) = (json.loads(line.removeprefix("tiny: ")) for line in run.stdout.splitlines() if line.startswith("tiny: "))
    assert len(told["about"]["losses"]) == 4 and all(0 < share < 1 for share in told["share of the matrix rate"])


@pytest.mark.engine
def test_probing_is_measured_beside_one_request_an_option(tmp_path: Path, shared_data: Path) -> None:
    command = [sys.executable, BENCHMARKS / "gpu_probe.py", "--tiny", "--data", shared_data, "--work", tmp_path / "work"]
    command += ["--logs", tmp_path]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "of the spread from ours" in run.stdout
    assert "tiny: ours vllm [" in run.stdout and "tiny: one request an option [" in run.stdout


@pytest.mark.engine
def test_without_a_gpu_the_script_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "LOGS": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([BENCHMARKS / "gpu.sh"], env=environment, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (3, "gpu: no GPU is visible to torch\n")
    run = subprocess.run([BENCHMARKS / "gpu.sh", "kernel"], env=environment, capture_output=True, text=True)
    assert run.returncode == 2 and "no part kernel; there are: kernels-correct" in run.stderr
    assert (tmp_path / "site" / "ift_scale_kernels" / "figures.json").is_file()
