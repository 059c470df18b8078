"""Example questions: what the base model answered before, and what each setting made of it."""

from markupsafe import Markup

from ift_scale.records import LETTERS
from ift_scale.report import colors
from ift_scale.report.facts import Facts, Shown
from ift_scale.report.html import absent, details, joined, paragraph, plural
from ift_scale.treatments import in_order, treatment

FIRST = 8
"""Cards that are open at once; the others stand folded below them."""


def body(facts: Facts) -> Markup | None:
    found = facts.examples()
    if not found:
        return None
    text = (
        "Questions whose answers changed most. Before: the base model's answer (few-shot) with its confidence. After: the "
        "most frequent answer of each setting over its seeds. The "
        "bar marks "
        "the right option."
    )
    cards = [_card(shown) for shown in found]
    parts = [paragraph(text), Markup('<div class="cards">{}</div>').format(joined(cards[:FIRST]))]
    if cards[FIRST:]:
        rest = Markup('<div class="cards">{}</div>').format(joined(cards[FIRST:]))
        parts.append(details(f"{plural(len(cards) - FIRST, 'more example')}", rest))
    return joined(parts)


def _chip(text: str, color: str = "", kind: str = "") -> Markup:
    return Markup('<span class="chip {}"{}>{}</span> ').format(
        kind, Markup(' style="border-color:{}"').format(color) if color else "", text
    )


def _card(shown: Shown) -> Markup:
    question = shown.question
    chosen: dict[int | None, list[Markup]] = {}
    sure = "" if absent(shown.confidence) else f" {shown.confidence:.0%}"
    chosen.setdefault(shown.base, []).append(_chip(f"before{sure}"))
    for setting in in_order(list(shown.predictions)):
        chosen.setdefault(shown.predictions[setting], []).append(
            _chip(treatment(setting).short, colors.of(setting))
        )
    options = []
    for place, choice in enumerate(question.choices):
        right = place == question.answer
        marks = ([_chip("right answer", kind="answer")] if right else []) + chosen.pop(place, [])
        item = Markup('<li class="{}">{}. {} {}</li>')
        options.append(item.format("right" if right else "", LETTERS[place], choice, joined(marks)))
    if chosen:  # what named no option
        options.append(
            Markup("<li>no option named {}</li>").format(
                joined(mark for marks in chosen.values() for mark in marks)
            )
        )
    return Markup(
        '<article class="card"><h3>{}</h3><p class="quiet">{}</p><ol>{}</ol></article>'
    ).format(question.question, f"asked of {shown.domain} arms, {shown.group}", joined(options))
