"""Prepares the validation examples of the arms before the ranks start.

In: the arms' sets, and the validation file if one is set. Out: for each arm, the token file, the
numbers of the examples to measure, and a schedule.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ift_scale.config import Config
from ift_scale.config.instructions import InstructionSource
from ift_scale.config.train import TrainConfig
from ift_scale.errors import ConfigError, DataError, Place
from ift_scale.instructions.conversation import Conversation
from ift_scale.instructions.read import Skipped, read
from ift_scale.io.files import atomic_path, write_jsonl
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example, ExampleMeta
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.cache import tokenized
from ift_scale.train.job import ArmJob, ValidationJob, trained_lengths
from ift_scale.train.measurement import schedule
from ift_scale.train.model.path import TrainingPath
from ift_scale.train.validation import split

_META = ExampleMeta(setting="validation", wording="general")


def check_path(path: TrainingPath, train: TrainConfig) -> None:
    """Raises ConfigError if validation is on and the training path cannot evaluate the model."""
    if train.validation.is_on and not path.evaluates:
        reason = (
            "the model's evaluation mode changes its weights, or its logits on the training path"
        )
        raise ConfigError("settings", [f"train.validation: no validation loss: {reason}"])


def held_out_file(set_path: Path, cache: Path, share: float) -> Path:
    """Returns a file with the numbers of the set's examples that are held out."""
    digest = digest_of([split.DRAW, file_digest(set_path), share])
    path = cache / f"held-out-{digest[:16]}.npy"
    if not path.is_file():
        numbers = split.held_out(set_path, share)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.save(file, numbers)
    return path


def with_validation(
    arms: Sequence[ArmJob],
    config: Config,
    cache: Path,
    tokenizer: PromptTokenizer,
    hidden_size: int,
) -> list[ArmJob]:
    """Returns the arms with their validation, if it is on, and prints a line per schedule.

    `cache`: folder of the token files. Raises DataError if a share leaves no example to measure or
    fewer to train on than an optimizer step takes, if the file has no example, or if an example of
    the file is also in a set.
    """
    validation = config.train.validation
    if validation.share is not None:
        jobs = [_from_share(arm, validation.share, cache) for arm in arms]
    elif validation.path is not None:
        jobs = _from_file(arms, Path(validation.path), config, cache, tokenizer)
    else:
        for arm in arms:
            dataset.check_enough(len(trained_lengths(arm)), 0, Path(arm.source), config.train)
        return list(arms)
    lines: dict[str, None] = {}  # ordered, without duplicates
    done = []
    for arm, job in zip(arms, jobs, strict=True):
        scheduled, line = _scheduled(
            arm.model_copy(update={"validation": job}), job, config.train, hidden_size
        )
        lines[line] = None
        done.append(arm.model_copy(update={"validation": scheduled}))
    for line in lines:
        say(f"train: {line}")
    return done


def _from_share(arm: ArmJob, share: float, cache: Path) -> ValidationJob:
    held_out = held_out_file(Path(arm.source), cache, share)
    # Both names are digests of everything that their contents depend on.
    digest = digest_of([Path(arm.tokens).name, held_out.name])
    return ValidationJob(tokens=arm.tokens, held_out=str(held_out), every=1, digest=digest)


def _from_file(
    arms: Sequence[ArmJob],
    path: Path,
    config: Config,
    cache: Path,
    tokenizer: PromptTokenizer,
) -> list[ValidationJob]:
    report = Skipped()
    examples = list(read(InstructionSource(path=str(path)), report))
    say(f"train: validation file {report.summary(str(path))}")
    for set_path in _distinct([Path(arm.source) for arm in arms]):
        _check_overlap(examples, path, set_path)
    tokens = tokenized_file(examples, path, config, cache, tokenizer, "validation")
    digest = digest_of(tokens.name)
    return [ValidationJob(tokens=str(tokens), held_out=None, every=1, digest=digest) for _ in arms]


def _distinct(paths: Sequence[Path]) -> list[Path]:
    """Returns one path for each content."""
    return list({file_digest(path): path for path in paths}.values())


def _check_overlap(examples: Sequence[Conversation], path: Path, set_path: Path) -> None:
    """Raises DataError if an example of the validation file is in the set, too."""
    # Equal examples of the file have ids with a number appended.
    places: dict[str, list[Place]] = {}
    for example in examples:
        places.setdefault(example.id.partition("-")[0], []).append(example.place)
    shared: dict[str, int] = {}
    for number, id in enumerate(split.example_ids(set_path), start=1):
        if id in places:
            shared.setdefault(id, number)
    if shared:
        count = sum(len(places[id]) for id in shared)
        id, line = next(iter(shared.items()))
        raise DataError(
            places[id][0],
            f"{count} of the {len(examples)} validation examples are also in the training set "
            f"{set_path}, this one in line {line}",
            "Remove them from one of the two files, or set train.validation.share instead of "
            "train.validation.path, which never holds out an example that is trained on",
        )


def tokenized_file(
    examples: Sequence[Conversation],
    path: Path,
    config: Config,
    cache: Path,
    tokenizer: PromptTokenizer,
    name: str,
) -> Path:
    """Returns the token file of the examples in the user's file `path`, which errors name with the
    line. `name`: of the kind of file, for the copy in the constructed sets' format."""
    normalized = cache / f"{name}-{file_digest(path)[:16]}.jsonl"
    write_jsonl(
        normalized,
        (
            Example(
                messages=example.messages, meta=_META.model_copy(update={"weight": example.weight})
            )
            for example in examples
        ),
    )
    try:
        return tokenized(normalized, cache, tokenizer, config)
    except DataError as error:
        if error.place.line is None or Path(error.place.file) != normalized:
            raise
        place = replace(examples[error.place.line - 1].place, field=error.place.field)
        raise DataError(place, error.problem, error.remedy, error.value) from error


def _scheduled(
    arm: ArmJob, job: ValidationJob, train: TrainConfig, hidden_size: int
) -> tuple[ValidationJob, str]:
    """Returns the job with its interval, and the line that describes it."""
    trained, measured = trained_lengths(arm), dataset.load(Path(job.tokens))
    chosen = job.examples(measured)
    arm_cost = train.epochs * packing.cost(trained, hidden_size).sum()
    cost = packing.cost(measured.computed_lengths[chosen], hidden_size).sum()
    epoch_steps = packing.steps_per_epoch(len(trained), train.global_batch_size)
    num_steps, every = train.epochs * epoch_steps, train.validation.every
    if every == "auto":
        every = schedule.at_least_each_epoch(cost, arm_cost, num_steps, epoch_steps)
    num_held_out = len(chosen) if job.held_out else 0
    dataset.check_enough(len(trained), num_held_out, Path(arm.source), train)
    share = schedule.share_of(every, cost, arm_cost, num_steps)
    source = "held out" if job.held_out else "of the validation file"
    line = (
        f"validation of {arm.arm.domain}, {arm.arm.setting}: {len(chosen)} examples {source}, "
        f"every {every} steps, for about {share:.0%} of the arm's FLOPs"
    )
    return job.model_copy(update={"every": every}), line
