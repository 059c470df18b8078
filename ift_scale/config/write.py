"""Settings of the write stage: who writes which texts, and which checks they pass."""

from typing import Annotated, Literal

from pydantic import Field

from ift_scale.config.engines import EngineConfig
from ift_scale.config.section import NonNegativeInt, PositiveInt, Section, Seed, Text


class WriterConfig(EngineConfig):
    """The author of explanations, contexts or paraphrases."""

    kind: Literal["dataset", "base_model", "model", "endpoint"]
    """`dataset`: the questions' own explanations, no model runs. `base_model`: the probed model.
    `model`: another model folder. `endpoint`: an OpenAI-compatible server."""
    path: Text | None = None
    """Model folder; required for `kind: model`."""
    base_url: Text | None = None
    """Address of the server, such as http://localhost:8000/v1; required for `kind: endpoint`."""
    model: Text | None = None
    """Name under which the server offers the model; required for `kind: endpoint`."""
    api_key_variable: Text = "OPENAI_API_KEY"
    """Environment variable with the endpoint's API key. Leave it unset for servers without keys."""
    concurrency: PositiveInt = 32
    """Number of requests sent to an endpoint at the same time."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds after which a request to an endpoint is abandoned."""
    max_retries: NonNegativeInt = 4
    """Number of retries of a failed request to an endpoint, with increasing pauses."""
    style: Literal["urial", "chat", "plain"] = "urial"
    """Prompt format. `urial`: in-context style for base models (Lin et al. 2023, arXiv 2312.01552)
    with one demonstration. `chat`: one user message in the model's own chat template. `plain`: the
    question, its answer and `Explanation:`, for very small models."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    """Sampling temperature; 0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Nucleus sampling threshold."""
    max_tokens: PositiveInt = 256
    """Maximum length of a written text in tokens."""


class WriteConfig(Section):
    """Explanations, contexts and paraphrases written by models, for the settings that need them."""

    external: WriterConfig = WriterConfig(kind="dataset")
    """Author of the explanations of the right answer in harmonious and incompatible sets. An
    explanation that comes with the question takes precedence."""
    own: WriterConfig = WriterConfig(kind="base_model")
    """Author of the explanations of the model's own answer in self-aligning sets. It also explains
    the right answer if `construct.matching.author` or the setting self_distilled requires it."""
    contexts: WriterConfig = WriterConfig(kind="dataset")
    """Author of the knowledge placed before the question; `kind: dataset` uses the question's
    explanation."""
    paraphrases: WriterConfig = WriterConfig(kind="dataset")
    """Author of the questions in other words that the learnt stage asks, if it is on; `kind:
    dataset` writes none (docs/learnt.md)."""
    attempts: PositiveInt = 3
    """Number of times a text that fails a check is written again."""
    on_failure: Literal["drop", "keep", "error"] = "drop"
    """What to do with a question whose text still fails a check: leave it out of every set, use the
    text anyway, or stop the run. Paraphrases that fail are not asked."""
    must_name_target: bool = True
    """Require that an explanation names the option it explains, by letter or text."""
    must_not_contradict: bool = True
    """Require that an explanation does not call another option the answer."""
    seed: Seed = 42
    """Seed of sampling."""


_REQUIRED = {"model": ("path",), "endpoint": ("base_url", "model")}


def writer_problems(write: WriteConfig) -> list[str]:
    """Returns one message per missing or impossible setting of the writers."""
    writers = {"external": write.external, "own": write.own, "contexts": write.contexts}
    writers["paraphrases"] = write.paraphrases
    problems = [
        f"write.{role}.{name}: missing; a writer of kind {writer.kind} needs it"
        for role, writer in writers.items()
        for name in _REQUIRED.get(writer.kind, ())
        if getattr(writer, name) is None
    ]
    if write.own.kind == "dataset":
        problems.append(
            "write.own.kind: a dataset has no explanations of the model's own answers; set it to "
            "base_model"
        )
    return problems
