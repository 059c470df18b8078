"""The report stage: tables, manifests and training curves in; one self-contained HTML page, its CSV files and LaTeX tables out."""

import shutil
import time
from pathlib import Path

from ift_scale.config import Config
from ift_scale.io.files import atomic_folder
from ift_scale.io.manifests import write_manifest
from ift_scale.report import latex, live
from ift_scale.report.document import HEADING, document
from ift_scale.report.facts import Facts, Sources
from ift_scale.report.html import plural
from ift_scale.report.sections import ORDER, appendix

VERSION = 10
PAGE = "index.html"
TABLES = "tables.tex"
__all__ = ["PAGE", "VERSION", "Sources", "page", "run"]


def page(facts: Facts, files: list[str]) -> str:
    """The page as text. `files`: names of what lies beside it."""
    sections = [
        (id, title, body) for id, title, write in ORDER if (body := write(facts)) is not None
    ]
    sections.append(("downloads", "The same numbers as files", appendix.downloads(files)))
    made = next((m for found in facts.sources.manifests.values() for m in found), None)
    name = Path(facts.config.output_dir).name
    subtitle = f"{name}: {facts.config.model.path}, {plural(len(facts.sources.arms), 'arm')}"
    subtitle += f", made {made.created[:10]} on {made.machine}" if made else ""
    return document(f"{name}: {HEADING}", HEADING, subtitle, sections)


def run(config: Config, folder: Path, key: str, inputs: dict[str, str], sources: Sources) -> None:
    started = time.monotonic()
    facts = Facts(config, sources)
    with atomic_folder(folder) as temporary:
        copied = [*sorted(sources.tables.glob("*.csv")), *sorted(sources.tables.glob("*.jsonl"))]
        if sources.balance.is_file():
            copied.append(sources.balance)
        for file in copied:
            shutil.copy(file, temporary / file.name)
        if len(facts.live):
            facts.live.to_csv(temporary / live.FILE, index=False)
        (temporary / TABLES).write_text(latex.tables(facts), encoding="utf-8")
        files = sorted(path.name for path in temporary.iterdir())
        (temporary / PAGE).write_text(page(facts, files), encoding="utf-8")
        seconds = {"total": time.monotonic() - started}
        write_manifest(temporary, "report", key, {}, inputs, {"arms": len(sources.arms)}, seconds)
