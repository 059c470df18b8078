"""Rules of the package: which folder may import which, import depth, names, and `kernels`."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import package_map
from ift_scale.pipeline import load_stage
from ift_scale.stages import STAGES

ROOT = Path(__file__).parent.parent
NAMES = frozenset(stage.name for stage in STAGES)
LEVELS: tuple[frozenset[str], ...] = (
    frozenset({"errors", "records", "treatments", "draws", "world"}),
    frozenset({"io", "knowledge"}),
    frozenset({"ranks"}),
    frozenset({"config"}),
    frozenset({"models", "instructions"}),
    frozenset({"estimate", "prompts"}),
    frozenset({"engines"}),
    frozenset({"scoring"}),
    frozenset({"stage"}),
    NAMES,
    frozenset({"stages", "plan"}),
    frozenset({"pipeline", "run_folder", "screen"}),
    frozenset({"__init__", "commands", "ray_backend"}),
    frozenset({"cli"}),
)
"""From the bottom: a room imports rooms of lower levels only."""
MOST_TOP_MODULES, LONGEST_CHAIN, MOST_FILES_OF_A_STEP = 10, 16, 12


def test_rooms_import_downwards_only() -> None:
    level = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
    imported = package_map.rooms(package_map.imports())
    assert imported.keys() == level.keys()
    upward = [(a, b) for a, others in imported.items() for b in others if level[b] >= level[a]]
    assert not upward


def test_the_way_through_the_package_is_short() -> None:
    chain = package_map.longest_chain(package_map.imports())  # ValueError names a circle
    assert len(chain) <= LONGEST_CHAIN, chain
    assert len({file for file, _ in package_map.STEP}) <= MOST_FILES_OF_A_STEP
    top = [path for path in (ROOT / "ift_scale").glob("*.py") if path.name != "__init__.py"]
    assert len(top) <= MOST_TOP_MODULES, top


def test_the_way_to_the_optimizer_step_is_connected() -> None:
    """Each file on the way is imported by one before it."""
    graph = package_map.imports()
    way = [file.removesuffix(".py").replace("/", ".") for file, _ in package_map.STEP]
    for number, module in enumerate(way[1:], start=1):
        assert any(module in graph[before] for before in way[:number]), module


def _functions(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, kinds)}


def test_the_paths_that_the_design_page_shows_exist() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| `(ift_scale/[\w/]+\.py)` \| `(\w+)` \|", text, re.MULTILINE)
    assert len(steps) > 20 and set(package_map.STEP) <= set(steps)
    for file, function in steps:
        assert function in _functions(ROOT / file), (file, function)


def test_the_drawing_shows_every_room() -> None:
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    drawing = text[text.index("```text") : text.index("```\n", text.index("```text"))]
    shown = {word for line in drawing.splitlines() for word in line.split()}
    assert {room for rooms in LEVELS for room in rooms} - {"__init__"} <= shown


def test_no_class_name_exists_twice() -> None:
    counts: Counter[str] = Counter()
    for path in package_map.modules().values():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        counts.update(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert not [name for name, count in counts.items() if count > 1]


def test_tests_mirror_the_package() -> None:
    """A folder of tests is named after a room, or after a folder next to the package."""
    rooms = {path.name for path in (ROOT / "ift_scale").iterdir() if path.is_dir()}
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("**/*.py"))}
    assert folders <= rooms | {"benchmarks", "kernels", "launch", "golden"}


def test_run_py_is_a_stages_entry() -> None:
    found = {path.parent.name for path in (ROOT / "ift_scale").rglob("run.py")}
    assert found == NAMES
    for stage in STAGES:
        loaded = load_stage(stage.name)
        assert (loaded.name, loaded.per_arm) == (stage.name, stage.per_arm)


def test_kernels_import_nothing_of_ours() -> None:
    for path in (ROOT / "kernels").rglob("*.py"):
        assert "ift_scale." not in path.read_text(encoding="utf-8").replace("ift_scale_", ""), path


@pytest.mark.engine
def test_nothing_of_ours_answers_to_kernels() -> None:
    code = (
        "import transformers, deepspeed, importlib.util\n"
        "spec = importlib.util.find_spec('kernels')\n"
        "assert spec is None or spec.origin is None or 'site-packages' in spec.origin, spec\n"
        "import ift_scale_kernels\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("code", "too"),
    [
        ("import ift_scale", {"pandas", "scipy"}),
        ("import ift_scale.cli", {"pandas", "scipy"}),
        ("import ift_scale.estimate.scaling", set()),
        # Every command on a run loads all stages.
        (
            "from ift_scale import pipeline, stages\n"
            "for stage in stages.STAGES: pipeline.load_stage(stage.name)",
            {"scipy.special", "scipy.optimize"},
        ),
    ],
)
def test_it_starts_without_heavy_imports(code: str, too: set[str]) -> None:
    heavy = {"torch", "transformers", "vllm", "deepspeed", "ray"} | too
    code += f"\nimport sys\nassert not (found := {heavy!r} & set(sys.modules)), found"
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
        "CONTRIBUTING.md",
        ".pre-commit-config.yaml",
        "ift_scale",
        "launch",
        "kernels",
        "configs",
        "tests",
        "benchmarks",
        "docs",
    }
