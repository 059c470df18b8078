"""`ift-scale show`: what it prints of finished and unfinished runs, and how wide."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ift_scale.cli import main
from tests.run_folder import stored


def _show(*arguments: object, columns: int = 80) -> Result:
    runner = CliRunner(env={"COLUMNS": str(columns)})
    return runner.invoke(main, ["show", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored.make(tmp_path_factory.mktemp("stored") / "run")


def _words(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_accuracy_and_findings_of_a_finished_run(folder: Path) -> None:
    result = _show(folder)
    said = _words(result)
    assert "Accuracy in percent, mean over 2 domains, 95% intervals" in said
    (row,) = re.findall(r"^H harmonious +(.+)$", result.output, flags=re.MULTILINE)
    assert len(re.findall(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", row)) == 3
    assert "base model, few-shot" in said
    assert "Sets that agree with the model beat sets that contradict it (H over I)" in said
    assert re.search(r"HOMO +holds +\+\d+\.\d points", result.output)
    assert "Not asked by this run: " in said and "This run has fewer than three ratios." in said
    assert f"report: {folder}/report/index.html" in result.output
    assert "Not finished" not in said and "Caution" not in said


@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_and_is_plain_text(folder: Path, columns: int) -> None:
    output = _show(folder, columns=columns).output
    assert "\x1b" not in output and "\u00a0" not in output
    assert [line for line in output.splitlines() if line != line.rstrip()] == []
    wide = [line for line in output.splitlines() if len(line) > columns and "/" not in line]
    assert wide == [] and max(len(line) for line in output.splitlines() if "/" not in line) > 60


def test_a_narrow_terminal_gets_the_groups_below_each_other(folder: Path) -> None:
    output = _show(folder, columns=50).output
    heads = re.findall(r"^setting +(.+?) *$", output, flags=re.MULTILINE)
    assert heads == ["HOMO", "ID", "OOD"]


def test_an_unfinished_run_shows_its_stages_and_the_next_command(tmp_path: Path) -> None:
    folder = stored.make(tmp_path / "run", "evaluate")
    shutil.rmtree(folder / "evaluate" / stored.ARMS[0].name)
    result = _show(folder)
    rows = {line.split()[0]: line for line in result.output.splitlines() if line.strip()}
    assert re.search(r"train +done +8 of 8 +20\d\d-", rows["train"])
    assert re.search(r"evaluate +partly done +7 of 8 ", rows["evaluate"])
    assert re.search(r"analyse +not started", rows["analyse"])
    command = f"ift-scale run {folder}/config.yaml"
    assert f"Not finished. Continue with (finished stages are kept): {command}" in _words(result)
    assert "Accuracy" not in result.output


def test_a_configuration_whose_run_has_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "first.yaml"
    path.write_text(f"output_dir: {tmp_path}/first\n")
    assert f"Start with: ift-scale run {path}" in _words(_show(path))


def test_settings_changed_since_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "changed.yaml"
    settings = stored.config(folder).model_dump()
    settings["train"]["epochs"] = 7
    path.write_text(json.dumps(settings))
    said = _words(_show(path))
    assert "differs from the settings of the stored results" in said
    assert "train.epochs: 7" in said and "Accuracy in percent" in said
    settings["train"]["epochs"] = 3
    path.write_text(json.dumps(settings))
    assert "differs" not in _show(path).output


def test_variants_of_a_study(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(f"output_dir: {tmp_path}/study\nvariants: {{first: {{}}, second: {{}}}}\n")
    stored.make(tmp_path / "study" / "first")
    both = _words(_show(path))
    assert "(variant first)" in both and "(variant second)" in both
    assert f"ift-scale run {path} --variant second" in both
    assert "all variants" not in both
    (tmp_path / "study" / "report").mkdir()
    (tmp_path / "study" / "report" / "index.html").write_text("")
    assert f"all variants: {tmp_path}/study/report/index.html" in _words(_show(path))
    only = _words(_show(path, "--variant", "first"))
    assert "(variant first)" in only and "second" not in only
    result = _show(path, "--variant", "frist")
    assert result.exit_code == 2 and "no such variant" in result.output
    assert "did you mean 'first'?" in result.output


def test_a_path_that_is_no_run_is_one_error(tmp_path: Path) -> None:
    result = _show(tmp_path)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {tmp_path}: is not a run's folder")
    assert _show(tmp_path / "nowhere").exit_code == 2


def test_a_changed_table_is_refused_and_an_accepted_one_is_a_caution(
    folder: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    table = run / "analyse" / "settings.csv"
    table.write_bytes(table.read_bytes() + b"\n")
    result = _show(run)
    assert result.exit_code == 2
    assert f"Error: {table}: changed after `ift-scale analyse` wrote it." in result.output
    assert CliRunner().invoke(main, ["accept", str(table.parent)]).exit_code == 0
    said = _words(_show(run))
    assert "analyse was edited by hand after it was made, and accepted on 20" in said
