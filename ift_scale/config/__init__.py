"""All settings of a run, strict and typed. The docstring under each field is its documentation.

`config.file` reads them from YAML.
"""

import warnings
from typing import Annotated, Literal

import yaml
from pydantic import Field

from ift_scale.config.cluster import ClusterConfig
from ift_scale.config.construct import (
    ConstructConfig,
    GeneralConfig,
    MatchingConfig,
    set_problems,
)
from ift_scale.config.engines import (
    EngineConfig,
    EvaluateConfig,
    FreeConfig,
    ProbeConfig,
    ReliabilityConfig,
    evaluate_problems,
    reliability_problems,
)
from ift_scale.config.hidden import HiddenConfig
from ift_scale.config.learnt import LearntConfig, learnt_problems
from ift_scale.config.questions import (
    AnswerForm,
    AuditConfig,
    DatasetSource,
    EntityQuestionsSource,
    FactsSource,
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
    source_problems,
)
from ift_scale.config.screen import ScreenConfig, screen_problems
from ift_scale.config.section import BUILTIN_MODEL, Section, Seed, Text
from ift_scale.config.train import (
    CheckpointConfig,
    EarlyStoppingConfig,
    KLConfig,
    KLTextConfig,
    LiveConfig,
    StoppingRule,
    TrainConfig,
    ValidationConfig,
    precision_in_force,
)
from ift_scale.config.train_checks import train_problems
from ift_scale.config.write import WriteConfig, WriterConfig, writer_problems

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
    "FactsSource",
    "FreeConfig",
    "GeneralConfig",
    "HiddenConfig",
    "HubFields",
    "HubSource",
    "KLConfig",
    "KLTextConfig",
    "LearntConfig",
    "LiveConfig",
    "MatchingConfig",
    "MmluSource",
    "ModelConfig",
    "PaperSource",
    "ProbeConfig",
    "QuestionsConfig",
    "ReliabilityConfig",
    "ScreenConfig",
    "Section",
    "Seed",
    "Source",
    "StoppingRule",
    "SubjectSource",
    "TrainConfig",
    "ValidationConfig",
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
    """The base model that is probed and trained."""

    path: Text = BUILTIN_MODEL
    """Hugging Face model folder with safetensors weights, or `world` for the built-in model."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of inference. `auto`: bfloat16 on a GPU, float32 on a CPU."""
    trust_remote_code: bool = False
    """Run the Python files of the model's folder (`auto_map` in its config.json). They can do
    anything that your account can do, so read them first."""


class AnalyseConfig(Section):
    """Statistics of the results."""

    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """Number of resamples of the correlations' permutation test. Intervals need none."""
    confidence_level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of the confidence intervals."""
    seed: Seed = 42
    """Seed of the resamples."""


# pydantic warns because one of its deprecated methods has this name.
warnings.filterwarnings("ignore", message='Field name "construct"')


class Config(Section):
    """A run: one section per stage."""

    output_dir: Text
    """Folder of the run. Every stage writes to a subfolder."""
    model: ModelConfig = ModelConfig()
    questions: QuestionsConfig = QuestionsConfig()
    probe: ProbeConfig = ProbeConfig()
    write: WriteConfig = WriteConfig()
    construct: ConstructConfig = ConstructConfig()  # type: ignore[assignment]
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    learnt: LearntConfig = LearntConfig()
    hidden: HiddenConfig = HiddenConfig()
    analyse: AnalyseConfig = AnalyseConfig()
    cluster: ClusterConfig = ClusterConfig()
    screen: ScreenConfig = ScreenConfig()


def impossible_combinations(config: Config) -> list[str]:
    """Returns one message per combination of valid settings that cannot work together."""
    return [
        *source_problems(config.questions, bool(config.construct.all_settings())),
        *reliability_problems(config.probe),
        *writer_problems(config.write),
        *set_problems(config.construct, config.probe),
        *learnt_problems(config.learnt, config.construct, config.probe),
        *train_problems(config.train),
        *evaluate_problems(config.evaluate),
        *screen_problems(config.screen),
    ]


def resolved_yaml(config: Config) -> str:
    """Returns every setting with its value as YAML that `config.file.load` reads back."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)
