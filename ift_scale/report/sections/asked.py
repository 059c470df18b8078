"""What was asked, and the findings."""

from markupsafe import Markup

from ift_scale.config import MatchingConfig
from ift_scale.report import findings
from ift_scale.report.facts import GROUPS, Facts, is_free
from ift_scale.report.html import joined, listed, name_of, paragraph, plural
from ift_scale.treatments import POOLED, consistency_ratio

_ASKED = {
    "HOMO": "held-out questions of its domain (HOMO)",
    "ID": "benchmark questions of its domain (ID)",
    "OOD": "benchmark questions of all other domains (OOD)",
}
_MARKS = {
    "holds": ("✓ holds here", "holds"), "does not hold": ("✗ does not hold", "not"), "cannot tell": ("? cannot tell", "open"),
    "cannot tell (one seed)": ("? cannot tell (one seed)", "open"),
}  # fmt: skip


def body(facts: Facts) -> Markup:
    config, arms = facts.config, facts.sources.arms
    own = [domain for domain in facts.domains if domain != POOLED]
    sizes = {
        int(value)
        for m in facts.sources.manifests.get("construct", [])
        for key, value in m.counts.items()
        if key.endswith("/set_size")
    }
    mixtures = [
        s
        for s in facts.settings
        if s not in ("incompatible", "self_aligning") and consistency_ratio(s) is not None
    ]
    named = [name_of(s) for s in facts.settings if s not in mixtures]
    if mixtures:
        named.append(plural(len(mixtures), "mixture") + " of S and I")
    sentences = [
        "Instruction fine-tuning teaches a model how to answer, and it may also teach what to answer. Which of the two changes its "
        "results? To see, the same base model is fine-tuned on sets that agree with what it already believes, and on sets that "
        "contradict it.",
        f"Base model: {config.model.path}. It was fine-tuned {plural(len(arms), 'time')}: in "
        f"{plural(len(facts.settings), 'setting')} ({listed(named)}), on {plural(len(own), 'domain')} ({listed(own)})"
        + (", and across them" if POOLED in facts.domains and own else "")
        + f", with {plural(len(facts.seeds), 'seed')} each.",
    ]
    if sizes:
        between = f"{min(sizes):,}" if len(sizes) == 1 else f"{min(sizes):,} to {max(sizes):,}"
        sentences.append(
            f"Every set of a domain has the same size: {between} questions"
            + (
                f", and general instructions make up {config.construct.general.share:.0%} of it."
                if config.construct.general.path
                else "."
            )
        )
    sentences.append(
        "The sets are those that the paper's authors have released."
        if config.construct.official
        else _controls(config.construct.matching)
    )
    asked = [text for group, text in _ASKED.items() if group in facts.groups] or ["questions"]
    extra = [group for group in facts.groups if group not in GROUPS and not is_free(group)]
    sentences.append(
        f"Each was then asked {listed(asked)}, without examples."
        + (f" Further groups are benchmarks of their own: {listed(extra)}." if extra else "")
        + (
            " Free questions are groups of their own: right is what matches an alias."
            if any(map(is_free, facts.groups))
            else ""
        )
        + " Differences are in percentage points."
    )
    return joined(paragraph(text) for text in sentences)


def _controls(matching: MatchingConfig) -> str:
    """What is made equal in the sets, in words."""
    how = {"selection": "by choosing questions", "reorder": "by reordering options"}
    told = [
        f"{name} ({how[value]})"
        for name, value in (
            ("target letters", matching.letters),
            ("confidence", matching.confidence),
            ("length", matching.length),
        )
        if value in how
    ]
    if matching.author != "paper":
        told.append(
            f"author ({'the base model' if matching.author == 'base_model' else 'an external one'} words all explanations)"
        )
    if not told:
        return "The sets are as in the paper: nothing but their size is made equal."
    return (
        f"The sets are matched, so that they differ less in what is not knowledge: {listed(told)}."
    )


def found(facts: Facts) -> Markup:
    """The paper's findings, each with what this run shows of it."""
    warnings = findings.cautions(facts["base"], facts.sources.chance, len(facts.seeds))
    intro = (
        f"Against the paper's findings, {facts.place}. In brackets: {facts.level} intervals. A finding holds here only where the "
        "whole interval lies on its side of zero and, where several differences are tested, Holm's correction leaves it there. "
        "With one seed none can be judged."
    )
    items = []
    for claim, parts in findings.all_findings(facts).items():
        lines = [
            Markup('<li><span class="verdict {}">{}</span><span>{}{}</span></li>').format(
                *reversed(_MARKS.get(part.verdict, ("– not asked", "open"))),
                f"{part.where}: " if part.where else "",
                part.text,
            )
            for part in parts
        ]
        items.append(Markup("<li><h3>{}</h3><ul>{}</ul></li>").format(claim, joined(lines)))
    return joined(
        [
            *(paragraph(text, "caution") for text in warnings),
            paragraph(intro),
            Markup('<ul class="claims">{}</ul>').format(joined(items)),
        ]
    )
