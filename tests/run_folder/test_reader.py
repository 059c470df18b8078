"""`ift_scale.Run`: what a notebook reads, and the errors for what is not stored yet."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from pandas.api import types

import ift_scale
from ift_scale.errors import ArtifactError, DataError
from ift_scale.io.files import write_text
from ift_scale.io.manifests import read_manifest
from tests.run_folder import stored

ROOT = Path(__file__).parents[2]
ARM_COLUMNS = ["arm", "arm_domain", "setting", "seed"]
FRAMES = (
    "arms", "questions", "probe", "sets", "metrics", "live", "scores", "settings", "comparisons",
    "base", "findings",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored.make(tmp_path_factory.mktemp("stored") / "run")


@pytest.fixture(scope="module")
def run(folder: Path) -> ift_scale.Run:
    return ift_scale.Run(folder)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, ift_scale\n"
        "heavy = {'torch', 'transformers', 'pandas', 'numpy', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "ift_scale.Run\n"
        "assert 'pandas' in sys.modules\n"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Rum'"):
        _ = ift_scale.Rum


def test_one_row_per_arm(run: ift_scale.Run) -> None:
    assert list(run.arms) == [*ARM_COLUMNS, "examples", "trained", "evaluated"]
    assert list(run.arms.arm) == [arm.name for arm in stored.ARMS]
    assert (run.arms.examples == stored.EXAMPLES).all() and run.arms.trained.all()
    assert run.is_finished


def test_questions_and_probe_join(run: ift_scale.Run) -> None:
    asked = len(stored.questions())
    assert len(run.questions) == asked and len(run.probe) == asked - 10
    joined = run.probe.merge(run.questions, left_on="question_id", right_on="id", how="left")
    assert (joined.answer_x == joined.answer_y).all() and joined.question.notna().all()
    assert (run.probe.correct == (run.probe.prediction == run.probe.answer)).all()


def test_one_row_per_training_example(run: ift_scale.Run) -> None:
    assert len(run.sets) == len(stored.ARMS) * stored.EXAMPLES
    first = run.sets[run.sets.arm == "history-incompatible-seed1"].reset_index()
    assert list(first.position) == [0, 1, 2] and list(first.target.isna()) == [True, False, False]
    assert list(first.consistent[1:]) == [False, False] and first.consistent.isna()[0]
    assert list(first.prompt) == ["Which 0?", "Which 1?", "Which 2?"]
    assert set(first.response) == {"B. two"} and list(first.arm_domain) == ["history"] * 3


def test_one_row_per_step_and_live_measurement(run: ift_scale.Run) -> None:
    assert len(run.metrics) == len(stored.ARMS) * stored.STEPS
    assert run.metrics.groupby("arm").loss.min().eq(1 / stored.STEPS).all()
    assert len(run.live) == len(stored.ARMS) and set(run.live.Unknown) == {0.25}
    assert list(run.live.arm) == [arm.name for arm in stored.ARMS]


def test_scores_have_the_group_that_the_tables_have(run: ift_scale.Run) -> None:
    groups = run.scores.groupby("arm").group.value_counts().unstack()
    assert (groups == pd.Series({"HOMO": 2, "ID": 2, "OOD": 2})).all(axis=None)
    other = run.scores[(run.scores.arm_domain == "medicine") & (run.scores.domain == "history")]
    assert set(other.group) == {"OOD"}


def test_tables_are_those_of_the_analyse_stage(run: ift_scale.Run, folder: Path) -> None:
    for name in ("settings", "comparisons", "base", "arms"):
        written = pd.read_csv(folder / "analyse" / f"{name}.csv")
        read = run.table(name)[list(written)]
        pd.testing.assert_frame_equal(read, written, check_dtype=False)
    assert set(run.table("balance").domain) == set(stored.DOMAINS)
    with pytest.raises(DataError, match="did you mean 'settings'"):
        run.table("setings")


def test_findings_are_the_reports_own(run: ift_scale.Run) -> None:
    first = run.findings.iloc[0]
    assert first.claim.startswith("Sets that agree") and first.verdict == "holds"
    assert first["where"] == "HOMO" and "points" in first.text
    assert run.cautions == []


@pytest.mark.parametrize(
    ("frame", "column", "is_type"),
    [
        ("arms", "examples", types.is_integer_dtype),
        ("arms", "trained", types.is_bool_dtype),
        ("questions", "answer", types.is_integer_dtype),
        ("questions", "group", types.is_string_dtype),
        ("probe", "prediction", types.is_integer_dtype),
        ("probe", "confidence", types.is_float_dtype),
        ("probe", "correct", types.is_bool_dtype),
        ("sets", "consistent", types.is_bool_dtype),
        ("metrics", "mfu", types.is_float_dtype),
        ("metrics", "grad_norm", types.is_float_dtype),
        ("scores", "seed", types.is_integer_dtype),
        ("scores", "group", types.is_string_dtype),
        ("comparisons", "difference", types.is_float_dtype),
        ("comparisons", "reason", types.is_string_dtype),
    ],
)
def test_columns_have_types(run: ift_scale.Run, frame: str, column: str, is_type: object) -> None:
    assert is_type(getattr(run, frame)[column])  # type: ignore[operator]


def test_the_documentation_lists_the_columns(run: ift_scale.Run) -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", page, flags=re.MULTILINE))
    assert set(rows) == set(FRAMES)
    for frame, text in rows.items():
        named = re.findall(r"`(\w+)`", text)
        columns = [*ARM_COLUMNS, *named[1:]] if named[0] == "ARM" else named
        missing = [name for name in columns if name not in getattr(run, frame)]
        assert not missing, (frame, missing)
        if frame in ("arms", "sets", "questions", "findings"):
            assert columns == list(getattr(run, frame)), frame


def test_the_example_of_the_documentation_runs(folder: Path) -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.+?)```", page, flags=re.DOTALL)
    found: dict = {}
    exec(code.replace("runs/demo", str(folder)), found)
    assert found["losses"].shape == (stored.STEPS, len(stored.SETTINGS))
    # The base model answers B, the arms C: right before on the questions whose answer is B.
    assert len(found["lost"]) == len(stored.ARMS) and found["lost"].correct.eq(False).all()


@pytest.mark.parametrize(
    ("until", "frame", "command"),
    [
        ("questions", "probe", "probe"),
        ("probe", "sets", "construct"),
        ("construct", "metrics", "train"),
        ("construct", "live", "train"),
        ("train", "scores", "evaluate"),
        ("evaluate", "comparisons", "analyse"),
        ("evaluate", "findings", "analyse"),
    ],
)
def test_what_is_not_stored_yet_names_its_command(
    tmp_path: Path, until: str, frame: str, command: str
) -> None:
    run = ift_scale.Run(stored.make(tmp_path / "run", until))
    config = tmp_path / "run" / "config.yaml"
    with pytest.raises(ArtifactError, match=f"run `ift-scale {command} {config}`"):
        getattr(run, frame)


def test_arms_before_they_are_trained(tmp_path: Path) -> None:
    run = ift_scale.Run(stored.make(tmp_path / "run", "questions"))
    assert len(run.arms) == len(stored.ARMS)
    assert run.arms.examples.isna().all() and not run.arms.trained.any()


def test_a_moved_folder_is_read_where_it_is(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    run = ift_scale.Run(moved)
    assert len(run.scores) and run.is_finished
    assert run.command("run") == f"ift-scale run {moved}/config.yaml --set output_dir={moved}"


def test_a_study_has_the_rows_of_all_variants(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"output_dir: {tmp_path}/study\nvariants: {{first: {{}}, second: {{}}}}\n")
    for name in ("first", "second"):
        stored.make(tmp_path / "study" / name)
    for given in (path, tmp_path / "study"):
        run = ift_scale.Run(given)
        assert list(run.variants) == ["first", "second"] and run.is_finished
        assert list(run.metrics)[:2] == ["variant", "arm"]
        assert dict(run.metrics.variant.value_counts()) == {"first": 32, "second": 32}
        assert len(run.variants["second"].findings) * 2 == len(run.findings)
        assert "variant" not in run.variants["first"].metrics
    command = ift_scale.Run(path).variants["second"].command("train")
    assert command == f"ift-scale train {path} --variant second"


@pytest.mark.parametrize(
    ("name", "problem"),
    [("nowhere", "no such file or folder"), ("", "is not a run's folder: it has no config.yaml")],
)
def test_a_path_that_is_no_run(tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        ift_scale.Run(tmp_path / name)


# How far it has come.


def _states(folder: Path) -> dict[str, str]:
    return {stage.stage: stage.state for stage in ift_scale.Run(folder).progress}


@pytest.mark.parametrize("until", stored.STAGES)
def test_stages_up_to_any_are_done(tmp_path: Path, until: str) -> None:
    states = list(_states(stored.make(tmp_path / "run", until)).values())
    done = stored.STAGES.index(until) + 1
    assert states == ["done"] * done + ["not started"] * (8 - done)


def test_arms_are_counted(tmp_path: Path) -> None:
    folder = stored.make(tmp_path / "run", "evaluate")
    for arm in stored.ARMS[:3]:
        shutil.rmtree(folder / "evaluate" / arm.name)
    (folder / "train" / stored.ARMS[0].name / "manifest.json").unlink()
    found = {stage.stage: stage for stage in ift_scale.Run(folder).progress}
    assert (found["train"].state, found["train"].current, found["train"].total) == (
        "partly done",
        7,
        8,
    )
    assert (found["evaluate"].state, found["evaluate"].current) == ("partly done", 5)
    assert len(ift_scale.Run(folder).metrics) == 7 * stored.STEPS


def test_results_of_other_inputs_are_out_of_date(folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    arm = stored.ARMS[0].name
    weights = run / "train" / arm / "model" / "model.safetensors"
    write_text(weights, "other weights")
    stored.close(run / "train" / arm, read_manifest(run / "train" / arm).inputs)
    assert _states(run) == dict.fromkeys(stored.STAGES, "done") | {
        "evaluate": "partly done",
        "analyse": "out of date",
        "report": "out of date",
    }
    stored.scores(run / "probe" / "probe.parquet", stored.questions()[:3], 0)
    stored.close(run / "probe", read_manifest(run / "probe").inputs)
    late = ("construct", "train", "evaluate", "analyse", "report")
    assert [_states(run)[stage] for stage in late] == ["out of date"] * 5
    assert [_states(run)[stage] for stage in ("questions", "probe", "write")] == ["done"] * 3


@pytest.mark.parametrize(
    ("file", "frame"),
    [
        ("questions/questions.jsonl", "questions"),
        ("probe/probe.parquet", "probe"),
        ("probe/knowledge.json", "findings"),
        (f"construct/{stored.ARMS[1].name}.jsonl", "sets"),
        ("construct/balance.csv", "facts"),
        (f"train/{stored.ARMS[1].name}/metrics.jsonl", "metrics"),
        (f"train/{stored.ARMS[1].name}/live.jsonl", "live"),
        (f"evaluate/{stored.ARMS[1].name}/scores.parquet", "scores"),
        ("analyse/comparisons.csv", "comparisons"),
        ("analyse/base.csv", "findings"),
    ],
)
def test_a_changed_file_is_refused(folder: Path, tmp_path: Path, file: str, frame: str) -> None:
    path = shutil.copytree(folder, tmp_path / "run") / file
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ArtifactError, match=f"^{path}: changed after `ift-scale "):
        getattr(ift_scale.Run(tmp_path / "run"), frame)
