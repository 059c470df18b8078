"""`ift-scale show`: a run's findings and accuracy in the terminal, or how far it has come.

Built on `Run`: only stored files are read. Everything fits into 80 columns, and is plain text in a
pipe.
"""

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from ift_scale.config.file import load_study
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.report.coverage import overall
from ift_scale.report.run import PAGE
from ift_scale.report.sections.accuracy import over_what, wide
from ift_scale.report.study import changes
from ift_scale.report.text import NONE
from ift_scale.run_folder import Run
from ift_scale.run_folder.progress import StageProgress

_COLORS = {"holds": "green", "does not hold": "red"}
_STATES = {"done": "green", "partly done": "yellow", "out of date": "red", "not started": "dim"}
_GROUPS = (
    "HOMO: held-out questions of the pools that an arm was trained on. ID and OOD: benchmark "
    "questions of its domain, and of other domains."
)
_SETTING_WIDTH, _GAP = 24, 2


def show(path: str, only: Sequence[str] = ()) -> None:
    """Print the run at `path`, or each variant of a study, limited to those named in `only`."""
    console = Console(highlight=False)
    run = Run(path)
    for name in only:
        if name not in run.variants:
            problem = (
                "no such variant" if run.variants else "is a single run, which has no variants"
            )
            raise DataError(Place(path), problem, did_you_mean(name, run.variants), name)
    variants = [found for name, found in run.variants.items() if not only or name in only]
    for number, found in enumerate(variants or [run]):
        with console.capture() as text:
            _show_run(console, found)
        lines = [line.rstrip() for line in text.get().splitlines()]  # rich fills tables' lines
        click.echo("\n".join(["", *lines] if number else lines))
    together = run.folder / "report" / PAGE
    if variants and together.is_file():
        console.print(f"all variants: {escape(str(together))}", soft_wrap=True)


def _show_run(console: Console, run: Run) -> None:
    title = f"{run.folder}" + (f" (variant {run.variant})" if run.variant else "")
    console.print(f"[bold]{escape(title)}[/]", soft_wrap=True)
    if not run.is_started:
        console.print("\nNo command has worked in this folder yet. Start with:")
        console.print(f"  {escape(run.command('run'))}", soft_wrap=True)
        return
    console.print(f"model {escape(run.config.model.path)}", soft_wrap=True)
    _changed_settings(console, run)
    states = {stage.stage: stage for stage in run.progress}
    if not run.is_finished:
        _stages(console, run.progress)
    if "analyse" in states and states["analyse"].state == "done":
        _results(console, run)
    page = run.folder / "report" / PAGE
    if run.is_finished and page.is_file():
        console.print(f"\nreport: {escape(str(page))}", soft_wrap=True)
    elif run.is_finished:  # without questions, there is no report
        for arm in run.arm_list:
            model = run.folder / "train" / arm.name / "model"
            console.print(f"\nmodel: {escape(str(model))}", soft_wrap=True)
    else:
        _next(console, run)


def _changed_settings(console: Console, run: Run) -> None:
    """Settings of the given file that are not those of the stored results."""
    if run.config_file is None:
        return
    study = load_study(run.config_file)
    wanted = study.variants[run.variant] if run.variant else study.config
    different = changes(run.config, wanted)
    if different:
        console.print(
            f"[yellow]{escape(str(run.config_file))} differs from the settings of the stored "
            "results, which are shown here:[/]"
        )
        for setting in different:
            console.print(f"  {escape(setting)}", no_wrap=True, overflow="ellipsis")


def _stages(console: Console, stages: Sequence[StageProgress]) -> None:
    table = Table(
        "stage", "state", "arms", "finished (UTC)",
        box=None, pad_edge=False, header_style="", padding=(0, 3, 0, 0),
    )  # fmt: skip
    for stage in stages:
        arms = stage.per_arm and stage.total
        state = f"[{_STATES[stage.state]}]{stage.state}[/]"
        count = f"{stage.current} of {stage.total}" if arms else ""
        table.add_row(stage.stage, state, count, (stage.finished or "")[:16].replace("T", " "))
    console.print()
    console.print(table)


def _next(console: Console, run: Run) -> None:
    """The command that continues the run."""
    console.print("\nNot finished. Continue with (finished stages are kept):")
    console.print(f"  {escape(run.command('run'))}", soft_wrap=True)


def _results(console: Console, run: Run) -> None:
    for caution in run.cautions:
        console.print()
        console.print(f"[yellow]Caution:[/] {escape(caution)}")
    _accuracy(console, run)
    _findings(console, run)


def _accuracy(console: Console, run: Run) -> None:
    """The report's main table, in as many parts as the terminal's width needs."""
    facts = run.facts
    rows = wide(facts, overall(facts["settings"]), facts["base"])
    console.print(
        f"\n[bold]Accuracy[/] in percent, {facts.scope}, "
        f"{facts.level} intervals over {over_what(facts)}"
    )
    texts = [[_text(row.get(name)) for name in ("setting", *facts.groups)] for row in rows]
    first = min(max(len(row[0]) for row in texts), _SETTING_WIDTH) + _GAP
    width = max(len(text) for row in texts for text in row[1:]) + _GAP
    fitting = max(1, (console.width - first + _GAP) // width)
    for start in range(0, len(facts.groups), fitting):
        groups = facts.groups[start : start + fitting]
        table = Table(box=None, pad_edge=False, header_style="", padding=(0, _GAP, 0, 0))
        table.add_column("setting", max_width=_SETTING_WIDTH)
        for group in groups:
            table.add_column(escape(group), no_wrap=True)
        for row in texts:
            shown = [row[0], *row[1 + start : 1 + start + fitting]]
            table.add_row(*map(escape, shown))
        console.print()
        console.print(table)
    console.print(f"\n[dim]{_GROUPS}[/]")


def _text(cell: Any) -> str:
    return NONE if cell is None else str(cell).replace("\u00a0", " ")


def _findings(console: Console, run: Run) -> None:
    found = run.findings
    asked = found[found.verdict != "not asked"]
    if len(asked):
        console.print("\n[bold]Findings of the paper[/], in percentage points of accuracy")
    for claim in dict.fromkeys(asked.claim):
        rows = asked[asked.claim == claim]
        console.print(f"\n{escape(claim)}")
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, _GAP, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for where, verdict, text in zip(rows["where"], rows["verdict"], rows["text"], strict=True):
            color = _COLORS.get(verdict, "default")
            table.add_row(escape(where), f"[{color}]{escape(verdict)}[/]", escape(_text(text)))
        console.print(Padding(table, (0, 0, 0, 2)))
    rest = found[found.verdict == "not asked"]
    if len(rest):
        console.print("\nNot asked by this run:")
    for row in rest.itertuples():
        console.print(Padding(escape(f"{row.claim}. {row.text}"), (0, 0, 0, 2)))
