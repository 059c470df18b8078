"""Everything that happens before ranks are started: checks, token files, and the ranks' job."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ift_scale.config import Config, TrainConfig
from ift_scale.errors import ConfigError, DataError, Place
from ift_scale.estimate import auto, host
from ift_scale.estimate.shape import ModelShape
from ift_scale.estimate.shape_of import shape_of
from ift_scale.io.progress import Bar, say
from ift_scale.models.config_file import model_config
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import has_gpu
from ift_scale.records import Arm
from ift_scale.scoring.embedding import Surplus
from ift_scale.stage import Task
from ift_scale.train import job
from ift_scale.train.data import dataset
from ift_scale.train.data.cache import TOKENS, tokenized
from ift_scale.train.engine import checkpoint_manifest, export_tokenizer
from ift_scale.train.frozen import with_frozen
from ift_scale.train.kl import prepare as kl
from ift_scale.train.live import questions as live_questions
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.model.path import TrainingPath
from ift_scale.train.monitor import trackers
from ift_scale.train.proof import stored
from ift_scale.train.validation import prepare as validation
from ift_scale.train.zero_stage import NEEDS_ZERO_3, with_zero_stage


def prepare(
    config: Config,
    folder: Path,
    model_path: Path,
    pending: Sequence[tuple[Task, Arm, Path]],
    logs: Path,
    bar: Bar,
    live: live_questions.LiveSource | None,
    part: str,
) -> job.Job:
    """Returns the job of the ranks. Raises any error that can be found without starting them.

    `part` distinguishes the files of several commands that work in one folder.
    """
    from ift_scale.engines import weight_checks  # imports torch
    from ift_scale.models import config_class

    trusted = config.model.trust_remote_code
    bar.note("proving the training path")
    # First of all: a folder's own code runs in a child process until it is proven.
    proof = stored.proof_of(model_path, config.train.max_length, trusted)
    for line in stored.describe(proof, config.train):
        say(f"train: {line}")
    weight_checks.check(model_path, trusted)
    shape, frozen = with_frozen(
        _shape(model_path, trusted), model_path / "config.json", config.train, trusted
    )
    if frozen is not None:
        say(f"train: {frozen}")
    path = proof.fastest(config.train)
    train = with_zero_stage(config.train, proof.lists_experts)
    if train.zero_stage != config.train.zero_stage:
        say(f"train: {NEEDS_ZERO_3}")
    check_model_settings(config, model_path)
    trackers.check(config.train.trackers)
    bar.note("tokenising")
    tokenizer = PromptTokenizer(model_path, trusted)
    cache = folder / TOKENS
    arms = [
        _arm_job(task, arm, path, tokenized(path, cache, tokenizer, config, bar.note))
        for task, arm, path in pending
    ]
    hidden_size = config_class.hidden_size(model_path, trusted)
    arms = validation.with_validation(arms, config, cache, tokenizer, hidden_size)
    arms = kl.with_kl(arms, config, folder, cache, tokenizer, model_path)
    export_tokenizer.check_before_training(
        tokenizer, config.evaluate.template, [path for _, _, path in pending]
    )
    for arm in arms:
        # Refuses a checkpoint of another model or set before the ranks are started.
        checkpoint_manifest.latest(arm)
    if live is not None and config.train.live.every != 0 and evaluates(path, config.train):
        live_jobs = live_questions.build_jobs(live, arms, config, tokenizer, cache, hidden_size)
        arms = [arm.model_copy(update={"live": live_jobs.get(arm.arm.name)}) for arm in arms]
        path = path_with_live(config, model_path, arms, path)
        if not evaluates(path, config.train):
            arms = [arm.model_copy(update={"live": None}) for arm in arms]
    validation.check_path(path, config.train)
    kl.check_path(path, config)
    check_ids(arms, Surplus(tokenizer, model_path))
    return job.Job(
        model_path=str(model_path),
        trust_remote_code=trusted,
        hidden_size=hidden_size,
        shape=shape,
        template=config.evaluate.template,
        logs=str(logs),
        train=with_checkpointing(train, path),
        path=path,
        stop_file=str((folder / f".stop{part}").resolve()),
        arms=arms,
    )


def evaluates(path: TrainingPath, train: TrainConfig) -> bool:
    """Returns if live knowledge can be measured by this path; prints why not.

    Raises ConfigError if early stopping needs it.
    """
    if path.evaluates:
        return True
    reason = "the model's evaluation mode changes its weights, or its logits on the training path"
    if train.live.early_stopping is not None:
        raise ConfigError("settings", [f"train.live.early_stopping: no live knowledge: {reason}"])
    say(f"train: no live knowledge: {reason}")
    return False


def path_with_live(
    config: Config, model_path: Path, arms: Sequence[job.ArmJob], path: TrainingPath
) -> TrainingPath:
    """Returns a path that is exact for the live prompts, too, which may exceed `max_length`."""
    longest = max((_longest_prompt(arm.live) for arm in arms if arm.live), default=0)
    if longest <= config.train.max_length:
        return path
    proof = stored.proof_of(model_path, longest, config.model.trust_remote_code)
    found = proof.fastest(config.train)
    if found != path:
        say(
            f"train: live prompts have up to {longest} tokens, more than train.max_length"
            f" ({config.train.max_length}); without live knowledge (train.live.every: 0) the"
            f" training path is {path.name}, and with it:"
        )
        for line in stored.describe(proof, config.train):
            say(f"train: {line}")
    return found


def _longest_prompt(live: job.LiveJob) -> int:
    questions = live_tokens.load(Path(live.questions))
    return int(live_tokens.first(questions, live.num_questions).tokens.lengths.max())


def _arm_job(task: Task, arm: Arm, source: Path, tokens: Path) -> job.ArmJob:
    return job.ArmJob(
        arm=arm,
        source=str(source),
        tokens=str(tokens),
        folder=str(task.folder),
        key=task.key,
        inputs=task.inputs,
    )


def _shape(model_path: Path, trust_remote_code: bool) -> ModelShape | None:
    """Returns the model's shape, or None for a class that cannot be measured, and says so."""
    try:
        return shape_of(model_config(model_path), model_path / "config.json", trust_remote_code)
    except DataError as error:
        say(f"train: no MFU and no estimate of memory, because the sizes are unknown: {error}")
        return None


def with_checkpointing(train: TrainConfig, path: TrainingPath) -> TrainConfig:
    """Returns the settings with the kinds of activation checkpointing that the path allows.

    Raises ConfigError if the one that is set is not among them.
    """
    wanted = train.activation_checkpointing
    if wanted == "none" or wanted in path.recomputes or len(path.recomputes) == 2:
        return train
    if wanted != "auto":
        problem = f"train.activation_checkpointing: this model does not support {wanted}"
        raise ConfigError("settings", [f"{problem}; set it to auto or none"])
    only = next(iter(path.recomputes), "none")
    say(f"train: activation checkpointing: {only}, because the model supports no other")
    return train.model_copy(update={"activation_checkpointing": only})


def check_memory(work: job.Job) -> None:
    """Raises EnvironmentProblem if the ranks will use this node's CPUs and no setting fits."""
    if not has_gpu() and not work.train.hostfile:
        room = auto.Room(None, work.train.num_ranks, work.train.num_ranks, host.available())
        auto.resolve(
            work.train, work.shape, room, job.max_micro_batch_tokens(work, room.world_size)
        )


def check_model_settings(config: Config, model_path: Path) -> None:
    """Raises ConfigError if kernels set by name do not support the model or this node's devices,
    or if the model lacks the load-balancing loss that is set."""
    if config.train.router_aux_loss:
        from ift_scale.train.model import packed

        try:
            trusted = config.model.trust_remote_code
            packed.RouterBalance(packed.without_weights(model_path, trusted))
        except ValueError as error:
            problem = f"train.router_aux_loss: {error}; set it to false"
            raise ConfigError("settings", [problem]) from error
    if config.train.kernels not in ("auto", "pytorch"):
        from ift_scale.train.model import kernels, packed  # imports torch

        kernels.check(
            config.train.kernels, packed.without_weights(model_path, config.model.trust_remote_code)
        )
        if not config.train.hostfile:
            device = "cuda" if has_gpu() else "cpu"
            kernels.choose(config.train.kernels, device, [], kernels.available(device))


def check_ids(arms: Sequence[job.ArmJob], surplus: Surplus) -> None:
    """Raises DataError for a token without an embedding row, in the sets, the validation file, the
    general text or the live questions."""
    for arm in arms if surplus else ():
        tokens = dataset.load(Path(arm.tokens))
        for number, ids in enumerate(tokens.examples(), start=1):
            surplus.refuse(ids.tolist(), Place(arm.source, number, "messages"))
        if arm.validation is not None and arm.validation.held_out is None:
            for ids in dataset.load(Path(arm.validation.tokens)).examples():
                surplus.refuse(ids.tolist(), Place("train.validation.path"))
        if arm.kl is not None and arm.kl.text is not None:
            for ids in dataset.load(Path(arm.kl.text)).examples():
                surplus.refuse(ids.tolist(), Place("train.kl.text.path"))
        if arm.live is not None:
            live = live_tokens.load(Path(arm.live.questions))
            names = live.ids_Q[live.questions_N]
            ends_N = live.tokens.supervised_counts.cumsum()
            letters_N = np.split(live.letters_PC, ends_N[:-1])
            for name, ids, letters in zip(names, live.tokens.examples(), letters_N, strict=True):
                scored = [*ids.tolist(), *letters.ravel().tolist()]
                surplus.refuse(scored, Place(f"question {name}"))
