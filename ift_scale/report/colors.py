"""A color for every treatment and grade.

Colors are distinguishable for color-blind readers (after Okabe and Ito 2008). Each has a contrast
of at least 3 to both of the page's backgrounds, so colors are the same in light and dark mode.
"""

from ift_scale.treatments import Dose, consistency_ratio, dose_of, unknown_ratio

NAMED = {
    "harmonious": "#008f68",
    "incompatible": "#d55e00",
    "self_aligning": "#2a78c8",
    "contextualized": "#c2569a",
    "natural": "#80808a",
    "discard_unknown": "#8c7438",
    "refuse_unknown": "#b5651d",
    "open_book": "#5c8a1f",
    "conflict_weighted": "#8a63d2",
    "self_distilled": "#3a8f9e",
    "general_only": "#7573a8",
    "format_only": "#a3739b",
    "only_wrong": "#c4475f",
    "highly_known": "#1f8a8a",
    "maybe_known": "#6b8f3a",
    "weakly_known": "#ae7c10",
    "unknown": "#c0504d",
}
GRADES = {
    "HighlyKnown": NAMED["highly_known"],
    "MaybeKnown": NAMED["maybe_known"],
    "WeaklyKnown": NAMED["weakly_known"],
    "Unknown": NAMED["unknown"],
    "known right": NAMED["harmonious"],
    "known wrong": NAMED["incompatible"],
    "uncertain": NAMED["natural"],
}
OTHER = "#80808a"


def of(setting: str) -> str:
    """Returns a setting's color; a mixture's is interpolated between those of its ends.

    A smaller dose is nearer to gray.
    """
    dose = dose_of(setting)
    if dose.whole is not None:
        return _between(OTHER, of(dose.whole), _strength(dose))
    if setting in NAMED:
        return NAMED[setting]
    ratio = consistency_ratio(setting)
    if ratio is not None:
        return _between(NAMED["incompatible"], NAMED["self_aligning"], ratio)
    ratio = unknown_ratio(setting)
    return OTHER if ratio is None else _between(NAMED["highly_known"], NAMED["unknown"], ratio)


def _strength(dose: Dose) -> float:
    """Returns the share of the whole dose's color: exact for shares, by order for counts."""
    if dose.amount is None:
        size = dose.size or 0
        return size / (size + 100)
    if dose.kind == "epoch":
        return dose.amount / (dose.amount + 1)
    return dose.amount if dose.kind == "average" else 1 - dose.amount


def _between(first: str, second: str, share: float) -> str:
    pairs = zip(*(bytes.fromhex(color[1:]) for color in (first, second)), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def luminance(color: str) -> float:
    """Returns the relative luminance (WCAG 2)."""
    parts = [part / 255 for part in bytes.fromhex(color[1:])]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Returns the contrast ratio (WCAG 2): 1 for equal colors, 21 for black on white."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def readable_on(color: str) -> str:
    """Returns white or black, whichever has more contrast."""
    return max(("#ffffff", "#000000"), key=lambda text: contrast(text, color))
