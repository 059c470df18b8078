"""The page's sections in order: (id, title, function; it returns None to leave the section out)."""

from collections.abc import Callable

from markupsafe import Markup

from ift_scale.report.facts import Facts
from ift_scale.report.sections import (
    accuracy,
    appendix,
    changes,
    consistency,
    differences,
    dose,
    examples,
    experiment,
    format_content,
    hidden,
    learnt,
    mechanisms,
    paper,
    probe,
    ratios,
    sets,
    throughput,
    training,
)

ORDER: tuple[tuple[str, str, Callable[[Facts], Markup | None]], ...] = (
    ("asked", "The experiment", experiment.body),
    ("findings", "Findings", experiment.findings_section),
    ("accuracy", "Accuracy by setting", accuracy.body),
    ("paper", "Comparison with the paper", paper.body),
    ("differences", "Differences between settings", differences.body),
    ("ratios", "Mixtures: accuracy by ratio", ratios.body),
    ("consistency", "Consistency with the base model", consistency.body),
    ("transitions", "Answers that turned right or wrong", changes.transitions),
    ("grades", "Accuracy by prior knowledge", changes.grades),
    ("mechanisms", "Learnt, kept, hidden, forgotten", mechanisms.body),
    ("format", "Format and content", format_content.body),
    ("learnt", "Was it learnt?", learnt.body),
    ("dose", "Dose: acquired and forgotten", dose.body),
    ("hidden", "Hidden or gone", hidden.body),
    ("examples", "Example questions, before and after", examples.body),
    ("generated", "Generated answers and refusals", changes.generated),
    ("sets", "The sets and their balance", sets.body),
    ("probe", "Reliability of the base model's knowledge", probe.body),
    ("measures", "Letters, option texts and free answers", probe.measures),
    ("live", "Live knowledge", training.live_knowledge),
    ("losses", "Training loss", training.losses),
    ("domains", "Accuracy by domain", accuracy.by_domain),
    ("throughput", "Throughput of each stage", throughput.body),
    ("settings", "Settings and versions", appendix.settings),
)
