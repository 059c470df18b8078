"""Training examples as token ids: tokenised once by one process, kept in a file that every rank maps."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ift_scale import artifacts
from ift_scale.config import TrainConfig
from ift_scale.errors import DataError, Place
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.records import Example


@dataclass(frozen=True)
class TokenizedSet:
    """Examples laid end to end. Example i is ids[offsets[i]:offsets[i + 1]]; shapes (tokens,), (tokens,), (examples + 1,)."""

    ids: np.ndarray
    supervised: np.ndarray
    offsets: np.ndarray
    num_truncated: int

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Tokens of each example that are predicted in the loss; a first token has nothing before it to predict it from."""
        predicted = self.supervised.copy()
        predicted[self.offsets[:-1]] = False
        return np.add.reduceat(predicted, self.offsets[:-1], dtype=np.int64)


def tokenize(path: Path, tokenizer: PromptTokenizer, template: str, config: TrainConfig) -> TokenizedSet:
    """The examples of a set; DataError names the line of one that is too long or has nothing to supervise."""
    ids: list[int] = []
    supervised: list[bool] = []
    offsets = [0]
    num_truncated = 0
    for number, example in enumerate(artifacts.read_jsonl(path, Example), start=1):
        try:
            tokens, mask = tokenizer.example(example.messages, template)
        except ValueError as error:
            remedy = "Choose another template for this tokenizer"
            raise DataError(Place(path, number, "messages"), str(error), remedy) from error
        if len(tokens) > config.max_length:
            if config.too_long == "error":
                remedy = "Raise train.max_length, remove the example, or set train.too_long to truncate"
                raise DataError(Place(path, number, "messages"), f"{len(tokens)} tokens, over {config.max_length}", remedy)
            tokens, mask = tokens[: config.max_length], mask[: config.max_length]
            num_truncated += 1
        if not any(mask[1:]):
            remedy = "Raise train.max_length or remove the example"
            raise DataError(Place(path, number, "messages"), "no token of the answer is left to learn from", remedy)
        ids += tokens
        supervised += mask
        offsets.append(len(ids))
    arrays = np.array(ids, dtype=np.int32), np.array(supervised, dtype=bool), np.array(offsets, dtype=np.int64)
    return TokenizedSet(*arrays, num_truncated)


def save(tokens: TokenizedSet, path: Path) -> None:
    with artifacts.atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, ids=tokens.ids, supervised=tokens.supervised, offsets=tokens.offsets, num_truncated=tokens.num_truncated)


def load(path: Path) -> TokenizedSet:
    with np.load(path) as arrays:
        return TokenizedSet(arrays["ids"], arrays["supervised"], arrays["offsets"], int(arrays["num_truncated"]))
