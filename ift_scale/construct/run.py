"""The construct stage: probe scores and written texts in, one chat-format JSON lines file an arm out, and how the sets differ.

FOLDER/ARM.jsonl; balance.csv; where asked for, sharegpt/ARM.json and huggingface/, a dataset folder.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ift_scale import draws
from ift_scale.config import Config, ConstructConfig
from ift_scale.construct import balance, export, general, official
from ift_scale.construct.arms import arms_of, released
from ift_scale.construct.domain import Domain
from ift_scale.construct.domain import load as domain_of
from ift_scale.errors import DataError, Place
from ift_scale.io.files import atomic_folder, write_jsonl
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.io.progress import Bar, say
from ift_scale.knowledge import smaller_than_batch
from ift_scale.prompts import texts as text_file
from ift_scale.prompts.texts import TextKey
from ift_scale.records import (
    BALANCE_FILE,
    PROBE_FILE,
    QUESTIONS_FILE,
    TEXTS_FILE,
    Arm,
    Example,
    Question,
    Score,
    Text,
)
from ift_scale.scoring.scores import train_scores
from ift_scale.stage import Context, Stage, Task


def usable(
    pool: Sequence[Question], texts: Mapping[TextKey, Text], config: Config
) -> list[Question]:
    """The questions that may go into sets: by default those with a text that failed its checks go into none, so that I and S keep
    the same questions."""
    failed = {
        text.question_id
        for text in texts.values()
        if text.failed and config.write.on_failure == "drop"
    }
    return [question for question in pool if question.id not in failed]


class ConstructStage(Stage):
    name = "construct"
    version = 4

    def arms(self, context: Context) -> list[Arm]:
        return arms_of(context.config, context.question_file().groups)

    def check(self, context: Context, finished: str | None) -> None:
        settings = context.config.construct
        path = general.path_of(settings.general)
        if finished is None and path is not None:
            general.load(path)
        if finished == "questions" and settings.official is not None:
            released(settings, context.arms())

    def tasks(self, context: Context) -> list[Task]:
        config = context.config
        inputs = {"questions": context.digest("questions", QUESTIONS_FILE)}
        official_folder = config.construct.official
        if official_folder is None:
            inputs["probe"] = context.digest("probe", PROBE_FILE)
            inputs["texts"] = context.digest("write", TEXTS_FILE)
        path = general.path_of(config.construct.general)
        if path is not None and path.is_file():
            inputs["general"] = file_digest(path)
        if official_folder is not None and Path(official_folder).is_dir():
            files = sorted(file for file in Path(official_folder).rglob("*") if file.is_file())
            inputs["official"] = digest_of([file_digest(file) for file in files])
        keeps_failed = config.write.on_failure == "keep"  # the file of texts is the same
        settings = config.construct.model_dump()
        key = digest_of([self.version, settings, keeps_failed, inputs])
        return self.single(context, key, inputs)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        if context.config.construct.official is not None:
            build(context.config, pending[0], context.arms(), [], {}, {})
            return
        questions = context.question_file()
        pool = questions.read(
            questions.select(lambda group: group.collection == "pool" and group.split == "train")
        )
        scores = train_scores(context.folder("probe") / PROBE_FILE)
        written = text_file.read(context.folder("write") / TEXTS_FILE)
        build(context.config, pending[0], context.arms(), pool, scores, written)


def build(
    config: Config,
    task: Task,
    arms: list[Arm],
    pool: list[Question],
    by_score: dict[str, Score],
    texts: Mapping[TextKey, Text],
) -> None:
    """Write the sets of all arms from the pools' train questions, and what went into them to the manifest's counts.

    `pool`, `by_score` (by question id) and `texts` are empty for the authors' own sets, which need none of them.
    """
    started = time.monotonic()
    settings = config.construct
    whole = [question for question in pool if question.kind == settings.questions]
    pool = usable(whole, texts, config)
    num_failed = Counter(q.domain for q in whole)
    num_failed.subtract(q.domain for q in pool)
    general_path = general.path_of(settings.general)
    instructions = general.load(general_path) if general_path else {}
    counts: dict[str, float] = {}
    if settings.official:
        sets = released(settings, arms)
        make: Make = partial(_released, sets, settings)
        counts |= {
            f"{name}/set_size": len(next(iter(sets[name].values())))
            for name in dict.fromkeys(arm.domain for arm in arms)
        }
    else:
        names = dict.fromkeys(arm.domain for arm in arms if not arm.domains)
        domains = {
            name: domain_of(name, settings, pool, by_score, texts, num_failed[name])
            for name in names
        }
        make = partial(_built, domains, settings)
        for domain in domains.values():
            counts |= _domain_counts(domain)
    sizes: dict[str, int] = {}
    balances: list[dict[str, Any]] = []
    with atomic_folder(task.folder) as temporary:
        for place, seed in dict.fromkeys((arm.domain, arm.seed) for arm in arms):
            general_ids = general.shuffled(instructions, place, seed)
            found: dict[str, balance.Covariates] = {}
            before: dict[str, balance.Covariates] = {}
            for arm in (arm for arm in arms if (arm.domain, arm.seed) == (place, seed)):
                examples, found[arm.setting], before[arm.setting] = make(arm)
                counts |= _letter_counts(arm, examples)
                by_id = {str(example.meta.question_id): example for example in examples}
                if general_path:
                    chosen = general.draw(
                        general_ids, len(examples), settings.general.share, general_path
                    )
                    by_id |= {f"general/{id}": instructions[id] for id in chosen}
                examples = [by_id[id] for id in draws.shuffled(by_id, f"order/{arm.name}")]
                write_jsonl(temporary / f"{arm.name}.jsonl", examples)
                sizes[arm.name] = len(examples)
                if "sharegpt" in settings.export:
                    export.write_sharegpt(temporary / "sharegpt" / f"{arm.name}.json", examples)
            balances += balance.rows(place, seed, "before", before) + balance.rows(
                place, seed, "after", found
            )
        for text in smaller_than_batch(
            {arm: sizes[arm.name] for arm in arms}, config.train.global_batch_size
        ):
            say(f"construct: {text}")
        pd.DataFrame(balances).to_csv(temporary / BALANCE_FILE, index=False)
        if "huggingface" in settings.export:
            about = f"Base model: `{config.model.path}`. Confidence threshold {settings.confidence_threshold}."
            export.write_huggingface(temporary / "huggingface", temporary, arms, sizes, about)
        seconds = {"total": time.monotonic() - started}
        task.close(settings.model_dump(), counts, seconds, temporary)


Made = tuple[list[Example], balance.Covariates, balance.Covariates]
"""An arm's examples, their covariates, and the covariates of the set that would be without matching."""
Make = Callable[[Arm], Made]


def _built(domains: Mapping[str, Domain], config: ConstructConfig, arm: Arm) -> Made:
    """Of an arm across domains: as many questions as the smallest domain's own sets have, evenly from each (of matched sets, as
    nearly as their sizes allow)."""
    parts = [domains[name] for name in sorted(arm.own_domains)]
    total = min(part.size for part in parts)
    shares = [total // len(parts) + (place < total % len(parts)) for place in range(len(parts))]
    examples: list[Example] = []
    found, before = balance.Covariates(), balance.Covariates()
    for part, share in zip(parts, shares, strict=True):
        size = part.attainable(share) if arm.domains else share
        chosen = part.set_of(arm.setting, arm.seed, size)
        made = part.examples(arm.setting, chosen, part.letters(arm.setting, arm.seed, size))
        found = found + part.covariates(arm.setting, chosen, made, config.matching.author)
        plain = part.unmatched(arm.setting, arm.seed, size)
        before = before + part.covariates(
            arm.setting, plain, part.examples(arm.setting, plain, {}), "paper"
        )
        examples += made
    if not examples:
        remedy = "Take the setting out, or give the pool more train questions"
        raise DataError(Place(f"arm {arm.name}"), "no question is left in its set", remedy)
    return examples, found, before


def _released(sets: official.Sets, config: ConstructConfig, arm: Arm) -> Made:
    """The authors' set, whole; a seed draws its order and the general instructions."""
    # Not in the order of the file: sums of lengths and confidences would differ in their last digit.
    rows = sorted(sets[arm.domain][arm.setting], key=lambda row: row.question.id)
    examples = official.examples(rows, arm.setting, config.response)
    covariates = balance.Covariates(
        [str(example.meta.target) for example in examples],
        [example.meta.wording for example in examples],
        [row.score.confidence for row in rows],
        [sum(len(message.content) for message in example.messages) for example in examples],
    )
    return examples, covariates, covariates


def _domain_counts(domain: Domain) -> dict[str, float]:
    name, knowledge = domain.name, domain.knowledge
    counts: dict[str, float] = {
        f"{name}/known_right": len(knowledge.right),
        f"{name}/known_wrong": len(knowledge.wrong),
        f"{name}/uncertain": len(knowledge.uncertain),
        f"{name}/near_threshold": knowledge.near_threshold,
        f"{name}/set_size": domain.size,
    }
    return counts | {f"{name}/{grade}": len(ids) for grade, ids in knowledge.graded.items() if ids}


def _letter_counts(arm: Arm, examples: list[Example]) -> dict[str, float]:
    letters: Counter[Any] = Counter(e.meta.target for e in examples if e.meta.target)
    return {f"{arm.name}/target_{letter}": count for letter, count in sorted(letters.items())}


STAGE = ConstructStage()
