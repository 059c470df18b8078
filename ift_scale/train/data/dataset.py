"""Training examples as token ids: tokenised once by one process, kept in a file that every rank reads."""

from array import array
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ift_scale.config import TrainConfig
from ift_scale.errors import DataError, Place
from ift_scale.io.files import atomic_path, read_jsonl
from ift_scale.io.manifests import folder_digest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Example


@dataclass(frozen=True)
class TokenizedSet:
    """Examples laid end to end. Example i is ids[offsets[i]:offsets[i + 1]] and stands in line i + 1 of the set's file.

    Shapes: ids and supervised (tokens,), offsets (examples + 1,), weights (examples,).
    """

    ids: np.ndarray
    supervised: np.ndarray
    offsets: np.ndarray
    weights: np.ndarray
    num_truncated: int

    def examples(self) -> list[np.ndarray]:
        """The ids of each example."""
        return np.split(self.ids, self.offsets[1:-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @cached_property
    def computed_lengths(self) -> np.ndarray:
        """Tokens of each example up to the one that predicts its last supervised token: nothing reads what follows."""
        places = np.flatnonzero(self.supervised)
        return places[np.searchsorted(places, self.offsets[1:]) - 1] - self.offsets[:-1]

    @cached_property
    def first_rows(self) -> np.ndarray:
        """Place within each example of the first token that predicts a supervised one."""
        places, seconds = (
            np.flatnonzero(self.supervised),
            self.offsets[:-1] + 1,
        )  # nothing predicts a first token
        return places[np.searchsorted(places, seconds)] - seconds

    @cached_property
    def supervised_counts(self) -> np.ndarray:
        """Tokens of each example that are predicted in the loss; a first token has nothing before it to predict it from."""
        predicted = self.supervised.copy()
        predicted[self.offsets[:-1]] = False
        return np.add.reduceat(predicted, self.offsets[:-1], dtype=np.int64)


def tokenize(
    path: Path, tokenizer: PromptTokenizer, template: str, config: TrainConfig
) -> TokenizedSet:
    """The examples of a set; DataError names the line of one that is too long or has nothing to supervise."""
    # Arrays rather than lists, whose objects would take ten times the memory of a large set.
    ids, supervised, offsets, weights = array("i"), bytearray(), [0], []
    num_truncated = 0
    for number, example in enumerate(read_jsonl(path, Example), start=1):
        try:
            tokens, mask = tokenizer.example(example.messages, template)
            if config.supervise == "all":
                mask = [True] * len(tokens)
        except ValueError as error:
            remedy = "Mend the example, or set evaluate.template to another that goes with this tokenizer"
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
                else "Give it an assistant's turn, or remove it"
            )
            raise DataError(
                Place(path, number, "messages"),
                "no token of an answer is there to learn from",
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


def check_enough(tokens: TokenizedSet, path: Path, config: TrainConfig) -> None:
    """DataError where the set of `path` does not fill one optimizer step."""
    found, wanted = len(tokens.lengths), config.global_batch_size
    if found < wanted:
        problem = f"{found} examples are fewer than one optimizer step of train.global_batch_size = {wanted}"
        raise DataError(
            Place(path), problem, "Lower train.global_batch_size, or build a larger set"
        )


def save(tokens: TokenizedSet, path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{part.name: getattr(tokens, part.name) for part in fields(tokens)})


def load(path: Path) -> TokenizedSet:
    with np.load(path) as arrays:
        parts = {name: arrays[name] for name in ("ids", "supervised", "offsets", "weights")}
        return TokenizedSet(**parts, num_truncated=int(arrays["num_truncated"]))
