"""The report stage: tables, manifests and training curves in; one self-contained HTML page, its CSV files and LaTeX tables out."""

import shutil
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from ift_scale import artifacts
from ift_scale.config import Config
from ift_scale.report import latex, live
from ift_scale.report.facts import Facts, Sources
from ift_scale.report.html import plural
from ift_scale.report.sections import ORDER, appendix

VERSION = 9
PAGE = "index.html"
TABLES = "tables.tex"
__all__ = ["PAGE", "VERSION", "Sources", "page", "render", "run"]


def page(facts: Facts, files: list[str]) -> str:
    """The page as text. `files`: names of what lies beside it."""
    sections = [(id, title, body) for id, title, write in ORDER if (body := write(facts)) is not None]
    sections.append(("downloads", "The same numbers as files", appendix.downloads(files)))
    made = next((m for found in facts.sources.manifests.values() for m in found), None)
    title = Path(facts.config.output_dir).name
    subtitle = f"{title}: {facts.config.model.path}, {plural(len(facts.sources.arms), 'arm')}"
    return render(title, subtitle + (f", made {made.created[:10]} on {made.machine}" if made else ""), sections)


def render(title: str, subtitle: str, sections: Sequence[tuple[str, str, Markup]]) -> str:
    """A page of (id, title, body) sections."""
    resource = resources.files("ift_scale.report")
    template = Environment(autoescape=True, trim_blocks=True).from_string((resource / "page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        sections=[{"id": id, "title": name, "body": body} for id, name, body in sections],
        style=Markup((resource / "page.css").read_text(encoding="utf-8")),
    )


def run(config: Config, folder: Path, key: str, inputs: dict[str, str], sources: Sources) -> None:
    started = time.monotonic()
    facts = Facts(config, sources)
    with artifacts.atomic_folder(folder) as temporary:
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
        artifacts.write_manifest(temporary, "report", key, {}, inputs, {"arms": len(sources.arms)}, seconds)
