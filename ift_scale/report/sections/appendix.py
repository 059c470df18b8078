"""Settings, versions, and the same numbers as files."""

from collections.abc import Sequence

from markupsafe import Markup

from ift_scale.config import resolved_yaml
from ift_scale.report.facts import Facts
from ift_scale.report.html import PRINTED, details, joined, paragraph, table

ABOUT = {
    "arms.csv": "every arm and group",
    "settings.csv": "means over seeds with intervals",
    "comparisons.csv": "paired differences with intervals and tests",
    "base.csv": "the base model, few-shot",
    "transitions.csv": "what turned right or wrong",
    "grades.csv": "by what the base model knew",
    "correlation.csv": "consistency and KL against accuracy",
    "correlation_points.csv": "the points of these",
    "best_ratio.csv": "the best mixture",
    "abstention.csv": "refusals",
    "generated.csv": "written answers",
    "examples.jsonl": "example questions and what was predicted",
    "balance.csv": "how far the sets differ",
    "live.csv": "live knowledge by step",
    "tables.tex": "the main tables for LaTeX (booktabs)",
}


def settings(facts: Facts) -> Markup:
    made = [m for name in ("probe", "analyse") for m in facts.sources.manifests.get(name, [])]
    parts = []
    if made:
        rows = [{"package": name, "version": version} for name, version in made[0].versions.items()]
        rows.append({"package": "commit", "version": (made[0].commit or "unknown")[:12]})
        parts.append(table(rows, "Versions"))
    pre = Markup('<pre tabindex="0" role="region" aria-label="Settings">{}</pre>').format(
        resolved_yaml(facts.config)
    )
    parts += [paragraph("This file repeats the run; settings that were left out stand here with the value that they had."),
              details("Every setting in force", pre)]  # fmt: skip
    return joined(parts)


def downloads(files: Sequence[str]) -> Markup:
    items = [
        Markup('<li><a href="{}">{}</a>{}</li>').format(f, f, f": {ABOUT[f]}" if f in ABOUT else "")
        for f in files
    ]
    printed = f"Tables of more than {PRINTED} rows are not printed; these files have them."
    return joined(
        [
            paragraph("The numbers of this page, in files beside it."),
            paragraph(printed, "printed"),
            Markup("<ul>{}</ul>").format(joined(items)),
        ]
    )
