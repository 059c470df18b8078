"""Blocks: rows of a shard with equal shapes as arrays.

Shapes: Q questions of one option count C, V views of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


def softmax(logprobs: np.ndarray) -> np.ndarray:
    """Returns the probabilities over the last axis."""
    weights = np.exp(logprobs - logprobs.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Block:
    """Rows of a shard with equal shapes.

    `rows` (Q,), `logprobs` (Q, V, C) in the order shown, `orders` (Q, V, C), `draws` (Q, V),
    `answer` (Q,). With cloze: `cloze` and `bytes`, and with pmi `empty`, (Q, C) by content.
    """

    rows: np.ndarray
    logprobs: np.ndarray
    orders: np.ndarray
    draws: np.ndarray
    answer: np.ndarray
    cloze: np.ndarray | None = None
    bytes: np.ndarray | None = None
    empty: np.ndarray | None = None

    @property
    def probs(self) -> np.ndarray:
        """Probabilities by content, (Q, V, C): each letter's moved to the option it stood for."""
        by_content = np.empty_like(self.logprobs)
        np.put_along_axis(by_content, self.orders, softmax(self.logprobs), -1)
        return by_content

    @property
    def rotations(self) -> np.ndarray:
        """True for views that are rotations with the first demonstrations, (Q, V)."""
        turned = (self.orders[..., :1] + np.arange(self.orders.shape[-1])) % self.orders.shape[-1]
        return (self.draws == 0) & (turned == self.orders).all(-1)


def blocks(table: pa.Table) -> Iterator[Block]:
    """Splits the table's rows by their numbers of views and options."""
    lists = {name: table[name].combine_chunks() for name in ("draws", "orders", "logprobs")}
    views, shown = (np.asarray(lists[name].value_lengths()) for name in ("draws", "logprobs"))
    flat = {name: np.asarray(column.flatten()) for name, column in lists.items()}
    starts = {name: np.asarray(column.offsets)[:-1] for name, column in lists.items()}
    starts = {name: begin - begin[0] if len(begin) else begin for name, begin in starts.items()}
    answer = np.asarray(table["answer"])
    by_content = {
        name: table[name].to_pylist()
        for name in ("cloze", "bytes", "empty")
        if name in table.column_names
    }
    for num_views, num_shown in sorted({*zip(views.tolist(), shown.tolist(), strict=True)}):
        rows = np.flatnonzero((views == num_views) & (shown == num_shown))
        at = {name: begin[rows][:, None] for name, begin in starts.items()}
        shape = (len(rows), num_views, num_shown // num_views)
        yield Block(
            rows,
            flat["logprobs"][at["logprobs"] + np.arange(num_shown)].reshape(shape),
            flat["orders"][at["orders"] + np.arange(num_shown)].reshape(shape).astype(np.int64),
            flat["draws"][at["draws"] + np.arange(num_views)],
            answer[rows],
            **{name: np.array([column[i] for i in rows]) for name, column in by_content.items()},
        )
