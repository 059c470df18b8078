"""What an arm can be trained on: the named treatments of questions by what the base model knows of them.

H, I, S, C and mixtures: Ren et al. 2024 (arXiv 2402.18243). Graded sets and shares of unknown items: Gekhman et al. 2024
(2405.05904). Discard, refuse, open book: KCA (2401.10768) and R-Tuning (2311.09677). Conflict weights: KaFT (2505.15480). Only
wrong items: SLearnLLM (2505.17470). Targets in the model's own words: self-distillation (2402.13669).
"""

import re
from dataclasses import dataclass
from typing import Literal

Bucket = Literal[
    "right", "wrong", "mistaken", "any", "HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"
]
Author = Literal["dataset", "external", "base_model"]

POOLED = "pooled"
"""Domain of an arm that is trained across domains."""


@dataclass(frozen=True)
class Treatment:
    """How a set is made. `bucket`: which questions it is drawn from; `target`: the option it teaches."""

    name: str
    short: str
    label: str
    bucket: Bucket
    target: Literal["gold", "predicted"] = "gold"
    unknown: Literal["as it is", "left out", "refused", "with context", "weighted"] = "as it is"
    """What is done with questions whose answer the model does not know, where the bucket holds such."""
    context: bool = False
    """The needed knowledge is put before every question."""
    own_words: bool = False
    """The response is worded by the base model."""
    ratio: float | None = None
    """Of a mixture: share of its examples that agree with the model (`mixture-R`) or that it does not know (`unknown-R`)."""

    @property
    def known_as(self) -> str:
        return self.short if self.short == self.label else f"{self.short} {self.label}"


_NAMED = (
    Treatment("harmonious", "H", "harmonious", "right"),
    Treatment("incompatible", "I", "incompatible", "wrong"),
    Treatment("self_aligning", "S", "self-aligning", "wrong", target="predicted", own_words=True),
    Treatment("contextualized", "C", "contextualized", "wrong", context=True),
    Treatment("natural", "N", "natural", "any"),
    Treatment("discard_unknown", "N discard", "unknown discarded", "any", unknown="left out"),
    Treatment("refuse_unknown", "N refuse", "unknown refused", "any", unknown="refused"),
    Treatment("open_book", "N open", "unknown with its context", "any", unknown="with context"),
    Treatment("conflict_weighted", "N weighted", "weighted by conflict", "any", unknown="weighted"),
    Treatment("self_distilled", "N own", "in the model's own words", "any", own_words=True),
    Treatment("only_wrong", "W", "only wrong items", "mistaken"),
    Treatment("highly_known", "HK", "highly known", "HighlyKnown"),
    Treatment("maybe_known", "MK", "maybe known", "MaybeKnown"),
    Treatment("weakly_known", "WK", "weakly known", "WeaklyKnown"),
    Treatment("unknown", "UK", "unknown", "Unknown"),
)
BY_NAME = {treatment.name: treatment for treatment in _NAMED}
PAPER = ("harmonious", "incompatible", "self_aligning")
_RATIO = re.compile(r"^(mixture|unknown)-(0|1|0\.\d{1,4})$")


def treatment(setting: str) -> Treatment:
    """The treatment that an arm's setting names; KeyError where there is none."""
    if setting in BY_NAME:
        return BY_NAME[setting]
    found = _RATIO.match(setting)
    if found is None:
        raise KeyError(setting)
    ratio = float(found[2])
    if found[1] == "mixture":
        return Treatment(
            setting, f"S {ratio:g}", f"self-aligning, {ratio:.4g} of it", "wrong", ratio=ratio
        )
    return Treatment(
        setting, f"UK {ratio:g}", f"unknown, {ratio:.4g} of it", "HighlyKnown", ratio=ratio
    )


def consistency_setting(ratio: float) -> str:
    """The setting whose share `ratio` is self-aligning and the rest incompatible: at the ends these two themselves."""
    return {0.0: "incompatible", 1.0: "self_aligning"}.get(ratio, f"mixture-{ratio:g}")


def consistency_ratio(setting: str) -> float | None:
    """Where a setting stands between incompatible (0) and self-aligning (1), None where it does not."""
    ends = {"incompatible": 0.0, "self_aligning": 1.0}
    return ends.get(setting, treatment(setting).ratio if setting.startswith("mixture-") else None)


def unknown_setting(ratio: float) -> str:
    """The setting whose share `ratio` is Unknown and the rest HighlyKnown (SliCK)."""
    return {0.0: "highly_known", 1.0: "unknown"}.get(ratio, f"unknown-{ratio:g}")


def unknown_ratio(setting: str) -> float | None:
    ends = {"highly_known": 0.0, "unknown": 1.0}
    return ends.get(setting, treatment(setting).ratio if setting.startswith("unknown-") else None)


def buckets_of(setting: str) -> tuple[Bucket, ...]:
    """The buckets that a setting needs enough questions of."""
    return (
        ("HighlyKnown", "Unknown")
        if setting.startswith("unknown-")
        else (treatment(setting).bucket,)
    )


def in_order(settings: list[str]) -> list[str]:
    """Settings in the order in which tables and plots show them: the paper's, by ratio, then as declared."""
    declared = list(BY_NAME)

    def place(setting: str) -> tuple[int, float]:
        if setting in declared:
            return declared.index(setting), 0.0
        return (len(declared) if setting.startswith("mixture-") else len(declared) + 1), treatment(
            setting
        ).ratio or 0.0

    return sorted(settings, key=place)


def author_of(setting: str, agrees: bool, rule: str) -> Literal["external", "base_model"]:
    """Who words the explanation of an example: `rule` as in construct.matching.author; `agrees`: its target is the model's own."""
    if rule != "paper":
        return "base_model" if rule == "base_model" else "external"
    own = treatment(setting).own_words or (agrees and setting.startswith("mixture-"))
    return "base_model" if own else "external"
