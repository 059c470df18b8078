"""Renders a packed micro-batch as text: what the model sees, what it learns, what is not computed.

Reads the micro-batch itself (`collate.collate`), so that what is shown is what is trained.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from rich.text import Text

from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.micro_batch import MicroBatch

Kind = Literal["seen", "learnt", "dropped"]
"""Of a token: computed, supervised, or not computed."""
Decode = Callable[[list[int]], str]
_STYLES: dict[Kind, str] = {"seen": "", "learnt": "bold green", "dropped": "dim"}
_MARKS: dict[Kind, tuple[str, str]] = {
    "seen": ("", ""),
    "learnt": ("[[", "]]"),
    "dropped": ("((", "))"),
}


@dataclass(frozen=True)
class ShownExample:
    """One example of a micro-batch.

    `number`: index in the set, from 0. `kinds`: kind of each token. `factor`: factor of each
    supervised token's cross-entropy in the step's loss.
    """

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
        loss = f"{self.factor:.3g} per token in the loss"
        return f"line {self.number + 1}: {counts}, weight {self.weight:g}, {loss}"


def examples(batch: MicroBatch, tokens: TokenizedSet) -> Iterator[ShownExample]:
    """Yields the examples of a micro-batch on the CPU; asserts that they match the set."""
    starts, shared = [*batch.starts, batch.ids_1T.shape[1]], batch.num_shared
    rows_R, labels_R = batch.packed.rows_R.numpy(), batch.labels_R.numpy()
    factors = batch.weights_R.tolist()
    for number, start, end in zip(batch.examples, starts, starts[1:], strict=False):
        ids = tokens.ids[tokens.offsets[number] : tokens.offsets[number + 1]]
        (own,) = np.nonzero((rows_R >= start) & (rows_R < end))
        learnt = rows_R[own] - start + shared + 1  # a row predicts the token after it
        num_computed = shared + end - start
        assert (batch.ids_1T[0, start:end].numpy() == ids[shared:num_computed]).all()
        assert (labels_R[own] == ids[learnt]).all()
        kinds: list[Kind] = [
            "seen" if position < num_computed else "dropped" for position in range(len(ids))
        ]
        for position in learnt.tolist():
            kinds[position] = "learnt"
        weight, factor = float(tokens.weights[number]), factors[own[0]]
        yield ShownExample(number, ids.tolist(), kinds, num_computed, weight, factor)


def pieces(ids: Sequence[int], kinds: Sequence[Kind], decode: Decode) -> Iterator[tuple[Kind, str]]:
    """Yields runs of tokens of one kind as text.

    Each piece is what its tokens add to the text before them: decoded by themselves, they could
    lose their first space.
    """
    before, end = "", 0
    for kind, run in groupby(kinds):
        end += len(list(run))
        text = decode(list(ids[:end]))
        yield kind, text[len(before) :]
        before = text


def text_of(shown: ShownExample, decode: Decode, colour: bool) -> Text:
    """Returns the text in colours, or with [[ ]] around learnt and (( )) around dropped tokens."""
    text = Text()
    for kind, piece in pieces(shown.ids, shown.kinds, decode):
        left, right = ("", "") if colour else _MARKS[kind]
        text.append(f"{left}{piece}{right}", _STYLES[kind])
    return text
