"""The hidden stage: linear probes and the logit lens by layer, of the base model and every arm.

Out, for `base` and each arm: MODEL/probed.parquet, one row per domain and test question with lists
over layers; MODEL/layers.parquet, one row per domain and layer. States are in the shards only, and
are removed when the probes are fitted.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits

from ift_scale.config import Config, EngineConfig
from ift_scale.engines.pool import engine_workers
from ift_scale.engines.protocol import resolved_dtype
from ift_scale.hidden import selection
from ift_scale.hidden.classifier import Labels, fit_layer
from ift_scale.hidden.reading import STATE, LetterStates, TextStates
from ift_scale.hidden.selection import ProbedQuestions
from ift_scale.io.files import atomic_path
from ift_scale.io.manifests import digest_of, has_key
from ift_scale.io.progress import Bar
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import engines_on_gpu
from ift_scale.records import LAYERS_FILE, PROBED_FILE, QUESTIONS_FILE, Arm, Question
from ift_scale.scoring import embedding
from ift_scale.scoring.cloze import ChatTexts, FewShotTexts
from ift_scale.scoring.letters import Chat, FewShot
from ift_scale.scoring.runner import compute, share_of
from ift_scale.scoring.shards import read_shard
from ift_scale.scoring.target import Asker, Target, work_of
from ift_scale.stage import Context, Stage, Task

# Questions per chunk. The states of one chunk are in memory at once.
_LETTER_CHUNK, _TEXT_CHUNK = 256, 64
_LAYERS_AT_ONCE = 8


class HiddenStage(Stage):
    name = "hidden"
    reads = (f"questions/{QUESTIONS_FILE}", "construct/*.jsonl", "train/model/*")
    version = 1
    per_arm = of_base = True
    unit = "questions"

    def tasks(self, context: Context) -> list[Task]:
        if not context.config.hidden.on:
            return []
        settings = _settings(context.config)
        sets = context.finished(context.task("construct")).files
        shared = {
            "questions": context.digest("questions", QUESTIONS_FILE),
            "sets": digest_of({name: d for name, d in sets.items() if name.endswith(".jsonl")}),
        }
        of_arms = context.trained_weights(self.name).items()
        models: list[tuple[Arm | None, str]] = [(None, context.base_digest), *of_arms]
        tasks = []
        for arm, weights in models:
            inputs = {"model": weights, **shared}
            key = digest_of([self.version, settings, inputs, arm and arm.own_domains])
            folder = context.folder_of(self.name, arm)
            tasks.append(Task(self.name, folder, key, inputs, arm))
        return tasks

    def check(self, context: Context, finished: str | None) -> None:
        if finished == "construct":
            _probed(context)  # before anything is trained

    def total(self, context: Context, pending: Sequence[Task]) -> int:
        return sum(map(len, (rows for task in pending for rows in _parts(context, task.arm))))

    def run(self, context: Context, pending: Sequence[Task], bar: Bar) -> None:
        config, questions = context.config, context.question_file()
        trust = config.model.trust_remote_code
        targets = []
        tokenizers: dict[bool, PromptTokenizer] = {}
        for task in pending:
            path, is_base = context.model_of(task.arm), task.arm is None
            if is_base not in tokenizers:  # all arms have the same
                tokenizers[is_base] = PromptTokenizer(path, trust)
            tokenizer = tokenizers[is_base]
            target = Target(
                task.folder.name,
                task.folder,
                digest_of(
                    [task.key, resolved_dtype(config.model.dtype, engines_on_gpu(context.ranks))]
                ),
                _parts(context, task.arm),
                _asker(config, questions.dev, tokenizer, task.arm),
                path,
                partial(_finish, config, task, _ids(context, task.arm)),
                _TEXT_CHUNK if _by_text(config) else _LETTER_CHUNK,
                partial(has_key, task.folder, task.key),
            )
            embedding.check([target], questions, tokenizer, path)
            targets.append(target)
        engine = EngineConfig(engine="transformers", batch_tokens=config.hidden.batch_tokens)
        log = context.logs / "hidden.log"
        workers = engine_workers(engine, config.model, log, context.ranks, bar)
        compute(questions, targets, workers, share_of(context.ranks), bar)


def _settings(config: Config) -> list[object]:
    """Returns the settings that the states and the probes depend on."""
    return [
        config.hidden.model_dump(exclude={"on", "batch_tokens"}),
        config.model.dtype,
        [config.probe.num_shots, config.probe.demonstration_seed],
        [config.evaluate.template, config.construct.response],
        *(["texts"] if _by_text(config) else []),
        *(["whole prompts"] if config.probe.whole_prompts else []),
    ]


def _by_text(config: Config) -> bool:
    """True if the run measures answers by the options' texts."""
    return config.probe.reliability.decide_by == "cloze"


def _asker(
    config: Config, dev: Sequence[Question], tokenizer: PromptTokenizer, arm: Arm | None
) -> Asker:
    probe, template, seed = config.probe, config.evaluate.template, config.hidden.seed
    if arm is not None:
        if _by_text(config):
            return TextStates(ChatTexts(tokenizer, template), seed)
        return LetterStates(Chat(tokenizer, template, config.construct.response), seed)
    shown = Demonstrations(dev, probe.num_shots, probe.demonstration_seed)
    if _by_text(config):
        return TextStates(FewShotTexts(tokenizer, shown, probe.whole_prompts), seed)
    return LetterStates(FewShot(tokenizer, shown, probe.whole_prompts), seed)


def _probed(context: Context) -> dict[str, ProbedQuestions]:
    """Returns the questions of each domain with arms."""

    def select() -> dict[str, ProbedQuestions]:
        arms, folder = context.arms(), context.folder("construct")
        sets: dict[str, list[Path]] = {arm.domain: [] for arm in arms}
        for arm in context.trained_arms():
            sets[arm.domain].append(folder / f"{arm.name}.jsonl")
        return selection.select(context.question_file(), arms, sets, context.config.hidden)

    found: dict[str, ProbedQuestions] = context.once("hidden", select)
    return found


def _of_model(context: Context, arm: Arm | None) -> dict[str, ProbedQuestions]:
    """Returns the domains that a model is probed on: an arm's own, all of them for the base."""
    return {d: p for d, p in _probed(context).items() if arm is None or d == arm.domain}


def _parts(context: Context, arm: Arm | None) -> list[np.ndarray]:
    """Returns the rows of the fit and of the test questions, in the order of asking."""
    of_domains = _of_model(context, arm).values()
    fit = np.unique(np.concatenate([probed.fit_rows for probed in of_domains]))
    test = np.unique(np.concatenate([probed.test_rows for probed in of_domains]))
    questions = context.question_file()
    topics = questions.select(lambda group: group.collection == "pool")
    return [topics[np.isin(topics, rows)] for rows in (fit, test)]


Ids = Mapping[str, tuple[list[str], list[str]]]
"""By domain, the ids of the fit questions and of the test questions."""


def _ids(context: Context, arm: Arm | None) -> Ids:
    read = context.question_file().read
    return {
        domain: ([q.id for q in read(probed.fit_rows)], [q.id for q in read(probed.test_rows)])
        for domain, probed in _of_model(context, arm).items()
    }


def _finish(config: Config, task: Task, ids: Ids, target: Target, shards: list[Path]) -> None:
    """Fits the probes layer by layer, applies them, and closes the artifact."""
    started = time.monotonic()
    # Threads gain nothing on these small products and lose much next to a working engine.
    with threadpool_limits(limits=1, user_api="blas"):
        probed, layers = fit_and_apply(shards, ids)
    for name, table in ((PROBED_FILE, probed), (LAYERS_FILE, layers)):
        with atomic_path(target.folder / name) as temporary:
            pq.write_table(table, temporary)
    work, fitted = work_of(target), time.monotonic() - started
    counts: dict[str, float] = {
        "questions": target.num_questions,
        "computed_questions": work.questions,
        "prompt_tokens": work.tokens,
        "layers": len(set(layers["layer"].to_pylist())),
    }
    seconds = {"total": sum(work.seconds.values()) + fitted, "fitting": fitted} | work.seconds
    task.close(config.hidden.model_dump(), counts, seconds)


def fit_and_apply(shards: Sequence[Path], ids: Ids) -> tuple[pa.Table, pa.Table]:
    """Fits one probe per domain and layer on the fit questions and applies it to the test ones.

    Returns the rows of PROBED_FILE (domain, question_id; lists over layers: decoded and control,
    True if the probe's option is right; lens, the option or -1) and of LAYERS_FILE (domain, layer,
    fit_questions, penalty, held_out_loss in nats).
    """
    names = ["id", "answer", "control", "num_choices", "lens"]
    about = pa.concat_tables([read_shard(path, names) for path in shards])
    row_of: dict[str, int] = {}  # the first of each question
    for row, id in enumerate(about["id"].to_pylist()):
        row_of.setdefault(id, row)
    num_choices = about["num_choices"].to_numpy()
    most_choices = int(num_choices.max())
    truth, control = (
        Labels(about[name].to_numpy(), num_choices, most_choices) for name in ("answer", "control")
    )
    lens_QL = np.array(about["lens"].to_pylist())
    rows = {d: tuple(np.array([row_of[i] for i in part]) for part in ids[d]) for d in ids}

    def states_of(questions: np.ndarray, states_RH: np.ndarray) -> np.ndarray:
        """Returns (N, H), or (N, C, H) with rows of a question's last option for missing ones."""
        if len(row_of) == len(about):
            return states_RH[questions]
        last_N1 = num_choices[questions, None] - 1
        return states_RH[questions[:, None] + np.minimum(np.arange(most_choices), last_N1)]

    right: dict[str, list[np.ndarray]] = {domain: [] for domain in ids}
    layers = []
    for layer, states_RH in enumerate(_states(shards, lens_QL.shape[1])):
        for domain, (fit, test) in rows.items():
            found = fit_layer(states_of(fit, states_RH), truth.of(fit), control.of(fit))
            applied = states_of(test, states_RH)
            right[domain].append(
                np.stack(
                    [
                        found.probe.right(applied, truth.of(test)),
                        found.control.right(applied, control.of(test)),
                    ]
                )
            )
            layers.append(
                {
                    "domain": domain,
                    "layer": layer,
                    "fit_questions": len(fit),
                    "penalty": found.penalty,
                    "held_out_loss": found.held_out_loss,
                }
            )
    probed = [
        {
            "domain": domain,
            "question_id": id,
            "decoded": decoded_L.tolist(),
            "control": control_L.tolist(),
            "lens": lens_QL[row].tolist(),
        }
        for domain, (_, test) in rows.items()
        for id, row, decoded_L, control_L in zip(
            ids[domain][1], test, *np.stack(right[domain], axis=2), strict=True
        )
    ]
    return pa.Table.from_pylist(probed), pa.Table.from_pylist(layers)


def _states(shards: Sequence[Path], num_layers: int) -> Iterator[np.ndarray]:
    """Yields all states by layer, shape (R, H), float32.

    A shard is read and verified as a whole, so several layers are taken from it at a time.
    """
    names = [STATE.format(layer) for layer in range(num_layers)]
    for start in range(0, num_layers, _LAYERS_AT_ONCE):
        some = names[start : start + _LAYERS_AT_ONCE]
        tables = [read_shard(path, some) for path in shards]
        for name in some:
            columns = [table[name].combine_chunks() for table in tables]
            yield np.concatenate([c.flatten().to_numpy().reshape(len(c), -1) for c in columns])


STAGE = HiddenStage()
