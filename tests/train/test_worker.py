"""The entry point of a rank: it times heavy imports, so it must not make any itself."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from ift_scale.train import worker


def test_the_entry_point_imports_nothing_heavy() -> None:
    program = (
        "import sys, ift_scale.train.worker;"
        "print(sorted({'torch', 'transformers', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_rank_needs_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job.json"
    job.write_text("{}")
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(worker.main, [str(job)])
    assert result.exit_code == 2 and "RANK and WORLD_SIZE are not set" in result.output


def test_a_rank_runs_its_job_and_reports_the_import_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(worker, "meet", lambda ranks, _: SimpleNamespace(ranks=ranks, check=print))
    monkeypatch.setattr(worker, "run", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(worker.job, "read", lambda path: path)
    monkeypatch.setattr("ift_scale.train.process_group.leave", lambda: calls.append(()))
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    job = tmp_path / "job.json"
    job.write_text("{}")
    result = CliRunner().invoke(worker.main, [str(job)], env=variables | address)
    assert result.exit_code == 0, result.output
    (path, rendezvous, _, imports), left = calls
    assert path == job and imports >= 0 and left == ()
    assert (rendezvous.ranks.rank, rendezvous.ranks.world_size) == (1, 2)
