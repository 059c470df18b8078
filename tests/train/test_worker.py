"""The entry point of a rank: it times heavy imports, so it must not make any itself."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ift_scale.ranks.environment import Ranks
from ift_scale.train import rank, worker


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


def test_the_rank_gets_job_events_and_import_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(rank, "run_job_file", lambda *arguments: calls.append(arguments))
    variables = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    job, events = tmp_path / "job.json", tmp_path / "events.jsonl"
    job.write_text("{}")
    result = CliRunner().invoke(
        worker.main, [str(job), "--events", str(events)], env=variables | address
    )
    assert result.exit_code == 0, result.output
    ((job_path, events_path, ranks, imports),) = calls
    assert (job_path, events_path) == (job, events) and imports >= 0
    assert isinstance(ranks, Ranks) and (ranks.rank, ranks.world_size) == (1, 2)
