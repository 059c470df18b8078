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
        try:
            tokens, mask = tokenizer.example(example.messages, template)
            if config.supervise == "all":
                mask = [True] * len(tokens)
        except ValueError as error:
            remedy = "Fix the example, or set evaluate.template to one that suits this tokenizer"
            raise DataError(Place(path, number, "messages"), str(error), remedy) from error
        if len(tokens) > config.max_length:
            if config.too_long == "error":
                remedy = (
                    "Raise train.max_length, remove the example, or set train.too_long to truncate"
                )
                raise DataError(
                    Place(path, number, "messages"),
                    f"{len(tokens)} tokens, over {config.max_length}",
                    remedy,
                )
            tokens, mask = tokens[: config.max_length], mask[: config.max_length]
            num_truncated += 1
        if not any(mask[1:]):
            cut = len(tokens) == config.max_length
            remedy = (
                "Raise train.max_length or remove the example"
                if cut
                else "Add an assistant turn, or remove the example"
            )
            raise DataError(
                Place(path, number, "messages"),
                "has no answer token to learn from",
                remedy,
            )
        ids.extend(tokens)
        supervised.extend(mask)
        offsets.append(len(ids))
        weights.append(example.meta.weight)
    flat = np.array(ids, dtype=np.int32), np.array(supervised, dtype=np.uint8).astype(bool)
    return TokenizedSet(
        *flat, np.array(offsets, dtype=np.int64), np.array(weights, dtype=np.float64), num_truncated
    )


def tokenizer_digest(tokenizer: PromptTokenizer) -> str:
    return folder_digest(tokenizer.path, (".json", ".model", ".jinja"))
