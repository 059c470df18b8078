"""Settings: strict and typed; a docstring under each field says what it does. `config_file` reads them."""

import warnings
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from ift_scale.config.cluster import ClusterConfig
from ift_scale.config.construct import (
    ConstructConfig,
    GeneralConfig,
    MatchingConfig,
    WriteConfig,
    WriterConfig,
    writing_problems,
)
from ift_scale.config.engines import (
    EngineConfig,
    EvaluateConfig,
    FreeConfig,
    ProbeConfig,
    ReliabilityConfig,
)
from ift_scale.config.questions import (
    AnswerForm,
    AuditConfig,
    DatasetSource,
    EntityQuestionsSource,
    HubFields,
    HubSource,
    MmluSource,
    PaperSource,
    QuestionsConfig,
    Source,
    SubjectSource,
    WorldSource,
    XiezhiSource,
    collection_of,
    group_of_source,
    is_pool,
)
from ift_scale.config.section import BUILTIN_MODEL, Section, Seed, Text
from ift_scale.config.train import (
    CheckpointConfig,
    EarlyStoppingConfig,
    LiveConfig,
    TrainConfig,
    precision_in_force,
)
from ift_scale.records import GRADES
from ift_scale.treatments import PAPER, buckets_of, treatment

__all__ = [
    "BUILTIN_MODEL",
    "AnalyseConfig",
    "AnswerForm",
    "AuditConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "ConstructConfig",
    "DatasetSource",
    "EarlyStoppingConfig",
    "EngineConfig",
    "EntityQuestionsSource",
    "EvaluateConfig",
    "FreeConfig",
    "GeneralConfig",
    "HubFields",
    "HubSource",
    "LiveConfig",
    "MatchingConfig",
    "MmluSource",
    "ModelConfig",
    "PaperSource",
    "ProbeConfig",
    "QuestionsConfig",
    "ReliabilityConfig",
    "Section",
    "Seed",
    "Source",
    "SubjectSource",
    "TrainConfig",
    "WorldSource",
    "WriteConfig",
    "WriterConfig",
    "XiezhiSource",
    "collection_of",
    "group_of_source",
    "impossible_combinations",
    "is_pool",
    "precision_in_force",
    "resolved_yaml",
]


class ModelConfig(Section):
    path: Text = BUILTIN_MODEL
    """The base model: a Hugging Face folder with safetensors weights, or `world` for the embedded one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the engines; `auto` is bfloat16 on a GPU and float32 on a CPU."""


class AnalyseConfig(Section):
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """Resamples of the correlations' permutation test; intervals need none."""
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    seed: Seed = 42


warnings.filterwarnings(
    "ignore", message='Field name "construct"'
)  # a deprecated method of pydantic has that name


class Config(Section):
    output_dir: Text
    """The run's folder; every stage writes below it."""
    model: ModelConfig = ModelConfig()
    questions: QuestionsConfig = QuestionsConfig()
    probe: ProbeConfig = ProbeConfig()
    write: WriteConfig = WriteConfig()
    construct: ConstructConfig = ConstructConfig()  # type: ignore[assignment]
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    analyse: AnalyseConfig = AnalyseConfig()
    cluster: ClusterConfig = ClusterConfig()


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
    elif train.compile and (isinstance(train.hpz, int) or train.offload == "all"):
        sharded = (
            f"train.hpz = {train.hpz}" if isinstance(train.hpz, int) else "train.offload = all"
        )
        problems.append(
            f"train.compile: not proven with ZeRO-3, which {sharded} needs; set that to auto, or compile to false"
        )
    if isinstance(train.hpz, int) and train.zero_stage not in ("auto", 3):
        problems.append(
            f"train.hpz: {train.hpz} needs ZeRO-3, where weights are sharded (train.zero_stage = {train.zero_stage}); "
            "set one of them to auto"
        )
    if isinstance(train.hpz, int) and train.offload == "all":
        problems.append(
            f"train.hpz: {train.hpz} keeps a second copy of the weights on the devices, and train.offload = all moves them to the "
            "host; set one of them to auto"
        )
    if train.compile and train.activation_checkpointing == "selective":
        problems.append(
            "train.compile: compiled layers are not checkpointed selectively; set activation_checkpointing to full or none"
        )
    if train.hostfile is not None and train.launcher != "deepspeed":
        problems.append(
            "train.hostfile: only the deepspeed launcher reads it; set train.launcher to deepspeed"
        )
    if train.hostfile is not None and not Path(train.hostfile).is_file():
        problems.append(
            f"train.hostfile: no such file (value: {train.hostfile!r}); DeepSpeed would silently run on this node only"
        )
    if train.live.early_stopping is not None and train.live.every == 0:
        problems.append(
            "train.live.early_stopping: needs measurements; set train.live.every to auto or a number of steps"
        )
    if construct.questions == "free" and not config.probe.free.ask:
        problems.append(
            "construct.questions: free needs probe.free.ask, which probes the free questions"
        )
    problems += writing_problems(config.write, construct)
    reliability = config.probe.reliability
    if (
        reliability.decide_by == "average"
        and reliability.permutations == "none"
        and reliability.demonstration_draws == 1
    ):
        problems.append(
            "probe.reliability.decide_by: average needs several views; set permutations to circular or sampled, or "
            "demonstration_draws above 1"
        )
    if reliability.decide_by == "debiased" and reliability.prior_share == 0:
        problems.append("probe.reliability.decide_by: debiased needs prior_share above 0")
    if reliability.grades and reliability.demonstration_draws == 1:
        problems.append(
            "probe.reliability.grades: needs demonstration_draws above 1 (SliCK uses 10)"
        )
    if construct.general.path is None and construct.general.share > 0:
        problems.append("construct.general.share: must be 0 where construct.general.path is null")
    problems += _impossible_sets(config)
    for key in ("seeds", "settings", "domains", "consistency_ratios", "unknown_ratios"):
        values = getattr(construct, key) or []
        if len(set(values)) < len(values):
            problems.append(
                f"construct.{key}: a value stands twice (value: {values}); name each once"
            )
    for number, source in enumerate(config.questions.sources):
        if group_of_source(source) is not None and collection_of(source) == "pool":
            problems.append(
                f"questions.sources.{number}.group: a pool's test is always HOMO; leave it out, or set collection to benchmark"
            )
    if not any(is_pool(source) for source in config.questions.sources):
        problems.append(
            "questions.sources: none of them is a pool to train on; add one that is, such as a world, paper or huggingface source"
        )
    return problems


def _impossible_sets(config: Config) -> list[str]:
    construct, problems = config.construct, []
    settings, matching = construct.all_settings(), construct.matching
    explained = construct.response == "letter_text_explanation"
    if any(treatment(s).bucket in GRADES for s in settings) and not config.probe.reliability.grades:
        problems.append(
            "construct.settings: sets by grade need probe.reliability.grades, which grades the questions"
        )
    if "self_distilled" in settings and not explained:
        problems.append(
            "construct.settings: self_distilled needs construct.response = letter_text_explanation: else there are no words"
        )
    if matching.author != "paper" and not explained:
        problems.append(
            "construct.matching.author: needs construct.response = letter_text_explanation: else there are no words"
        )
    if matching.letters == "reorder" and explained:
        problems.append(
            "construct.matching.letters: reorder moves options whose old letters the explanations name; set it to selection, or "
            "construct.response to letter_text"
        )
    drawn = {bucket for setting in settings for bucket in buckets_of(setting)}
    if matching.by_selection and not {"right", "wrong"} <= drawn:
        problems.append(
            "construct.matching: selection makes sets of known right and known wrong questions alike; ask for both kinds"
        )
    if construct.questions == "free":
        if explained or construct.response == "letter":
            problems.append(
                "construct.response: a free question has neither letters nor explanations; leave it out"
            )
        if matching.letters != "none":
            problems.append(
                "construct.matching.letters: a free question has no letters; set it to none"
            )
        if (
            any(treatment(s).bucket in GRADES for s in settings)
            and config.probe.reliability.demonstration_draws == 1
        ):
            problems.append(
                "construct.settings: grades of free questions need probe.reliability.demonstration_draws above 1"
            )
    if construct.official is not None:
        strange = [setting for setting in settings if setting not in PAPER]
        changes = {"size": construct.size is not None, "matching": matching != MatchingConfig()}
        changes |= {
            "across_domains": construct.across_domains,
            f"the settings {', '.join(strange)}": bool(strange),
        }
        if any(changes.values()):
            named = ", ".join(name for name, is_set in changes.items() if is_set)
            problems.append(
                f"construct.official: the authors' sets are taken as they are; remove {named}"
            )
    for key, writer in (
        ("external", config.write.external),
        ("own", config.write.own),
        ("contexts", config.write.contexts),
    ):
        wanted = {"model": ["path"], "endpoint": ["base_url", "model"]}.get(writer.kind, [])
        problems += [
            f"write.{key}.{name}: missing; a writer of kind {writer.kind} needs it"
            for name in wanted
            if not getattr(writer, name)
        ]
    if config.write.own.kind == "dataset":
        problems.append(
            "write.own.kind: a dataset has no explanations of the model's own answers; set it to base_model"
        )
    return problems


def resolved_yaml(config: Config) -> str:
    """Every setting with its value in force, as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
