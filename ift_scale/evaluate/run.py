"""The evaluate stage: what each fine-tuned arm answers, 0-shot in the training template, by letter and, where asked for, in its own
words. Out: ARM/scores.parquet.

Every engine serves many arms: it is started with the first and takes the weights of the others in place.
"""

import time
from functools import partial
from pathlib import Path

from ift_scale.config import Config, ReliabilityConfig
from ift_scale.engines import model_folder
from ift_scale.engines.pool import slots_for
from ift_scale.engines.protocol import resolved_identity
from ift_scale.errors import DataError, Place
from ift_scale.evaluate.generated import GeneratedAsker, Rows
from ift_scale.io.manifests import digest_of, has_key, write_manifest
from ift_scale.io.progress import Bar
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.ranks.environment import Ranks, engines_on_gpu
from ift_scale.records import Arm
from ift_scale.scoring import embedding
from ift_scale.scoring.letters import Chat, LetterAsker
from ift_scale.scoring.question_file import GroupKey, QuestionFile
from ift_scale.scoring.runner import Asker, Target, compute, share_of, work_of
from ift_scale.scoring.scores import GENERATED_SCHEMA, PLAIN_SCHEMA, ChoiceScores, write_rows

VERSION = 4
FILE = "scores.parquet"


def group_of(arm: Arm, domain: str, collection: str, group: str | None = None) -> str | None:
    """HOMO: the held-out tests of the arm's own pools; ID: the benchmarks' part of its domains; OOD: the benchmarks' rest.

    A benchmark that is a group of its own is that one for every arm. None for the test of another arm's pool.
    """
    if group is not None:
        return group
    own = domain in arm.own_domains
    if collection == "pool":
        return "HOMO" if own else None
    return "ID" if own else "OOD"


def asked_of(arm: Arm, generate: bool, group: GroupKey) -> bool:
    """Whether an arm is asked this group's questions: the choice questions of the test splits of one of its test groups, and where
    answers are generated, the free ones too."""
    is_asked = group.split == "test" and (group.kind == "choice" or generate)
    return is_asked and group_of(arm, group.domain, group.collection, group.group) is not None


def _of_kind(arm: Arm, generate: bool, kind: str, group: GroupKey) -> bool:
    return group.kind == kind and asked_of(arm, generate, group)


def _asker(config: Config, tokenizer: PromptTokenizer) -> Asker:
    lettered = LetterAsker(
        Chat(tokenizer, config.evaluate.template, config.construct.response), plain
    )
    if not config.evaluate.generate:
        return lettered
    return GeneratedAsker(
        tokenizer,
        config.evaluate.template,
        lettered,
        config.evaluate.max_tokens,
        config.construct.refusal,
    )


def run(
    config: Config,
    folder: Path,
    pending: list[tuple[Arm, Path, str, dict[str, str]]],
    questions: QuestionFile,
    logs: Path,
    ranks: Ranks | None,
    bar: Bar,
) -> None:
    """Evaluate the pending arms (arm, model folder, key, inputs) into FOLDER/ARM, on as many ranks as call this; rank 0 merges."""
    for _, model_path, _, _ in pending:
        model_folder.check(model_path)
    tokenizer = PromptTokenizer(pending[0][1])
    asker = _asker(config, tokenizer)
    generate, on_gpu = config.evaluate.generate, engines_on_gpu(ranks)
    targets = [
        Target(
            arm.name,
            folder / arm.name,
            digest_of([key, resolved_identity(config.evaluate, config.model.dtype, on_gpu)]),
            [
                questions.select(partial(_of_kind, arm, generate, kind))
                for kind in ("choice", "free")
            ],
            asker,
            model_path,
            partial(_finish, config, key, inputs),
            config.evaluate.chunk_size,
            partial(has_key, folder / arm.name, key),
        )
        for arm, model_path, key, inputs in pending
    ]
    for target in targets:
        if not target.num_questions:
            problem = (
                f"has no {'' if generate else 'choice '}question in a test split to be evaluated on"
            )
            raise DataError(
                Place(f"arm {target.name}"),
                problem,
                "Add a benchmark, or test questions to the domain's pool",
            )
    embedding.check(targets, questions, tokenizer, pending[0][1])
    slots = slots_for(config.evaluate, config.model.dtype, logs / "evaluate.log", ranks, bar)
    compute(questions, targets, slots, share_of(ranks), bar)


def _finish(
    config: Config, key: str, inputs: dict[str, str], target: Target, shards: list[Path]
) -> None:
    started = time.monotonic()
    scores = ChoiceScores(ReliabilityConfig())
    generated = Rows(scores) if config.evaluate.generate else None
    write_rows(
        target.folder / FILE,
        GENERATED_SCHEMA if generated else PLAIN_SCHEMA,
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
    write_manifest(
        target.folder, "evaluate", key, config.evaluate.model_dump(), inputs, counts, seconds
    )
