"""The command line: one command a stage, `run` for all of them. Heavy imports are inside the commands.

Exit codes: 0 done, 2 the user's input, 3 the environment, 75 stopped and resumable.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import FrameType
from typing import Any

import click

from ift_scale.errors import EXIT_STOPPED, IFTScaleError, Stopped
from ift_scale.stages import STAGES, Entry


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
            click.echo(
                "Stopped. Finished work is kept; the same command goes on from there.", err=True
            )
            ctx.exit(EXIT_STOPPED)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(
        f"stopped by {signal.Signals(number).name}. Finished work is kept; the same command goes on from there."
    )


def _config_options(command: Any) -> Any:
    """CONFIG and --set, the same for every command."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="a.b=value",
        help="Override a setting; may be repeated.",
    )(command)
    return click.argument("config", type=click.Path(dir_okay=False))(command)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ift-scale", prog_name="ift-scale")
def main() -> None:
    """What instruction fine-tuning does to a model's knowledge: probe, construct, train, evaluate, report."""


@main.command()
@click.argument("file", type=click.Path(dir_okay=False), required=False)
@click.option(
    "--model",
    metavar="PATH",
    help="Base model: a folder, or the id of a downloaded model of the Hugging Face Hub.",
)
@click.option(
    "--questions",
    multiple=True,
    metavar="[DOMAIN=]SOURCE",
    help="Folder, table, hub id or dataset's name; may be repeated.",
)
@click.option("--output", metavar="FOLDER", help="Folder for the run.")
@click.option(
    "--general",
    default="world",
    show_default=True,
    metavar="PATH",
    help="General instructions: JSON lines.",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def init(file: str | None, force: bool, questions: tuple[str, ...], **given: Any) -> None:
    """Write a commented configuration file.

    FILE is the folder's name with .yaml if left out. On a terminal, what is not given is asked for.
    The model and all questions are checked before the file is written.
    """
    from ift_scale.commands.init import Asked
    from ift_scale.commands.init import init as write_config

    write_config(Asked(file=file, force=force, questions=questions, **given))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script for shell completion.

    In bash: eval "$(ift-scale completion bash)", in ~/.bashrc to keep it.
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(main, {}, "ift-scale", "_IFT_SCALE_COMPLETE").source())


_variant_option = click.option(
    "--variant",
    "only",
    multiple=True,
    metavar="NAME",
    help="Only this variant of a study; may be repeated.",
)


@main.command()
@_config_options
@_variant_option
def run(config: str, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Run all stages of CONFIG; what is done already is skipped. Of a study, all variants, and a page of them side by side."""
    from ift_scale.config.file import load_study
    from ift_scale.io.progress import say

    for open_pipeline in _pipelines(config, overrides, only):
        with open_pipeline as pipeline:
            pipeline.run()
        from ift_scale.report.run import PAGE

        page = pipeline.context.folder("report") / PAGE
        say(f"report: {page.resolve()}")
    study = load_study(config, overrides)
    if study.variants and not only:
        from ift_scale.report.study import run as side_by_side

        say(f"all variants: {side_by_side(study.config, study.variants).resolve()}")


def _ray_options(command: Any) -> Any:
    """--ray and --ray-workers, of the stages that Ray may compute."""
    help = "Have actors of a Ray cluster do it: of the one at ADDRESS (HOST:PORT), found here (auto), or made for this (local)."
    workers_help = (
        "Engines to start; one for each GPU or tensor-parallel group of the cluster if left out."
    )
    command = click.option(
        "--ray-workers", type=click.IntRange(min=1), metavar="N", help=workers_help
    )(command)
    return click.option(
        "--ray", is_flag=False, flag_value="auto", metavar="[ADDRESS|auto|local]", help=help
    )(command)


class _PartType(click.ParamType):
    name = "K/N"

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        number, _, of = str(value).partition("/")
        if not (number.isdigit() and of.isdigit() and int(number) < int(of)):
            self.fail(
                f"{value!r} is not a part K/N with K from 0 to N - 1, such as 0/4", param, ctx
            )
        return int(number), int(of)


_part_option = click.option(
    "--part",
    type=_PartType(),
    help="Only the arms K, K + N, ... (from 0): for N commands at once, such as the tasks of a job array.",
)


def stage_command(stage: Entry) -> click.Command:
    @_config_options
    @_variant_option
    def command(
        config: str,
        overrides: tuple[str, ...],
        only: tuple[str, ...],
        part: tuple[int, int] | None = None,
        ray: str | None = None,
        ray_workers: int | None = None,
    ) -> None:
        if ray_workers is not None and ray is None:
            raise click.UsageError("--ray-workers: only with --ray")
        if ray is not None and part is not None:
            raise click.UsageError("--part: not with --ray, whose ranks share all arms")
        for open_pipeline in _pipelines(
            config, overrides, only, stage.on_ranks and ray is None, part
        ):
            with open_pipeline as pipeline:
                _run_stage(pipeline, stage.name, ray, ray_workers)

    if stage.per_arm:
        command = _part_option(command)
    if stage.on_ray:
        command = _ray_options(command)
    return click.command(stage.name, help=stage.help)(command)


def _run_stage(pipeline: Any, stage: str, ray: str | None, ray_workers: int | None) -> None:
    if ray is None:
        pipeline.make(stage)
        return
    from ift_scale.ray_backend import driver

    driver.run_stage(pipeline, stage, ray, ray_workers)


for _stage in STAGES:
    main.add_command(stage_command(_stage))


def _pipelines(
    config: str,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    shared: bool = False,
    part: tuple[int, int] | None = None,
) -> Iterator[Any]:
    """The run of CONFIG, or those of its variants one after another, each to be opened by `with`.

    A `shared` stage may be started by a launcher as several ranks: rank 0 holds the folder, the others work in it with its leave.
    A `part` of a stage holds the folder together with the other parts.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from ift_scale.config.file import load_study
    from ift_scale.io.progress import say
    from ift_scale.ranks import environment

    ranks = environment.from_environment()
    if ranks is not None and ranks.world_size > 1 and not shared:
        raise click.UsageError(
            f"this command is one process, and a launcher has started {ranks.world_size}; only {', '.join(stage.name for stage in STAGES if stage.on_ranks)} "
            "share their work among ranks, and --ray starts its own"
        )
    study = load_study(config, overrides)
    for name in only:
        if name not in study.variants:
            raise click.UsageError(
                f"--variant {name}: {config} has {', '.join(study.variants) or 'no variants'}"
            )
    chosen = {name: variant for name, variant in study.variants.items() if not only or name in only}
    for name, settings in chosen.items():
        say(f"variant {name}")
        siblings = [other.output_dir for other in study.variants.values() if other is not settings]
        yield _opened(settings, ranks, siblings, part)
    if not study.variants:
        yield _opened(study.config, ranks, [], part)


@contextmanager
def _opened(
    settings: Any, ranks: Any, siblings: list[str], part: tuple[int, int] | None
) -> Iterator[Any]:
    from pathlib import Path

    from ift_scale.config import resolved_yaml
    from ift_scale.io.files import remove_incomplete, write_text
    from ift_scale.io.locks import locked
    from ift_scale.io.manifests import digest_of
    from ift_scale.pipeline import Pipeline
    from ift_scale.ranks.rendezvous import meet
    from ift_scale.stage import Part

    several = ranks is not None and ranks.world_size > 1
    rendezvous = meet(ranks) if several else None
    resolved = resolved_yaml(settings)
    own_part = None if part is None else Part(*part)
    pipeline = Pipeline(
        settings, ranks, [Path(folder) for folder in siblings], own_part, rendezvous
    )
    if rendezvous is not None:
        rendezvous.check(digest_of([resolved, part]), pipeline.context.root)
        if not pipeline.context.is_rank_zero:
            rendezvous.receive()  # that rank 0 holds the folder
            yield pipeline
            return
    with ExitStack() as held:
        with rendezvous.leading() if rendezvous is not None else nullcontext():
            held.enter_context(locked(pipeline.context.root, shared=part is not None))
            if not several and part is None:  # else others may be writing already
                remove_incomplete(pipeline.context.root)
            write_text(pipeline.context.root / "config.yaml", resolved)
        if rendezvous is not None:
            rendezvous.broadcast("")
        yield pipeline


@main.command()
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="a.b=value",
    help="Override a setting of CONFIG; may be repeated.",
)
@click.option(
    "--model",
    help="Print the memory of this model only: a folder, a config.json, or a preset (configs/models).",
)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(min=0, min_open=True),
    help="GB (10^9 bytes) of one GPU; the machine's, or this machine's, if left out.",
)
@click.option(
    "--gpus", type=click.IntRange(min=1), help="GPUs in all; CONFIG's train.num_ranks if left out."
)
@click.option(
    "--gpus-per-node", type=click.IntRange(min=1), help="The machine's if left out, or 8."
)
@click.option(
    "--machine", help="Predict times on it: a machine file or a preset (configs/machines)."
)
@click.option(
    "--rates",
    "rate_file",
    type=click.Path(dir_okay=False),
    help="Rates of the stages: a YAML file (docs/plan.md).",
)
@click.option(
    "--example-tokens",
    type=click.FloatRange(min=1),
    help="Mean length of a training example, for predictions.",
)
def plan(
    config: str | None,
    overrides: tuple[str, ...],
    model: str | None,
    gpu_memory: float | None,
    gpus: int | None,
    gpus_per_node: int | None,
    machine: str | None,
    rate_file: str | None,
    example_tokens: float | None,
) -> None:
    """Tell what CONFIG would do, its work, time, memory and disk, without loading a model."""
    from pathlib import Path

    from ift_scale.config import TrainConfig
    from ift_scale.config.file import load_study
    from ift_scale.estimate import host
    from ift_scale.estimate.machine import read_machine
    from ift_scale.estimate.scaling import Examples
    from ift_scale.plan.memory import GB, Cluster, gpu_bytes_here, print_memory, read_shape

    if config is None and (model is None or overrides):
        raise click.UsageError(
            "give CONFIG, which --set changes"
            if overrides
            else "give CONFIG, or --model for its memory alone"
        )
    study = None if config is None else load_study(config, overrides)
    train = TrainConfig() if study is None else study.config.train
    described = None if machine is None else read_machine(machine)
    gpu_bytes = (
        gpu_memory * GB
        if gpu_memory
        else gpu_bytes_here()
        if described is None
        else described.memory_bytes
    )
    per_node = gpus_per_node or (8 if described is None else described.devices_per_node)
    if described is not None:
        described = described.model_copy(
            update={"memory_bytes": gpu_bytes, "devices_per_node": per_node}
        )
    host_bytes = None if gpu_bytes else host.available()
    cluster = Cluster(gpu_bytes, gpus or train.num_ranks, per_node, host_bytes)
    examples = Examples(example_tokens) if example_tokens else Examples()
    if model is not None:
        shape = read_shape(model)
        print_memory(shape, train, cluster)
        if described is not None:
            from ift_scale.plan.prediction import print_prediction

            print_prediction(shape, train, described, cluster.num_gpus, examples)
        return
    from ift_scale.plan import print_plan
    from ift_scale.plan.rates import Given, read_rates

    assert study is not None
    stated = None if rate_file is None else read_rates(Path(rate_file))
    print_plan(study, cluster, Given(stated, described, cluster.num_gpus, examples))


@main.command()
@_config_options
@click.argument("arm", required=False)
@click.option("--step", default=1, show_default=True, help="Optimizer step, from 1.")
@click.option("--rank", default=0, show_default=True, help="Rank, from 0.")
@click.option(
    "--micro-batch", default=1, show_default=True, help="Micro-batch of the step, from 1."
)
def batch(
    config: str, overrides: tuple[str, ...], arm: str | None, step: int, rank: int, micro_batch: int
) -> None:
    """Show what a rank computes in one micro-batch of ARM as text, with the supervised tokens marked."""
    from ift_scale.commands.batch import print_batch
    from ift_scale.config.file import load

    print_batch(load(config, overrides), arm, step, rank, micro_batch)


@main.command()
@_config_options
@_variant_option
def audit(config: str, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Report duplicate questions of CONFIG (train and test sets, domains, benchmarks) and options equal to the right one."""
    from ift_scale.io.files import read_json
    from ift_scale.questions.audit import table
    from ift_scale.records import AUDIT_FILE

    for open_pipeline in _pipelines(config, overrides, only):
        with open_pipeline as pipeline:
            pipeline.make("questions")
            click.echo(table(read_json(pipeline.context.folder("questions") / AUDIT_FILE)))


@main.command()
@_config_options
@click.option(
    "--variant", metavar="NAME", help="The variant of a study, which has jobs of its own."
)
@click.option("--dry-run", is_flag=True, help="Print the scripts and commands; submit nothing.")
def submit(config: str, overrides: tuple[str, ...], variant: str | None, dry_run: bool) -> None:
    """Submit the stages of CONFIG to SLURM as dependent jobs, as its `cluster:` section says."""
    from pathlib import Path

    from ift_scale.commands.submit import submit as submit_jobs
    from ift_scale.config.file import load_study

    study = load_study(config, overrides)
    if (variant is None) == bool(study.variants) or (
        variant is not None and variant not in study.variants
    ):
        raise click.UsageError(
            f"{config} has {'these variants: ' + ', '.join(study.variants) if study.variants else 'no variants'}"
        )
    settings = study.config if variant is None else study.variants[variant]
    chosen = [] if variant is None else ["--variant", variant]
    submit_jobs(
        settings,
        Path(config),
        [*chosen, *(part for text in overrides for part in ("--set", text))],
        dry_run,
    )


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--pools",
    type=click.Path(file_okay=False),
    help="Also look for the tests of the pools in this folder in the sets.",
)
def official(folder: str, pools: str | None) -> None:
    """Show the paper authors' released sets in FOLDER (official_groups, or a model's folder in it), and check the paper's rules."""
    from pathlib import Path

    from ift_scale.commands import official_leaks
    from ift_scale.construct import official_rules
    from ift_scale.construct.official import invariants, load, models, table

    found = models(Path(folder))
    sets = {model: load(model) for model in found}
    click.echo("\n\n".join(table(model.name, invariants(sets[model])) for model in found))
    if pools is not None:
        click.echo("\n" + official_leaks.table(official_leaks.leaks(found, Path(pools))))
    official_rules.check(sets)


@main.command()
@click.argument("run", type=click.Path(), metavar="RUN")
@click.option(
    "--variant",
    "only",
    multiple=True,
    metavar="NAME",
    help="Only this variant of a study; may be repeated.",
)
def show(run: str, only: tuple[str, ...]) -> None:
    """Print a run's findings and accuracy.

    RUN is the folder of a run or study, or its configuration file. If it is not finished, the
    stages that are done and the command that continues it are printed.
    """
    from ift_scale.commands.show import show as show_run

    show_run(run, only)


@main.command()
def doctor() -> None:
    """Tell what this machine has and lacks, and the command that mends it."""
    from ift_scale.commands.doctor import print_checks

    sys.exit(print_checks())


if __name__ == "__main__":
    main()
