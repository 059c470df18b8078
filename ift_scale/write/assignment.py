"""Assigns texts to writers: the configured ones, or the questions' own explanations."""

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
from ift_scale.write.needs import Need, Role, requirements, roles
from ift_scale.write.pool import TextJob, failures
from ift_scale.write.prompts import TopicDemonstrations, prompt

# Besides the engines' OPERATION settings. A model's path is replaced by its digest, an input.
_OPERATION = OPERATION | {"concurrency", "timeout", "max_retries", "api_key_variable", "path"}


def settings_of(config: Config) -> Any:
    """Returns the settings that the texts depend on, or None if no text is needed."""
    required = requirements(config)
    if not required:
        return None
    checks = config.write.model_dump(exclude={"external", "own", "contexts", "paraphrases"})
    writers = {
        role: writer_of(config, role).model_dump(exclude=_OPERATION)
        for role in sorted(roles(required))
    }
    construct = config.construct
    return [
        checks,
        writers,
        required,
        construct.domains,
        construct.questions,
        construct.confidence_threshold,
        config.model.dtype,
    ]


def model_digests(config: Config, base_digest: str) -> dict[str, str]:
    """Returns the digests of the model folders that may write, by role."""
    digests: dict[str, str] = {}
    for role in sorted(roles(requirements(config))):
        writer = writer_of(config, role)
        if writer.kind == "base_model":
            digests[role] = base_digest
        elif writer.kind == "model":
            digests[role] = folder_digest(folder_of(writer, role))
    return digests


def writer_of(config: Config, role: Role) -> WriterConfig:
    """Returns the configured writer of a role."""
    writer: WriterConfig = getattr(config.write, role)
    return writer


def folder_of(writer: WriterConfig, role: Role) -> Path:
    """Returns the model folder of a writer; DataError if it is incomplete."""
    assert writer.path is not None  # checked with the configuration
    return model_folder.resolve(writer.path, f"write.{role}.path", trained=False)


def assign(
    config: Config,
    inputs: dict[str, str],
    needed: Sequence[Need],
    by_id: Mapping[str, Question],
    shown: TopicDemonstrations,
) -> tuple[dict[Need, Text], dict[Role, list[TextJob]]]:
    """Returns the texts that the questions contain, and the jobs left to write, by role.

    Raises DataError if a role's texts must come from the questions and some do not have them.
    """
    texts: dict[Need, Text] = {}
    jobs: dict[Role, list[TextJob]] = {}
    missing: Counter[Role] = Counter()
    for need in needed:
        question, writer = by_id[need.question_id], writer_of(config, need.role)
        own = _own_text(config, question, need)
        if own is not None and (not own.failed or writer.kind == "dataset"):
            texts[need] = own
        elif writer.kind == "dataset":
            missing[need.role] += 1
        else:
            jobs.setdefault(need.role, []).append(_job(config, inputs, need, question, shown))
    for role, count in missing.items():
        raise _missing(role, count, sum(need.role == role for need in needed))
    return texts, jobs


def _own_text(config: Config, question: Question, need: Need) -> Text | None:
    """Returns the question's own explanation if it is the text that is needed."""
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
    config: Config,
    inputs: dict[str, str],
    need: Need,
    question: Question,
    shown: TopicDemonstrations,
) -> TextJob:
    writer = writer_of(config, need.role)
    sampling = [writer.temperature, writer.top_p, writer.max_tokens, config.write.seed]
    if writer.kind == "endpoint":
        who: list[Any] = [writer.base_url, writer.model]
    else:
        on_gpu, is_base = has_gpu(), writer.kind == "base_model"
        who = [
            inputs[need.role],
            resolved_engine(
                writer.engine,
                on_gpu,
                config.model.path if is_base else writer.path or "",
                is_base and config.model.trust_remote_code,
            ),
            resolved_dtype(config.model.dtype, on_gpu),
        ]
    written_prompt = prompt(question, need.kind, need.target, writer.style, shown.of(question))
    author = "base_model" if need.role == "own" or writer.kind == "base_model" else "external"
    if need.role == "external":
        author = "external"  # whoever writes it: the sets H and I use these texts
    return TextJob(need, question, author, written_prompt, [who, sampling])


def _missing(role: Role, count: int, needed: int) -> DataError:
    remedy = f"Set write.{role}.kind to base_model, model or endpoint"
    if role == "external":
        remedy += ", construct.matching.author to base_model, or construct.response to"
        remedy += " letter_text, which needs none"
    return DataError(
        Place(f"write.{role}.kind"),
        f"is dataset, but {count:,} of {needed:,} needed texts are missing: their questions have no"
        " explanation, or one of another option",
        remedy,
    )
