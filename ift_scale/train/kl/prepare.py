"""Prepares the divergence from the base model before the ranks start: digests and general text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ift_scale.config import Config
from ift_scale.config.instructions import InstructionSource
from ift_scale.errors import ConfigError, DataError, Place
from ift_scale.instructions.read import Skipped, read
from ift_scale.io import jsonl, text_file
from ift_scale.io.manifests import digest_of, file_digest, folder_digest
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset
from ift_scale.train.data.tokenize import tokenizer_digest
from ift_scale.train.job import ArmJob, KLJob
from ift_scale.train.model.path import TrainingPath
from ift_scale.train.validation.prepare import tokenized_file

CACHE = ".kl"
"""Folder of the base's distributions, within the train stage's folder."""
_TEXT_VERSION = 1
_TEXTS_AT_ONCE = 256


def with_kl(
    arms: Sequence[ArmJob],
    config: Config,
    folder: Path,
    tokens: Path,
    tokenizer: PromptTokenizer,
    model_path: Path,
) -> list[ArmJob]:
    """Returns the arms with the divergence from the base model, if it is on.

    `folder`: the train stage's. `tokens`: folder of the token files. Raises DataError for a text
    that cannot be used.
    """
    settings = config.train.kl
    if not settings.is_on:
        return list(arms)
    text = None
    if settings.text is not None:
        text = str(_text_tokens(Path(settings.text.path), config, tokens, tokenizer))
    job = KLJob(
        cache=str(folder / CACHE),
        base=folder_digest(model_path),
        tokenizer=tokenizer_digest(tokenizer),
        text=text,
    )
    return [arm.model_copy(update={"kl": job}) for arm in arms]


def check_path(path: TrainingPath, config: Config) -> None:
    """Raises ConfigError if `train.kl` is on and the training path cannot evaluate the base."""
    if config.train.kl.is_on and not path.evaluates:
        reason = "evaluation mode changes its weights, or its logits on the training path"
        problem = f"train.kl: the base model's distributions are unknown, because {reason}"
        raise ConfigError("settings", [f"{problem}; set train.kl.weight to 0"])


def _text_tokens(path: Path, config: Config, cache: Path, tokenizer: PromptTokenizer) -> Path:
    """Returns the token file of the general text: plain texts, or instructions in any format."""
    texts = _plain_texts(path)
    if texts is None:
        report = Skipped()
        examples = list(read(InstructionSource(path=str(path)), report))
        say(f"train: general text {report.summary(str(path))}")
        return tokenized_file(examples, path, config, cache, tokenizer, "kl-text")
    longest = config.train.max_length
    settings = [_TEXT_VERSION, file_digest(path), tokenizer_digest(tokenizer), longest]
    folder = cache / digest_of(settings)[:16]
    if not dataset.is_intact(folder):
        dataset.save(_tokenized(path, texts, longest, tokenizer), folder)
    found = dataset.load(folder)
    say(
        f"train: general text {path}: {len(found.weights)} texts, {found.num_truncated} of them "
        f"cut at train.max_length = {longest} tokens"
    )
    return folder


def _plain_texts(path: Path) -> Iterator[tuple[int, str]] | None:
    """Returns (line, text) of each text: the paragraphs of a .txt file, or the field `text` of
    JSON rows; None for a file of instructions."""
    if path.suffix == ".txt":
        return _paragraphs(path)
    if path.suffix not in (".jsonl", ".json", ".gz"):
        return None
    first = next(jsonl.rows(path), None)
    if first is None or "text" not in first[1]:
        return None
    return ((number, _field(path, number, row)) for number, row in jsonl.rows(path))


def _field(path: Path, number: int, row: dict[str, object]) -> str:
    text = row.get("text")
    if isinstance(text, str):
        return text
    remedy = "Give every row a text, or none of them"
    raise DataError(Place(path, number, "text"), "must be a text", remedy, text)


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    lines: list[str] = []
    for number, line in enumerate([*text_file.lines(path), ""], start=1):
        if line.strip():
            lines.append(line.rstrip("\n"))
        elif lines:
            yield number - len(lines), "\n".join(lines)
            lines = []


def _tokenized(
    path: Path, texts: Iterator[tuple[int, str]], longest: int, tokenizer: PromptTokenizer
) -> dataset.TokenizedSet:
    """Returns the texts as examples whose every token but the first is supervised."""
    every = list(texts)
    if not every:
        raise DataError(Place(path), "contains no text", "Add texts, or remove train.kl.text")
    ids: list[int] = []
    offsets, num_cut = [0], 0
    for start in range(0, len(every), _TEXTS_AT_ONCE):
        part = every[start : start + _TEXTS_AT_ONCE]
        encoded = tokenizer.encode([text for _, text in part])
        for (number, text), tokens in zip(part, encoded, strict=True):
            if len(tokens) < 2:
                remedy = "Remove it, or give a longer one"
                raise DataError(Place(path, number), "has fewer than two tokens", remedy, text)
            num_cut += len(tokens) > longest
            ids += tokens[:longest]
            offsets.append(len(ids))
    supervised = np.ones(len(ids), dtype=bool)
    supervised[offsets[:-1]] = False
    return dataset.TokenizedSet(
        np.array(ids, dtype=np.int32),
        supervised,
        np.array(offsets, dtype=np.int64),
        np.ones(len(every)),
        num_cut,
    )
