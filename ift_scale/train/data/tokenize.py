"""Tokenises a set: each example in the chat template, supervised on its responses."""

from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ift_scale.config.train import TrainConfig
from ift_scale.errors import DataError, Place
from ift_scale.io.files import read_record
from ift_scale.io.manifests import folder_digest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example
from ift_scale.train.data.dataset import TokenizedSet


def tokenize(
    path: Path,
    tokenizer: PromptTokenizer,
    template: str,
    config: TrainConfig,
    start: int = 0,
    end: int | None = None,
) -> TokenizedSet:
    """Returns the tokenised examples of the set in `path`, of the lines that begin in the bytes
    from `start` to `end`.

    Raises DataError, naming the line, for an example that is too long, that the template does not
    support, or that has no supervised token.
    """
    # Arrays rather than lists, whose objects would take ten times the memory for a large set.
    ids, supervised, offsets, weights = array("i"), bytearray(), [0], []
    num_truncated = 0
    for number, line in enumerate(_lines(path, start, end), start=1):
        place = Place(path, number, "messages")
        try:
            example = read_record(line, Example, place)
            if example.meta.source is not None:  # the line that the user can correct
                place = Place(Path(example.meta.source), field="messages")
            tokens, mask, cut = _tokenize_example(example, place, tokenizer, template, config)
        except DataError as error:
            raise _in_file(error, path, start) from error
        num_truncated += cut
        ids.extend(tokens)
        supervised.extend(mask)
        offsets.append(len(ids))
        weights.append(example.meta.weight)
    flat = np.array(ids, dtype=np.int32), np.array(supervised, dtype=np.uint8).astype(bool)
    return TokenizedSet(
        *flat, np.array(offsets, dtype=np.int64), np.array(weights, dtype=np.float64), num_truncated
    )


def _lines(path: Path, start: int, end: int | None) -> Iterator[bytes]:
    """Yields the lines that begin in a range of bytes."""
    with path.open("rb") as file:
        position = start
        if start > 0:  # the rest of a line that begins before
            file.seek(start - 1)
            position += len(file.readline()) - 1
        for line in file:
            if end is not None and position >= end:
                return
            position += len(line)
            yield line


def _in_file(error: DataError, path: Path, start: int) -> DataError:
    """Returns an error of a line that was counted from byte `start`, with its line in the file."""
    if error.place.line is None:
        return error
    with path.open("rb") as file:
        before = file.read(start)
    # A line that `start` cuts belongs to the range before.
    num_before = before.count(b"\n") + (bool(before) and not before.endswith(b"\n"))
    place = replace(error.place, line=error.place.line + num_before)
    return DataError(place, error.problem, error.remedy, error.value)


def _tokenize_example(
    example: Example,
    place: Place,
    tokenizer: PromptTokenizer,
    template: str,
    config: TrainConfig,
) -> tuple[list[int], list[bool], bool]:
    """Returns (ids, supervised, True if truncated)."""
    try:
        tokens, mask = tokenizer.example(example.messages, template)
    except ValueError as error:
        remedy = "Fix the example, or set evaluate.template to one that suits this tokenizer"
        raise DataError(place, str(error), remedy) from error
    if config.supervise == "all":
        mask = [True] * len(tokens)
    is_too_long = len(tokens) > config.max_length
    if is_too_long and config.too_long == "error":
        remedy = "Raise train.max_length, remove the example, or set train.too_long to truncate"
        raise DataError(place, f"{len(tokens)} tokens, over {config.max_length}", remedy)
    tokens, mask = tokens[: config.max_length], mask[: config.max_length]
    if not any(mask[1:]):
        remedy = (
            "Raise train.max_length or remove the example"
            if len(tokens) == config.max_length
            else "Add an assistant turn, or remove the example"
        )
        raise DataError(place, "has no answer token to learn from", remedy)
    return tokens, mask, is_too_long


def tokenizer_digest(tokenizer: PromptTokenizer) -> str:
    return folder_digest(tokenizer.path, (".json", ".model", ".jinja"))
