"""The checks of `ift-scale init` before it writes a file: model, folders, sources, questions."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ift_scale.config import (
    BUILTIN_MODEL,
    Config,
    GeneralConfig,
    Source,
    TrainConfig,
    is_pool,
)
from ift_scale.construct import general
from ift_scale.engines import model_folder
from ift_scale.errors import DataError, Place
from ift_scale.estimate.shape_of import shape_of
from ift_scale.io.progress import progress
from ift_scale.models.config_file import model_config
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.questions import duplicates
from ift_scale.questions.detect import Detected
from ift_scale.questions.run import QuestionCounts, counted
from ift_scale.questions.sources import placed
from ift_scale.records import Question
from ift_scale.train.proof import stored

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Counts = Counter[tuple[str, str]]
"""Questions of a source by domain and split."""


def check_output(folder: Path) -> None:
    """DataError if the folder could not be made or written to."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problem = "is not a folder" if not existing.is_dir() else "cannot be written"
        raise DataError(Place(existing), problem, "Give another folder for the run")


def check_model(given: str) -> tuple[str, str]:
    """The path to write and a description, for a model's folder or a downloaded hub id."""
    path = given
    if given != BUILTIN_MODEL and not Path(given).exists() and _HUB_ID.fullmatch(given):
        path = _downloaded(given)
    folder = model_folder.resolve(path, "--model")
    source = folder / "config.json"
    settings = model_config(folder)
    PromptTokenizer(folder)
    stored.proof_of(folder, TrainConfig().max_length)
    described = shape_of(settings, source)
    about = f"{described.family}, {described.parameters:,} parameters"
    return path, about if path == given else f"{given}, {about}"


def _downloaded(hub_id: str) -> str:
    """The folder of a model in the Hub's cache; DataError if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError) as error:
        local = f"models/{hub_id.rpartition('/')[2]}"
        remedy = f"Run `hf download {hub_id} --local-dir {local}` and give --model {local}"
        problem = "no such folder, and no model of that id in the Hub's cache"
        raise DataError(Place(hub_id), problem, remedy) from error


def check_general(path: str | None) -> str:
    """A description of the general instructions, which are read; DataError if they cannot be."""
    if path is None:
        return "General instructions, half of every set: none. The paper uses alpaca-gpt4."
    file = general.path_of(GeneralConfig(path=path))
    assert file is not None
    if not file.is_file():
        raise DataError(
            Place(file), "no such file", "Give --general a file of JSON lines, or leave it out"
        )
    count = len(general.load(file))
    about = f"General instructions, half of every set: {count:,}"
    if path == BUILTIN_MODEL:
        return about + " built-in ones; the paper takes alpaca-gpt4."
    return about + "."


def require_pool(found: Sequence[Detected]) -> None:
    """DataError if no source has questions to train on."""
    try:
        sources = TypeAdapter(list[Source]).validate_python([f.settings for f in found])
    except ValidationError:
        return  # the whole configuration is checked next, and the error describes the setting
    if not any(map(is_pool, sources)):
        kinds = ", ".join(one.kind for one in found)
        remedy = (
            "Add --questions with a pool: medmcqa, medqa, arc, a folder with the files train, dev "
            "and test, or one table of your own"
        )
        problem = f"nothing to train on: only benchmarks are given ({kinds})"
        raise DataError(Place("--questions"), problem, remedy)


def read_questions(config: Config) -> list[Counts]:
    """Questions of each source by domain and split. All are read; DataError if one is wrong."""
    tally = QuestionCounts()
    counts: list[Counts] = [Counts() for _ in config.questions.sources]

    def noted() -> Iterator[tuple[int, Place, Question]]:
        for number, place, question in placed(config, tally.left_out):
            counts[number][question.domain, question.split] += 1
            yield number, place, question

    with progress("questions", None) as bar:
        for _ in counted(noted(), tally, bar):
            pass
    if repeated := tally.ids.repeated():
        again = ((number, place, question.id) for number, place, question in placed(config))
        duplicates.refuse(again, repeated)
    tally.check_pools(("train", "test"))
    return counts


def pool_sizes(config: Config, counts: Sequence[Counts]) -> dict[str, int]:
    """Train questions of each domain that sets are made of."""
    sizes: Counter[str] = Counter()
    for source, found in zip(config.questions.sources, counts, strict=True):
        if is_pool(source):
            sizes.update({domain: n for (domain, split), n in found.items() if split == "train"})
    return dict(sizes)
