"""The construct stage: probe scores in, one chat-format JSON lines file an arm out."""

import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ift_scale import artifacts
from ift_scale.config import Config
from ift_scale.construct import general, select
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.inference.prompts import chat_messages, gold_text, response_text
from ift_scale.inference.question_file import GroupKey
from ift_scale.knowledge import Knowledge, sort_by_knowledge
from ift_scale.records import LETTERS, Arm, Example, ExampleMeta, Message, Question, Score

VERSION = 1


def arms_of(config: Config, groups: Iterable[GroupKey]) -> list[Arm]:
    """The arms that the configuration asks for; DataError for a domain that no pool has."""
    kind = config.construct.questions
    known = list(dict.fromkeys(g.domain for g in groups if (g.collection, g.split, g.kind) == ("pool", "train", kind)))
    domains = config.construct.domains or known
    for domain in domains:
        if domain not in known:
            raise DataError(Place("construct.domains"), "no source has train questions of it", did_you_mean(domain, known), domain)
    return [
        Arm(domain=domain, setting=setting, seed=seed)
        for domain in domains
        for setting in config.construct.settings
        for seed in config.construct.seeds
    ]


def example(question: Question, score: Score, setting: str, style: str) -> Example:
    """One question as a training example of a setting; of a free question the response is an alias, or the model's own words."""
    letter = None
    if question.kind == "free":
        response = gold_text(question)
        if setting == "self_aligning":
            assert score.response  # an empty answer has no confidence
            response = score.response
    else:
        chosen = select.target(question, score, setting)
        response, letter = response_text(question, chosen, style), LETTERS[chosen]
    meta = ExampleMeta(
        setting=setting,
        question_id=question.id,
        domain=question.domain,
        target=letter,
        wording="base_model" if setting == "self_aligning" else "dataset",
    )
    return Example(messages=[*chat_messages(question), Message(role="assistant", content=response)], meta=meta)


def run(
    config: Config,
    folder: Path,
    key: str,
    inputs: dict[str, str],
    arms: list[Arm],
    pool: list[Question],
    by_score: dict[str, Score],
) -> None:
    """Write FOLDER/ARM.jsonl for every arm from the pools' train questions, and what went into them to the manifest's counts."""
    started = time.monotonic()
    settings = config.construct
    by_id = {question.id: question for question in pool if question.kind == settings.questions}
    general_path = general.path_of(settings.general)
    general_rows = general.load(general_path) if general_path else []
    counts: dict[str, float] = {}
    with artifacts.atomic_folder(folder) as temporary:
        for domain in dict.fromkeys(arm.domain for arm in arms):
            scores = [by_score[question.id] for question in by_id.values() if question.domain == domain]
            knowledge = sort_by_knowledge(scores, settings.confidence_threshold)
            size = select.set_size(domain, knowledge, settings.settings, settings.size)
            counts.update(_domain_counts(domain, knowledge, size))
            for arm in (arm for arm in arms if arm.domain == domain):
                ids = select.draw(knowledge, arm.setting, size, domain, arm.seed)
                examples = [example(by_id[id], by_score[id], arm.setting, settings.response) for id in ids]
                counts.update(_letter_counts(arm, examples))
                if general_path:
                    examples += general.draw(general_rows, size, settings.general.share, domain, arm.seed, general_path)
                random.Random(f"order/{arm.name}").shuffle(examples)
                artifacts.write_jsonl(temporary / f"{arm.name}.jsonl", examples)
        seconds = {"total": time.monotonic() - started}
        artifacts.write_manifest(temporary, "construct", key, settings.model_dump(), inputs, counts, seconds)


def _domain_counts(domain: str, knowledge: Knowledge, size: int) -> dict[str, float]:
    return {
        f"{domain}/known_right": len(knowledge.right),
        f"{domain}/known_wrong": len(knowledge.wrong),
        f"{domain}/uncertain": len(knowledge.uncertain),
        f"{domain}/near_threshold": knowledge.near_threshold,
        f"{domain}/set_size": size,
    }


def _letter_counts(arm: Arm, examples: list[Example]) -> dict[str, float]:
    letters: Counter[Any] = Counter(e.meta.target for e in examples if e.meta.target)
    return {f"{arm.name}/target_{letter}": count for letter, count in sorted(letters.items())}
