"""Traits that sets are matched on by selection: target letter, confidence, length of a question.

Out: the levels of each question's traits. `balanced_choice` selects questions so that all sets have
the same distribution of each; `even_letters` matches letters by reordering options instead.
"""

from collections.abc import Mapping

from ift_scale.config.construct import ConstructConfig
from ift_scale.construct.balanced_choice import Traits, quantile_levels
from ift_scale.construct.examples import Builder
from ift_scale.construct.items import Item
from ift_scale.knowledge import Knowledge
from ift_scale.records import Score
from ift_scale.treatments import author_of, treatment


def traits_of(
    builder: Builder, knowledge: Knowledge, scores: Mapping[str, Score], config: ConstructConfig
) -> tuple[dict[str, Traits], dict[str, Traits]]:
    """Returns the traits to match on, of the known right and of the known wrong questions, by id.

    Each question has two forms: the item of H or I, and the item of S.
    """
    matching, settings = config.matching, config.all_settings()
    harmonious = [
        (Item(id, author=author_of("harmonious", True, matching.author)),) * 2
        for id in knowledge.right
    ]
    wrong = []
    for id in knowledge.wrong:
        gold = Item(id, author=author_of("incompatible", False, matching.author))
        own = Item(id, "predicted", author=author_of("self_aligning", True, matching.author))
        # If no setting teaches one of the two, its text was never written.
        taught = [treatment(s).target == "predicted" or s.startswith("mixture-") for s in settings]
        wrong.append((gold, own if any(taught) else gold))
    forms = [*harmonious, *wrong]
    levels: list[list[tuple[int, int]]] = [[] for _ in forms]
    if matching.letters == "selection":
        for traits_levels, (first, second) in zip(levels, forms, strict=True):
            as_first, as_second = builder.target(first), builder.target(second)
            assert as_first is not None and as_second is not None
            traits_levels.append((as_first, as_second))
    if matching.confidence == "selection":
        confidences = [scores[first.question_id].confidence for first, _ in forms]
        level = quantile_levels(confidences, matching.bins)
        for traits_levels, confidence in zip(levels, confidences, strict=True):
            traits_levels.append((level(confidence),) * 2)
    if matching.length == "selection":
        lengths = [(builder.length(first), builder.length(second)) for first, second in forms]
        level = quantile_levels([length for pair in lengths for length in pair], matching.bins)
        for traits_levels, pair in zip(levels, lengths, strict=True):
            traits_levels.append((level(pair[0]), level(pair[1])))
    traits = {
        first.question_id: Traits(tuple(traits_levels))
        for (first, _), traits_levels in zip(forms, levels, strict=True)
    }
    return {id: traits[id] for id in knowledge.right}, {id: traits[id] for id in knowledge.wrong}
