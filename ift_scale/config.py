"""Settings: strict and typed; a docstring under each field says what it does. `config_file` reads them."""

import warnings
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ift_scale.distributed import has_gpu
from ift_scale.records import Collection

BUILTIN_MODEL = "world"

Setting = Literal["harmonious", "incompatible", "self_aligning"]
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _no_reserved_name(domain: str) -> str:
    if domain == "all":
        raise ValueError("'all' names the row over all domains; choose another")
    return domain


# A domain's name becomes part of file names and keys.
Domain = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"), AfterValidator(_no_reserved_name)]

# Which of a dataset's splits serve as our dev (demonstrations), train and test.
Splits = Annotated[dict[Literal["dev", "train", "test"], Text], Field(min_length=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class ModelConfig(Section):
    path: Text = BUILTIN_MODEL
    """The base model: a Hugging Face folder with safetensors weights, or `world` for the embedded one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the engines; `auto` is bfloat16 on a GPU and float32 on a CPU."""


class WorldSource(Section):
    kind: Literal["world"]


class PoolLimits(Section):
    max_train: PositiveInt | None = None
    """Use this many of the train questions, drawn by `questions.seed`; all when left out."""
    max_test: PositiveInt | None = None


class SubjectLimit(Section):
    max_per_subject: PositiveInt | None = None
    """Use this many test questions of each subject, drawn by `questions.seed`; all when left out."""


class PaperSource(PoolLimits):
    """A pool in the paper's JSON lines format: `id`, `question`, `choices`, `answer` (index), `explanation`."""

    kind: Literal["paper"]
    domain: Domain
    path: str
    """Folder that holds {dev,train,test}.jsonl, or the same with .gz."""


class MmluSource(SubjectLimit):
    """MMLU as a benchmark: Hendrycks' CSV folder (dev/, test/), JSON lines with a `subject` field, or a hub id."""

    kind: Literal["mmlu"]
    path: str
    name: str = "all"
    """The hub dataset's configuration; a local folder has none."""


class XiezhiSource(PoolLimits):
    """Raw Xiezhi as a pool: rows with one of `labels` and four options, as in the paper."""

    kind: Literal["xiezhi"]
    domain: Domain
    path: Text
    """Local file or folder, or the hub id of a copy; Xiezhi itself is published on GitHub only."""
    name: str | None = None
    labels: Annotated[list[Text], Field(min_length=1)] | None = None
    """A row belongs to the pool when it has any of these labels; every row does when left out."""
    collection: Collection = "pool"
    splits: Splits | None = None
    """The dataset's splits for dev, train and test; 10, the rest and 250, drawn by `questions.seed`, when left out."""


class SubjectSource(SubjectLimit):
    """CMMLU or C-Eval as a benchmark: one part a subject, columns A, B, C, D and a letter."""

    kind: Literal["cmmlu", "ceval"]
    path: Text | None = None
    """Hub id, or the folder of the unpacked archive; the dataset's own hub id when left out."""
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    """Subjects to use; all when left out."""
    domains: dict[str, Domain] = {}
    """Domains of subjects, where they are to differ from ours (data files beside the source's code)."""
    collection: Collection = "benchmark"
    splits: Splits | None = None


class EntityQuestionsSource(SubjectLimit):
    """EntityQuestions: free questions, one JSON file a relation and split. A relation is a subject here."""

    kind: Literal["entity_questions"]
    path: Text
    """The folder `dataset` of the unpacked archive; there is no hub id of the authors."""
    subjects: Annotated[list[Text], Field(min_length=1)] | None = None
    """Relations to use, such as P36; all when left out."""
    domain: Domain = "entity_questions"
    collection: Collection = "benchmark"
    splits: Splits | None = None


class DatasetSource(PoolLimits):
    """A published dataset whose columns are known: docs/questions.md lists what each default is."""

    kind: Literal["medmcqa", "medqa", "arc", "truthfulqa", "popqa"]
    path: Text | None = None
    """Hub id, local folder, or a .json, .jsonl, .csv, .tsv or .parquet file; the dataset's own hub id when left out."""
    name: str | None = None
    """The dataset's configuration, where it has several."""
    domain: Domain | None = None
    collection: Collection | None = None
    splits: Splits | None = None
    """The dataset's splits, slices such as `validation[:10]` too, for dev, train and test."""


class HubFields(Section):
    question: str = "question"
    choices: str = "choices"
    answer: str = "answer"
    """Column with the index of the right option, or its letter."""
    aliases: str | None = None
    """Column with the list of right answers. It makes the questions free ones: `choices` and `answer` are not read."""
    id: str | None = None
    subject: str | None = None
    explanation: str | None = None


class HubSource(PoolLimits):
    """Any Hugging Face dataset, by hub name or local path."""

    kind: Literal["huggingface"]
    path: str
    name: str | None = None
    domain: Domain
    collection: Collection = "pool"
    splits: Splits
    fields: HubFields = HubFields()


Source = Annotated[
    WorldSource | PaperSource | MmluSource | XiezhiSource | SubjectSource | EntityQuestionsSource | DatasetSource | HubSource,
    Field(discriminator="kind"),
]


class QuestionsConfig(Section):
    sources: Annotated[list[Source], Field(min_length=1)] = [WorldSource(kind="world")]
    seed: Seed = 42
    """Draws the subset where a source is limited."""


class EngineConfig(Section):
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    """`auto`: vLLM on GPUs, on a CPU the transformers engine, which is faster there (docs/results.md)."""
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
    """Skip vLLM's compilation and CUDA graphs; when left out, only on a CPU, where it starts in a third of the time."""
    cpu_kv_cache_gib: PositiveInt = 1
    """Memory for vLLM's cache on a CPU."""
    max_num_batched_tokens: PositiveInt | None = None
    """Tokens that vLLM computes in one step, at most; vLLM's own choice when left out."""
    max_num_seqs: PositiveInt | None = None
    """Requests that vLLM runs in one step, at most; vLLM's own choice when left out."""
    batch_tokens: PositiveInt | None = None
    """Tokens in one batch of the transformers engine, padding included; when left out, 4096 on a CPU and 16384 on a GPU."""


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


class GeneralConfig(Section):
    path: str | None = BUILTIN_MODEL
    """General instructions: JSON lines of instruction, input, output (.gz too); `world` for the embedded ones; null for none."""
    share: Share = 0.5
    """Share of the finished set that is general instructions."""


class ConstructConfig(Section):
    domains: list[str] | None = None
    """Domains to train on; every pool's when left out."""
    questions: Literal["choice", "free"] = "choice"
    """Which kind of the pools' questions the sets are made of; free ones need probe.free.ask."""
    settings: Annotated[list[Setting], Field(min_length=1)] = ["harmonious", "incompatible", "self_aligning"]
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    """One arm for each: it draws the set's members, their order and the general instructions."""
    confidence_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """A prediction counts as the model's knowledge when its probability is above this."""
    size: PositiveInt | None = None
    """Questions in a set, the same for all settings of a domain; the largest possible when left out."""
    response: Literal["letter", "letter_text"] = "letter_text"
    """`letter`: "B"; `letter_text`: "B. copper"."""
    general: GeneralConfig = GeneralConfig()


class CheckpointConfig(Section):
    every: NonNegativeInt = 0
    """Save after every so many optimizer steps; 0 saves on SIGTERM and SIGUSR1 only."""
    keep_last: PositiveInt = 2
    """Checkpoints kept of an arm; all are removed when it is trained."""


class EarlyStoppingConfig(Section):
    metric: Literal["accuracy", "rank_correlation", "divergence"]
    """Live measure that must go on improving: `divergence` falls, the others rise."""
    patience: PositiveInt = 3
    """Live measurements without an improvement until the arm ends."""
    least_improvement: Annotated[float, Field(ge=0)] = 0.0


class LiveConfig(Section):
    """The arm's own held-out questions (HOMO), asked on the training ranks while it trains."""

    every: Literal["auto"] | NonNegativeInt = "auto"
    """Optimizer steps between two measurements, beside those before the first step and after the last; 0: never. `auto`: as often
    as keeps the cost under 2% of the arm's; where an arm is too short, fewer questions are asked or none, and the run says so."""
    max_questions: PositiveInt | None = None
    """Ask at most this many of the questions, the same ones each time; all when left out."""
    early_stopping: EarlyStoppingConfig | None = None
    """End an arm when its live knowledge stops improving; never when left out. The arm's weights are those of its last step."""


class TrainConfig(Section):
    num_ranks: PositiveInt = 1
    """Processes that train together, one for each device."""
    launcher: Literal["deepspeed", "direct"] = "deepspeed"
    """`deepspeed`: its launcher, for one node or a hostfile; `direct`: plain processes on this machine, quicker to start."""
    hostfile: str | None = None
    """DeepSpeed hostfile for several nodes; it must exist."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 with float32 master weights on a GPU, float32 on a CPU."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """`auto`: with `offload` and `activation_checkpointing`, the lightest that fits by the memory model; `plan` shows it."""
    offload: Literal["auto", "none", "optimizer", "all"] = "auto"
    """What lives in host memory: the optimizer's states, or with ZeRO-3 the weights too."""
    activation_checkpointing: Literal["auto", "none", "selective", "full"] = "auto"
    """What is computed again in the backward pass: nothing, all but matrix products and attention, or whole layers."""
    compile: bool = False
    """Compile the decoder layers with torch.compile."""
    attention: Literal["auto", "flash_attn", "varlen", "sdpa"] = "auto"
    """Attention that keeps packed examples apart: flash-attn's or torch's variable-length kernels, or SDPA for each example."""
    prune_last_layer: bool = True
    """Compute the last layer on supervised rows only: exact."""
    kernels: Literal["auto", "pytorch", "triton", "liger"] = "auto"
    """Who computes norms, SwiGLU, rotary embedding and the loss: `auto` takes what the stored figures say is fastest here."""
    epochs: PositiveInt = 3
    global_batch_size: PositiveInt = 256
    """Examples of one optimizer step, whatever the number of ranks."""
    tokens_per_micro_batch: PositiveInt = 8192
    """Tokens that one rank holds in one forward pass, at most; padding is never added."""
    packing: bool = True
    """False computes every example in a forward pass of its own: slower, for comparisons."""
    share_prefix: bool = True
    """Compute the tokens with which all examples of a micro-batch begin once: exact, and its keys serve every example."""
    max_length: PositiveInt = 2048
    """Longest example in tokens."""
    too_long: Literal["error", "truncate"] = "error"
    """What to do with an example over `max_length`; truncated ones are counted."""
    supervise: Literal["response", "all"] = "response"
    """Learn the assistant's turns, or every token."""
    loss_average: Literal["token", "example"] = "token"
    """The step's loss: mean over its supervised tokens, or over its examples' own means. Examples' weights count in both."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 for none."""
    max_bad_steps: NonNegativeInt = 3
    """Steps with a loss or gradient that is no number: each is skipped and counted, one more than this ends the arm."""
    log_every: PositiveInt = 5
    """Optimizer steps between two reads of the metrics from the device."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Dense bfloat16 TFLOPS of one device, for MFU; when left out, those of its data sheet, where it is known."""
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = []
    """Where metrics go besides `metrics.jsonl`; docs/training.md says how each is told its server."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    live: LiveConfig = LiveConfig()


class EvaluateConfig(EngineConfig):
    template: Literal["vicuna", "chatml", "model"] = "vicuna"
    """Chat template of training and evaluation; `model`: the one in the base model's own tokenizer."""


class AnalyseConfig(Section):
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: Seed = 42


warnings.filterwarnings("ignore", message='Field name "construct"')  # a deprecated method of pydantic has that name


class Config(Section):
    output_dir: Text
    """The run's folder; every stage writes below it."""
    model: ModelConfig = ModelConfig()
    questions: QuestionsConfig = QuestionsConfig()
    probe: ProbeConfig = ProbeConfig()
    construct: ConstructConfig = ConstructConfig()  # type: ignore[assignment]
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    analyse: AnalyseConfig = AnalyseConfig()


def precision_in_force(train: TrainConfig) -> str:
    """`auto` as this machine's ranks take it."""
    return ("bfloat16" if has_gpu() else "float32") if train.precision == "auto" else train.precision


def impossible_combinations(config: Config) -> list[str]:
    """Settings that are each valid and cannot go together, a line for each."""
    train, construct = config.train, config.construct
    problems = []
    if train.global_batch_size < train.num_ranks:
        problems.append(
            f"train.global_batch_size: {train.global_batch_size} examples cannot be dealt to train.num_ranks = "
            f"{train.num_ranks}; raise it to at least {train.num_ranks}"
        )
    if train.tokens_per_micro_batch < train.max_length:
        problems.append(
            f"train.tokens_per_micro_batch: {train.tokens_per_micro_batch} cannot hold an example of train.max_length = "
            f"{train.max_length}; raise the first or lower the second"
        )
    if train.zero_stage == 0 and precision_in_force(train) == "bfloat16":
        problems.append(
            f"train.zero_stage: 0 with train.precision = {train.precision} (bfloat16 here) keeps no float32 gradients in "
            "DeepSpeed; use stage 1, 2 or 3"
        )
    if train.compile and train.zero_stage == 3:
        problems.append(
            "train.compile: not proven with train.zero_stage = 3, whose hooks lie inside the layers; set one of them to auto or off"
        )
    if train.compile and train.activation_checkpointing == "selective":
        problems.append(
            "train.compile: compiled layers are not checkpointed selectively; set activation_checkpointing to full or none"
        )
    if train.hostfile is not None and train.launcher != "deepspeed":
        problems.append("train.hostfile: only the deepspeed launcher reads it; set train.launcher to deepspeed")
    if train.hostfile is not None and not Path(train.hostfile).is_file():
        problems.append(f"train.hostfile: no such file (value: {train.hostfile!r}); DeepSpeed would silently run on this node only")
    if train.live.early_stopping is not None and train.live.every == 0:
        problems.append("train.live.early_stopping: needs measurements; set train.live.every to auto or a number of steps")
    if construct.questions == "free" and not config.probe.free.ask:
        problems.append("construct.questions: free needs probe.free.ask, which probes the free questions")
    reliability = config.probe.reliability
    if reliability.decide_by == "average" and reliability.permutations == "none" and reliability.demonstration_draws == 1:
        problems.append(
            "probe.reliability.decide_by: average needs several views; set permutations to circular or sampled, or "
            "demonstration_draws above 1"
        )
    if reliability.decide_by == "debiased" and reliability.prior_share == 0:
        problems.append("probe.reliability.decide_by: debiased needs prior_share above 0")
    if reliability.grades and reliability.demonstration_draws == 1:
        problems.append("probe.reliability.grades: needs demonstration_draws above 1 (SliCK uses 10)")
    if construct.general.path is None and construct.general.share > 0:
        problems.append("construct.general.share: must be 0 where construct.general.path is null")
    for key in ("seeds", "settings", "domains"):
        values = getattr(construct, key) or []
        if len(set(values)) < len(values):
            problems.append(f"construct.{key}: a value stands twice (value: {values}); name each once")
    if not any(_is_pool(source) for source in config.questions.sources):
        problems.append(
            "questions.sources: none of them is a pool to train on; add one that is, such as a world, paper or huggingface source"
        )
    return problems


def collection_of(source: Source) -> Collection:
    """What a source's questions are for. Where a dataset has no train split, or free questions only, it is a benchmark."""
    chosen: Collection | None = getattr(source, "collection", None)
    return chosen or ("benchmark" if source.kind in ("mmlu", "truthfulqa", "popqa") else "pool")


def _is_pool(source: Source) -> bool:
    """Whether there is something to train on: sets are built of choice questions."""
    is_free = source.kind in ("popqa", "entity_questions") or (isinstance(source, HubSource) and source.fields.aliases is not None)
    return collection_of(source) == "pool" and not is_free


def resolved_yaml(config: Config) -> str:
    """Every setting with its value in force, as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
