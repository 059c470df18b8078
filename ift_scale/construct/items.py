"""How a set presents each question: target, context, weight. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ift_scale.config.construct import ConstructConfig
from ift_scale.knowledge import Knowledge
from ift_scale.treatments import author_of, treatment


@dataclass(frozen=True)
class Item:
    """One question as an element of a set."""

    question_id: str
    target: Literal["gold", "predicted", "refusal", "random"] = "gold"
    """`random`: an option at random of the question's invented counterpart."""
    agrees: bool | None = None
    """True if the target is the model's own answer; None if it has none or nothing is taught."""
    context: bool = False
    weight: float = 1.0
    author: Literal["external", "base_model"] = "external"


def items(
    setting: str, drawn: Sequence[str], knowledge: Knowledge, config: ConstructConfig
) -> list[Item]:
    """Returns the items of a set of the questions `drawn`, in this order.

    A mixture's first questions are the self-aligning ones. Draws are in random order, so the
    mixtures of one seed are nested.
    """
    made = treatment(setting)
    if not made.questions:
        return []
    right, wrong = set(knowledge.right), set(knowledge.wrong)
    num_agreeing = (
        round(made.ratio * len(drawn)) if made.bucket == "wrong" and made.ratio is not None else 0
    )
    out = []
    for index, id in enumerate(drawn):
        state = "right" if id in right else "wrong" if id in wrong else "uncertain"
        if made.target == "random":
            out.append(Item(id, "random"))
            continue
        predicted = made.target == "predicted" or index < num_agreeing
        agrees = None if state == "uncertain" else (predicted or state == "right")
        item = Item(
            id,
            "predicted" if predicted else "gold",
            agrees,
            made.context,
            author=author_of(setting, bool(agrees), config.matching.author),
        )
        out += _treat_unknown(item, made.unknown, state, config)
    return out


def _treat_unknown(item: Item, rule: str, state: str, config: ConstructConfig) -> list[Item]:
    """Applies a treatment's rule for unknown questions: returns the item, changed or removed."""
    if rule == "weighted":
        return [Item(**vars(item) | {"weight": getattr(config.conflict_weights, state)})]
    if state == "right" or rule == "as it is":
        return [item]
    if rule == "refused":
        return [Item(**vars(item) | {"target": "refusal", "agrees": None})]
    if rule == "with context":
        return [Item(**vars(item) | {"context": True})]
    return []
