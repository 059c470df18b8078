"""The treatments that arms are trained with. Each selects questions by what the base model knows.

H, I, S, C and mixtures: Ren et al. 2024 (arXiv 2402.18243). Graded sets and shares of unknown
items: Gekhman et al. 2024 (2405.05904). Discard, refuse, open book: KCA (2401.10768) and R-Tuning
(2311.09677). Conflict weights: KaFT (2505.15480). Only wrong items: SLearnLLM (2505.17470). Targets
in the model's own words: self-distillation (2402.13669). General instructions alone, and with
questions about nothing: the controls for the parts of every set that teach no fact.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal

Bucket = Literal[
    "right",
    "wrong",
    "mistaken",
    "any",
    "HighlyKnown",
    "MaybeKnown",
    "WeaklyKnown",
    "Unknown",
    "own data",
]
Author = Literal["dataset", "external", "base_model"]

BASE = "base"
"""Name of the base model, few-shot, in a column of settings."""
POOLED = "pooled"
"""Domain name of arms that are trained across domains."""


@dataclass(frozen=True)
class Treatment:
    """How a set is built. `bucket`: the questions it is drawn from. `target`: the option taught."""

    name: str
    short: str
    label: str
    bucket: Bucket
    target: Literal["gold", "predicted", "random"] = "gold"
    """`random`: an option drawn at random, of an invented question (construct/invented.py)."""
    unknown: Literal["as it is", "left out", "refused", "with context", "weighted"] = "as it is"
    """Treatment of questions whose answer the model does not know, for buckets that have any."""
    context: bool = False
    """True if the required knowledge precedes every question."""
    questions: bool = True
    """False if the set has general instructions only: those of the domain's other sets."""
    own_words: bool = False
    """True if the base model words the response."""
    ratio: float | None = None
    """For mixtures, the share of examples that agree with the model (`mixture-R`) or that it does
    not know (`unknown-R`)."""

    @property
    def known_as(self) -> str:
        """The short and the long label, for tables."""
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
    Treatment("general_only", "G", "general instructions alone", "any", questions=False),
    Treatment("format_only", "F", "format alone", "any", target="random"),
    Treatment("only_wrong", "W", "only wrong items", "mistaken"),
    Treatment("highly_known", "HK", "highly known", "HighlyKnown"),
    Treatment("maybe_known", "MK", "maybe known", "MaybeKnown"),
    Treatment("weakly_known", "WK", "weakly known", "WeaklyKnown"),
    Treatment("unknown", "UK", "unknown", "Unknown"),
)
BY_NAME = {treatment.name: treatment for treatment in _NAMED}
PAPER = ("harmonious", "incompatible", "self_aligning")
_RATIO = re.compile(r"^(mixture|unknown)-(0|1|0\.\d{1,4})$")

Derived = Literal["epoch", "average", "restored"]
DERIVED: tuple[Derived, ...] = ("epoch", "average", "restored")
"""Models that are made of a trained arm: its weights after an earlier epoch
(`train.export_epochs`), averaged with the base model's (`train.average`), and with the most changed
parameters restored to the base model's (`train.restore`)."""
_DOSE = re.compile(
    r"^(?P<of>.+?)(-size-(?P<size>[1-9]\d*))?"
    r"(-(?P<kind>epoch|average|restored)-(?P<amount>0\.\d{1,4}|[1-9]\d*))?$"
)


@dataclass(frozen=True)
class Dose:
    """What a setting's name says about how much of a treatment its arms got.

    `of`: the treatment or own set. `size`: questions of a smaller set (`construct.sizes`), None for
    the whole set. `kind`, `amount`: how a model is derived from the trained one: number of the
    epoch, share of the change that is kept, or share of the parameters that are restored. None for
    the trained model itself.
    """

    of: str
    size: int | None = None
    kind: Derived | None = None
    amount: float | None = None

    @property
    def trained(self) -> str:
        """The setting whose arm was trained."""
        return self.of if self.size is None else f"{self.of}-size-{self.size}"

    @property
    def setting(self) -> str:
        """The setting's name."""
        return self.trained if self.kind is None else f"{self.trained}-{self.kind}-{self.amount:g}"

    @property
    def whole(self) -> str | None:
        """The setting with more of the treatment that this one is compared with: the trained one of
        a derived one, the whole set of a smaller one; None for the whole set itself."""
        return self.trained if self.kind else self.of if self.size else None

    @property
    def label(self) -> str:
        """The dose in words, empty for the whole set trained to the end."""
        size = f", {self.size} questions" if self.size else ""
        if self.kind is None:
            return size
        amount = f"{self.amount:g}"
        return (
            size
            + {
                "epoch": f", after epoch {amount}",
                "average": f", {amount} of its change",
                "restored": f", {amount} restored",
            }[self.kind]
        )

    @property
    def short(self) -> str:
        """The dose in as few letters as possible."""
        size = f" n{self.size}" if self.size else ""
        sign = {"epoch": "e", "average": "@", "restored": "r"}
        return size + (f" {sign[self.kind]}{self.amount:g}" if self.kind else "")

    @property
    def order(self) -> tuple[float, ...]:
        """Sorts the doses of a treatment: from the whole set down, kind by kind."""
        size = float("-inf") if self.size is None else -self.size
        if self.kind is None or self.amount is None:
            return size, -1, 0
        rises = self.kind == "restored"
        return size, DERIVED.index(self.kind), self.amount if rises else -self.amount


def dose_of(setting: str) -> Dose:
    """Returns the dose that a setting names."""
    match = _DOSE.match(setting)
    assert match is not None, setting
    size = int(match["size"]) if match["size"] else None
    if match["kind"] is None:
        return Dose(match["of"], size)
    # A share is below 1, an epoch is a whole number.
    kind = next(kind for kind in DERIVED if kind == match["kind"])
    if ("." in match["amount"]) == (kind == "epoch"):
        return Dose(setting)
    return Dose(match["of"], size, kind, float(match["amount"]))


def is_constructed(setting: str) -> bool:
    """True if the setting names a treatment of pools, and not a set of the user's own data."""
    setting = dose_of(setting).of
    return setting in BY_NAME or _RATIO.match(setting) is not None


def asks_questions(setting: str) -> bool:
    """True if the setting's sets have questions of the pools, which can be asked again."""
    if not is_constructed(setting):
        return False
    named = treatment(setting)
    return named.questions and named.target in ("gold", "predicted")


def treatment(setting: str) -> Treatment:
    """Returns the treatment that a setting names; any other name is that of a user's own set."""
    dose = dose_of(setting)
    if dose.whole is not None:
        of = treatment(dose.of)
        label, short = of.label + dose.label, of.short + dose.short
        return replace(of, name=setting, short=short, label=label, ratio=None)
    if setting in BY_NAME:
        return BY_NAME[setting]
    match = _RATIO.match(setting)
    if match is None:
        return Treatment(setting, setting, setting, "own data")
    ratio = float(match[2])
    if match[1] == "mixture":
        return Treatment(
            setting, f"S {ratio:g}", f"self-aligning, {ratio:.4g} of it", "wrong", ratio=ratio
        )
    return Treatment(
        setting, f"UK {ratio:g}", f"unknown, {ratio:.4g} of it", "HighlyKnown", ratio=ratio
    )


def consistency_setting(ratio: float) -> str:
    """Returns the setting with the share `ratio` of self-aligning examples and the rest
    incompatible. Ratios 0 and 1 are the settings incompatible and self_aligning."""
    return {0.0: "incompatible", 1.0: "self_aligning"}.get(ratio, f"mixture-{ratio:g}")


def consistency_ratio(setting: str) -> float | None:
    """Returns a setting's position between incompatible (0) and self-aligning (1), or None."""
    if dose_of(setting).whole is not None:
        return None
    ends = {"incompatible": 0.0, "self_aligning": 1.0}
    return ends.get(setting, treatment(setting).ratio if setting.startswith("mixture-") else None)


def unknown_setting(ratio: float) -> str:
    """Returns the setting with the share `ratio` of Unknown questions and the rest HighlyKnown
    (SliCK)."""
    return {0.0: "highly_known", 1.0: "unknown"}.get(ratio, f"unknown-{ratio:g}")


def unknown_ratio(setting: str) -> float | None:
    """Returns a setting's position between highly known (0) and unknown (1), or None."""
    if dose_of(setting).whole is not None:
        return None
    ends = {"highly_known": 0.0, "unknown": 1.0}
    return ends.get(setting, treatment(setting).ratio if setting.startswith("unknown-") else None)


def buckets_of(setting: str) -> tuple[Bucket, ...]:
    """Returns the buckets that a setting draws questions from."""
    return (
        ("HighlyKnown", "Unknown")
        if setting.startswith("unknown-")
        else (treatment(setting).bucket,)
    )


def in_order(settings: list[str]) -> list[str]:
    """Sorts settings for tables and plots: named ones as declared, then mixtures by ratio, then
    users' own sets as given. Smaller sets and derived models follow the whole set's."""
    names, own = list(BY_NAME), [dose_of(setting).of for setting in settings]

    def position(setting: str) -> tuple[float, ...]:
        dose = dose_of(setting)
        if dose.of in names:
            return names.index(dose.of), 0.0, 0, *dose.order
        if not is_constructed(dose.of):
            return len(names) + 2, 0.0, own.index(dose.of), *dose.order
        family = len(names) if dose.of.startswith("mixture-") else len(names) + 1
        return family, treatment(dose.of).ratio or 0.0, 0, *dose.order

    return sorted(settings, key=position)


def author_of(setting: str, agrees: bool, rule: str) -> Literal["external", "base_model"]:
    """Returns the author of an example's explanation.

    `rule`: construct.matching.author. `agrees`: the example's target is the model's own answer.
    """
    if rule != "paper":
        return "base_model" if rule == "base_model" else "external"
    own = treatment(setting).own_words or (agrees and setting.startswith("mixture-"))
    return "base_model" if own else "external"
