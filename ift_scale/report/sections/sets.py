"""The sets: the base model's knowledge of each pool, and balance of the sets' covariates."""

from typing import Any

from markupsafe import Markup

from ift_scale.knowledge import smaller_than_batch
from ift_scale.report.facts import Facts
from ift_scale.report.html import folded, joined, paragraph, table
from ift_scale.report.sections import balance
from ift_scale.report.text import number


def knowledge(facts: Facts) -> list[dict[str, Any]]:
    columns = ("known_right", "known_wrong", "uncertain", "near_threshold", "set_size")
    counts = {
        key: value
        for m in facts.inputs.manifests.get("construct", [])
        for key, value in m.counts.items()
    }
    domains = dict.fromkeys(name.split("/")[0] for name in counts if name.endswith("/set_size"))
    return [
        {"domain": d} | {c.replace("_", " "): number(counts.get(f"{d}/{c}"), 0) for c in columns}
        for d in domains
    ]


def body(facts: Facts) -> Markup | None:
    parts: list[Markup] = []
    if rows := knowledge(facts):
        text = (
            "The base model's knowledge of each pool's train questions, and the size of every set. "
            "\u201cNear the threshold\u201d counts questions that rounding could reclassify."
        )
        parts += [
            paragraph(text),
            table(rows, "Questions of the pools and sets", "not counted."),
        ]
    parts += [paragraph(text, "caution") for text in _small(facts)]
    parts += _texts(facts)
    parts += _duplicates(facts.inputs.audit)
    parts += balance.balance(facts)
    return joined(parts) if parts else None


def _small(facts: Facts) -> list[str]:
    """Warns of sets, including general instructions, that are smaller than an optimizer step."""
    general = facts.config.construct.general
    share = general.share if general.path else 0.0
    counts = {
        key: value
        for m in facts.inputs.manifests.get("construct", [])
        for key, value in m.counts.items()
    }
    sized = [(arm, counts.get(f"{arm.domain}/set_size")) for arm in facts.inputs.arms]
    sizes = {
        arm: round(size) + round(size * share / (1 - share))
        for arm, size in sized
        if size is not None
    }
    return smaller_than_batch(sizes, facts.config.train.global_batch_size)


def _texts(facts: Facts) -> list[Markup]:
    """Returns the authors of written texts, and the results of their checks."""
    counts = {
        key: value
        for m in facts.inputs.manifests.get("write", [])
        for key, value in m.counts.items()
    }
    kinds = [key for key in counts if key.count("/") == 1]
    if not kinds:
        return []
    reasons = list(dict.fromkeys(key.split("/")[2] for key in counts if key.count("/") == 2))
    rows = [
        {
            "text": kind.split("/")[0],
            "author": kind.split("/")[1].replace("_", " "),
            "texts": number(counts[kind], 0),
        }
        | {reason: number(counts.get(f"{kind}/{reason}", 0), 0) for reason in reasons}
        for kind in kinds
    ]
    fate = {
        "drop": "their questions are in no set",
        "keep": "they are kept",
        "error": "they would have ended the run",
    }
    text = (
        "The columns after the number of texts count texts that fail a check; "
        f"{fate[facts.config.write.on_failure]}."
    )
    if any(kind.startswith("paraphrase/") for kind in kinds):
        text += " Paraphrases that fail are not asked."
    if not reasons:
        text = "No text of the sets fails a check."
    rewritten = counts.get("written_anew", 0)
    text += f" {rewritten:,.0f} were written more than once." if rewritten else ""
    return [paragraph(text), table(rows, "Written texts", heads=2)]


def _duplicates(audit: dict[str, Any]) -> list[Markup]:
    """Returns the duplicates that the questions stage found, if it searched for them."""
    if "duplicates" not in audit:
        return []
    columns = {
        "exact_items": "exact",
        "near_items": "near",
        "same_text_items": "same text, other options",
    }
    rows = [
        {
            "of": found["cell"],
            "also in": found["in"],
            "questions": f"{found['items']:,} of {found['of']:,}",
        }
        | {name: number(found.get(key), 0) for key, name in columns.items()}
        for found in audit["duplicates"]
    ]
    if not rows:
        return [paragraph("No question is both trained on and asked.")]
    return [folded(rows, "Duplicate and near-duplicate questions", "not searched.", heads=2)]
