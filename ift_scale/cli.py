"""The command line: one command a stage, `run` for all of them. Heavy imports are inside the commands.

Exit codes: 0 done, 2 the user's input, 3 the environment, 75 stopped and resumable.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from ift_scale import __version__
from ift_scale.bench_cli import bench
from ift_scale.errors import EXIT_STOPPED, IFTScaleError, Stopped

STAGE_HELP = {
    "questions": "Gather the questions of all sources.",
    "probe": "Ask the base model every question, few-shot.",
    "write": "Have the explanations and contexts written that the sets need.",
    "construct": "Build the instruction sets of all arms.",
    "train": "Fine-tune every arm.",
    "evaluate": "Ask every fine-tuned arm, 0-shot.",
    "analyse": "Compute accuracy, consistency and differences.",
    "report": "Write the report page.",
}


# Stages that ranks started by deepspeed, torchrun or srun work on together.
SHARED_STAGES = ("probe", "evaluate")


class Group(click.Group):
    """Tells a user's errors in a sentence, with the exit code that belongs to them."""

    def invoke(self, ctx: click.Context) -> Any:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, _stop)
        try:
            return super().invoke(ctx)
        except (IFTScaleError, Stopped) as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("Stopped. Finished work is kept; the same command goes on from there.", err=True)
            ctx.exit(EXIT_STOPPED)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"stopped by {signal.Signals(number).name}. Finished work is kept; the same command goes on from there.")


def _config_options(command: Any) -> Any:
    """CONFIG and --set, the same for every command."""
    command = click.option("--set", "overrides", multiple=True, metavar="a.b=value", help="Override a setting; may be repeated.")(
        command
    )
    return click.argument("config", type=click.Path(dir_okay=False))(command)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ift-scale")
def main() -> None:
    """What instruction fine-tuning does to a model's knowledge: probe, construct, train, evaluate, report."""


main.add_command(bench)

_variant_option = click.option(
    "--variant", "only", multiple=True, metavar="NAME", help="Only this variant of a study; may be repeated."
)


@main.command()
@_config_options
@_variant_option
def run(config: str, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Run all stages of CONFIG; what is done already is skipped. Of a study, all variants."""
    from ift_scale.progress import say

    for open_pipeline in _pipelines(config, overrides, only):
        with open_pipeline as pipeline:
            page = pipeline.run()
        say(f"report: {page.resolve()}")


def _stage_command(stage: str) -> click.Command:
    @_config_options
    @_variant_option
    def command(config: str, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
        for open_pipeline in _pipelines(config, overrides, only, stage in SHARED_STAGES):
            with open_pipeline as pipeline:
                getattr(pipeline, stage)()

    return click.command(stage, help=STAGE_HELP[stage])(command)


for _stage in STAGE_HELP:
    main.add_command(_stage_command(_stage))


def _pipelines(config: str, overrides: tuple[str, ...], only: tuple[str, ...], shared: bool = False) -> Iterator[Any]:
    """The run of CONFIG, or those of its variants one after another, each to be opened by `with`.

    A `shared` stage may be started by a launcher as several ranks: rank 0 holds the folder, the others work in it with its leave.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from ift_scale import distributed
    from ift_scale.config_file import load_study
    from ift_scale.progress import say

    ranks = distributed.from_environment()
    if ranks is not None and ranks.world_size > 1 and not shared:
        raise click.UsageError(
            f"this command is one process, and a launcher has started {ranks.world_size}; only {' and '.join(SHARED_STAGES)} "
            "share their work among ranks (train starts its own)"
        )
    study = load_study(config, overrides)
    for name in only:
        if name not in study.variants:
            raise click.UsageError(f"--variant {name}: {config} has {', '.join(study.variants) or 'no variants'}")
    chosen = {name: variant for name, variant in study.variants.items() if not only or name in only}
    for name, settings in chosen.items():
        say(f"variant {name}")
        yield _opened(settings, ranks, [other.output_dir for other in study.variants.values() if other is not settings])
    if not study.variants:
        yield _opened(study.config, ranks, [])


@contextmanager
def _opened(settings: Any, ranks: Any, siblings: list[str]) -> Iterator[Any]:
    from pathlib import Path

    from ift_scale import artifacts
    from ift_scale.config import resolved_yaml
    from ift_scale.pipeline import Pipeline

    pipeline = Pipeline(settings, ranks, [Path(folder) for folder in siblings])
    if not pipeline.leads:
        yield pipeline
        return
    with artifacts.locked(pipeline.root):
        if ranks is None or ranks.world_size == 1:  # else other ranks may be writing already
            artifacts.remove_incomplete(pipeline.root)
        artifacts.write_text(pipeline.root / "config.yaml", resolved_yaml(settings))
        yield pipeline


@main.command()
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@click.option("--set", "overrides", multiple=True, metavar="a.b=value", help="Override a setting of CONFIG; may be repeated.")
@click.option("--model", help="Print the memory of this model only: a folder, a config.json, or a preset (configs/models).")
@click.option(
    "--gpu-memory", type=click.FloatRange(min=0, min_open=True), help="GB (10^9 bytes) of one GPU; this machine's if left out."
)
@click.option("--gpus", type=click.IntRange(min=1), help="GPUs in all; CONFIG's train.num_ranks if left out.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True)
def plan(
    config: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    gpu_memory: float | None,
    gpus: int | None,
    gpus_per_node: int,
) -> None:
    """Tell what CONFIG would do, its memory and its work, without loading a model."""
    from ift_scale.config import TrainConfig
    from ift_scale.config_file import load_study
    from ift_scale.plan_memory import GB, Cluster, gpu_bytes_here, print_memory, read_shape

    if config is None and (model is None or overrides):
        raise click.UsageError("give CONFIG, which --set changes" if overrides else "give CONFIG, or --model for its memory alone")
    study = None if config is None else load_study(config, overrides)
    train = TrainConfig() if study is None else study.config.train
    gpu_bytes = gpu_memory * GB if gpu_memory else gpu_bytes_here()
    cluster = Cluster(gpu_bytes, gpus or train.num_ranks, gpus_per_node)
    if model is not None:
        print_memory(read_shape(model), train, cluster)
        return
    from ift_scale.plan import print_plan
    from ift_scale.progress import say

    assert study is not None
    for name, variant in study.variants.items():
        say(f"variant    {name}")
        print_plan(variant, cluster)
    if not study.variants:
        print_plan(study.config, cluster)


@main.command()
@_config_options
@click.argument("arm", required=False)
@click.option("--step", default=1, show_default=True, help="Optimizer step, from 1.")
@click.option("--rank", default=0, show_default=True, help="Rank, from 0.")
@click.option("--micro-batch", default=1, show_default=True, help="Micro-batch of the step, from 1.")
def batch(config: str, overrides: tuple[str, ...], arm: str | None, step: int, rank: int, micro_batch: int) -> None:
    """Show what a rank computes in one micro-batch of ARM as text, with the supervised tokens marked."""
    from ift_scale.config_file import load
    from ift_scale.show_batch import print_batch

    print_batch(load(config, overrides), arm, step, rank, micro_batch)


@main.command()
@_config_options
@_variant_option
def audit(config: str, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Tell which questions of CONFIG stand twice: in train and test sets, across domains and benchmarks."""
    from ift_scale.artifacts import read_json
    from ift_scale.questions.audit import SUMMARY, table

    for open_pipeline in _pipelines(config, overrides, only):
        with open_pipeline as pipeline:
            pipeline.questions()
            click.echo(table(read_json(pipeline.folder("questions") / SUMMARY)))


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
def official(folder: str) -> None:
    """Tell what holds of the paper authors' released sets in FOLDER: official_groups, or a model's folder in it."""
    from pathlib import Path

    from ift_scale.construct.official import invariants, load, models, table

    click.echo("\n\n".join(table(model.name, invariants(load(model))) for model in models(Path(folder))))


@main.command()
@click.argument("data", type=click.Path(file_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--seed", default=0, show_default=True, help="Draws the questions, the beliefs and the weights.")
def plant(data: str, out: str, seed: int) -> None:
    """Train a small Llama to believe right and wrong answers to real questions.

    DATA holds the pools, MMLU and general instructions; OUT gets the chosen questions, the beliefs and the model (docs/planted.md).
    """
    from pathlib import Path

    from ift_scale.planted.plant import run
    from ift_scale.planted.train import Recipe

    run(Path(data), Path(out), Recipe(seed=seed))


@main.command()
def doctor() -> None:
    """Tell what this machine has and lacks, and the command that mends it."""
    from ift_scale.doctor import print_checks

    sys.exit(print_checks())


if __name__ == "__main__":
    main()
