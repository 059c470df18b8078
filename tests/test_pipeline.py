"""The whole pipeline with real engines and ranks: run, skipped, and resumed after every stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.kills.campaign import COMMAND_KILLED, Life, Target
from benchmarks.kills.moments import MOMENTS
from ift_scale.io.manifests import read_manifest
from ift_scale.pipeline import load_stage
from tests.waiting import wait_for

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"
SMALL = (
    "construct.domains=[medicine]",
    "construct.settings=[harmonious, incompatible]",
    "construct.size=24",
    "construct.seeds=[0]",
    "train.launcher=direct",
    "probe.chunk_size=160",
    "evaluate.chunk_size=100",
)

TRANSFORMERS = ("probe.engine=transformers", "evaluate.engine=transformers")
TABLES = ("arms.csv", "settings.csv", "comparisons.csv", "base.csv")


def _command(folder: Path, *overrides: str, stage: str = "run") -> list[str]:
    sets = [f"output_dir={folder}", *SMALL, *overrides]
    return [
        sys.executable,
        "-m",
        "ift_scale.cli",
        stage,
        "configs/demo.yaml",
        *(part for s in sets for part in ("--set", s)),
    ]


def _run(folder: Path, *overrides: str, stage: str = "run") -> str:
    done = subprocess.run(
        _command(folder, *overrides, stage=stage), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {name: pd.read_csv(folder / "report" / name) for name in TABLES}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    _run(folder, *TRANSFORMERS)
    return folder


def test_losses_and_report_are_the_stored_ones(finished: Path) -> None:
    """Golden curves. Losses may differ by rounding, accuracies by a question or two."""
    stored = json.loads((GOLDEN / "small_run_losses.json").read_text())
    for arm, losses in stored.items():
        rows = (finished / "train" / arm / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["loss"] for row in rows] == pytest.approx(losses, rel=2e-3)
    table = pd.read_csv(GOLDEN / "small_run_settings.csv")
    pd.testing.assert_frame_equal(
        pd.read_csv(finished / "report" / "settings.csv")[list(table)], table, atol=0.03, rtol=0.05
    )


def test_vllm_and_the_deepspeed_launcher_give_the_same_tables(
    finished: Path, tmp_path: Path
) -> None:
    output = _run(tmp_path / "run", "train.launcher=deepspeed", "train.zero_stage=3")
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert str(tmp_path / "run" / "report" / "index.html") in output
    assert page.count("<svg") >= 6 and "http://" not in page.replace(
        "http://www.w3.org", ""
    ).replace("http://purl.org", "").replace("http://creativecommons.org", "")
    for name, table in _tables(finished).items():
        # One question changed by rounding may move a p value more than a share.
        shares = [column for column in table if column not in ("mcnemar_p", "holm_p")]
        pd.testing.assert_frame_equal(
            table[shares], _tables(tmp_path / "run")[name][shares], atol=0.02, check_exact=False
        )
    launch = json.loads((tmp_path / "run" / "logs" / "train-seconds.json").read_text())
    assert launch["imports"] < launch["launch_and_imports"]


def test_a_finished_run_is_skipped(finished: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in finished.rglob("*")
        if path.is_file() and path.name not in (".lock", "config.yaml")
    }
    output = _run(finished, *TRANSFORMERS)
    for stage in ("questions", "probe", "write", "construct", "analyse", "report"):
        assert f"{stage}: done already" in output
    assert (
        "train: 2 of 2 arms done already" in output
        and "evaluate: 2 of 2 arms done already" in output
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_one_changed_setting_redoes_what_depends_on_it(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    output = _run(folder, *TRANSFORMERS, "analyse.bootstrap_samples=500")
    assert (
        "train: 2 of 2 arms done already" in output
        and "evaluate: 2 of 2 arms done already" in output
    )
    assert "analyse: done already" not in output and "report: done already" not in output
    output = _run(folder, *TRANSFORMERS, "construct.seeds=[0, 1]")
    assert "probe: done already" in output and "train: 2 of 4 arms done already" in output
    # Location and speed do not affect what is learnt.
    output = _run(
        folder,
        *TRANSFORMERS,
        "construct.seeds=[0, 1]",
        "train.num_ranks=1",
        "probe.chunk_size=999",
        "train.live.every=3",
    )
    assert "probe: done already" in output and "train: 4 of 4 arms done already" in output


def test_derived_models_are_arms_without_training(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    output = _run(folder, *TRANSFORMERS, "train.average=[0.5]", "train.restore=[0.1]")
    assert "train: 2 of 6 arms done already" in output and "construct: done already" in output
    settings = pd.read_csv(folder / "report" / "settings.csv")
    groups = settings[settings.setting == "harmonious"].group
    for name in ("harmonious-average-0.5", "harmonious-restored-0.1"):
        arm = folder / "train" / f"medicine-{name}-seed0"
        manifest = read_manifest(arm)
        assert manifest is not None and "model/model.safetensors" in manifest.files
        assert not (arm / "metrics.jsonl").exists()
        assert list(settings[settings.setting == name].group) == list(groups)
    counts = manifest.counts
    assert 0 < counts["restored"] == round(0.1 * counts["parameters"]) <= counts["changed"]
    page = (folder / "report" / "index.html").read_text()
    assert "harmonious, 0.5 of its change" in page and "harmonious, 0.1 restored" in page


def test_smaller_sets_and_earlier_epochs_are_arms_of_one_launch(
    finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    doses = ("construct.sizes=[8]", "train.export_epochs=[1]", "construct.settings=[harmonious]")
    output = _run(folder, *TRANSFORMERS, *doses)
    assert "probe: done already" in output
    rows = (folder / "logs" / "train-events.jsonl").read_text().splitlines()
    arms = [row["name"] for row in map(json.loads, rows) if row["event"] == "arm"]
    names = ("harmonious", "harmonious-size-8")
    assert arms == [f"medicine-{name}-seed0" for name in names], "of one launch"
    end = folder / "train" / "medicine-harmonious-seed0"
    weights = (end / "model" / "model.safetensors").read_bytes()
    before = finished / "train" / end.name / "model" / "model.safetensors"
    assert weights == before.read_bytes(), "exports change nothing"
    early = folder / "train" / "medicine-harmonious-epoch-1-seed0" / "model" / "model.safetensors"
    assert early.samefile(end / "epochs" / "1" / "model" / "model.safetensors")
    assert early.read_bytes() != weights
    table = pd.read_csv(folder / "report" / "dose.csv")
    settings = ["", "-epoch-1", "-size-8", "-size-8-epoch-1"]
    assert list(table.setting) == [f"harmonious{name}" for name in settings]
    assert table.acquired.notna().all() and table.forgotten.notna().all()
    output = _run(folder, *TRANSFORMERS, *doses)
    for stage in ("train", "evaluate"):
        assert f"{stage}: 4 of 4 arms done already" in output


@pytest.mark.parametrize("stage", ["probe", "write", "construct", "evaluate", "analyse", "report"])
def test_a_stage_reads_only_the_files_that_it_declares(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    """Declared files are compared with their manifests, so no other file may matter."""
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / stage)
    made = (path.parent for path in finished.rglob("manifest.json") if stage not in path.parts)
    for artifact in made:
        manifest = read_manifest(artifact)
        assert manifest is not None
        for name in manifest.files:
            read = f"{manifest.stage}/{name}"
            if not any(fnmatchcase(read, pattern) for pattern in load_stage(stage).reads):
                (folder / artifact.relative_to(finished) / name).unlink()
    _run(folder, *TRANSFORMERS, stage=stage)
    for path in sorted((finished / stage).rglob("*.csv")):
        assert path.read_bytes() == (folder / path.relative_to(finished)).read_bytes()
    for path in (*finished.glob(f"{stage}/*.parquet"), *finished.glob(f"{stage}/*/*.parquet")):
        assert pd.read_parquet(path).equals(pd.read_parquet(folder / path.relative_to(finished)))


def _processes_of(folder: Path) -> list[str]:
    """Returns command lines of processes whose environment or arguments name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if (
                    str(folder).encode() in text
                    and b"State:\tZ" not in (entry / "status").read_bytes()
                ):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def _kill_when(
    folder: Path,
    moment: Callable[[], bool],
    number: int = signal.SIGKILL,
    *overrides: str,
    stage: str = "run",
) -> int:
    """Starts the run, signals the command itself when `moment` is true; returns the exit code."""
    run = subprocess.Popen(
        _command(folder, *TRANSFORMERS, *overrides, stage=stage),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell starts background jobs with SIGINT ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: moment() or run.poll() is not None)
    assert run.poll() is None, f"ended before the moment came: {run.communicate()[0]}"
    run.send_signal(number)
    run.communicate()
    # Ranks and engine end by themselves within seconds.
    wait_for(lambda: not _processes_of(folder), lambda: _processes_of(folder), pause=0.2)
    return run.returncode


def test_a_run_killed_in_every_stage_ends_with_the_same_files(
    finished: Path, tmp_path: Path
) -> None:
    """The short form of `python -m benchmarks run kills`."""
    titles = (
        "probe: scoring",
        "construct: selecting",
        "train: the ranks start",
        "train: exporting",
        "train: between two arms",
        "evaluate: scoring",
        "analyse: computing",
    )
    moments = [moment for moment in MOMENTS if moment.title in titles]
    life = Life(tmp_path / "run", (), 0, (*SMALL, *TRANSFORMERS))
    rank_killed = Target("rank 1", signal.SIGKILL)
    life.live(moments, [COMMAND_KILLED, Target("command", signal.SIGTERM), rank_killed])
    assert len(life.kills) >= len(titles) - 1  # a moment may pass unseen
    assert life.compare(finished) > 50


def test_a_run_stopped_from_the_keyboard_can_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begun = folder / "logs" / "probe.log"
    assert _kill_when(folder, begun.exists, signal.SIGINT) == 75


def test_signalled_training_saves_and_resumes(finished: Path, tmp_path: Path) -> None:
    """By the signal of a batch system and from the keyboard, then to the end; each step is logged
    once."""
    folder = tmp_path / "run"
    shutil.copytree(
        finished,
        folder,
        ignore=shutil.ignore_patterns(
            "train", "evaluate", "analyse", "report", "train-events.jsonl"
        ),
    )
    longer = ("train.epochs=40", "train.log_every=1")  # 120 steps
    events = folder / "logs" / "train-events.jsonl"

    def at(step: int) -> Callable[[], bool]:
        return lambda: events.exists() and f'"step": {step},' in events.read_text()

    for number, step in ((signal.SIGUSR1, 20), (signal.SIGINT, 60)):
        assert _kill_when(folder, at(step), number, *longer, stage="train") == 75
        kept = [
            int(path.name.removeprefix("step-"))
            for path in (folder / "train" / ".checkpoints").glob("*/step-*")
        ]
        assert step <= max(kept) < 120
    _run(folder, *TRANSFORMERS, *longer, stage="train")
    arm = folder / "train" / "medicine-harmonious-seed0"
    assert [
        json.loads(row)["step"] for row in (arm / "metrics.jsonl").read_text().splitlines()
    ] == list(range(1, 121))
    manifest = read_manifest(arm)
    assert manifest is not None and manifest.counts["resumed"] == 2


def test_the_world_is_known_as_intended(finished: Path) -> None:
    """The stored base model's probe agrees with 95% of the intended beliefs, with confidence over
    0.5."""
    from ift_scale.io.files import read_parquet
    from ift_scale.records import Score
    from ift_scale.world.facts import all_facts, options

    facts = {f"world/{fact.id}": fact for fact in all_facts()}
    known = [
        (s, facts[s.question_id])
        for s in read_parquet(finished / "probe" / "probe.parquet", Score)
        if facts[s.question_id].belief
    ]
    agree = [
        options(fact)[0][score.prediction] == fact.belief and score.confidence > 0.5
        for score, fact in known
    ]
    assert sum(agree) / len(agree) >= 0.95
    wrong = [fact.belief != fact.truth for _, fact in known]
    assert 0.35 <= sum(wrong) / len(wrong) <= 0.40
    assert min(score.letter_mass for score, _ in known) > 0.9
