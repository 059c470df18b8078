"""Rules of the package: which modules may import which, and the import name `kernels`."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("questions", "probe", "write", "construct", "train", "evaluate", "analyse", "report")
SHARED = {
    "config",
    "draws",
    "engines",
    "errors",
    "estimate",
    "io",
    "knowledge",
    "prompts",
    "ranks",
    "records",
    "scoring",
    "stage",
    "treatments",
    "world",
}


def _imports(path: Path) -> set[str]:
    """Returns the second parts of the ift_scale modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module]
                if node.module != "ift_scale"
                else [f"ift_scale.{a.name}" for a in node.names]
            )
        found.update(name.split(".")[1] for name in names if name.startswith("ift_scale."))
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another(stage: str) -> None:
    for path in (ROOT / "ift_scale" / stage).rglob("*.py"):
        assert _imports(path) <= SHARED | {stage}, path


def test_kernels_import_nothing_of_the_package() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not _imports(path), path


def test_the_import_name_kernels_is_free() -> None:
    code = (
        "import transformers, deepspeed, importlib.util\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "assert spec is None or spec.origin is None or 'site-packages' in spec.origin, spec\n"
        "import ift_scale_kernels\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_the_command_line_starts_without_heavy_imports() -> None:
    code = "import sys, ift_scale.cli\n"
    code += "heavy = {'torch', 'transformers', 'vllm', 'deepspeed', 'pandas', 'ray'}\n"
    code += "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_estimates_are_pure() -> None:
    for path in (ROOT / "ift_scale" / "estimate").rglob("*.py"):
        assert _imports(path) <= {"config", "errors", "estimate", "io"}, path
    code = (
        "import sys, ift_scale.estimate.scaling\n"
        "assert not {'torch', 'transformers', 'deepspeed'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_top_level_is_as_agreed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.split()}
    assert top == {
        "setup.py",
        "pyproject.toml",
        "Makefile",
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        ".ci",
        ".gitignore",
        "ift_scale",
        "launch",
        "kernels",
        "configs",
        "tests",
        "benchmarks",
        "docs",
    }
