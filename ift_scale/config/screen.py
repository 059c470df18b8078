"""Settings of `ift-scale screen`, which compares instruction data with what a model knows."""

from typing import Annotated, Literal

from pydantic import Field

from ift_scale.config.construct import ConflictWeights
from ift_scale.config.section import NonNegativeInt, PositiveInt, Section, Seed, Text
from ift_scale.config.write import WriterConfig

ScreenClass = Literal["known", "uncertain", "contradicts", "not_about_knowledge"]
Treatment = Literal["discard", "weight", "refuse", "open_book", "self_distil"]


class LongConfig(Section):
    """Examples with longer answers. A model rarely repeats a long answer word by word, so these
    thresholds are heuristics; docs/screen.md shows how well they work."""

    num_shots: NonNegativeInt = 2
    """Number of demonstrations per prompt. They are longer than those of other kinds."""
    longest_demonstration: PositiveInt = 600
    """Maximum length of a demonstration, prompt and answer together, in characters."""
    max_tokens: PositiveInt = 64
    """Maximum length of a generated answer in tokens. The reference is compared up to the same
    length."""
    num_samples: PositiveInt = 4
    """Number of answers sampled per prompt, at `probe.free.temperature`."""
    max_response: PositiveInt = 512
    """Number of tokens of a response that are scored; the rest is ignored."""
    span: PositiveInt = 8
    """Tokens of the span with the highest mean surprisal."""
    known_surprisal: Annotated[float, Field(ge=0)] = 0.7
    """An answer counts as known if its mean surprisal is at most this value, in nats per token."""
    known_agreement: Annotated[float, Field(gt=0, le=1)] = 0.6
    """An answer counts as known if the sampled answers' mean token F1 with it is at least this
    value."""
    contradiction: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """An answer counts as contradicting if, at the most surprising of its words that are likely to
    carry a fact, the model expects another one with at least this probability."""


class JudgeConfig(WriterConfig):
    """A server's model that lists the facts which a longer answer needs."""

    kind: Literal["endpoint"] = "endpoint"
    """An OpenAI-compatible server."""
    style: Literal["chat"] = "chat"
    """Prompt format: one user message."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """Sampling temperature; 0 decodes greedily."""
    max_tokens: PositiveInt = 1024
    """Maximum length of the list in tokens."""
    max_facts: PositiveInt = 4
    """Maximum number of facts per answer."""
    wrong_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """An answer counts as contradicting if the model answers at least this share of its facts'
    questions otherwise, with confidence."""


def screen_problems(screen: "ScreenConfig") -> list[str]:
    """Returns one message per missing setting of the judge."""
    if screen.judge is None:
        return []
    return [
        f"screen.judge.{name}: missing; a server needs it"
        for name in ("base_url", "model")
        if getattr(screen.judge, name) is None
    ]


class ScreenConfig(Section):
    """Comparison of instruction data with what the base model knows. How it is asked is set by
    `probe`."""

    confidence_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """An answer counts as the model's if its probability, or its share of the sampled answers,
    exceeds this value."""
    long: LongConfig = LongConfig()
    judge: JudgeConfig | None = None
    """Server that lists the facts of longer answers, which the base model is then asked as choice
    questions. Default: none."""
    treatment: Treatment = "discard"
    """How the filtered set treats examples of the classes `treated`. `discard`: left out. `weight`:
    kept with `weights`, as are all others. `refuse`: their response becomes `refusal`. `open_book`:
    the knowledge precedes the question. `self_distil`: their response becomes the model's own."""
    treated: Annotated[list[ScreenClass], Field(min_length=1)] = ["contradicts"]
    """Classes that the treatment applies to. `weight` applies to all."""
    weights: ConflictWeights = ConflictWeights()
    """Loss weights by class: `right` for known and not about knowledge, `uncertain`, and `wrong`
    for contradicting ones."""
    refusal: Text = "I do not know."
    """Response of refusing examples."""
    remove_duplicates: bool = True
    """Leave later copies of an example's prompt out of the filtered set."""
    remove_leaks: bool = True
    """Leave examples that ask a question of the test groups out of the filtered set."""
    seed: Seed = 42
    """Seed of the demonstrations and samples."""
