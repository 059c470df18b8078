"""Settings of engines and of what is asked of them: probing and evaluation."""

from typing import Annotated, Literal

from pydantic import Field

from ift_scale.config.section import NonNegativeInt, PositiveInt, Section, Seed


class EngineConfig(Section):
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto`: vLLM on GPUs, on a CPU the transformers engine, which is faster there (docs/measurements.md)."""
    max_model_len: PositiveInt | None = None
    """Longest prompt in tokens plus one; the model's own context when left out."""
    chunk_size: PositiveInt = 1024
    """Questions given to the engine at once; a shard is written after each chunk, so a crash loses at most one."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs that one vLLM engine spans."""
    num_engines: PositiveInt | None = None
    """Engines that one process feeds; when left out, one for each GPU or tensor-parallel group, on a CPU one."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    enforce_eager: bool | None = None
    """Skip vLLM's compilation and CUDA graphs; when left out, only on a CPU, where it starts in a third of the time. An engine that
    only scores never captures graphs."""
    cpu_kv_cache_gib: PositiveInt = 1
    """Memory for vLLM's cache on a CPU."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens that vLLM computes in one step, at most; vLLM's own choice when left out."""
    max_num_seqs: PositiveInt | None = None
    """Requests that vLLM runs in one step, at most; vLLM's own choice when left out."""
    batch_tokens: PositiveInt | None = None
    """Tokens in one batch of the transformers engine, padding included; when left out, 4096 on a CPU and 16384 on a GPU."""

    @property
    def generates(self) -> bool:
        """True if answers longer than a token may be generated; False only promises to score."""
        return True


class ReliabilityConfig(Section):
    """How sure it is that the model knows what it answers: each setting costs requests, and each is reported."""

    demonstration_draws: PositiveInt = 1
    """Few-shot prompts with other demonstrations that each question is asked with; the first is the paper's."""
    permutations: Literal["none", "circular", "sampled"] = "none"
    """Orders of the options: `circular` asks with each rotation, `sampled` with `num_permutations` random orders."""
    num_permutations: Annotated[int, Field(ge=2)] = 4
    prior_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the questions on which the letters' prior is estimated, to be divided out of all (PriDe); 0 for none."""
    grades: bool = False
    """SliCK's four grades of knowledge, from greedy and sampled answers over the demonstration draws."""
    grade_rule: Literal["chance", "paper"] = "chance"
    """`paper`: one right answer of many is knowledge, as in SliCK, which has free questions. `chance`: for choice questions, right
    answers must be more than guessing among the options gives (binomial test at `grade_level`); free questions as in the paper."""
    grade_level: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of that test: the share of guessed questions that each of its two steps takes for known, at most."""
    grade_samples: PositiveInt = 16
    """Samples of each prompt, at `grade_temperature`."""
    grade_temperature: Annotated[float, Field(gt=0)] = 0.5
    cloze: bool = False
    """Also the likelihood of each option's text, without letters."""
    decide_by: Literal["plain", "average", "debiased"] = "plain"
    """What counts as the model's prediction and confidence: the plain prompt, the average by content over all draws and orders, or
    the plain prompt with the letters' prior divided out."""
    seed: Seed = 42
    """Draws orders, the prior's sample and the graded samples."""


class FreeConfig(Section):
    """Free questions (short answers without options)."""

    ask: bool = False
    """Also generate answers to the free questions."""
    max_tokens: PositiveInt = 24
    """An answer ends with its line, or here."""
    num_samples: PositiveInt = 8
    """Sampled answers of each prompt, at `temperature`; the share that agrees with the greedy answer is its confidence."""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


class ProbeConfig(EngineConfig):
    num_shots: NonNegativeInt = 5
    demonstration_seed: Seed = 42
    """Shuffles the dev questions once; the first `num_shots` are the demonstrations of every prompt."""
    whole_prompts: bool = False
    """Tokenise every prompt whole instead of its few-shot prefix once; needed only where an error asks for it."""
    reliability: ReliabilityConfig = ReliabilityConfig()
    free: FreeConfig = FreeConfig()

    @property
    def generates(self) -> bool:
        return self.free.ask or self.reliability.grades


class EvaluateConfig(EngineConfig):
    template: Literal["vicuna", "chatml", "model"] = "vicuna"
    """Chat template of training and evaluation; `model`: the one in the base model's own tokenizer."""
    generate: bool = False
    """Also let every arm write an answer, greedily, from which the option is read (or a refusal); asks free questions too."""
    max_tokens: PositiveInt = 32
    """A generated answer ends with its line, or here."""

    @property
    def generates(self) -> bool:
        return self.generate
