"""How many questions each stage asks an arm or the base model: evaluate, learnt and hidden.

Those of the learnt and the hidden stage are bounds, because the items of sets are known after
construct.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from ift_scale.config import Config
from ift_scale.engines.protocol import identity
from ift_scale.evaluate.groups import asked_of
from ift_scale.records import Arm
from ift_scale.scoring.question_file import GroupKey
from ift_scale.treatments import asks_questions

Count = Callable[[Callable[[GroupKey], bool]], int]
"""Returns the number of questions in the groups for which a function is true."""
OPTIONAL = ("learnt", "hidden")
STAGES = ("evaluate", *OPTIONAL)


def is_on(config: Config, stage: str) -> bool:
    """True if the variant runs the stage."""
    return stage not in OPTIONAL or bool(getattr(config, stage).on)


def settings_of(config: Config, stage: str) -> list[object]:
    """Returns the settings that a stage's answers depend on, apart from the model."""
    own: list[object] = [
        identity(config.evaluate, config.model.dtype),
        config.questions.model_dump(),
        config.construct.refusal,
        config.probe.of_arms.cloze,
    ]
    return own if stage not in OPTIONAL else [*own, getattr(config, stage).model_dump()]


def of_arm(config: Config, count: Count, arm: Arm, items: int) -> dict[str, int]:
    """Returns the questions by stage. `items`: questions in the arm's set."""
    asked = {"evaluate": count(asked_of([arm], config.evaluate.generate))}
    if config.evaluate.few_shot:
        asked["evaluate"] += count(asked_of([arm], generate=False))
    if config.learnt.on and asks_questions(arm.setting):
        asked["learnt"] = min(config.learnt.max_items, items)
    if config.hidden.on:
        asked["hidden"] = _fit(config, count) + _tests(count, arm.own_domains)
    return asked


def of_base(
    config: Config, count: Count, arms: Sequence[Arm], of_arms: Mapping[str, int]
) -> dict[str, int]:
    """Returns the base model's questions by stage. `of_arms`: items asked by trained arm's name."""
    asked = {}
    if config.evaluate.base:
        asked["evaluate"] = count(asked_of(arms, config.evaluate.generate))
    if config.learnt.on:
        asked["learnt"] = min(sum(of_arms.values()), _train(count))
    if config.hidden.on:
        domains = {domain for arm in arms for domain in arm.own_domains}
        fit = min(len({arm.domain for arm in arms}) * _fit(config, count), _train(count))
        asked["hidden"] = fit + _tests(count, domains)
    return asked


def _fit(config: Config, count: Count) -> int:
    return min(config.hidden.max_fit_questions, _train(count))


def _train(count: Count) -> int:
    return count(lambda g: (g.collection, g.split, g.kind) == ("pool", "train", "choice"))


def _tests(count: Count, domains: Collection[str]) -> int:
    """Returns the test questions of the domains' pools."""
    return count(
        lambda g: (
            (g.collection, g.split, g.kind) == ("pool", "test", "choice") and g.domain in domains
        )
    )
