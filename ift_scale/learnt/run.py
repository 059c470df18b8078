"""The learnt stage: each arm's training items, as trained and in other forms, asked again.

Out: MODEL/learnt.parquet for `base` and each arm with a set from the pools (`asking.SCHEMA`). The
base model is asked the items of all arms in the same 0-shot prompts, so that what an arm answers
can be compared with what it answered before training. One engine asks all models.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ift_scale.config import Config
from ift_scale.engines.pool import engine_workers
from ift_scale.engines.protocol import identity, resolved_identity
from ift_scale.io.manifests import digest_of, file_digest, has_key
from ift_scale.io.progress import Bar
from ift_scale.learnt import forms
from ift_scale.learnt.asking import SCHEMA, FormAsker
from ift_scale.learnt.items import TrainedItem, as_shown, presentations, read_texts
from ift_scale.prompts import texts as text_file
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import engines_on_gpu
from ift_scale.records import LEARNT_FILE, PARAPHRASES_FILE, QUESTIONS_FILE, Arm
from ift_scale.scoring import embedding
from ift_scale.scoring.cloze import ChatTexts, Cloze
from ift_scale.scoring.letters import Chat
from ift_scale.scoring.runner import compute, share_of
from ift_scale.scoring.scores import write_rows
from ift_scale.scoring.target import Target, work_of
from ift_scale.stage import Context, Stage, Task, trained_arm
from ift_scale.treatments import asks_questions


class AskedItems(NamedTuple):
    """The items of each set by question id, by the trained arm's name; the rows of their questions
    in the question file; and the paraphrases, the user's first."""

    of_set: dict[str, dict[str, TrainedItem]]
    row_of: dict[str, int]
    paraphrases: Mapping[str, Sequence[str]]


class LearntStage(Stage):
    name = "learnt"
    reads = (
        f"questions/{QUESTIONS_FILE}",
        f"write/{PARAPHRASES_FILE}",
        "construct/*.jsonl",
        "train/model/*",
    )
    version = 1
    per_arm = of_base = True
    unit = "items"

    def tasks(self, context: Context) -> list[Task]:
        config = context.config
        if not config.learnt.on:
            return []
        settings: list[Any] = [
            identity(config.evaluate, config.model.dtype),
            config.construct.response,
            config.learnt.model_dump(exclude={"on"}),
        ]
        if config.construct.response == "text":
            settings.append(config.probe.of_arms.cloze)
        shared = {"questions": context.digest("questions", QUESTIONS_FILE)}
        path = config.learnt.paraphrases
        if path is not None and Path(path).is_file():
            shared["paraphrases"] = file_digest(Path(path))
        if config.write.paraphrases.kind != "dataset":
            shared["written"] = context.digest("write", PARAPHRASES_FILE)
        files = context.finished(context.task("construct")).files
        sets = {arm: files[f"{trained_arm(arm).name}.jsonl"] for arm in _arms(context)}
        models: list[tuple[Arm | None, str, str]] = [
            (arm, weights, sets[arm])
            for arm, weights in context.trained_weights(self.name).items()
            if arm in sets
        ]
        every = digest_of({arm.name: digest for arm, digest in sets.items()})
        tasks = []
        for arm, weights, of_set in [(None, context.base_digest, every), *models]:
            inputs = {"model": weights, "set": of_set, **shared}
            folder = context.folder_of(self.name, arm)
            key = digest_of([self.version, settings, inputs])
            tasks.append(Task(self.name, folder, key, inputs, arm))
        return tasks

    def check(self, context: Context, finished: str | None) -> None:
        path = context.config.learnt.paraphrases
        if context.config.learnt.on and finished is None and path is not None:
            forms.read_paraphrases(Path(path))
        if context.config.learnt.on and finished == "construct":
            _items(context)  # before anything is trained

    def total(self, context: Context, pending: Sequence[Task]) -> int:
        return sum(len(_of_model(context, task.arm)) for task in pending)

    def hang_limit(self, config: Config) -> float:
        return config.evaluate.hang_limit

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        config, questions = context.config, context.question_file()
        targets = []
        tokenizers: dict[bool, PromptTokenizer] = {}
        for task in pending:
            path = context.model_of(task.arm)
            is_base = task.arm is None
            if is_base not in tokenizers:  # all arms have the same
                tokenizers[is_base] = PromptTokenizer(path, config.model.trust_remote_code)
            target = _target(context, task, path, tokenizers[is_base])
            embedding.check([target], questions, tokenizers[is_base], path)
            targets.append(target)
        engine = config.evaluate.model_copy(update={"generate": True})
        log = context.logs / "learnt.log"
        workers = engine_workers(engine, config.model, log, context.ranks, bar)
        compute(questions, targets, workers, share_of(context.ranks), bar)


def _target(context: Context, task: Task, path: Path, tokenizer: PromptTokenizer) -> Target:
    config, asked = context.config, _items(context)
    if task.arm is None:
        shown, items = presentations(asked.of_set), {}
    else:
        items = asked.of_set[trained_arm(task.arm).name]
        shown = {id: [item.shown] for id, item in items.items()}
    evaluate = config.evaluate
    writer = Chat(tokenizer, evaluate.template, config.construct.response)
    texts, score = None, config.probe.of_arms.cloze
    if config.construct.response == "text":
        assert score  # checked with the configuration
        texts = Cloze(ChatTexts(tokenizer, evaluate.template), score)
    resolved = resolved_identity(
        evaluate,
        config.model.dtype,
        engines_on_gpu(context.ranks),
        path,
        config.model.trust_remote_code,
    )
    return Target(
        task.folder.name,
        task.folder,
        digest_of([task.key, resolved]),
        [_of_model(context, task.arm)],
        FormAsker(
            tokenizer, writer, texts, shown, asked.paraphrases, config.learnt, evaluate.max_tokens
        ),
        path,
        partial(_finish, config, task, items),
        evaluate.chunk_size,
        partial(has_key, task.folder, task.key),
    )


def _arms(context: Context) -> list[Arm]:
    return [arm for arm in context.arms() if asks_questions(arm.setting)]


def _items(context: Context) -> AskedItems:
    def read() -> AskedItems:
        learnt, folder = context.config.learnt, context.folder("construct")
        questions = context.question_file()
        paths = {
            name: folder / f"{name}.jsonl"
            for name in dict.fromkeys(trained_arm(arm).name for arm in _arms(context))
        }
        texts = {
            name: read_texts(path, learnt.max_items, learnt.seed) for name, path in paths.items()
        }
        needed = {id for of_set in texts.values() for id in of_set}
        pool = questions.select(
            lambda group: (group.collection, group.split, group.kind) == ("pool", "train", "choice")
        )
        by_text = context.config.construct.response == "text"
        row_of, question_of = {}, {}
        for row, question in zip(pool.tolist(), questions.read(pool), strict=True):
            if question.id in needed:
                row_of[question.id], question_of[question.id] = row, question
        of_set = {
            name: {
                id: as_shown(paths[name], text, question_of[id], by_text)
                for id, text in found.items()
            }
            for name, found in texts.items()
        }
        written: dict[str, list[str]] = {}
        if learnt.paraphrases is not None:
            written = forms.read_paraphrases(Path(learnt.paraphrases))
            forms.check_used(Path(learnt.paraphrases), written, needed)
        if context.config.write.paraphrases.kind != "dataset":
            by_model = text_file.read_paraphrases(context.folder("write") / PARAPHRASES_FILE)
            for id, text in by_model.items():
                written.setdefault(id, []).append(text)
        return AskedItems(of_set, row_of, written)

    found: AskedItems = context.once("learnt", read)
    return found


def _of_model(context: Context, arm: Arm | None) -> np.ndarray:
    """Returns the rows of a model's questions, in the file's order: of all sets for the base."""
    asked = _items(context)
    ids = asked.row_of if arm is None else asked.of_set[trained_arm(arm).name]
    return np.array(sorted(asked.row_of[id] for id in ids), dtype=np.int64)


def _finish(
    config: Config,
    task: Task,
    items: Mapping[str, TrainedItem],
    target: Target,
    shards: list[Path],
) -> None:
    started = time.monotonic()

    def with_targets(table: pa.Table) -> pa.Table:
        targets = [items[id].target if items else None for id in table["question_id"].to_pylist()]
        column = SCHEMA.get_field_index("target")
        return table.set_column(column, "target", pa.array(targets, pa.int16()))

    write_rows(target.folder / LEARNT_FILE, SCHEMA, shards, with_targets)
    work = work_of(target)
    counts: dict[str, float] = {
        "items": target.num_questions,
        "computed_items": work.questions,
        "prompt_tokens": work.tokens,
    }
    seconds = {"total": sum(work.seconds.values()) + time.monotonic() - started} | work.seconds
    task.close(config.learnt.model_dump(), counts, seconds)


STAGE = LearntStage()
