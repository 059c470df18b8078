"""Settings of the construct stage: which sets are built, and how."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ift_scale.config.engines import ProbeConfig
from ift_scale.config.instructions import InstructionSet
from ift_scale.config.section import BUILTIN_MODEL, PositiveInt, Section, Seed, Share, Text
from ift_scale.errors import did_you_mean
from ift_scale.records import GRADES
from ift_scale.treatments import (
    BY_NAME,
    PAPER,
    buckets_of,
    consistency_setting,
    dose_of,
    is_constructed,
    treatment,
    unknown_setting,
)

_SIZED_OR_DERIVED = {
    None: "construct.sizes",
    "epoch": "train.export_epochs",
    "average": "train.average",
    "restored": "train.restore",
}


def _known_setting(name: str) -> str:
    dose = dose_of(name)
    if dose.whole is not None and is_constructed(name):
        raise ValueError(
            f"such arms are made by {_SIZED_OR_DERIVED[dose.kind]}; set that, and {dose.of} here"
        )
    if not is_constructed(name):
        known = [*BY_NAME, "mixture-R", "unknown-R"]
        raise ValueError(f"no such setting; {did_you_mean(name, known)} (R: a ratio such as 0.2)")
    return name


Setting = Annotated[str, AfterValidator(_known_setting)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class MatchingConfig(Section):
    """Controls that leave knowledge consistency as the only difference between harmonious,
    incompatible and self-aligning sets."""

    letters: Literal["none", "selection", "reorder"] = "none"
    """Equalise the distribution of the target letter, by selecting questions or by reordering the
    options."""
    confidence: Literal["none", "selection"] = "none"
    """Equalise the distribution of the base model's confidence by selecting questions."""
    length: Literal["none", "selection"] = "none"
    """Equalise the distribution of the length of question and response, in characters."""
    author: Literal["paper", "base_model", "external"] = "paper"
    """Author of the explanations. `paper`: the base model for self-aligning sets and others for
    harmonious and incompatible ones. `base_model`, `external`: the same author for all sets."""
    bins: Annotated[int, Field(ge=2)] = 5
    """Number of quantile bins of confidence and length within which sets are made equal."""

    @property
    def by_selection(self) -> bool:
        """True if any control selects questions."""
        return "selection" in (self.letters, self.confidence, self.length)


class GeneralConfig(Section):
    """General instructions mixed into every set."""

    path: str | None = BUILTIN_MODEL
    """File or folder of instructions in one of the formats that docs/own-data.md lists. `world`:
    the built-in instructions. null: none."""
    share: Share = 0.5
    """Share of general instructions in the finished set."""


class ConflictWeights(Section):
    """Loss weights of the setting conflict_weighted, by what the model knows of the question."""

    right: Annotated[float, Field(gt=0)] = 1.0
    """Weight if the model predicts the right option with confidence."""
    uncertain: Annotated[float, Field(gt=0)] = 0.5
    """Weight if the prediction's confidence does not exceed `confidence_threshold`."""
    wrong: Annotated[float, Field(gt=0)] = 0.1
    """Weight if the model predicts a wrong option with confidence."""


class ConstructConfig(Section):
    """Instruction sets, and with them the arms that are trained: one arm per domain, setting and
    seed."""

    domains: list[str] | None = None
    """Domains to train on. Default: the domain of every pool."""
    across_domains: bool = False
    """Also train arms on all domains together, with sets of the same size."""
    questions: Literal["choice", "free"] = "choice"
    """Kind of questions that sets are built from; `free` needs `probe.free.ask`."""
    settings: list[Setting] = ["harmonious", "incompatible", "self_aligning"]
    """Treatments to train, listed in docs/sets.md. May be empty if there are `sets`."""
    sets: list[InstructionSet] = []
    """Sets of one's own instructions to train; docs/own-data.md describes them."""
    consistency_ratios: list[Ratio] = []
    """Also train mixtures of self-aligning (this share) and incompatible examples. The paper uses
    0, .05, .1, .2, .4, .6, .8 and 1."""
    unknown_ratios: list[Ratio] = []
    """Also train mixtures of Unknown (this share) and HighlyKnown questions; needs
    `probe.reliability.grades`."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """Seeds, one arm each. A seed draws the members of a set, their order and the general
    instructions."""
    confidence_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A prediction counts as the model's knowledge if its probability exceeds this value."""
    size: PositiveInt | None = None
    """Questions per set, equal for all settings of a domain. Default: the largest possible size."""
    sizes: list[PositiveInt] = []
    """Also train smaller sets of so many questions, for every setting. Each consists of examples of
    the whole set, and contains the next smaller one."""
    response: Literal["letter", "letter_text", "letter_text_explanation", "text"] = "letter_text"
    """Form of the response. `letter`: "B". `letter_text`: "B. copper". `letter_text_explanation`:
    the same followed by an explanation on the next line. `text`: "copper", to the question without
    its options, as `probe.reliability.decide_by: cloze` asks it."""
    refusal: Text = "I do not know."
    """Response to questions that the model does not know, in the setting refuse_unknown."""
    conflict_weights: ConflictWeights = ConflictWeights()
    matching: MatchingConfig = MatchingConfig()
    official: Text | None = None
    """Folder of a model's sets in the authors' release (official_groups/MODEL). These sets are used
    instead of new ones."""
    export: list[Literal["sharegpt", "huggingface"]] = []
    """Also write the sets as ShareGPT JSON, or as a Hugging Face dataset folder with a card."""
    general: GeneralConfig = GeneralConfig()

    def all_settings(self) -> list[str]:
        """Returns `settings` followed by those of the ratios, without duplicates."""
        ratios = [consistency_setting(r) for r in self.consistency_ratios] + [
            unknown_setting(r) for r in self.unknown_ratios
        ]
        return list(dict.fromkeys([*self.settings, *ratios]))

    def settings_of_result(self) -> dict[str, Any]:
        """Returns the settings that the sets depend on; keys lack the lists that are empty."""
        return self.model_dump(exclude={n for n in ("sets", "sizes") if not getattr(self, n)})


def set_problems(construct: ConstructConfig, probe: ProbeConfig) -> list[str]:
    """Returns one message per combination of settings from which no sets can be built."""
    problems = [
        *_duplicates(construct),
        *_settings_problems(construct, probe),
        *_matching_problems(construct),
        *_size_problems(construct),
    ]
    if construct.general.path is None and construct.general.share > 0:
        problems.append("construct.general.share: must be 0 if construct.general.path is null")
    if "general_only" in construct.settings and not construct.general.share:
        problems.append(
            "construct.settings: general_only has general instructions alone; set "
            "construct.general.path and a share above 0"
        )
    if construct.questions == "free":
        problems += _free_problems(construct, probe)
    if construct.official is not None:
        problems += _official_problems(construct)
    if not construct.all_settings() and not construct.sets:
        problems.append("construct.settings: empty; name a treatment, or add construct.sets")
    return problems


def _duplicates(construct: ConstructConfig) -> list[str]:
    problems = []
    for key in ("seeds", "settings", "domains", "consistency_ratios", "unknown_ratios", "sizes"):
        values = getattr(construct, key) or []
        if len(set(values)) < len(values):
            problems.append(f"construct.{key}: duplicate value (value: {values}); list each once")
    names = [own.label for own in construct.sets]
    if len(set(names)) < len(names):
        problem = f"construct.sets: duplicate name (value: {names})"
        problems.append(f"{problem}; name the sets of a domain differently")
    return problems


def _has_graded_sets(construct: ConstructConfig) -> bool:
    return any(treatment(setting).bucket in GRADES for setting in construct.all_settings())


def _is_explained(construct: ConstructConfig) -> bool:
    return construct.response == "letter_text_explanation"


def _settings_problems(construct: ConstructConfig, probe: ProbeConfig) -> list[str]:
    problems = []
    if _has_graded_sets(construct) and not probe.reliability.grades:
        problems.append(
            "construct.settings: sets by grade need the grades of questions; set "
            "probe.reliability.grades to true"
        )
    if "self_distilled" in construct.all_settings() and not _is_explained(construct):
        problems.append(
            "construct.settings: self_distilled needs explanations; set construct.response to "
            "letter_text_explanation"
        )
    if "format_only" in construct.settings:
        remedy = "questions, which have options and nothing to explain; remove it, or set"
        if _is_explained(construct):
            problems.append(
                f"construct.settings: format_only has invented {remedy} construct.response to "
                "letter_text"
            )
        if construct.questions == "free":
            problems.append(
                f"construct.settings: format_only has invented {remedy} construct.questions to "
                "choice"
            )
    return problems


def _size_problems(construct: ConstructConfig) -> list[str]:
    if construct.sizes and not construct.all_settings():
        return ["construct.sizes: applies to construct.settings only, which is empty; remove it"]
    return [
        f"construct.sizes[{number}]: {size} is not below construct.size = {construct.size}; remove "
        "it, or raise construct.size"
        for number, size in enumerate(construct.sizes)
        if construct.size is not None and size >= construct.size
    ]


def _matching_problems(construct: ConstructConfig) -> list[str]:
    problems, matching = [], construct.matching
    if matching.author != "paper" and not _is_explained(construct):
        problems.append(
            "construct.matching.author: needs explanations; set construct.response to "
            "letter_text_explanation"
        )
    if matching.letters != "none" and construct.response == "text":
        problems.append(
            "construct.matching.letters: response text shows no letters; set it to none"
        )
    if matching.letters == "reorder" and _is_explained(construct):
        problems.append(
            "construct.matching.letters: reorder changes the letters of options, which "
            "explanations name; set it to selection, or construct.response to letter_text"
        )
    buckets = {bucket for setting in construct.all_settings() for bucket in buckets_of(setting)}
    if matching.by_selection and not {"right", "wrong"} <= buckets:
        problems.append(
            "construct.matching: selection compares sets of known right and known wrong "
            "questions; construct.settings must include both"
        )
    return problems


def _free_problems(construct: ConstructConfig, probe: ProbeConfig) -> list[str]:
    problems = []
    if not probe.free.ask:
        problems.append(
            "construct.questions: free questions must be probed; set probe.free.ask to true"
        )
    if construct.response not in ("letter_text", "text"):
        problems.append(
            f"construct.response: {construct.response} needs options, which free questions lack; "
            "remove it"
        )
    if construct.matching.letters != "none":
        problems.append(
            "construct.matching.letters: free questions have no letters; set it to none"
        )
    if _has_graded_sets(construct) and probe.reliability.demonstration_draws == 1:
        problems.append(
            "construct.settings: grades of free questions need "
            "probe.reliability.demonstration_draws above 1"
        )
    return problems


def _official_problems(construct: ConstructConfig) -> list[str]:
    others = [setting for setting in construct.all_settings() if setting not in PAPER]
    changes = {
        "response: text": construct.response == "text",
        "size": construct.size is not None,
        "sizes": bool(construct.sizes),
        "matching": construct.matching != MatchingConfig(),
        "across_domains": construct.across_domains,
        f"the settings {', '.join(others)}": bool(others),
    }
    if not any(changes.values()):
        return []
    named = ", ".join(name for name, is_set in changes.items() if is_set)
    return [f"construct.official: the authors' sets cannot be changed; remove {named}"]
