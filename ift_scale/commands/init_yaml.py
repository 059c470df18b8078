"""The configuration that `ift-scale init` writes: short, with a comment at each setting."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][\w./-]*")
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Described:
    """What the configuration is made of. `about_model` and `about_sources` become comments."""

    file: str
    output_dir: str
    model: str
    sources: Sequence[Settings]
    general: str | None
    num_ranks: int
    batch: int = 256
    about_model: str = ""
    about_sources: Sequence[str] = ()
    about_general: str = ""

    @property
    def has_free(self) -> bool:
        """True if a source has free questions, which are asked by setting only."""
        return any(
            source["kind"] in ("popqa", "entity_questions") or "aliases" in source.get("fields", {})
            for source in self.sources
        )

    def settings(self) -> dict[str, Any]:
        """The settings of `text`, as the file is read back."""
        asked: dict[str, Any] = {}
        if self.has_free:
            asked = {"probe": {"free": {"ask": True}}, "evaluate": {"generate": True}}
        return {
            "output_dir": self.output_dir,
            "model": {"path": self.model},
            "questions": {"sources": [dict(source) for source in self.sources]},
            "construct": {
                "settings": ["harmonious", "incompatible", "self_aligning"],
                "seeds": [0, 1, 2],
                "confidence_threshold": 0.5,
                "general": {"path": self.general} | ({} if self.general else {"share": 0.0}),
            },
            "train": {
                "num_ranks": self.num_ranks,
                "epochs": 3,
                "global_batch_size": self.batch,
                "learning_rate": 2e-5,
            },
        } | asked

    def text(self) -> str:
        """The file's content."""
        pairs = zip(self.sources, self.about_sources, strict=True)
        return _TEMPLATE.format(
            file=self.file,
            output_dir=yaml_value(self.output_dir),
            about_model=self.about_model,
            model=yaml_value(self.model),
            sources="\n".join(line for source, about in pairs for line in _source(source, about)),
            free=_FREE if self.has_free else "",
            about_general=self.about_general,
            general=yaml_value(self.general) if self.general else "null\n    share: 0.0",
            num_ranks=self.num_ranks,
            batch=self.batch,
        )


_TEMPLATE = """\
# Written by `ift-scale init`. A setting that is left out has its default: config.yaml in the
# run's folder will list all of them. Relative paths start at the folder in which you run
#   ift-scale run {file}

# The run's folder: every stage writes into a folder below it.
output_dir: {output_dir}

model:
  # The base model: {about_model}.
  path: {model}

questions:
  sources:  # docs/questions.md
{sources}
{free}
construct:
  # One arm for each setting, domain and seed. docs/sets.md lists more settings, such as the
  # paper's fourth, contextualized.
  settings: [harmonious, incompatible, self_aligning]
  # The paper has one seed; findings are judged with several.
  seeds: [0, 1, 2]
  # A prediction counts as the model's knowledge if its probability is above this.
  confidence_threshold: 0.5
  general:
    # {about_general}
    path: {general}

train:
  # Processes that train together, one per GPU. The ZeRO stage, offload and activation
  # checkpointing follow from the model and the memory (docs/memory.md).
  num_ranks: {num_ranks}
  epochs: 3
  # Examples per optimizer step, at most as many as a set has: the paper's 256, or fewer for a
  # small pool.
  global_batch_size: {batch}
  # The paper's, for models of 7 billion parameters and more.
  learning_rate: 2.0e-5
"""
_FREE = """
# Free questions have no options: answers are generated before and after training.
probe:
  free:
    ask: true
evaluate:
  generate: true
"""


_OF_SUBJECTS = ("To ask only a sample of each subject", "max_per_subject: 20")
_OF_POOLS = ("To train on a sample of the questions", "max_train: 4000")
_HINTS = dict.fromkeys(("mmlu", "ceval", "cmmlu", "entity_questions"), _OF_SUBJECTS)
_HINTS |= dict.fromkeys(("paper", "medmcqa", "medqa", "arc", "huggingface"), _OF_POOLS)
_HINTS["xiezhi"] = ("To use only the rows with one of these labels", "labels: [History]")
"""Of each kind of source: a setting that many runs need, as a comment to be switched on."""


def _source(source: Settings, about: str) -> Iterator[str]:
    yield f"    # {about}"
    for number, (key, value) in enumerate(source.items()):
        yield f"    {'-' if number == 0 else ' '} {key}: {yaml_value(value)}"
    hint = _HINTS.get(source["kind"])
    if hint is not None and "collection" not in source:
        yield f"      # {hint[0]}:"
        yield f"      # {hint[1]}"


def yaml_value(value: Any) -> str:
    """A value in YAML on one line. A text is quoted if it could be read as something else."""
    if isinstance(value, str):
        is_plain = _PLAIN.fullmatch(value) and yaml.safe_load(value) == value
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    return json.dumps(value)
