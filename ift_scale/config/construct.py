"""Settings of the write and construct stages."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ift_scale.config.engines import EngineConfig
from ift_scale.config.section import (
    BUILTIN_MODEL,
    NonNegativeInt,
    PositiveInt,
    Section,
    Seed,
    Share,
    Text,
)
from ift_scale.errors import did_you_mean
from ift_scale.treatments import BY_NAME, consistency_setting, treatment, unknown_setting


def _known_setting(name: str) -> str:
    try:
        treatment(name)
    except KeyError:
        known = [*BY_NAME, "mixture-R", "unknown-R"]
        raise ValueError(
            f"no such setting; {did_you_mean(name, known)} (R: a ratio such as 0.2)"
        ) from None
    return name


Setting = Annotated[str, AfterValidator(_known_setting)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class WriterConfig(EngineConfig):
    """Who writes explanations or contexts."""

    kind: Literal["dataset", "base_model", "model", "endpoint"]
    """`dataset`: the questions' own explanations, nothing is written; `base_model`: the probed model; `model`: another model
    folder; `endpoint`: an OpenAI-compatible server."""
    path: Text | None = None
    """Of kind `model`: its folder."""
    base_url: Text | None = None
    """Of kind `endpoint`: such as http://localhost:8000/v1."""
    model: Text | None = None
    """Of kind `endpoint`: the name that the server knows the model by."""
    api_key_variable: Text = "OPENAI_API_KEY"
    """Environment variable that holds the endpoint's key; a server that wants none needs none."""
    concurrency: PositiveInt = 32
    """Requests that an endpoint has at once."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds until a request to an endpoint is given up."""
    max_retries: NonNegativeInt = 4
    """Times that a failed request to an endpoint is sent again, each time after a longer pause."""
    style: Literal["urial", "chat", "plain"] = "urial"
    """Prompt: `urial`: the in-context style for base models (Lin et al. 2023, arXiv 2312.01552) with one demonstration; `chat`: one
    user message in the model's own chat template; `plain`: the question, its answer and `Explanation:`, for very small models."""
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    max_tokens: PositiveInt = 256


class WriteConfig(Section):
    """Explanations and contexts written by models, for the settings that need them."""

    external: WriterConfig = WriterConfig(kind="dataset")
    """Words H and I: explanations of the right answer. A question's own explanation is taken first, where it has one."""
    own: WriterConfig = WriterConfig(kind="base_model")
    """Words S: explanations of the model's own answer (and of the right one, where the author is matched or distilled)."""
    contexts: WriterConfig = WriterConfig(kind="dataset")
    """Writes the knowledge that is put before the question; of kind `dataset` it is the question's explanation."""
    attempts: PositiveInt = 3
    """Times that a text which fails a check is written anew."""
    on_failure: Literal["drop", "keep", "error"] = "drop"
    """What becomes of a question whose text still fails: it goes into no set, it is taken as it is, or the run ends."""
    must_name_target: bool = True
    """Check that an explanation names the option it explains, by letter or text."""
    must_not_contradict: bool = True
    """Check that it does not call another option the answer."""
    seed: Seed = 42


class MatchingConfig(Section):
    """Controls that leave knowledge consistency as the one difference between harmonious, incompatible and self-aligning sets."""

    letters: Literal["none", "selection", "reorder"] = "none"
    """Same distribution of the target letter: by choosing questions, or by putting the options in another order."""
    confidence: Literal["none", "selection"] = "none"
    """Same distribution of the base model's confidence."""
    length: Literal["none", "selection"] = "none"
    """Same distribution of the length of question and response, in characters."""
    author: Literal["paper", "base_model", "external"] = "paper"
    """Who words explanations: as in the paper (S by the base model, H and I by others), or one author for all."""
    bins: Annotated[int, Field(ge=2)] = 5
    """Quantile bins of confidence and length within which sets are made equal."""

    @property
    def by_selection(self) -> bool:
        return "selection" in (self.letters, self.confidence, self.length)


class GeneralConfig(Section):
    path: str | None = BUILTIN_MODEL
    """General instructions: JSON lines of instruction, input, output (.gz too); `world` for the embedded ones; null for none."""
    share: Share = 0.5
    """Share of the finished set that is general instructions."""


class ConflictWeights(Section):
    """Weights in the loss of the setting conflict_weighted, by what the model knows of the question."""

    right: Annotated[float, Field(gt=0)] = 1.0
    uncertain: Annotated[float, Field(gt=0)] = 0.5
    wrong: Annotated[float, Field(gt=0)] = 0.1


class ConstructConfig(Section):
    domains: list[str] | None = None
    """Domains to train on; every pool's when left out."""
    across_domains: bool = False
    """Also make arms that are trained on all domains together, of the same size."""
    questions: Literal["choice", "free"] = "choice"
    """Which kind of the pools' questions the sets are made of; free ones need probe.free.ask."""
    settings: Annotated[list[Setting], Field(min_length=1)] = [
        "harmonious",
        "incompatible",
        "self_aligning",
    ]
    """Treatments, each an arm: see docs/sets.md."""
    consistency_ratios: list[Ratio] = []
    """Also mixtures of self-aligning (this share) and incompatible examples; the paper's: 0, .05, .1, .2, .4, .6, .8, 1."""
    unknown_ratios: list[Ratio] = []
    """Also mixtures of Unknown (this share) and HighlyKnown questions; needs probe.reliability.grades."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """One arm for each: it draws the set's members, their order and the general instructions."""
    confidence_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A prediction counts as the model's knowledge when its probability is above this."""
    size: PositiveInt | None = None
    """Questions in a set, the same for all settings of a domain; the largest possible when left out."""
    response: Literal["letter", "letter_text", "letter_text_explanation"] = "letter_text"
    """`letter`: "B"; `letter_text`: "B. copper"; the last has an explanation on the next line."""
    refusal: Text = "I do not know."
    """Response to what the model does not know, in the setting refuse_unknown."""
    conflict_weights: ConflictWeights = ConflictWeights()
    matching: MatchingConfig = MatchingConfig()
    official: Text | None = None
    """Folder of a model's sets in the authors' release (official_groups/MODEL): they are taken instead of being built."""
    export: list[Literal["sharegpt", "huggingface"]] = []
    """Also write the sets as ShareGPT JSON, or as a Hugging Face dataset folder with a card."""
    general: GeneralConfig = GeneralConfig()

    def all_settings(self) -> list[str]:
        """The settings with those of the ratios, each once."""
        ratios = [consistency_setting(r) for r in self.consistency_ratios] + [
            unknown_setting(r) for r in self.unknown_ratios
        ]
        return list(dict.fromkeys([*self.settings, *ratios]))


def writing_problems(write: WriteConfig, construct: ConstructConfig) -> list[str]:
    """Settings of writers that cannot go together, a line for each."""
    problems = []
    for role in ("external", "own", "contexts"):
        writer: WriterConfig = getattr(write, role)
        if writer.kind == "model" and writer.path is None:
            problems.append(
                f"write.{role}.path: kind model needs the folder of the model that writes"
            )
        if writer.kind == "endpoint" and (writer.base_url is None or writer.model is None):
            problems.append(
                f"write.{role}: kind endpoint needs base_url (http://localhost:8000/v1, say) and model, its name there"
            )
    if write.own.kind == "dataset":
        problems.append(
            "write.own.kind: no dataset holds the model's own words; set it to base_model"
        )
    if construct.questions == "free" and construct.response == "letter_text_explanation":
        problems.append(
            "construct.response: letter_text_explanation explains an option, and construct.questions = free has none; set it to "
            "letter_text"
        )
    return problems
