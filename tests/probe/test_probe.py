"""The probe with real engines: processes, ranks, kills and damaged weights give the same file."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from ift_scale.io.files import read_json
from ift_scale.ranks.environment import free_port
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parent.parent.parent
# One thread everywhere: torchrun sets it, and the bits of a sum depend on how many share it.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
CLI = "ift_scale.cli"


def _arguments(stage: str, folder: Path, *overrides: str) -> list[str]:
    sets = [f"output_dir={folder}", "probe.engine=transformers", "probe.chunk_size=20", *overrides]
    return [stage, "configs/demo.yaml", *(part for s in sets for part in ("--set", s))]


def _start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | environment, **pipe)  # type: ignore[call-overload]


def _end(process: subprocess.Popen[str], code: int = 0) -> str:
    output = process.communicate(timeout=LIMIT_SECONDS)[0]
    assert process.returncode == code, output
    return output


def _ift_scale(stage: str, folder: Path, *overrides: str, code: int = 0) -> str:
    return _end(_start([sys.executable, "-m", CLI, *_arguments(stage, folder, *overrides)]), code)


def _result(folder: Path) -> bytes:
    return (folder / "probe" / "probe.parquet").read_bytes()


def _num_shards(folder: Path) -> int:
    return len(list((folder / "probe").glob("shards/*/*.parquet")))


def _engines_of(folder: Path) -> list[int]:
    """Process numbers of the engines whose log is in the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"ift_scale.engines.process" in words and any(
                str(folder / "logs").encode() in word for word in words
            ):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder after the questions stage."""
    folder = tmp_path_factory.mktemp("gathered") / "run"
    _ift_scale("questions", folder)
    return folder


@pytest.fixture
def run_folder(gathered: Path, tmp_path: Path) -> Path:
    return shutil.copytree(gathered, tmp_path / "run")


@pytest.fixture(scope="module")
def alone(gathered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, one engine."""
    folder = shutil.copytree(gathered, tmp_path_factory.mktemp("alone") / "run")
    assert "questions 1280" in _ift_scale("probe", folder)
    return folder


def test_ranks_of_a_launcher_share_the_pool(alone: Path, run_folder: Path) -> None:
    launcher = [
        "deepspeed.launcher.runner",
        "--master_port",
        str(free_port()),
        "--num_accelerators",
        "2",
        "--num_gpus",
        "2",
        "--no_local_rank",
        "--module",
        CLI,
    ]
    _end(
        _start(
            [sys.executable, "-m", *launcher, *_arguments("probe", run_folder)],
            DS_ACCELERATOR="cpu",
        )
    )
    assert _result(run_folder) == _result(alone)
    assert {path.name for path in (run_folder / "logs").glob("probe*")} == {
        "probe-rank0.log",
        "probe-rank1.log",
    }
    assert not (run_folder / "probe" / "shards").exists()
    assert "probe: done already" in _ift_scale("probe", run_folder)


def test_two_engines_of_one_process_share_the_pool(alone: Path, run_folder: Path) -> None:
    _ift_scale("probe", run_folder, "probe.num_engines=2")
    assert _result(run_folder) == _result(alone)
    assert {path.name for path in (run_folder / "logs").glob("probe*")} == {
        "probe-0.log",
        "probe-1.log",
    }


def test_a_killed_ranks_share_is_taken_up_by_the_others(alone: Path, run_folder: Path) -> None:
    command = [sys.executable, "-m", CLI, *_arguments("probe", run_folder)]
    place = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [_start(command, RANK=str(r), LOCAL_RANK=str(r), **place) for r in range(2)]
    # Rank 1 begins at the second half, so a shard there shows that it is at work.
    wait_for(
        lambda: any(int(p.stem) >= 32 for p in (run_folder / "probe").glob("shards/*/*.parquet"))
    )
    ranks[1].kill()
    output = _end(ranks[0])
    assert ranks[1].wait() == -signal.SIGKILL
    assert "questions 1280" in output
    assert _result(run_folder) == _result(alone)


RAY = ("--ray", "local", "--ray-workers", "2")


def test_an_actor_of_ray_that_is_killed_costs_its_chunk_only(alone: Path, run_folder: Path) -> None:
    run = _start([sys.executable, "-m", CLI, *_arguments("probe", run_folder), *RAY])
    wait_for(lambda: _num_shards(run_folder) >= 2)
    engine = _engines_of(run_folder)[0]
    os.kill(
        int(Path(f"/proc/{engine}/stat").read_text().split()[3]), signal.SIGKILL
    )  # the actor, whose child the engine is
    output = _end(run)
    assert "ray: 2 ranks of one CPU" in output
    assert re.search(
        r"ray: rank [12] on \S+ is lost \(.*\); it is restarted and its chunk is free again",
        output,
    )
    assert _result(run_folder) == _result(alone)
    assert not _engines_of(run_folder)


def test_a_stopped_command_ends_rays_actors_and_any_resumes(alone: Path, run_folder: Path) -> None:
    run = _start([sys.executable, "-m", CLI, *_arguments("probe", run_folder), *RAY])
    wait_for(lambda: _num_shards(run_folder) >= 2)
    run.terminate()
    assert "stopped by SIGTERM. Finished work is kept" in _end(run, code=75)
    assert not _engines_of(run_folder)
    assert 2 <= _num_shards(run_folder) < 32
    _ift_scale("probe", run_folder)
    assert _result(run_folder) == _result(alone)


@pytest.fixture(scope="module")
def by_vllm(gathered: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `alone`, by vLLM."""
    folder = shutil.copytree(gathered, tmp_path_factory.mktemp("vllm") / "run")
    _ift_scale("probe", folder, "probe.engine=vllm")
    return folder


@pytest.mark.parametrize(
    ("engine", "undisturbed"), [("transformers", "alone"), ("vllm", "by_vllm")]
)
def test_a_killed_engine_is_replaced_and_the_file_is_the_same(
    engine: str, undisturbed: str, run_folder: Path, request: pytest.FixtureRequest
) -> None:
    expected = request.getfixturevalue(undisturbed)
    run = _start(
        [sys.executable, "-m", CLI, *_arguments("probe", run_folder, f"probe.engine={engine}")]
    )
    wait_for(lambda: _num_shards(run_folder) >= 5)
    (number,) = _engines_of(run_folder)
    os.kill(number, signal.SIGKILL)
    output = _end(run)
    assert not _engines_of(run_folder) and not _engines_of(expected)
    assert (
        "the inference engine died (exit code -9); starting a new one, which resumes with shard"
        in output
    )
    assert _result(run_folder) == _result(expected)


def test_a_pool_that_changed_under_a_half_done_run(pool: Path, tmp_path: Path) -> None:
    """Shards of the old pool do not enter the new result, and stale questions are refused."""
    config = tmp_path / "config.yaml"
    config.write_text(f"questions: {{sources: [{{kind: paper, domain: d, path: {pool}}}]}}\n")

    def stage(name: str, folder: Path, code: int = 0) -> str:
        settings = (
            "probe.engine=transformers",
            "probe.chunk_size=2",
            "probe.num_shots=1",
            f"output_dir={folder}",
        )
        sets = [part for s in settings for part in ("--set", s)]
        return _end(_start([sys.executable, "-m", CLI, name, str(config), *sets]), code)

    stage("questions", tmp_path / "run")
    run = _start(
        [
            sys.executable,
            "-m",
            CLI,
            "probe",
            str(config),
            "--set",
            f"output_dir={tmp_path / 'run'}",
            "--set",
            "probe.num_shots=1",
            "--set",
            "probe.engine=transformers",
            "--set",
            "probe.chunk_size=1",
        ]
    )
    wait_for(lambda: _num_shards(tmp_path / "run") >= 1)
    run.kill()
    run.communicate()
    train = pool / "train.jsonl"
    train.write_text(train.read_text().replace("What is train", "Which is train"))
    assert "was made with other settings or inputs; run `ift-scale questions`" in stage(
        "probe", tmp_path / "run", code=2
    )
    stage("questions", tmp_path / "run")
    assert "shards of other questions or settings" in stage("probe", tmp_path / "run")
    stage("questions", tmp_path / "fresh")
    stage("probe", tmp_path / "fresh")
    assert _result(tmp_path / "run") == _result(tmp_path / "fresh")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_weights_that_are_not_numbers(
    engine: str, world_model: Path, run_folder: Path, tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(world_model, tmp_path / "broken"))
    weights = load_file(broken / "model.safetensors")
    name = next(n for n in weights if n.endswith("mlp.down_proj.weight"))
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    output = _ift_scale(
        "probe", run_folder, f"model.path={broken}", f"probe.engine={engine}", code=2
    )
    assert (
        "the model's probabilities are not numbers (NaN)" in output
        and "set model.dtype to float32" in output
    )
    assert not (run_folder / "probe" / "probe.parquet").exists()


def test_every_way_of_asking_at_once(run_folder: Path) -> None:
    """Orders, draws, prior, grades, text likelihoods and free questions through one engine."""
    settings = "{demonstration_draws: 2, permutations: circular, prior_share: 0.5, grades: true,"
    settings += " cloze: byte, decide_by: average}"
    overrides = (
        f"probe.reliability={settings}",
        "probe.free={ask: true, num_samples: 2, max_tokens: 6}",
        "probe.chunk_size=320",
    )
    _ift_scale("probe", run_folder, *overrides)
    knowledge = read_json(run_folder / "probe" / "knowledge.json")
    assert knowledge["letters"]["4"]["letter_bias"] < 0.05  # the world's model answers by content
    assert (
        knowledge["views"]["agreement"] > 0.9
        and knowledge["views"]["questions"] == knowledge["questions"] == 1280
    )
    assert knowledge["cloze"]["agreement"] > 0.7 and sum(knowledge["grades"].values()) == 1280
    assert knowledge["free"]["questions"] == 400 + 240 and knowledge["free"]["exact_match"] > 0.3
    scores = pd.read_parquet(run_folder / "probe" / "probe.parquet")
    assert scores[scores.kind == "choice"].average_probs.notna().all()
    views = pd.read_parquet(run_folder / "probe" / "views.parquet")
    assert len(views) == 1280 and all(len(draws) == 8 for draws in views.draws)
    assert _num_missing(scores) == {"free": 0, "choice": 0}


def _num_missing(scores: pd.DataFrame) -> dict[str, int]:
    """Values that a kind's scores must have and lack."""
    wanted = {
        "choice": ["probs", "prediction", "letter_mass", "grade", "cloze_logprobs"],
        "free": ["response", "f1", "grade"],
    }
    return {
        kind: int(scores[scores.kind == kind][names].isna().sum().sum())
        for kind, names in wanted.items()
    }
