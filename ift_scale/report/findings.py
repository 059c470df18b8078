"""What the numbers say, in sentences that never claim more than an interval shows."""

import pandas as pd

NAMES = {"harmonious": "harmonious (H)", "incompatible": "incompatible (I)", "self_aligning": "self-aligning (S)"}


def findings(comparisons: pd.DataFrame, base: pd.DataFrame, chance: float) -> list[str]:
    """Sentences on the base model and on each comparison over all domains (or the only one)."""
    sentences = []
    at_chance = base[(base.accuracy_low <= chance) & (chance <= base.accuracy_high)]
    if len(at_chance) == len(base):
        sentences.append(
            f"The base model cannot be told from chance ({chance:.0%}) in any group: it has no knowledge here that the sets could "
            "agree or disagree with, so differences below say nothing about knowledge."
        )
    elif len(at_chance):
        where = ", ".join(f"{row.domain} {row.group}" for row in at_chance.itertuples())
        sentences.append(f"The base model cannot be told from chance ({chance:.0%}) on: {where}.")
    overall = comparisons[comparisons.domain == "all"] if (comparisons.domain == "all").any() else comparisons
    for row in overall.itertuples():
        interval = f"{row.difference:+.1%} ({row.difference_low:+.1%} to {row.difference_high:+.1%})"
        pair = f"{row.group}: {NAMES[row.first]} minus {NAMES[row.second]} is {interval}"
        sentences.append(f"{pair}." if row.excludes_zero else f"{pair}; the interval holds zero, so no difference is shown.")
    if len(overall) and (overall.seeds == 1).any():
        sentences.append("One seed only: the intervals speak of the questions drawn, not of the training's own variation.")
    return sentences
