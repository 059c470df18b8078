"""All that can be done, and found wrong, before there are ranks: token files, checks, and the job that the ranks get."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ift_scale.config import Config
from ift_scale.engines.model_folder import hidden_size, model_config
from ift_scale.errors import Place
from ift_scale.estimate import auto, host
from ift_scale.estimate.shape import ModelShape, require_proven
from ift_scale.io.progress import Bar
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import has_gpu
from ift_scale.records import Arm
from ift_scale.scoring.embedding import Surplus
from ift_scale.stage import Task
from ift_scale.train import job
from ift_scale.train.data import dataset
from ift_scale.train.data.cache import TOKENS, tokenized
from ift_scale.train.engine import checkpoint_manifest, export_tokenizer
from ift_scale.train.live import questions as live_questions
from ift_scale.train.live import tokens as live_tokens
from ift_scale.train.monitor import trackers


def prepare(
    config: Config,
    folder: Path,
    model_path: Path,
    pending: Sequence[tuple[Task, Arm, Path]],
    logs: Path,
    bar: Bar,
    live: live_questions.Source | None,
    part: str,
) -> job.Job:
    """All that can be done, and found wrong, before there are ranks: the job that they are given."""
    from ift_scale.engines import weights  # imports torch

    require_proven(model_config(model_path), model_path / "config.json")
    weights.check(model_path)
    check_kernels(config, model_path)
    trackers.check(config.train.trackers)
    bar.note("tokenising")
    tokenizer = PromptTokenizer(model_path)
    arms = [
        job.ArmJob(
            arm=arm,
            source=str(path),
            tokens=str(tokenized(path, folder / TOKENS, tokenizer, config)),
            folder=str(task.folder),
            key=task.key,
            inputs=task.inputs,
        )
        for task, arm, path in pending
    ]
    export_tokenizer.check_before_training(
        tokenizer, config.evaluate.template, [path for _, _, path in pending]
    )
    for arm in arms:
        checkpoint_manifest.latest(
            arm
        )  # one of another model or set is told before the ranks are started
    if live is not None and config.train.live.every != 0:
        asked = live_questions.jobs(
            live, arms, config, tokenizer, folder / TOKENS, hidden_size(model_path)
        )
        arms = [arm.model_copy(update={"live": asked.get(arm.arm.name)}) for arm in arms]
    check_ids(arms, Surplus(tokenizer, model_path))
    return job.Job(
        model_path=str(model_path),
        hidden_size=hidden_size(model_path),
        template=config.evaluate.template,
        logs=str(logs),
        train=config.train,
        stop_file=str((folder / f".stop{part}").resolve()),
        arms=arms,
    )


def check_memory(work: job.Job) -> None:
    """EnvironmentProblem where the ranks would be started on this node's CPUs and no setting fits into its memory."""
    if not has_gpu() and not work.train.hostfile:
        shape = ModelShape.from_config(model_config(Path(work.model_path)))
        room = auto.Room(None, work.train.num_ranks, work.train.num_ranks, host.available())
        auto.resolve(work.train, shape, room, job.most_tokens(work, room.world_size))


def check_kernels(config: Config, model_path: Path) -> None:
    """ConfigError for kernels that were asked for by name and cannot compute the model, or cannot run on this node's devices."""
    if config.train.kernels not in ("auto", "pytorch"):
        from ift_scale.train.model import kernels, packed  # imports torch

        kernels.check(config.train.kernels, packed.without_weights(model_path))
        if not config.train.hostfile:
            device = "cuda" if has_gpu() else "cpu"
            kernels.choose(config.train.kernels, device, [], kernels.available(device))


def check_ids(arms: Sequence[job.ArmJob], surplus: Surplus) -> None:
    """DataError for a token that an arm trains on, or is asked about live, and that the embedding has no row for."""
    for arm in arms if surplus else ():
        tokens = dataset.load(Path(arm.tokens))
        for number, ids in enumerate(tokens.examples(), start=1):
            surplus.refuse(ids.tolist(), Place(arm.source, number, "messages"))
        if arm.live is not None:
            asked = live_tokens.load(Path(arm.live.questions))
            names = asked.ids_Q[asked.questions_N]
            letters = np.split(asked.letters_PC, asked.tokens.supervised_counts.cumsum()[:-1])
            for name, ids, found in zip(names, asked.tokens.examples(), letters, strict=True):
                surplus.refuse([*ids.tolist(), *found.ravel().tolist()], Place(f"question {name}"))
