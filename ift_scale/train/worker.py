"""Entry point of one rank: `python -m ift_scale.train.worker JOB`, run by a launcher.

Imports nothing heavy itself, so that it can time the imports of torch, transformers and DeepSpeed,
which take most of a rank's start-up. The settings are arguments rather than environment variables
because the deepspeed launcher does not forward unknown variables to other nodes.
"""

import time
from pathlib import Path

import click

from ift_scale.ranks import environment


@click.command()
@click.argument("job_path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--events",
    "events_path",
    type=click.Path(path_type=Path),
    help="File to which progress events are appended.",
)
@click.option("--supervisor", help="HOST:PID of the process whose end ends this one.")
def main(job_path: Path, events_path: Path | None, supervisor: str | None) -> None:
    """Train the arms of JOB_PATH as one rank of a group started by a launcher."""
    ranks = environment.from_environment()
    if ranks is None:
        raise click.UsageError(
            "RANK and WORLD_SIZE are not set. Start this module with a launcher, such as"
            " deepspeed or torchrun."
        )
    if supervisor:
        environment.end_with_supervisor(supervisor)
    started = time.monotonic()
    from ift_scale.train import rank  # imports torch and DeepSpeed

    rank.run_job_file(job_path, events_path, ranks, time.monotonic() - started)


if __name__ == "__main__":
    main()
