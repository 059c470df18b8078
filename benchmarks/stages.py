"""Where the demo's time goes, and what the time to the first training step is made of.

    python benchmarks/stages.py [--repeats 3]

Runs configs/demo.yaml from nothing, each time in a fresh folder, and reads the manifests.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))

from rows import quantiles, store

from ift_scale.artifacts import Manifest, read_json, read_manifest

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


def _manifests(folder: Path) -> list[Manifest]:
    found = [read_manifest(path.parent) for path in sorted(folder.rglob("manifest.json"))]
    return [manifest for manifest in found if manifest is not None]


def one_run(folder: Path) -> dict[str, float]:
    """Seconds of each part of one run."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "ift_scale.cli", "run", str(CONFIG), "--set", f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    parts = {"all": time.perf_counter() - started}
    for stage in ("questions", "construct", "analyse", "report"):
        parts[stage] = sum(m.seconds["total"] for m in _manifests(folder / stage))
    for stage in ("probe", "evaluate"):
        for part in ("engine_start", "scoring"):
            parts[f"{stage}: {part}"] = sum(m.seconds[part] for m in _manifests(folder / stage))
    trained = _manifests(folder / "train")
    for part in ("build", "steps", "export"):
        parts[f"train: {part}"] = sum(m.seconds[part] for m in trained)
    launch = read_json(folder / "logs" / "train-seconds.json")
    first = min(trained, key=lambda m: m.created).seconds
    parts |= {
        "first step: data (tokenising)": launch["tokenise"],
        "first step: launcher": launch["launch_and_imports"] - launch["imports"] - launch["join"],
        "first step: imports": launch["imports"],
        "first step: joining the group": launch["join"],
        "first step: model and engine": first["build"],
        "first step: the step": first["first_step"],
    }
    parts["first step: all"] = sum(seconds for name, seconds in parts.items() if name.startswith("first step"))
    return parts


@click.command()
@click.option("--repeats", default=3, show_default=True)
def main(repeats: int) -> None:
    """Run the demo from nothing and store benchmarks/results/stages.json."""
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_run(Path(folder) / "run"))
    path = store("stages", {"seconds": {name: quantiles([run[name] for run in runs]) for name in runs[0]}})
    print(path.read_text())


if __name__ == "__main__":
    main()
