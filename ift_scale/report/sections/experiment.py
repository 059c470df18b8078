"""The experiment in words, and the findings."""

from markupsafe import Markup

from ift_scale.config.construct import MatchingConfig
from ift_scale.report import findings
from ift_scale.report.coverage import GROUPS, is_free
from ift_scale.report.facts import Facts
from ift_scale.report.html import joined, paragraph
from ift_scale.report.text import listed, plural, setting_name
from ift_scale.treatments import POOLED, consistency_ratio

_ASKED = {
    "HOMO": "held-out questions of its domain (HOMO)",
    "ID": "benchmark questions of its domain (ID)",
    "OOD": "benchmark questions of all other domains (OOD)",
}
_MARKS = {
    "holds": ("✓ holds here", "holds"),
    "does not hold": ("✗ does not hold", "not"),
    "cannot tell": ("? cannot tell", "open"),
    "cannot tell (one seed)": ("? cannot tell (one seed)", "open"),
}


def body(facts: Facts) -> Markup:
    config, arms = facts.config, facts.inputs.arms
    own = [domain for domain in facts.domains if domain != POOLED]
    sizes = {
        int(value)
        for m in facts.inputs.manifests.get("construct", [])
        for key, value in m.counts.items()
        if key.endswith("/set_size")
    }
    mixtures = [
        s
        for s in facts.settings
        if s not in ("incompatible", "self_aligning") and consistency_ratio(s) is not None
    ]
    named = [setting_name(s) for s in facts.settings if s not in mixtures]
    if mixtures:
        named.append(plural(len(mixtures), "mixture") + " of S and I")
    sentences = [
        "Instruction fine-tuning teaches a model how to answer, and may also teach it what to "
        "answer. Which of the two changes its results? To find out, the same base model is "
        "fine-tuned on sets that agree with what it already believes, and on sets that contradict "
        "it.",
        f"Base model: {config.model.path}. It was fine-tuned {plural(len(arms), 'time')}: in "
        f"{plural(len(facts.settings), 'setting')} ({listed(named)}), on "
        f"{plural(len(own), 'domain')} ({listed(own)})"
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
        "The sets are those released by the paper's authors."
        if config.construct.official
        else _controls(config.construct.matching)
    )
    asked = [text for group, text in _ASKED.items() if group in facts.groups] or ["questions"]
    extra = [group for group in facts.groups if group not in GROUPS and not is_free(group)]
    sentences.append(
        f"Each model was then asked {listed(asked)}, without examples."
        + (f" Further groups are separate benchmarks: {listed(extra)}." if extra else "")
        + (
            " Free questions form groups of their own: an answer that matches an alias is right."
            if any(map(is_free, facts.groups))
            else ""
        )
        + " Differences are in percentage points."
    )
    return joined(paragraph(text) for text in sentences)


def _controls(matching: MatchingConfig) -> str:
    """Describes in words what is matched between the sets."""
    how = {"selection": "by choosing questions", "reorder": "by reordering options"}
    matched = [
        f"{name} ({how[value]})"
        for name, value in (
            ("target letters", matching.letters),
            ("confidence", matching.confidence),
            ("length", matching.length),
        )
        if value in how
    ]
    if matching.author != "paper":
        author = "the base model" if matching.author == "base_model" else "an external model"
        matched.append(f"author ({author} writes all explanations)")
    if not matched:
        return "The sets are as in the paper: only their sizes are equal."
    return (
        "The sets are matched, so that they differ less in aspects other than knowledge: "
        f"{listed(matched)}."
    )


def findings_section(facts: Facts) -> Markup:
    """Returns the paper's findings, each with this run's verdict."""
    made = [manifest for found in facts.inputs.manifests.values() for manifest in found]
    edits = [edit for manifest in made for edit in manifest.edited]
    warnings = findings.cautions(facts["base"], facts.inputs.chance, len(facts.seeds), edits)
    intro = (
        f"The paper's findings compared with this run, {facts.scope}. In brackets: {facts.level} "
        "intervals. A finding holds here only if the whole interval is on its side of zero and, "
        "where several differences are tested, it remains significant after Holm's correction. "
        "With one seed no finding can be judged."
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
