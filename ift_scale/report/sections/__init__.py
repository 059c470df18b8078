"""The page's sections in order: (id, title, what writes it; None where the run has nothing for it)."""

from collections.abc import Callable

from markupsafe import Markup

from ift_scale.report.facts import Facts
from ift_scale.report.sections import (
    accuracy,
    appendix,
    asked,
    beside,
    changes,
    consistency,
    differences,
    examples,
    probe,
    ratios,
    sets,
    throughput,
    training,
)  # fmt: skip

ORDER: tuple[tuple[str, str, Callable[[Facts], Markup | None]], ...] = (
    ("asked", "What was asked", asked.body),
    ("findings", "Findings", asked.found),
    ("accuracy", "Accuracy by setting", accuracy.body),
    ("paper", "Beside the paper's figures", beside.body),
    ("differences", "Differences between settings", differences.body),
    ("ratios", "Mixtures: accuracy by ratio", ratios.body),
    ("consistency", "Consistency with the base model", consistency.body),
    ("transitions", "What turned right, what turned wrong", changes.transitions),
    ("grades", "By what the model knew", changes.grades),
    ("examples", "Example questions, before and after", examples.body),
    ("generated", "Written answers and refusals", changes.generated),
    ("sets", "The sets and their balance", sets.body),
    ("probe", "How sure the base model's knowledge is", probe.body),
    ("live", "Live knowledge", training.live_knowledge),
    ("losses", "Training loss", training.losses),
    ("domains", "Accuracy by domain", accuracy.by_domain),
    ("throughput", "Throughput of each stage", throughput.body),
    ("settings", "Settings and versions", appendix.settings),
)
