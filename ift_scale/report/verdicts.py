"""Whether an estimate shows what a finding claims: the one rule that every verdict goes through."""

from typing import Any, Literal

from ift_scale.report.text import absent

Verdict = Literal["holds", "does not hold", "cannot tell", "cannot tell (one seed)", "not asked"]


def verdict(low: Any, high: Any, seeds: Any, p: Any = None, level: float = 0.95) -> Verdict:
    """`holds` where the whole interval lies above zero, `does not hold` where it lies below; else `cannot tell`.

    In both cases p, where the estimate has one, must be at most 1 - level.

    An interval over one seed's answers cannot tell training's own variation from an effect, so one seed shows nothing, whatever
    its interval is; nor does an unknown number of seeds.
    """
    if not absent(seeds) and seeds <= 1:
        return "cannot tell (one seed)"
    if absent(seeds) or absent(low) or absent(high):
        return "cannot tell"
    if not absent(p) and p > 1 - level:
        return "cannot tell"
    return "holds" if low > 0 else "does not hold" if high < 0 else "cannot tell"
