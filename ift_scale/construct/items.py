"""What becomes of each question in a set: its target, whether it comes with its context, its weight. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ift_scale.config import ConstructConfig
from ift_scale.knowledge import Knowledge
from ift_scale.treatments import author_of, treatment


@dataclass(frozen=True)
class Item:
    """One question as a set shows it."""

    question_id: str
    target: Literal["gold", "predicted", "refusal"] = "gold"
    agrees: bool | None = None
    """Whether the target is what the model holds for true; None where it holds nothing, or nothing is taught."""
    context: bool = False
    weight: float = 1.0
    author: Literal["external", "base_model"] = "external"


def items(
    setting: str, drawn: Sequence[str], knowledge: Knowledge, config: ConstructConfig
) -> list[Item]:
    """The items of a set whose questions are `drawn`, in this order.

    A mixture's first questions are the self-aligning ones: drawn lists are in random order, so mixtures of one seed are nested.
    """
    made = treatment(setting)
    right, wrong = set(knowledge.right), set(knowledge.wrong)
    num_agreeing = (
        round(made.ratio * len(drawn)) if made.bucket == "wrong" and made.ratio is not None else 0
    )
    found = []
    for place, id in enumerate(drawn):
        state = "right" if id in right else "wrong" if id in wrong else "uncertain"
        predicted = made.target == "predicted" or place < num_agreeing
        agrees = None if state == "uncertain" else (predicted or state == "right")
        item = Item(
            id,
            "predicted" if predicted else "gold",
            agrees,
            made.context,
            author=author_of(setting, bool(agrees), config.matching.author),
        )
        found += _unknown(item, made.unknown, state, config)
    return found


def _unknown(item: Item, rule: str, state: str, config: ConstructConfig) -> list[Item]:
    """The item as a treatment of what the model does not know has it: changed, or left out."""
    if rule == "weighted":
        return [Item(**vars(item) | {"weight": getattr(config.conflict_weights, state)})]
    if state == "right" or rule == "as it is":
        return [item]
    if rule == "refused":
        return [Item(**vars(item) | {"target": "refusal", "agrees": None})]
    if rule == "with context":
        return [Item(**vars(item) | {"context": True})]
    return []
