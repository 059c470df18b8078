"""Tokenises a set: each example in the chat template, supervised on its responses."""

from array import array
from pathlib import Path

import numpy as np

from ift_scale.config.train import TrainConfig
from ift_scale.errors import DataError, Place
from ift_scale.io.files import read_jsonl
from ift_scale.io.manifests import folder_digest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example
from ift_scale.train.data.dataset import TokenizedSet


def tokenize(
    path: Path, tokenizer: PromptTokenizer, template: str, config: TrainConfig
) -> TokenizedSet:
    """Returns the tokenised examples of the set in `path`.

    Raises DataError, naming the line, for an example that is too long, that the template does not
    support, or that has no supervised token.
    """
    # Arrays rather than lists, whose objects would take ten times the memory for a large set.
    ids, supervised, offsets, weights = array("i"), bytearray(), [0], []
    num_truncated = 0
    for number, example in enumerate(read_jsonl(path, Example), start=1):
        place = Place(path, number, "messages")
        tokens, mask, was_truncated = _tokenize_example(example, place, tokenizer, template, config)
        num_truncated += was_truncated
        ids.extend(tokens)
        supervised.extend(mask)
        offsets.append(len(ids))
        weights.append(example.meta.weight)
    flat = np.array(ids, dtype=np.int32), np.array(supervised, dtype=np.uint8).astype(bool)
    return TokenizedSet(
        *flat, np.array(offsets, dtype=np.int64), np.array(weights, dtype=np.float64), num_truncated
    )


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
