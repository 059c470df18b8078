"""Merges results of GPU commands: rows into benchmarks/results, kernel figures into kernels/.

    python -m benchmarks.gpu.keep runs/gpu/back.tar.gz

Afterwards, `python -m benchmarks readme` updates docs/gpu.md and README.md from the rows. Rows
replace those of the same figures on the same device; logs remain in the archive.
"""

import json
import tarfile
import tempfile
from pathlib import Path

import click
from ift_scale_kernels import figures

from benchmarks.suite import registry, rows
from ift_scale.io.files import write_json
from ift_scale.io.progress import say

FIGURES = "kernels-figures.json"


def keep(folder: Path, results: Path, figured: Path) -> list[str]:
    """Merges the rows and figures of FOLDER; returns a line for each changed file."""
    changed = []
    for file in sorted(folder.glob("*.jsonl")):
        found = [row for row in rows.read_file(file) if row.device != "cpu"]
        if found:
            changed.append(f"{rows.store(found, results)}: {len(found)} rows")
    if (folder / FIGURES).is_file():
        new = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        if new:
            write_json(
                figured, figures.merged(json.loads(figured.read_text(encoding="utf-8")), new)
            )
            changed.append(f"{figured}: {len(new)} figures")
    return changed


@click.command()
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(archive: Path) -> None:
    """Merge the rows and figures of ARCHIVE into this checkout."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
        for line in keep(Path(folder) / "rows", registry.results_folder(), figures.PATH) or [
            "nothing of a GPU in it"
        ]:
            say(line)


if __name__ == "__main__":
    main()
