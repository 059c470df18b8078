"""The construct stage: probe scores and written texts in, one chat-format JSONL file per arm out.

Writes FOLDER/ARM.jsonl and balance.csv; optionally sharegpt/ARM.json and the dataset folder
huggingface/.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ift_scale import draws
from ift_scale.config import Config
from ift_scale.config.construct import ConstructConfig
from ift_scale.construct import balance, export, general, official, own
from ift_scale.construct.arms import arms_of, released
from ift_scale.construct.domain import Domain
from ift_scale.construct.domain import load as domain_of
from ift_scale.construct.invented import invent
from ift_scale.construct.sizes import smaller
from ift_scale.errors import DataError, Place
from ift_scale.instructions.read import Skipped
from ift_scale.io.dataset import files_digest
from ift_scale.io.files import atomic_folder, write_jsonl
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.io.progress import Bar, say
from ift_scale.io.tables import write_csv
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
from ift_scale.treatments import dose_of, treatment


def usable(
    pool: Sequence[Question], texts: Mapping[TextKey, Text], config: Config
) -> list[Question]:
    """Returns the questions that may go into sets.

    With write.on_failure = drop, a question with a failed text goes into no set, so that I and S
    keep the same questions.
    """
    failed = {
        text.question_id
        for text in texts.values()
        if text.failed and config.write.on_failure == "drop"
    }
    return [question for question in pool if question.id not in failed]


class ConstructStage(Stage):
    name = "construct"
    reads = (
        f"questions/{QUESTIONS_FILE}",
        f"probe/{PROBE_FILE}",
        f"write/{TEXTS_FILE}",
    )
    version = 4

    def arms(self, context: Context) -> list[Arm]:
        has_questions = context.config.questions.sources
        return arms_of(context.config, context.question_file().groups if has_questions else [])

    def check(self, context: Context, finished: str | None) -> None:
        settings = context.config.construct
        path = general.path_of(settings.general)
        if finished is None:
            own.check(settings)
        if finished is None and path is not None and settings.all_settings():
            instructions = general.load(path)
            if settings.size is not None:
                general.draw(list(instructions), settings.size, settings.general.share, path)
        if finished == "questions" and settings.official is not None:
            released(settings, context.trained_arms())

    def tasks(self, context: Context) -> list[Task]:
        config = context.config
        inputs = own.input_digests(config.construct)
        if config.questions.sources:
            inputs["questions"] = context.digest("questions", QUESTIONS_FILE)
        official_folder = config.construct.official
        if official_folder is None and config.construct.all_settings():
            inputs["probe"] = context.digest("probe", PROBE_FILE)
            inputs["texts"] = context.digest("write", TEXTS_FILE)
        path = general.path_of(config.construct.general)
        if path is not None and path.exists():
            digest = file_digest(path) if path.is_file() else files_digest(str(path))
            inputs["general"] = str(digest)
        if official_folder is not None and Path(official_folder).is_dir():
            files = sorted(file for file in Path(official_folder).rglob("*") if file.is_file())
            inputs["official"] = digest_of([file_digest(file) for file in files])
        # These questions stay in the sets, but the file of texts is the same.
        keeps_failed = config.write.on_failure == "keep"
        settings = config.construct.settings_of_result()
        key = digest_of([self.version, settings, keeps_failed, inputs])
        return self.single(context, key, inputs)

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        settings = context.config.construct
        if settings.official is not None or not settings.all_settings():
            build(context.config, pending[0], context.trained_arms(), [], {}, {})
            return
        questions = context.question_file()
        pool = questions.read(
            questions.select(lambda group: group.collection == "pool" and group.split == "train")
        )
        scores = train_scores(context.folder("probe") / PROBE_FILE)
        written = text_file.read(context.folder("write") / TEXTS_FILE)
        invented = {}
        if "format_only" in settings.all_settings():
            invented = invent(pool, questions.read(questions.select(lambda group: True)))
        arms = context.trained_arms()
        build(context.config, pending[0], arms, pool, scores, written, invented)


def build(
    config: Config,
    task: Task,
    arms: list[Arm],
    pool: list[Question],
    by_score: dict[str, Score],
    texts: Mapping[TextKey, Text],
    invented: Mapping[str, Question] | None = None,
) -> None:
    """Writes the sets of all arms, balance.csv and the exports; closes the task with counts.

    `pool` (the pools' train questions), `by_score` (by question id) and `texts` are empty for
    released and users' own sets, which need none of them. `invented`: the questions of format_only.
    """
    started = time.monotonic()
    settings, all_arms = config.construct, arms
    arms = [arm for arm in arms if own.set_of(arm, settings) is None]
    general_path = general.path_of(settings.general) if arms else None
    report = Skipped()
    instructions = general.load(general_path, report) if general_path else {}
    if report.ignored:
        say(f"construct: general: {report.summary(str(general_path))}")
    limit = _general_limit(config, len(instructions)) if general_path else None
    make, counts = _maker(config, arms, pool, by_score, texts, limit, invented)
    sizes: dict[str, int] = {}
    balances: list[dict[str, Any]] = []
    with atomic_folder(task.folder) as temporary:
        for domain, seed in dict.fromkeys((arm.domain, arm.seed) for arm in arms):
            general_ids = general.shuffled(instructions, domain, seed)
            after: dict[str, balance.Covariates] = {}
            before: dict[str, balance.Covariates] = {}
            for arm in (arm for arm in arms if (arm.domain, arm.seed) == (domain, seed)):
                examples, size, matched, unmatched = make(arm)
                dose = dose_of(arm.setting)
                if examples and dose.size is None:
                    after[arm.setting], before[arm.setting] = matched, unmatched
                counts |= _letter_counts(arm, examples)
                by_id = {str(example.meta.question_id): example for example in examples}
                if general_path:
                    share = settings.general.share
                    chosen = general.draw(general_ids, size, share, general_path)
                    by_id |= {f"general/{id}": instructions[id] for id in chosen}
                # In the order of the whole set, so that a smaller one is a part of it.
                whole = arm.model_copy(update={"setting": dose.of})
                examples = [by_id[id] for id in draws.shuffled(by_id, f"order/{whole.name}")]
                write_jsonl(temporary / f"{arm.name}.jsonl", examples)
                sizes[arm.name] = len(examples)
            balances += balance.rows(domain, seed, "before", before)
            balances += balance.rows(domain, seed, "after", after)
        for data in settings.sets:
            its_arms = [arm for arm in all_arms if own.set_of(arm, settings) is data]
            size = own.write(data, its_arms, temporary)
            sizes |= {arm.name: size for arm in its_arms}
            counts[f"{data.label}/examples"] = size
        by_arm = {arm: sizes[arm.name] for arm in all_arms}
        for text in smaller_than_batch(by_arm, config.train.global_batch_size):
            say(f"construct: {text}")
        table = pd.DataFrame(balances, columns=balance.COLUMNS)
        write_csv(table, temporary / BALANCE_FILE)
        for name in sizes if "sharegpt" in settings.export else ():
            export.write_sharegpt(
                temporary / "sharegpt" / f"{name}.json", temporary / f"{name}.jsonl"
            )
        if "huggingface" in settings.export:
            about = (
                f"Base model: `{config.model.path}`. "
                f"Confidence threshold {settings.confidence_threshold}."
            )
            export.write_huggingface(temporary / "huggingface", temporary, all_arms, sizes, about)
        seconds = {"total": time.monotonic() - started}
        task.close(settings.settings_of_result(), counts, seconds, temporary)


Made = tuple[list[Example], int, balance.Covariates, balance.Covariates]
"""An arm's examples, the number of questions that general instructions are added for, the examples'
covariates, and those of the set without matching."""
Make = Callable[[Arm], Made]


def _maker(
    config: Config,
    arms: list[Arm],
    pool: list[Question],
    by_score: dict[str, Score],
    texts: Mapping[TextKey, Text],
    limit: int | None,
    invented: Mapping[str, Question] | None,
) -> tuple[Make, dict[str, float]]:
    """Returns the function that builds an arm's set, and the manifest's counts by domain.

    `limit`: at most so many questions in a set.
    """
    settings = config.construct
    if settings.official:
        sets = released(settings, arms)
        domains_of_arms = dict.fromkeys(arm.domain for arm in arms)
        counts: dict[str, float] = {
            f"{name}/set_size": len(next(iter(sets[name].values()))) for name in domains_of_arms
        }
        return partial(_released, sets, settings), counts
    of_kind = [question for question in pool if question.kind == settings.questions]
    kept = usable(of_kind, texts, config)
    num_failed = Counter(q.domain for q in of_kind)
    num_failed.subtract(q.domain for q in kept)
    domains = {
        name: domain_of(name, settings, kept, by_score, texts, num_failed[name], limit, invented)
        for name in dict.fromkeys(arm.domain for arm in arms if not arm.domains)
    }
    counts = {}
    for domain in domains.values():
        counts |= _domain_counts(domain)
        if domain.size == limit:
            say(
                f"construct: {domain.name}: {limit} questions per set, as many as the general "
                f"instructions suffice for; set construct.general to a larger file or to null"
            )
    return partial(_built, domains, settings), counts


def _general_limit(config: Config, num_instructions: int) -> int | None:
    """The largest set that the general instructions suffice for, if no size is set."""
    settings = config.construct
    if settings.size is not None or settings.official or not settings.general.share:
        return None
    return general.max_set_size(num_instructions, settings.general.share)


def _built(domains: Mapping[str, Domain], config: ConstructConfig, arm: Arm) -> Made:
    """Builds the set of an arm from the domains' questions.

    An arm across domains has as many questions as the smallest domain's own sets, distributed
    evenly over the domains (for matched sets, as evenly as the attainable sizes allow). A smaller
    set (`construct.sizes`) has its share of each domain's part. Raises DataError if it is not
    smaller.
    """
    dose = dose_of(arm.setting)
    parts = [domains[name] for name in sorted(arm.own_domains)]
    total = min(part.size for part in parts)
    if dose.size is not None and dose.size >= total:
        problem = f"is not below the {total} questions of a whole set of {arm.domain}"
        place = Place("construct.sizes")
        raise DataError(place, problem, "Remove it, or choose a smaller one", dose.size)
    shares = [total // len(parts) + (index < total % len(parts)) for index in range(len(parts))]
    examples: list[Example] = []
    after, before = balance.Covariates(), balance.Covariates()
    for part, share in zip(parts, shares, strict=True):
        size = part.attainable(share) if arm.domains else share
        chosen = part.set_of(dose.of, arm.seed, size)
        made = part.examples(dose.of, chosen, part.letters(dose.of, arm.seed, size))
        after = after + part.covariates(dose.of, chosen, made, config.matching.author)
        plain = part.unmatched(dose.of, arm.seed, size)
        before = before + part.covariates(
            dose.of, plain, part.examples(dose.of, plain, {}), "paper"
        )
        examples += smaller(made, dose.size, total)
    if not treatment(dose.of).questions:
        return [], dose.size or total, after, before
    if not examples:
        remedy = "Remove the setting, or add train questions to the pool"
        raise DataError(Place(f"arm {arm.name}"), "its set has no questions", remedy)
    return examples, len(examples), after, before


def _released(sets: official.Sets, config: ConstructConfig, arm: Arm) -> Made:
    """Returns the whole released set; the seed affects its order and the general instructions."""
    # Sorted by id: with the file's order, sums of lengths and confidences would differ in the last
    # digit.
    rows = sorted(sets[arm.domain][arm.setting], key=lambda row: row.question.id)
    assert config.response != "text"  # refused with the configuration
    examples = official.examples(rows, arm.setting, config.response)
    covariates = balance.Covariates(
        [str(example.meta.target) for example in examples],
        [example.meta.wording for example in examples],
        [row.score.confidence for row in rows],
        [sum(len(message.content) for message in example.messages) for example in examples],
    )
    return examples, len(examples), covariates, covariates


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
