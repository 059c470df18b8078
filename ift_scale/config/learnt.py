"""Settings of the learnt stage: every arm is asked its own training items again."""

from ift_scale.config.construct import ConstructConfig
from ift_scale.config.engines import ProbeConfig
from ift_scale.config.section import NonNegativeInt, PositiveInt, Section, Seed, Text
from ift_scale.treatments import asks_questions


class LearntConfig(Section):
    """Was it learnt? Each arm's training items, as trained and in other forms."""

    on: bool = False
    """Run the stage, which asks each arm and the base model the items of the arm's set with the
    engine of `evaluate`."""
    max_items: PositiveInt = 1000
    """Maximum number of items per set. With more, a random draw is asked."""
    orders: NonNegativeInt = 1
    """Number of other orders of the options. In each, every option has another letter than in
    training. Without effect on sets with `construct.response: text`, which show no options."""
    paraphrases: Text | None = None
    """JSON lines with `question_id` and `question`, the question in other words; an id may occur
    several times. Questions of the embedded world, and those with a one-sentence explanation that
    ends with the right answer, have paraphrases without it."""
    seed: Seed = 42
    """Seed of the draw of items and of the other orders."""


def learnt_problems(
    learnt: LearntConfig, construct: ConstructConfig, probe: ProbeConfig
) -> list[str]:
    """Returns one message per setting with which the sets' items cannot be asked again."""
    if not learnt.on:
        return []
    problems = []
    if construct.questions == "free":
        problems.append(
            "learnt.on: the sets of construct.questions: free teach no option, and the learnt "
            "stage asks for options; set learnt.on to false"
        )
    elif construct.response == "text" and not probe.of_arms.cloze:
        problems.append(
            "learnt.on: the sets of construct.response: text show no letters, and arms are asked "
            f"for letters by probe.reliability.decide_by: {probe.reliability.decide_by}; set that "
            "to cloze and probe.reliability.cloze to sum, byte or pmi, or set learnt.on to false"
        )
    if construct.official is not None:
        problems.append(
            "learnt.on: the questions of released sets (construct.official) are not in the pools; "
            "set learnt.on to false"
        )
    if not any(asks_questions(setting) for setting in construct.all_settings()):
        problems.append(
            "learnt.on: no set teaches questions of the pools; name a treatment that does in "
            "construct.settings, or set learnt.on to false"
        )
    return problems
