"""The report stage: tables, manifests and training curves in, a self-contained page out.

The page's folder also has the tables as CSV and LaTeX.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import Config, resolved_yaml
from ift_scale.io.files import atomic_folder, read_json
from ift_scale.io.manifests import Manifest, digest_of
from ift_scale.io.progress import Bar
from ift_scale.io.tables import write_csv
from ift_scale.records import AUDIT_FILE, BALANCE_FILE, KNOWLEDGE_FILE, QUESTIONS_FILE
from ift_scale.report import latex, live
from ift_scale.report.document import HEADING, document
from ift_scale.report.facts import Facts, ReportInputs
from ift_scale.report.sections import ORDER, appendix
from ift_scale.report.text import plural
from ift_scale.stage import Context, Stage, Task

PAGE = "index.html"
TABLES = "tables.tex"


def page(facts: Facts, files: list[str]) -> str:
    """Returns the page; `files` are the names of the files next to it."""
    sections = [
        (id, title, body) for id, title, write in ORDER if (body := write(facts)) is not None
    ]
    sections.append(("downloads", "The same numbers as files", appendix.downloads(files)))
    made = next((m for found in facts.inputs.manifests.values() for m in found), None)
    name = Path(facts.config.output_dir).name
    subtitle = f"{name}: {facts.config.model.path}, {plural(len(facts.inputs.arms), 'arm')}"
    subtitle += f", created {made.created[:10]} on {made.machine}" if made else ""
    return document(f"{name}: {HEADING}", HEADING, subtitle, sections)


class ReportStage(Stage):
    name = "report"
    reads = (
        f"questions/{QUESTIONS_FILE}",
        f"questions/{AUDIT_FILE}",
        f"probe/{KNOWLEDGE_FILE}",
        f"construct/{BALANCE_FILE}",
        "train/*.jsonl",
        "analyse/*",
    )
    version = 10

    def tasks(self, context: Context) -> list[Task]:
        inputs = dict(context.finished(context.task("analyse")).files)
        inputs[BALANCE_FILE] = context.digest("construct", BALANCE_FILE)
        made = [
            date
            for found in _manifests(context).values()
            for manifest in found
            for date in (manifest.created, *(edit.date for edit in manifest.edited))
        ]
        key = digest_of([self.version, resolved_yaml(context.config), inputs, made])
        return self.single(context, key, inputs)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        write_page(context.config, pending[0], _sources(context))


def _manifests(context: Context) -> dict[str, list[Manifest]]:
    return {name: found for name, found in context.manifests().items() if name != STAGE.name}


def _sources(context: Context) -> ReportInputs:
    return ReportInputs(
        tables=context.folder("analyse"),
        train=context.folder("train"),
        arms=context.arms(),
        manifests=_manifests(context),
        run_seconds={"train": read_json(context.logs / "train-seconds.json")},
        chance=context.question_file().chance_accuracy(),
        knowledge=read_json(context.folder("probe") / KNOWLEDGE_FILE),
        balance=context.folder("construct") / BALANCE_FILE,
        questions=context.folder("questions") / QUESTIONS_FILE,
        audit=read_json(context.folder("questions") / AUDIT_FILE),
    )


def write_page(config: Config, task: Task, inputs: ReportInputs) -> None:
    started = time.monotonic()
    facts = Facts(config, inputs)
    with atomic_folder(task.folder) as temporary:
        copied = [*sorted(inputs.tables.glob("*.csv")), *sorted(inputs.tables.glob("*.jsonl"))]
        if inputs.balance.is_file():
            copied.append(inputs.balance)
        for file in copied:
            shutil.copy(file, temporary / file.name)
        if len(facts.live):
            write_csv(facts.live, temporary / live.FILE)
        (temporary / TABLES).write_text(latex.tables(facts), encoding="utf-8")
        files = sorted(path.name for path in temporary.iterdir())
        (temporary / PAGE).write_text(page(facts, files), encoding="utf-8")
        seconds = {"total": time.monotonic() - started}
        task.close({}, {"arms": len(inputs.arms)}, seconds, temporary)


STAGE = ReportStage()
