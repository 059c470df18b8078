"""Example questions: the base model's answer, and each setting's answer."""

from markupsafe import Markup

from ift_scale.records import LETTERS
from ift_scale.report import colors
from ift_scale.report.facts import ExampleQuestion, Facts
from ift_scale.report.html import details, joined, paragraph
from ift_scale.report.text import absent, plural
from ift_scale.treatments import in_order, treatment

FIRST = 8
"""Number of unfolded cards."""


def body(facts: Facts) -> Markup | None:
    shown_examples = facts.examples()
    if not shown_examples:
        return None
    text = (
        "The questions whose answers changed most. Before: the base model's answer (few-shot) with "
        "its confidence. After: the most frequent answer of each setting over its seeds. The bar "
        "marks the right option."
    )
    cards = [_card(shown) for shown in shown_examples]
    parts = [paragraph(text), Markup('<div class="cards">{}</div>').format(joined(cards[:FIRST]))]
    if cards[FIRST:]:
        rest = Markup('<div class="cards">{}</div>').format(joined(cards[FIRST:]))
        parts.append(details(f"{plural(len(cards) - FIRST, 'more example')}", rest))
    return joined(parts)


def _chip(text: str, color: str = "", kind: str = "") -> Markup:
    return Markup('<span class="chip {}"{}>{}</span> ').format(
        kind, Markup(' style="border-color:{}"').format(color) if color else "", text
    )


def _card(shown: ExampleQuestion) -> Markup:
    question = shown.question
    chosen: dict[int | None, list[Markup]] = {}
    sure = "" if absent(shown.confidence) else f" {shown.confidence:.0%}"
    chosen.setdefault(shown.base, []).append(_chip(f"before{sure}"))
    for setting in in_order(list(shown.predictions)):
        chosen.setdefault(shown.predictions[setting], []).append(
            _chip(treatment(setting).short, colors.of(setting))
        )
    options = []
    for index, choice in enumerate(question.choices):
        right = index == question.answer
        answer = [_chip("right answer", kind="answer")] if right else []
        marks = answer + chosen.pop(index, [])
        item = Markup('<li class="{}">{}. {} {}</li>')
        options.append(item.format("right" if right else "", LETTERS[index], choice, joined(marks)))
    if chosen:  # answers that name no option
        options.append(
            Markup("<li>no option named {}</li>").format(
                joined(mark for marks in chosen.values() for mark in marks)
            )
        )
    return Markup(
        '<article class="card"><h3>{}</h3><p class="quiet">{}</p><ol>{}</ol></article>'
    ).format(question.question, f"asked of {shown.domain} arms, {shown.group}", joined(options))
