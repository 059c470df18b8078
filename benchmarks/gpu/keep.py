"""Puts what a GPU's commands brought back into this checkout: rows into benchmarks/results, the kernels' figures into kernels/.

    python -m benchmarks.gpu.keep runs/gpu/back.tar.gz

Then `python -m benchmarks readme` writes docs/gpu.md and the README's figures from the rows. Rows replace those of the same figures on
the same device; logs are left in the archive.
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
    """Merge the rows and figures of FOLDER; returns a line for each file that changed."""
    told = []
    for file in sorted(folder.glob("*.jsonl")):
        found = [row for row in rows.read_file(file) if row.device != "cpu"]
        if found:
            told.append(f"{rows.store(found, results)}: {len(found)} rows")
    if (folder / FIGURES).is_file():
        new = json.loads((folder / FIGURES).read_text(encoding="utf-8"))
        if new:
            write_json(
                figured, figures.merged(json.loads(figured.read_text(encoding="utf-8")), new)
            )
            told.append(f"{figured}: {len(new)} figures")
    return told


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
