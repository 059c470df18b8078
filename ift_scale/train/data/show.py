"""A packed micro-batch as a person can read it: what the model sees, what it learns, what is not computed.

Made of the micro-batch itself (`batch.collate`), so that what is shown is what is trained.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from rich.text import Text

from ift_scale.train.data.collate import MicroBatch
from ift_scale.train.data.dataset import TokenizedSet

Kind = Literal["seen", "learnt", "dropped"]
Decode = Callable[[list[int]], str]
_STYLES: dict[Kind, str] = {"seen": "", "learnt": "bold green", "dropped": "dim"}
_MARKS: dict[Kind, tuple[str, str]] = {
    "seen": ("", ""),
    "learnt": ("[[", "]]"),
    "dropped": ("((", "))"),
}


@dataclass(frozen=True)
class Shown:
    """One example of a micro-batch. `number`: in the set, from 0. `kinds`: of each token: predicted in the loss; else computed, or
    not. `factor`: of each learnt token's cross-entropy in the step's loss."""

    number: int
    ids: list[int]
    kinds: list[Kind]
    num_computed: int
    weight: float
    factor: float

    @property
    def num_learnt(self) -> int:
        return self.kinds.count("learnt")

    def heading(self) -> str:
        counts = (
            f"{len(self.ids)} tokens, {self.num_computed} computed, {self.num_learnt} supervised"
        )
        return f"line {self.number + 1}: {counts}, weight {self.weight:g}, {self.factor:.3g} a token in the loss"


def examples(batch: MicroBatch, tokens: TokenizedSet) -> Iterator[Shown]:
    starts, shared = [*batch.starts, batch.ids_1T.shape[1]], batch.num_shared
    rows, labels, factors = (
        batch.packed.rows_R.numpy(),
        batch.labels_R.numpy(),
        batch.weights_R.tolist(),
    )
    for number, start, end in zip(batch.examples, starts, starts[1:], strict=False):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]]
        (own,) = np.nonzero((rows >= start) & (rows < end))
        learnt = rows[own] - start + shared + 1  # a row predicts the token behind it
        num_computed = shared + end - start
        assert (batch.ids_1T[0, start:end].numpy() == ids[shared:num_computed]).all() and (
            labels[own] == ids[learnt]
        ).all()
        kinds: list[Kind] = [
            "seen" if place < num_computed else "dropped" for place in range(len(ids))
        ]
        for place in learnt.tolist():
            kinds[place] = "learnt"
        yield Shown(
            number,
            ids.tolist(),
            kinds,
            num_computed,
            float(tokens.weights[number]),
            factors[own[0]],
        )


def pieces(ids: Sequence[int], kinds: Sequence[Kind], decode: Decode) -> Iterator[tuple[Kind, str]]:
    """Runs of tokens of one kind, as text. Each is what it adds to the text before it: by itself it may lose its first space."""
    before, place = "", 0
    for kind, run in groupby(kinds):
        place += len(list(run))
        text = decode(list(ids[:place]))
        yield kind, text[len(before) :]
        before = text


def text_of(shown: Shown, decode: Decode, colour: bool) -> Text:
    """In colours, or with [[ ]] around what is learnt and (( )) around what is not computed."""
    text = Text()
    for kind, piece in pieces(shown.ids, shown.kinds, decode):
        left, right = ("", "") if colour else _MARKS[kind]
        text.append(f"{left}{piece}{right}", _STYLES[kind])
    return text
