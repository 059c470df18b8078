"""docs/quickstart.md: every command of the page runs, from the installation to the report.

What would download is replaced by `_STANDINS`: the embedded world's model and questions in the
layouts that `hf download` leaves. All other commands run as they are printed.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ift_scale.questions import world
from ift_scale.records import Question

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
SUBJECTS = {
    "medicine": "college_medicine",
    "history": "prehistory",
    "engineering": "electrical_engineering",
    "jurisprudence": "jurisprudence",
}


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)


def _install(folder: Path) -> None:
    """A wheel of the package, without its dependencies, which the tests' environment has."""
    source = folder / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in ("ift_scale", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["-q", "--no-deps", "--no-build-isolation", "--target", str(folder / "installed")]
    command = [sys.executable, "-m", "pip", "install", *options, str(source)]
    subprocess.run(command, check=True, capture_output=True)


def _lock_exists(folder: Path) -> None:
    """The lock is for a machine with GPUs; the tests' environment has the packages."""
    assert (ROOT / "configs" / "locks" / "cuda.txt").is_file()


def _model(folder: Path) -> None:
    shutil.copytree(ROOT / "ift_scale" / "world" / "base_model", folder / "models" / "my-model")


def _questions(collection: str, domain: str, split: str) -> list[Question]:
    wanted = (collection, domain, split, "choice")
    return [q for q in world.load() if (q.collection, q.domain, q.split, q.kind) == wanted]


def _medmcqa(folder: Path) -> None:
    """The world's medicine pool as MedMCQA's Parquet files on the Hub; test answers are hidden."""
    splits = {"train": ["dev", "train"], "validation": ["test"], "test": ["test"]}
    for split, ours in splits.items():
        rows = []
        for question in (q for name in ours for q in _questions("pool", "medicine", name)):
            options = dict(zip(("opa", "opb", "opc", "opd"), question.choices, strict=True))
            answer = -1 if split == "test" else question.answer
            row = {"id": question.id, "question": question.question, **options, "cop": answer}
            rows.append(row | {"exp": question.explanation, "subject_name": "Medicine"})
        _parquet(folder / f"data/medmcqa/data/{split}-00000-of-00001.parquet", rows)


def _mmlu(folder: Path) -> None:
    """The world's benchmark as the Hub's copy of MMLU: `all` and a folder for each subject."""
    for split in ("dev", "test"):
        rows = [
            {"question": q.question, "subject": subject, "choices": q.choices, "answer": q.answer}
            for domain, subject in SUBJECTS.items()
            for q in _questions("benchmark", domain, split)
        ]
        for name in ("all", *SUBJECTS.values()):
            part = [row for row in rows if name in ("all", row["subject"])]
            _parquet(folder / f"data/mmlu/{name}/{split}-00000-of-00001.parquet", part)
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test-*\n"
        f"  - split: dev\n    path: {name}/dev-*\n"
        for name in ("all", *SUBJECTS.values())
    )
    (folder / "data/mmlu/README.md").write_text(f"---\nconfigs:\n{configs}---\n# MMLU\n")


_STANDINS: dict[str, Callable[[Path], None]] = {
    "pip install -r configs/locks/cuda.txt": _lock_exists,
    "pip install --no-deps -e .": _install,
    "hf download Qwen/Qwen2.5-7B --local-dir models/my-model": _model,
    "hf download openlifescienceai/medmcqa --repo-type dataset --local-dir data/medmcqa": _medmcqa,
    "hf download cais/mmlu --repo-type dataset --local-dir data/mmlu": _mmlu,
}


def _commands() -> list[str]:
    """The commands of the page's bash blocks without their comments."""
    blocks = re.findall(r"```bash\n(.+?)```", PAGE, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    return [re.sub(r"\s+# .*", "", line) for line in lines]


def test_every_command_of_the_page_runs(tmp_path: Path) -> None:
    commands = _commands()
    assert set(_STANDINS) < set(commands)
    installed = tmp_path / "installed"
    path = f"{installed / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(installed), "COLUMNS": "80"}
    printed = {}
    for command in commands:
        if command in _STANDINS:
            _STANDINS[command](tmp_path)
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        printed[command] = done.stdout
    assert _only(printed, "init").count("MMLU") == 1
    assert "Pool of domain medicine, MedMCQA: 160 train, 100 test, 10 dev" in _only(printed, "init")
    assert "9 arms" in printed["ift-scale plan first.yaml"]
    report = tmp_path / "runs" / "first" / "report" / "index.html"
    assert report.stat().st_size > 10_000
    shown = _only(printed, "show")
    assert re.search(r"^H harmonious +\d+\.\d \[", shown, flags=re.MULTILINE)
    assert "Sets that agree with the model beat" in shown and "report: runs/first/report" in shown
    (code,) = re.findall(r"```python\n(.+?)```", PAGE, flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "harmonious" in done.stdout and "HOMO" in done.stdout
    where = [sys.executable, "-c", "import ift_scale; print(ift_scale.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.startswith(str(installed))


def _only(printed: dict[str, str], command: str) -> str:
    """The output of the only command of the page that begins so, in one line per paragraph."""
    (text,) = [o for line, o in printed.items() if line.startswith(f"ift-scale {command} ")]
    return text
