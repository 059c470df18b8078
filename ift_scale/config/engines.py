"""Settings of inference: the engines, probing and evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from ift_scale.config.section import NonNegativeInt, PositiveInt, Section, Seed

EngineName = Literal["auto", "vllm", "transformers"]
_MORE_FOR_RANKS = 300.0


class EngineConfig(Section):
    """The inference engine. Probing, writing and evaluation each have their own."""

    engine: EngineName = "auto"
    """`auto`: vLLM on GPUs; on a CPU the transformers engine, which is faster there
    (docs/measurements.md)."""
    max_model_len: PositiveInt | None = None
    """Maximum length of prompt plus generated tokens; a prompt that is only scored needs one token
    more than its length. Default: the model's own context length."""
    chunk_size: PositiveInt = 1024
    """Questions passed to the engine at once. A shard is written after each chunk, so a crash loses
    at most one chunk."""
    tensor_parallel_size: PositiveInt = 1
    """Number of GPUs per vLLM engine."""
    num_engines: PositiveInt | None = None
    """Number of engines per process. Default: one per GPU or tensor-parallel group; one on a
    CPU."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Fraction of GPU memory that vLLM may use."""
    enforce_eager: bool | None = None
    """Skip vLLM's compilation and CUDA graphs. Default: only on a CPU, where start-up then takes a
    third of the time. An engine that only scores never captures graphs."""
    cpu_kv_cache_gib: PositiveInt = 1
    """Size of vLLM's KV cache on a CPU, in GiB."""
    max_num_batched_tokens: PositiveInt | None = None
    """Maximum number of tokens per vLLM step. Default: vLLM's own choice."""
    max_num_seqs: PositiveInt | None = None
    """Maximum number of requests per vLLM step. Default: vLLM's own choice."""
    batch_tokens: PositiveInt | None = None
    """Tokens per batch of the transformers engine, padding included. Default: 4096 on a CPU, 16384
    on a GPU."""

    start_timeout: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds within which the engine must have started, or loaded other weights. 0: no limit."""
    request_timeout: Annotated[float, Field(ge=0)] = 1800.0
    """Seconds within which the engine must finish at least one request of a chunk. 0: no limit. A
    hanging engine is ended; its log then has its stacks, and finished chunks are kept."""

    @property
    def hang_limit(self) -> float:
        """Seconds in which at least one of several ranks must advance; 0: no limit.

        Longer than an engine's own limits, whose messages are more exact.
        """
        limits = self.start_timeout, self.request_timeout
        return max(limits) + _MORE_FOR_RANKS if all(limits) else 0.0

    @property
    def generates(self) -> bool:
        """True if answers longer than one token may be generated, False if prompts are only
        scored."""
        return True


ClozeScore = Literal["sum", "byte", "pmi"]


class ReliabilityConfig(Section):
    """Additional measurements of how reliably the model knows an answer. Each costs requests and
    has its own columns in the results."""

    demonstration_draws: PositiveInt = 1
    """Number of few-shot prompts per question, each with other demonstrations. The first is the
    paper's prompt."""
    permutations: Literal["none", "circular", "sampled"] = "none"
    """Orders of the options. `circular`: every rotation. `sampled`: `num_permutations` random
    orders."""
    num_permutations: Annotated[int, Field(ge=2)] = 4
    """Number of random orders for `permutations: sampled`."""
    prior_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the questions used to estimate the model's prior over option letters, which is then
    divided out of all predictions (PriDe). 0 disables it."""
    grades: bool = False
    """Compute SliCK's four grades of knowledge from greedy and sampled answers over the
    demonstration draws."""
    grade_rule: Literal["chance", "paper"] = "chance"
    """`paper`: a single right answer among all samples counts as knowledge, as in SliCK, whose
    questions are free ones. `chance`: for choice questions, the number of right answers must exceed
    that of guessing among the options (binomial test at `grade_level`); free questions are graded
    as in the paper."""
    grade_level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of the test: the maximum share of guessed questions that each of its two steps counts
    as known."""
    grade_samples: PositiveInt = 16
    """Number of answers sampled per prompt, at `grade_temperature`."""
    grade_temperature: Annotated[float, Field(gt=0)] = 0.5
    """Temperature of the sampled answers that are graded."""
    cloze: Literal[False] | ClozeScore = False
    """Also measure the likelihood of each option's text, without letters. `sum`: its
    log-likelihood. `byte`: per UTF-8 byte. `pmi`: less the log-likelihood after an empty question,
    which costs a request per distinct text. See docs/probing.md for how to choose."""
    decide_by: Literal["plain", "average", "debiased", "cloze"] = "plain"
    """Source of the model's prediction and confidence. `plain`: the plain prompt. `average`: the
    mean probability of each option over all draws and orders. `debiased`: the plain prompt with the
    prior over letters divided out. `cloze`: the softmax over the options' `cloze` scores. Arms are
    then evaluated by the same measure."""
    seed: Seed = 42
    """Seed of the option orders, the sample for the prior and the graded samples."""


class FreeConfig(Section):
    """Free questions: short answers without options."""

    ask: bool = False
    """Also generate answers to free questions."""
    max_tokens: PositiveInt = 24
    """Maximum length of an answer in tokens; an answer also ends at the end of its line."""
    num_samples: PositiveInt = 8
    """Number of answers sampled per prompt, at `temperature`. The share that agrees with the greedy
    answer is its confidence."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """Temperature of the sampled answers."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling threshold of the sampled answers."""


class ProbeConfig(EngineConfig):
    """Probing of the base model: few-shot prompts that measure what it knows."""

    num_shots: NonNegativeInt = 5
    """Number of demonstrations per prompt."""
    demonstration_seed: Seed = 42
    """Seed of the shuffle of the dev questions; the first `num_shots` are the demonstrations of
    every prompt."""
    whole_prompts: bool = False
    """Tokenise every prompt as a whole instead of its few-shot prefix once. Needed only if an error
    message asks for it."""
    reliability: ReliabilityConfig = ReliabilityConfig()
    free: FreeConfig = FreeConfig()

    @property
    def generates(self) -> bool:
        return self.free.ask or self.reliability.grades

    @property
    def of_arms(self) -> ReliabilityConfig:
        """How arms are scored: by the measure that decides what the base model knows."""
        if self.reliability.decide_by == "cloze":
            return ReliabilityConfig(cloze=self.reliability.cloze, decide_by="cloze")
        return ReliabilityConfig()


class EvaluateConfig(EngineConfig):
    """Evaluation of the trained arms and, if requested, of the base model."""

    template: Literal["vicuna", "chatml", "model"] = "vicuna"
    """Chat template of training and evaluation. `model`: the template of the base model's
    tokenizer."""
    generate: bool = False
    """Also generate a greedy answer per question, from which the option or a refusal is parsed, and
    answers to free questions."""
    base: bool = False
    """Also ask the base model, 0-shot in the same template, to tell the effect of the prompt from
    that of training (docs/mechanisms.md)."""
    few_shot: bool = False
    """Also ask every arm the choice questions few-shot, in the prompts of the probe; needs
    `base`. Doubles the questions to evaluate."""
    max_tokens: PositiveInt = 32
    """Maximum length of a generated answer in tokens; an answer also ends at the end of its
    line."""

    @property
    def generates(self) -> bool:
        return self.generate


def evaluate_problems(evaluate: EvaluateConfig) -> list[str]:
    """Returns one message per setting of `evaluate` that has no effect."""
    if evaluate.few_shot and not evaluate.base:
        return [
            "evaluate.few_shot: true, but its answers are compared in the tables of evaluate.base "
            "only; set evaluate.base to true"
        ]
    return []


def reliability_problems(probe: ProbeConfig) -> list[str]:
    """Returns one message per impossible combination of `probe.reliability`'s settings."""
    problems, reliability = [], probe.reliability
    one_draw = reliability.demonstration_draws == 1
    if reliability.decide_by == "average" and reliability.permutations == "none" and one_draw:
        problems.append(
            "probe.reliability.decide_by: average needs several prompts per question; set "
            "permutations to circular or sampled, or demonstration_draws above 1"
        )
    if reliability.decide_by == "debiased" and reliability.prior_share == 0:
        problems.append("probe.reliability.decide_by: debiased needs prior_share above 0")
    if reliability.decide_by == "cloze" and not reliability.cloze:
        problems.append(
            "probe.reliability.decide_by: cloze needs probe.reliability.cloze: sum, byte or pmi"
        )
    if reliability.grades and one_draw:
        problems.append(
            "probe.reliability.grades: needs demonstration_draws above 1 (SliCK uses 10)"
        )
    return problems
