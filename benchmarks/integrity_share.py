"""CPU seconds of the integrity checks of each stage, next to the seconds of the stage itself.

    python -m benchmarks.integrity_share [--run runs/demo] [--config configs/demo.yaml]

In: a finished run. Each stage's inputs are compared with their manifests as before the stage runs,
first without remembered digests, then with them. The stage's seconds are those of its manifests.
"""

import os
import tempfile
import time

import click

from ift_scale.config.file import load_study
from ift_scale.pipeline import Pipeline


def checked(pipeline: Pipeline, name: str) -> float:
    """Returns the CPU seconds of all checks before a stage runs."""
    stage = pipeline.context.stages[name]
    tasks = stage.tasks(pipeline.context)
    started = time.process_time()
    pipeline.context.check_inputs(stage)
    pipeline.context.check_inputs(stage, tasks)
    return time.process_time() - started


@click.command()
@click.option("--run", default="runs/demo", show_default=True)
@click.option("--config", default="configs/demo.yaml", show_default=True)
def main(run: str, config: str) -> None:
    """Print one table row per stage."""
    study = load_study(config, (f"output_dir={run}",))
    print("| stage | seconds | checks, s: first, again | share |\n|---|---|---|---|")
    for name in Pipeline(study.config).context.stages:
        with tempfile.TemporaryDirectory() as empty:
            os.environ["XDG_CACHE_HOME"] = empty
            first, again = (checked(Pipeline(study.config), name) for _ in range(2))
        manifests = Pipeline(study.config).context.manifests()[name]
        seconds = sum(manifest.seconds.get("total", 0.0) for manifest in manifests)
        if name == "train":
            seconds = sum(sum(m.seconds.values()) for m in manifests)
        share = f"{first / seconds:.1%}, {again / seconds:.1%}" if seconds else ""
        print(f"| {name} | {seconds:.1f} | {first:.3f}, {again:.3f} | {share} |", flush=True)


if __name__ == "__main__":
    main()
