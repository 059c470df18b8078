"""The GPU kit without a GPU: every script at tiny size, with the packages of a bare machine."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suite.rows import Gate, Sheet
from ift_scale.config import TrainConfig
from ift_scale.estimate.memory import GIB, Setting, Workload, estimate
from ift_scale.estimate.shape_of import shape_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
KIT = BENCHMARKS / "gpu"
# Read by every Python at its start. A None in sys.modules is a package that is not installed.
BARE = """
import sys
absent = "vllm datasets trl liger_kernel flash_attn pandas pyarrow statsmodels"
sys.modules |= dict.fromkeys(absent.split())
"""


# Losses of another model than the one that was trained.
SHIFTED = """
import sys
from benchmarks.gpu import exact

right = exact.plain
def shifted(*given):
    found = right(*given)
    return exact.Plain({i: losses + 0.1 for i, losses in found.losses.items()}, found.gradient)
exact.plain, exact.TOLERANCE = shifted, {"float32": (1e-3, 5e-3)}
sheet = exact.Sheet("train", True, "cpu")
sys.exit(0 if exact.run(exact.one_rank(), [{}], sheet, stored=False) else 1)
"""


@pytest.fixture
def kit() -> Any:
    """Imports a file of the kit."""
    return lambda name: importlib.import_module(f"benchmarks.gpu.{name}")


@pytest.mark.parametrize("script", sorted(BENCHMARKS.rglob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_are_well_formed(script: Path) -> None:
    run = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("card", [80 * GIB, 78 * GIB, 139 * GIB])
def test_shapes_fit_the_card(kit: Any, card: float) -> None:
    """With repeated keys and values, as in torch 2.11; other settings of 1B may be rejected."""
    shapes = kit("shapes")
    cases = [*shapes.first(card), *(case for case in shapes.rest(card) if not case.changes)]
    for case in cases:
        shape = shape_of({"model_type": "llama", **case.sizes})
        work = Workload(shape, 1, True, True, case.tokens, case.tokens, repeated=shape.grouped)
        assert estimate(work, Setting(2, "none", case.checkpointing)).total <= card, case
    whole = {case.shape for case in cases if case.layers is None}
    assert whole == ({"1b", "3b", "7b"} if card > 100 * GIB else {"1b", "3b"})
    assert all(case.layers == 12 for case in cases if case.shape == "7b" and card < 100 * GIB)
    parameters = {
        name: shape_of({"model_type": "llama", **sizes}).parameters
        for name, sizes in shapes.SHAPES.items()
    }
    assert parameters["3b"] == 3_212_749_824 and parameters["7b"] == 6_738_415_616


def test_settings_of_the_first_cases_are_those_that_they_name(kit: Any) -> None:
    train, shapes = kit("train"), kit("shapes")
    for case in [*shapes.first(150e9), *shapes.rest(150e9)]:
        config: TrainConfig = train.config_of(case, 128, "bfloat16", 150e9)
        for name, value in {
            "activation_checkpointing": case.checkpointing,
            "zero_stage": 2,
            **case.changes,
        }.items():
            assert getattr(config, name) == value, case
    assert [case.name for case in train.chosen_cases(("7b",), False, 60e9, {"layers": None})] == [
        "7b"
    ]  # by hand: refused in words
    assert [
        case.layers
        for case in train.chosen_cases(("7b",), False, 85e9, {"layers": 4, "tokens": None})
    ] == [4]


def test_what_came_back_is_kept(kit: Any, tmp_path: Path) -> None:
    keep = kit("keep")
    folder, results, figured = tmp_path / "rows", tmp_path / "results", tmp_path / "figures.json"
    for path in (folder, results):
        path.mkdir()
    for device in ("a GPU", "cpu"):
        sheet = Sheet("train", True, device)
        sheet.add("1b bfloat16", "seconds per step", "s", [1.0], Gate(checked="made up"))
        keep.rows.store(sheet.rows, folder)
    figured.write_text("[]")
    figure = {
        "op": "rotary",
        "device": "a GPU",
        "dtype": "bfloat16",
        "shape": {"tokens": 1},
        "milliseconds": {},
    }
    (folder / keep.FIGURES).write_text(json.dumps([figure]))
    assert len(keep.keep(folder, results, figured)) == 2
    assert [row.device for row in keep.rows.read(results)] == ["a GPU"]
    assert json.loads(figured.read_text()) == [figure]


@pytest.mark.engine
def test_wrong_losses_are_found() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SHIFTED], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 1 and "OFF" in run.stdout, run.stdout[-3000:]


@pytest.mark.engine
def test_probing_is_measured_beside_one_request_an_option(
    tmp_path: Path, shared_data: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu.probe",
        "--tiny",
        "--data",
        shared_data,
        "--work",
        tmp_path / "work",
        "--logs",
        tmp_path,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "of the spread from ours" in run.stdout
    assert "tiny: ours vllm [" in run.stdout and "tiny: one request an option [" in run.stdout


@pytest.mark.engine
def test_trl_is_measured_and_named_by_what_ran() -> None:
    pytest.importorskip("trl", reason="TRL is not installed (benchmarks/peers/install_trl.sh)")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu.peer_trl", "--tiny"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (
        "layers by PyTorch, loss by TRL" in run.stdout
        and "'optimizer': 'AdamW, fused'" in run.stdout
    )


def command(name: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    places = {
        "PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
        "WORK": str(tmp_path / "work"),
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = [KIT / f"{name}.sh"]
    return subprocess.run(
        run, env=os.environ | places | environment, capture_output=True, text=True, timeout=590
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The commands' scratch folder, with the extension that the first of them compiles."""
    return str(tmp_path_factory.mktemp("work"))


def logs_of(name: str, parts: set[str], tmp_path: Path, **environment: str) -> Path:
    """Runs a command at tiny size and returns the folder of its logs."""
    run = command(name, tmp_path, TINY="1", LIMIT="580", DATA=str(tmp_path / "none"), **environment)
    for part in parts:
        assert f"== {part}: exit 0" in run.stdout, run.stdout[-3000:]
    assert "parts failed" in run.stdout.splitlines()[-1]
    with tarfile.open(tmp_path / "out" / "back.tar.gz") as packed:
        packed.extractall(tmp_path / "back", filter="data")
    logs = tmp_path / "back" / "logs"
    assert {f"{part}.log" for part in parts} <= {path.name for path in logs.iterdir()}
    return logs


@pytest.mark.engine
def test_the_first_command_measures_training_steps_on_a_bare_machine(
    tmp_path: Path, work: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    logs = logs_of(
        "first", {"kernels-correct", "train"}, tmp_path, PYTHONPATH=str(tmp_path), WORK=work
    )
    start = "tiny float32: "
    (reported,) = (
        json.loads(line.removeprefix(start))
        for line in (logs / "train.log").read_text().splitlines()
        if line.startswith(start)
    )
    assert len(reported["about"]["losses"]) == 4 and all(
        0 < share < 1 for share in reported["share of the matrix rate"]
    )


@pytest.mark.engine
def test_the_rest_finds_training_exact_under_each_setting(tmp_path: Path, work: str) -> None:
    """Three settings in two types, compiled layers among them, with the last one pruned."""
    logs = logs_of("rest", {"exact", "kernels-speed", "train-rest"}, tmp_path, WORK=work)
    assert (logs / "exact.log").read_text().count("gradient") == 6


@pytest.mark.engine
def test_nothing_starts_when_no_time_is_left(tmp_path: Path) -> None:
    """Not even unpacking: the first command stays within its four minutes."""
    (tmp_path / "mmlu").mkdir()
    run = command("first", tmp_path, TINY="1", LIMIT="12", DATA=str(tmp_path))
    assert "== train: skipped" in run.stdout and "== probe: skipped" in run.stdout, run.stdout
    assert "site-vllm" not in run.stdout


@pytest.mark.engine
def test_without_a_gpu_a_command_says_so(tmp_path: Path) -> None:
    run = command("first", tmp_path)
    assert run.returncode == 3 and "no GPU that torch sees; TINY=1 shows" in run.stderr


def test_pack_wants_its_data(tmp_path: Path) -> None:
    for place, problem in ((tmp_path, "mmlu is missing"), (tmp_path / "none", "no folder of data")):
        run = subprocess.run([KIT / "pack.sh", place], capture_output=True, text=True)
        assert run.returncode == 2 and problem in run.stderr
