"""Who writes which text: the settings' writers, what the questions bring with them, and what is left to be written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ift_scale.config import Config, WriterConfig
from ift_scale.engines import model_folder
from ift_scale.engines.protocol import OPERATION, resolved_dtype, resolved_engine
from ift_scale.errors import DataError, Place
from ift_scale.io.manifests import folder_digest
from ift_scale.ranks.environment import has_gpu
from ift_scale.records import Question, Text
from ift_scale.write.crew import Job, failures
from ift_scale.write.needs import Need, Role, roles, wishes
from ift_scale.write.prompts import Shown, prompt

# Beside the engines' OPERATION; a model's path stands for its digest, which is an input.
_OPERATION = OPERATION | {"concurrency", "timeout", "max_retries", "api_key_variable", "path"}


def settings_of(config: Config) -> Any:
    """The settings that the texts depend on, None where none is needed."""
    asked = wishes(config.construct)
    if not asked:
        return None
    checks = config.write.model_dump(exclude={"external", "own", "contexts"})
    writers = {
        role: writer_of(config, role).model_dump(exclude=_OPERATION)
        for role in sorted(roles(asked))
    }
    construct = config.construct
    return [
        checks,
        writers,
        asked,
        construct.domains,
        construct.questions,
        construct.confidence_threshold,
        config.model.dtype,
    ]


def model_digests(config: Config, base_digest: str) -> dict[str, str]:
    """Of the model folders that may write, by role."""
    found: dict[str, str] = {}
    for role in sorted(roles(wishes(config.construct))):
        writer = writer_of(config, role)
        if writer.kind == "base_model":
            found[role] = base_digest
        elif writer.kind == "model":
            found[role] = folder_digest(folder_of(writer, role))
    return found


def writer_of(config: Config, role: Role) -> WriterConfig:
    writer: WriterConfig = getattr(config.write, role)
    return writer


def folder_of(writer: WriterConfig, role: Role) -> Path:
    assert writer.path is not None  # the configuration was checked
    return model_folder.resolve(writer.path, f"write.{role}.path")


def deal(
    config: Config,
    inputs: dict[str, str],
    wanted: Sequence[Need],
    by_id: Mapping[str, Question],
    shown: Shown,
) -> tuple[dict[Need, Text], dict[Role, list[Job]]]:
    """What the questions bring with them, and what is to be written, by who writes it."""
    found: dict[Need, Text] = {}
    jobs: dict[Role, list[Job]] = {}
    missing: Counter[Role] = Counter()
    for need in wanted:
        question, writer = by_id[need.question_id], writer_of(config, need.role)
        own = _own_text(config, question, need)
        if own is not None and (not own.failed or writer.kind == "dataset"):
            found[need] = own
        elif writer.kind == "dataset":
            missing[need.role] += 1
        else:
            jobs.setdefault(need.role, []).append(_job(config, inputs, need, question, shown))
    for role, count in missing.items():
        raise _missing(role, count, sum(need.role == role for need in wanted))
    return found, jobs


def _own_text(config: Config, question: Question, need: Need) -> Text | None:
    """The question's own explanation, where it is what is needed."""
    is_explanation = need.role == "external" and need.target == question.answer
    is_context = need.role == "contexts" and config.write.contexts.kind == "dataset"
    text = (question.explanation or "").strip()
    if not text or not (is_explanation or is_context):
        return None
    failed = failures(config.write, question, need, text)
    return Text(
        question_id=question.id,
        kind=need.kind,
        target=need.target,
        author="dataset",
        text=text,
        failed=failed,
    )


def _job(
    config: Config, inputs: dict[str, str], need: Need, question: Question, shown: Shown
) -> Job:
    writer = writer_of(config, need.role)
    sampling = [writer.temperature, writer.top_p, writer.max_tokens, config.write.seed]
    if writer.kind == "endpoint":
        who: list[Any] = [writer.base_url, writer.model]
    else:
        on_gpu = has_gpu()
        who = [
            inputs[need.role],
            resolved_engine(writer.engine, on_gpu),
            resolved_dtype(config.model.dtype, on_gpu),
        ]
    asked = prompt(question, need.kind, need.target, writer.style, shown.of(question))
    author = "base_model" if need.role == "own" or writer.kind == "base_model" else "external"
    if need.role == "external":
        author = "external"  # whoever it is: these are the texts that H and I are worded with
    return Job(need, question, author, asked, [who, sampling])


def _missing(role: Role, count: int, wanted: int) -> DataError:
    remedy = f"Set write.{role}.kind to base_model, model or endpoint"
    if role == "external":
        remedy += ", construct.matching.author to base_model, or construct.response to letter_text, which needs none"
    return DataError(
        Place(f"write.{role}.kind"),
        f"is dataset, and {count:,} of {wanted:,} needed texts are not there: their questions have no explanation, or one of "
        "another option than is to be explained",
        remedy,
    )
