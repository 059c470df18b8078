"""`ift-scale init`: a commented configuration from a model, sources of questions and a folder.

Everything is checked before the file is written: the model's folder and tokenizer, every question
of the sources, and the configuration itself. Whatever is wrong is one error, and no file is made.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
from rich.markup import escape
from rich.table import Column, Table

from ift_scale.commands.init_checks import (
    Counts,
    check_general,
    check_model,
    check_output,
    pool_sizes,
    read_questions,
    require_pool,
)
from ift_scale.commands.init_yaml import Described, yaml_value
from ift_scale.config import Config, collection_of, is_pool
from ift_scale.config.file import from_dict, load
from ift_scale.config.section import BUILTIN_MODEL
from ift_scale.errors import DataError, IFTScaleError, Place
from ift_scale.io.files import atomic_path
from ift_scale.io.progress import console, say
from ift_scale.questions.detect import Detected, detect
from ift_scale.ranks.environment import visible_devices

_POOL_PER_BATCH = 16
"""Train questions per example of a step. A set is twice the rarest kind of question (known, or
wrongly believed), so kinds of 3% of the pool still make a set that fills a step."""
_LEAST_BATCH = 8


@dataclass(frozen=True)
class Asked:
    """What the user has given; None or empty where a terminal is asked."""

    file: str | None
    model: str | None
    questions: Sequence[str]
    output: str | None
    general: str | None
    force: bool


def init(asked: Asked) -> None:
    """Check what was asked for, write the file, and print what was recognised and what is next."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    asked = _complete(asked)
    assert asked.model is not None and asked.output is not None
    file = Path(asked.file or f"{Path(asked.output).resolve().name}.yaml")
    if file.exists() and not asked.force:
        raise DataError(
            Place(file), "exists already", "Give another FILE, or --force to replace it"
        )
    check_output(Path(asked.output))
    model, about_model = check_model(asked.model)
    _print("model", asked.model, about_model)
    found = [detect(spec) for spec in asked.questions]
    require_pool(found)
    instructions = asked.general or (BUILTIN_MODEL if model == BUILTIN_MODEL else None)
    described = Described(
        file=str(file),
        output_dir=asked.output,
        model=model,
        sources=[one.settings for one in found],
        general=instructions,
        about_general=check_general(instructions),
        num_ranks=max(1, len(visible_devices())),
        about_model=about_model,
    )
    config = from_dict(described.settings(), str(file))
    counts = read_questions(config)
    trains = map(is_pool, config.questions.sources)
    about = [_about(*three) for three in zip(found, counts, trains, strict=True)]
    for number, spec in enumerate(asked.questions):
        columns = {key: found[number].settings.get(key) for key in ("splits", "fields")}
        shown = [f"{key} {yaml_value(value)}" for key, value in columns.items() if value]
        _print("" if number else "questions", spec, about[number], *shown)
    described = replace(described, about_sources=about, batch=_batch(config, counts))
    _print_arms(config, counts)
    _write(file, described)
    _print("wrote", str(file))
    say("\nNext:")
    say(f"  ift-scale plan {file}   # work, memory and disk, before anything runs")
    say(f"  ift-scale run {file}    # all stages; resumes if it was interrupted")


def _print(heading: str, *lines: str) -> None:
    """Lines next to a heading, wrapped to the terminal."""
    grid = Table.grid(Column(width=11), Column(overflow="fold"))
    for number, line in enumerate(lines):
        grid.add_row("" if number else heading, escape(line))
    console.print(grid, soft_wrap=False)


def _write(file: Path, described: Described) -> None:
    with atomic_path(file) as temporary:
        temporary.write_text(described.text(), encoding="utf-8")
        assert load(temporary) == from_dict(described.settings()), "the text is not the settings"


# What was not given.


def _complete(asked: Asked) -> Asked:
    """Ask for what is missing on a terminal; UsageError elsewhere."""
    given = {"--model": asked.model, "--questions": asked.questions, "--output": asked.output}
    missing = [name for name, value in given.items() if not value]
    if missing and not sys.stdin.isatty():
        raise click.UsageError(f"missing {', '.join(missing)} (on a terminal they are asked for)")
    model = asked.model or _ask("Base model (folder, or id on the Hugging Face Hub)", check_model)
    questions = list(asked.questions) or _ask_questions()
    output = asked.output or _ask(
        "Folder for the run", lambda text: check_output(Path(text)), "runs/first"
    )
    return replace(asked, model=model, questions=questions, output=output)


def _ask_questions() -> list[str]:
    click.echo(
        "\nQuestions: a folder, a table (JSON lines, CSV, Parquet) or a dataset's name\n"
        "(mmlu, medmcqa, arc, ...). One must be a pool to train on; benchmarks such as\n"
        "mmlu are only asked. DOMAIN=PATH names the domain of a pool."
    )
    found = [_ask("Source", detect)]
    while another := click.prompt(
        "Another source (empty: no more)", default="", show_default=False
    ):
        try:
            detect(another)
            found.append(another)
        except IFTScaleError as error:
            click.echo(f"Error: {error}", err=True)
    return found


def _ask(text: str, check: Callable[[str], object], default: str | None = None) -> str:
    """An answer that passes `check`, which raises for others."""
    while True:
        answer = str(click.prompt(text, default=default))
        try:
            check(answer)
            return answer
        except IFTScaleError as error:
            click.echo(f"Error: {error}", err=True)


def _about(found: Detected, counts: Counts, trains: bool) -> str:
    """Such as `Benchmark, MMLU, 5 domains: 14,042 test, 285 dev`."""
    splits: Counter[str] = Counter()
    for (_, split), count in counts.items():
        splits[split] += count
    numbers = ", ".join(f"{splits[s]:,} {s}" for s in ("train", "test", "dev") if splits[s])
    domains = list(dict.fromkeys(domain for domain, _ in counts))
    role = "Pool" if trains else "Benchmark"
    if len(domains) == 1:
        return f"{role} of domain {domains[0]}, {found.kind}: {numbers}"
    return f"{role}, {found.kind}, {len(domains)} domains: {numbers}"


def _batch(config: Config, counts: Sequence[Counts]) -> int:
    """The paper's 256 examples per step, halved until the smallest pool is large enough."""
    smallest = min(pool_sizes(config, counts).values())
    batch = 256
    while batch > _LEAST_BATCH and smallest < batch * _POOL_PER_BATCH:
        batch //= 2
    return batch


def _print_arms(config: Config, counts: Sequence[Counts]) -> None:
    domains = list(pool_sizes(config, counts))
    settings, seeds = config.construct.settings, config.construct.seeds
    number = len(domains) * len(settings) * len(seeds)
    plural = "s" if len(domains) > 1 else ""
    made_of = f"{len(settings)} settings, {len(seeds)} seeds"
    _print("arms", f"{number}: {made_of}, domain{plural} {', '.join(domains)}")
    asked = {
        domain
        for source, found in zip(config.questions.sources, counts, strict=True)
        for domain, split in found
        if split == "test"
        and (collection_of(source) == "benchmark" or source.kind in ("world", "facts"))
    }
    lacking = [domain for domain in domains if asked and domain not in asked]
    if lacking:
        _print(
            "note",
            f"No benchmark question is of the domain {', '.join(lacking)}, so its arms have no "
            f"group ID. The benchmarks have {', '.join(sorted(asked))}. DOMAIN=PATH names the "
            "domain of a pool.",
        )
