"""From measures to a class, a score and a reason in words. Pure functions.

The score is the probability that the model gives to the reference, less that of the strongest other
answer, from -1 to 1. For choice questions these are probabilities of options, for short answers
shares of the generated answers, and for longer ones probabilities at the most surprising fact word.
"""

from typing import Any, NamedTuple, get_args

from ift_scale.config.screen import ScreenClass, ScreenConfig

CLASSES: tuple[ScreenClass, ...] = get_args(ScreenClass)


class Classified(NamedTuple):
    """The class of an example, its score (None if it was not asked), and the reason."""

    name: ScreenClass
    score: float | None
    reason: str


def classify(measures: dict[str, Any], why: str, config: ScreenConfig) -> Classified:
    """Returns the verdict on one row of `asker.SCHEMA`; `why`: how its kind was recognised."""
    if measures["kind"] == "other":
        return Classified("not_about_knowledge", None, why)
    if measures["too_long"]:
        return Classified("uncertain", None, "not asked: longer than the model's context")
    score = measures["reference_prob"] - measures["other_prob"]
    if measures["kind"] == "long":
        return _long(measures, score, config)
    return _sure(measures, score, config.confidence_threshold)


def _sure(measures: dict[str, Any], score: float, threshold: float) -> Classified:
    """Classifies choice questions and short answers."""
    right, other = measures["reference_prob"], measures["other_prob"]
    how = "with probability {:.2f}" if measures["kind"] == "choice" else "in {:.0%} of its answers"
    own = f"the model gives this answer {how.format(right)}"
    if right > threshold:
        return Classified("known", score, own)
    if measures["other"] is None:
        return Classified("uncertain", score, own)
    reason = f"the model answers {measures['other']!r} {how.format(other)}, and this answer "
    name: ScreenClass = "contradicts" if other > threshold else "uncertain"
    return Classified(name, score, reason + how.format(right))


def _long(measures: dict[str, Any], score: float, config: ScreenConfig) -> Classified:
    """Classifies longer answers: by their facts if a judge listed some, else by surprisal."""
    settings, facts = config.long, measures["facts"]
    if facts:
        known, wrong = measures["facts_known"], measures["facts_contradicted"]
        assert config.judge is not None
        by_facts = (known - wrong) / facts
        about = f"of {facts} facts the model knows {known} and contradicts {wrong}"
        if wrong >= config.judge.wrong_share * facts:
            return Classified("contradicts", by_facts, about)
        return Classified("known" if known == facts else "uncertain", by_facts, about)
    surprisal, agreement = measures["surprisal"], measures["agreement"]
    if measures["other_prob"] >= settings.contradiction:
        reason = f"at {measures['worst_span']!r} the model expects {measures['other']!r} with "
        reason += f"probability {measures['other_prob']:.2f}"
        return Classified("contradicts", score, reason)
    if surprisal <= settings.known_surprisal:
        return Classified(
            "known", score, f"a mean surprisal of only {surprisal:.2f} nats per token"
        )
    if agreement >= settings.known_agreement:
        reason = f"the model's own answers agree with it (token F1 {agreement:.2f})"
        return Classified("known", score, reason)
    reason = f"mean surprisal {surprisal:.2f} nats per token, highest at {measures['worst_span']!r}"
    return Classified("uncertain", score, reason)
