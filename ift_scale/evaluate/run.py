"""The evaluate stage: the answers of each fine-tuned arm, 0-shot in the training template.

Answers are letters and, with `evaluate.generate`, generated text. Out: ARM/scores.parquet and, with
`evaluate.base`, those of the base model in the same prompts, base/scores.parquet; with
`evaluate.few_shot`, an arm's in the prompts of the probe, ARM-few-shot/scores.parquet. An engine
evaluates many models: it starts with the first and loads the weights of the others in place.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ift_scale.config import Config
from ift_scale.engines import model_folder
from ift_scale.engines.pool import engine_workers
from ift_scale.engines.protocol import identity, resolved_identity
from ift_scale.errors import DataError, Place
from ift_scale.evaluate.generated import GeneratedAsker, GeneratedRows
from ift_scale.evaluate.groups import asked_of
from ift_scale.io.manifests import digest_of, has_key
from ift_scale.io.progress import Bar
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.ranks.environment import Ranks, engines_on_gpu
from ift_scale.records import FEW_SHOT, QUESTIONS_FILE, SCORES_FILE, Arm
from ift_scale.scoring import embedding
from ift_scale.scoring.cloze import ChatTexts, Cloze
from ift_scale.scoring.letters import Chat, LetterAsker, few_shot_asker
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.runner import compute, share_of
from ift_scale.scoring.scores import ChoiceScores, arm_schema, write_rows
from ift_scale.scoring.target import Asker, Target, work_of
from ift_scale.stage import Context, Stage, Task


def _few_shot_asker(
    config: Config, tokenizer: PromptTokenizer, questions: QuestionFile
) -> LetterAsker:
    probe = config.probe.model_copy(update={"reliability": config.probe.of_arms})
    shown = Demonstrations(questions.dev, probe.num_shots, probe.demonstration_seed)
    return few_shot_asker(tokenizer, shown, probe)


def _is_few_shot(task: Task) -> bool:
    return task.folder.name.endswith(FEW_SHOT)


def _generates(config: Config, task: Task) -> bool:
    return config.evaluate.generate and not _is_few_shot(task)


def _asker(config: Config, tokenizer: PromptTokenizer) -> Asker:
    template, cloze = config.evaluate.template, config.probe.of_arms.cloze
    texts = Cloze(ChatTexts(tokenizer, template), cloze) if cloze else None
    lettered = LetterAsker(Chat(tokenizer, template, config.construct.response), plain, texts)
    if not config.evaluate.generate:
        return lettered
    return GeneratedAsker(
        tokenizer,
        template,
        lettered,
        config.evaluate.max_tokens,
        config.construct.refusal,
    )


class EvaluateStage(Stage):
    name = "evaluate"
    reads = (
        f"questions/{QUESTIONS_FILE}",
        "train/model/*",
    )
    version = 4
    per_arm = of_base = True
    unit = "questions"

    def tasks(self, context: Context) -> list[Task]:
        config = context.config
        settings = identity(config.evaluate, config.model.dtype)
        if config.evaluate.generate:
            settings["refusal"] = config.construct.refusal
        if config.probe.of_arms.cloze:
            settings["cloze"] = config.probe.of_arms.cloze
        questions = context.digest("questions", QUESTIONS_FILE)
        tasks = []
        for arm, weights in context.trained_weights(self.name).items():
            inputs = {"model": weights, "questions": questions}
            key = digest_of([self.version, settings, inputs, arm.own_domains])
            folder = context.folder(self.name, arm)
            tasks.append(Task(self.name, folder, key, inputs, arm))
            if config.evaluate.few_shot:
                shots = [config.probe.num_shots, config.probe.demonstration_seed]
                few_shot = folder.with_name(folder.name + FEW_SHOT)
                tasks.append(Task(self.name, few_shot, digest_of([key, shots]), inputs, arm))
        if config.evaluate.base:
            inputs = {"model": context.base_digest, "questions": questions}
            domains = sorted({domain for arm in context.arms() for domain in arm.own_domains})
            key = digest_of([self.version, settings, inputs, domains])
            tasks.append(Task(self.name, context.folder_of(self.name, None), key, inputs))
        return tasks

    def total(self, context: Context, pending: Sequence[Task]) -> int:
        config, questions = context.config, context.question_file()
        return sum(
            len(questions.select(asked_of(_arms_of(context, task), _generates(config, task))))
            for task in pending
        )

    def hang_limit(self, config: Config) -> float:
        return config.evaluate.hang_limit

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        work = [(task, _arms_of(context, task), context.model_of(task.arm)) for task in pending]
        ask(context.config, work, context.question_file(), context.logs, context.ranks, bar)


def _arms_of(context: Context, task: Task) -> list[Arm]:
    """Returns the arms whose questions a task's model is asked: all of them for the base model."""
    return [task.arm] if task.arm else context.arms()


def ask(
    config: Config,
    pending: Sequence[tuple[Task, Sequence[Arm], Path]],
    questions: QuestionFile,
    logs: Path,
    ranks: Ranks | None,
    bar: Bar,
) -> None:
    """Evaluate the pending models (task, arms whose questions are asked, model folder).

    All ranks call this and share the work; rank 0 merges the results.
    """
    for _, _, model_path in pending:
        model_folder.check(model_path)
    model = config.model
    tokenizer = PromptTokenizer(pending[0][2], model.trust_remote_code)
    askers = {False: _asker(config, tokenizer)}
    if config.evaluate.few_shot:
        askers[True] = _few_shot_asker(config, tokenizer, questions)
    generate, on_gpu = config.evaluate.generate, engines_on_gpu(ranks)
    targets = [
        Target(
            task.folder.name,
            task.folder,
            digest_of(
                [
                    task.key,
                    resolved_identity(
                        config.evaluate, model.dtype, on_gpu, model_path, model.trust_remote_code
                    ),
                ]
            ),
            [
                questions.select(asked_of(arms, _generates(config, task), kind))
                for kind in ("choice", "free")
            ],
            askers[_is_few_shot(task)],
            model_path,
            partial(_finish, config, task),
            config.evaluate.chunk_size,
            partial(has_key, task.folder, task.key),
        )
        for task, arms, model_path in pending
    ]
    for target in targets:
        if not target.num_questions:
            kind = "" if generate else "choice "
            problem = f"has no {kind}question in a test split to be evaluated on"
            remedy = "Add a benchmark, or test questions to the domain's pool"
            raise DataError(Place(f"arm {target.name}"), problem, remedy)
    embedding.check(targets, questions, tokenizer, pending[0][2])
    workers = engine_workers(config.evaluate, model, logs / "evaluate.log", ranks, bar)
    compute(questions, targets, workers, share_of(ranks), bar)


def _finish(config: Config, task: Task, target: Target, shards: list[Path]) -> None:
    started = time.monotonic()
    measured = config.probe.of_arms
    scores = ChoiceScores(measured)
    generates = _generates(config, task)
    schema = arm_schema(bool(measured.cloze), generates)
    generated = GeneratedRows(scores, schema) if generates else None
    write_rows(
        target.folder / SCORES_FILE,
        schema,
        shards,
        generated or scores.rows,
    )
    work = work_of(target)
    counts = {
        "questions": scores.summary.questions,
        "computed_questions": work.questions,
        "prompt_tokens": work.tokens,
        "mean_letter_mass": scores.summary.letter_mass / max(scores.summary.questions, 1),
    } | (generated.counts() if generated else {})
    seconds = {"total": sum(work.seconds.values()) + time.monotonic() - started} | work.seconds
    task.close(config.evaluate.model_dump(), counts, seconds)


STAGE = EvaluateStage()
