"""The registry: every benchmark has a driver with its options; a budget determines the repeats."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.suite import registry
from benchmarks.suite.registry import BENCHMARKS, repeats_within, select
from ift_scale.errors import ConfigError, EnvironmentProblem


def test_every_driver_is_there_and_is_run_by_a_benchmark() -> None:
    there = {path.name for path in registry.folder().glob("bench_*.py")}
    assert there == {b.driver for b in BENCHMARKS.values()}
    for name in registry.PEERS:
        assert (registry.folder() / "peers" / registry.PEERS[name]).is_file()


def test_every_driver_knows_the_options_that_it_is_given() -> None:
    for driver in registry.folder().glob("bench_*.py"):
        text = driver.read_text(encoding="utf-8")
        assert '"--repeats"' in text and '"--quick"' in text, driver


def test_a_budget_is_kept_and_spent() -> None:
    every = select("all")
    least = sum(b.cpu.total(b.cpu.min_repeats) for b in every)
    repeats = repeats_within(every, least + 5)
    assert all(b.cpu.min_repeats <= repeats[b.name] <= b.cpu.max_repeats for b in every)
    spent = sum(b.cpu.total(repeats[b.name]) for b in every)
    assert least + 4 < spent <= least + 5 + 1e-9
    with pytest.raises(ConfigError, match="the minimum number of repeats"):
        repeats_within(every, least / 2)


def test_a_wrong_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'probe'"):
        select("prob")


def test_an_installation_without_the_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "CHECKOUT", tmp_path)
    with pytest.raises(EnvironmentProblem, match="part of a checkout"):
        registry.results_folder()


@pytest.mark.engine
def test_a_quick_benchmark_runs_from_the_command_line_to_the_page(tmp_path: Path) -> None:
    """The kernels' references: measured, compared with themselves, drawn."""
    command = [sys.executable, "-m", "benchmarks"]

    def told(*arguments: str) -> str:
        return subprocess.run(
            [*command, *arguments], check=True, capture_output=True, text=True
        ).stdout

    rows, page = tmp_path / "rows", tmp_path / "page.html"
    assert "kernels: done" in told("run", "kernels", "--quick", "--out", str(rows))
    assert "0 worse beyond the spread" in told(
        "compare", str(rows), str(rows / "kernels.jsonl"), "--fail-on-loss"
    )
    told("report", "--rows", str(rows), "--out", str(page))
    text = page.read_text(encoding="utf-8")
    assert (
        "linear_cross_entropy" in text
        and "<svg" in text
        and "http" not in text.replace("http://www.w3.org", "")
    )


def test_the_command_line_tells_every_benchmark_and_checks_the_documents() -> None:
    result = CliRunner().invoke(main, ["list"])
    assert result.exit_code == 0 and all(
        f"{name}\n  measures" in result.output for name in BENCHMARKS
    )
    assert CliRunner().invoke(main, ["readme", "--check"]).exit_code == 0


def test_without_the_peers_a_benchmark_says_how_to_make_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(registry, "environment", lambda peer: tmp_path / peer)
    result = CliRunner().invoke(main, ["run", "probe"])
    assert (
        result.exit_code == 3
        and "not installed: lm-eval. Run `python -m benchmarks peers install`" in result.output
    )
