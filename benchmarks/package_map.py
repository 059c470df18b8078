"""The package's layout in numbers: `python -m benchmarks.package_map`.

Prints lines by room, the imports between rooms, the longest chain of imports, the files that a
newcomer opens to follow one optimizer step, and the share of comments and long lines. Imports
inside functions and for type checking are included. The rules are in `tests/test_layout.py`.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import click

from ift_scale.stages import STAGES

ROOT = Path(__file__).parent.parent
PACKAGE = "ift_scale"
WIDTH = 100

Graph = Mapping[str, frozenset[str]]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(root: Path = ROOT) -> Graph:
    """Returns the package's modules that each module imports; `stages` imports stages by name."""
    known = modules(root)
    graph = {name: _imported(path, known) - {name} for name, path in known.items()}
    graph[f"{PACKAGE}.pipeline"] |= {f"{PACKAGE}.{stage.name}.run" for stage in STAGES}
    return {name: frozenset(found) for name, found in graph.items()}


def _imported(path: Path, known: Mapping[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in known else str(node.module))
    return found


def room_of(module: str) -> str:
    """A folder or a file at the package's top; `__init__` for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def rooms(graph: Graph) -> Graph:
    """The rooms that each room imports."""
    found: dict[str, set[str]] = {room_of(module): set() for module in graph}
    for module, imported in graph.items():
        found[room_of(module)] |= {room_of(other) for other in imported}
    return {room: frozenset(others - {room, "__init__"}) for room, others in found.items()}


def longest_chain(graph: Graph) -> list[str]:
    """The longest path of imports; ValueError names a circle."""

    @cache
    def below(module: str) -> tuple[str, ...]:
        if module in path:
            raise ValueError(f"circle of imports: {' > '.join([*path, module])}")
        path.append(module)
        best: tuple[str, ...] = max((below(m) for m in sorted(graph[module])), key=len, default=())
        path.pop()
        return (module, *best)

    path: list[str] = []
    return max((list(below(module)) for module in graph), key=len)


STEP = (
    ("ift_scale/cli.py", "stage_command"),
    ("ift_scale/commands/open_run.py", "open_runs"),
    ("ift_scale/pipeline.py", "make"),
    ("ift_scale/train/run.py", "train"),
    ("ift_scale/train/worker.py", "run"),
    ("ift_scale/train/arm.py", "train_arm"),
    ("ift_scale/train/loop.py", "train"),
    ("ift_scale/train/data/collate.py", "collate"),
    ("ift_scale/train/engine/deepspeed.py", "run_step"),
    ("ift_scale/train/model/packed.py", "forward"),
    ("ift_scale/train/model/attention.py", "attend"),
    ("ift_scale/train/model/last_layer.py", "prune"),
)
"""Files and functions from `ift-scale train` to the optimizer step, in order of execution."""


def code_shares(paths: list[Path]) -> tuple[float, float]:
    """Comment lines per line of code, and the share of lines over `WIDTH` columns."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    comments = sum(bool(re.match(r"\s*#|.*\s{2}# ", line)) for line in lines)
    code = sum(bool(line.strip()) for line in lines)
    return comments / code, sum(len(line) > WIDTH for line in lines) / len(lines)


@click.command()
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True), default=ROOT, help="A checkout."
)
def main(root: Path) -> None:
    """Print the layout of the checkout at ROOT."""
    known, graph = modules(root), imports(root)
    by_room: dict[str, list[Path]] = defaultdict(list)
    for module, path in known.items():
        by_room[room_of(module)].append(path)
    between = rooms(graph)
    for room, paths in sorted(by_room.items()):
        lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        click.echo(
            f"{room:12} {len(paths):3} files {lines:6,} lines, "
            f"imports {', '.join(sorted(between[room]))}"
        )
    comments, wide = code_shares(list(known.values()))
    chain = longest_chain(graph)
    click.echo(f"{len(between)} rooms, {sum(map(len, between.values()))} imports between them")
    click.echo(f"longest chain of imports: {len(chain)} files: {' > '.join(chain)}")
    click.echo(f"files to follow one optimizer step: {len({file for file, _ in STEP})}")
    for file, function in STEP:
        click.echo(f"    {file}: {function}")
    click.echo(
        f"comment lines {comments:.1%} of the lines of code, {wide:.1%} of the lines over {WIDTH} "
        "columns"
    )


if __name__ == "__main__":
    main()
