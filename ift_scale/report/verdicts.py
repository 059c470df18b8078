"""The rule for every verdict: whether an estimate supports a finding."""

from typing import Any, Literal

from ift_scale.report.text import absent

Verdict = Literal["holds", "does not hold", "cannot tell", "cannot tell (one seed)", "not asked"]


def verdict(low: Any, high: Any, seeds: Any, p: Any = None, level: float = 0.95) -> Verdict:
    """Judges an interval: `holds` above zero, `does not hold` below zero, else `cannot tell`.

    In addition p, if given, must be at most 1 - level. With one seed or an unknown number of seeds
    the verdict is always `cannot tell`: an interval over one seed's answers cannot separate an
    effect from the variation of training.
    """
    if not absent(seeds) and seeds <= 1:
        return "cannot tell (one seed)"
    if absent(seeds) or absent(low) or absent(high):
        return "cannot tell"
    if not absent(p) and p > 1 - level:
        return "cannot tell"
    return "holds" if low > 0 else "does not hold" if high < 0 else "cannot tell"
