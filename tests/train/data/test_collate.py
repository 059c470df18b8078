"""Packed micro-batches: the computed tokens, the supervised rows, and their labels."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ift_scale.train.data.collate import collate, num_shared
from ift_scale.train.data.dataset import TokenizedSet, load, save
from ift_scale.train.data.micro_batch import MicroBatch

CPU = torch.device("cpu")


def _set(lengths: list[int], seed: int = 0) -> TokenizedSet:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    offsets = np.cumsum([0, *lengths])
    return TokenizedSet(
        rng.integers(300, 900, total).astype(np.int32),
        rng.random(total) < 2.0,
        offsets,
        np.ones(len(lengths)),
        0,
    )


def _collate(examples: list[int], tokens: TokenizedSet) -> MicroBatch:
    return collate(examples, tokens, np.ones(len(tokens.lengths)), CPU)


def test_rows_predict_the_supervised_tokens() -> None:
    supervised = np.array([0, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0], dtype=bool)
    tokens = TokenizedSet(
        np.arange(100, 112, dtype=np.int32), supervised, np.array([0, 4, 7, 12]), np.ones(3), 0
    )
    # Up to the row that predicts the last supervised token.
    assert tokens.computed_lengths.tolist() == [2, 2, 3]
    batch = collate([2, 0], tokens, np.array([0.5, 9.0, 0.25]), CPU)
    assert batch.ids_1T.tolist() == [[107, 108, 109, 100, 101]]
    assert batch.positions_1T.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.packed.rows_R.tolist() == [0, 2, 4] and batch.labels_R.tolist() == [108, 110, 102]
    assert batch.weights_R.tolist() == [0.25, 0.25, 0.5]
    # The last layer's queries start at the first supervised row. The middle one of the first
    # example's three is not supervised.
    last = batch.packed.last
    assert (
        last.seqlens_q == [3, 1]
        and last.cu_seqlens_q.tolist() == [0, 3, 4]
        and last.cu_seqlens_k.tolist() == [0, 3, 5]
    )
    positions_R = batch.packed.row_positions_R
    assert positions_R is not None and positions_R.tolist() == [0, 2, 3]
    assert collate([1], tokens, np.ones(3), CPU).packed.row_positions_R is None


def test_a_rank_without_examples_takes_part_with_weight_0() -> None:
    batch = _collate([], _set([3, 9]))
    assert batch.examples == [] and batch.ids_1T.shape[1] < 3 and not batch.weights_R.any()


def test_token_files_round_trip(tmp_path: Path) -> None:
    tokens = _set([4, 3, 5])
    save(tokens, tmp_path / "t")
    again = load(tmp_path / "t")
    for part in ("ids", "supervised", "offsets", "weights"):
        assert (getattr(again, part) == getattr(tokens, part)).all()


def test_a_shared_prefix_is_computed_once() -> None:
    lengths, prefix = [13, 15, 12], 10
    offsets = np.cumsum([0, *lengths])
    ids = np.arange(100, 140, dtype=np.int32)
    supervised = np.zeros(40, dtype=bool)
    for start, end in pairwise(offsets):
        ids[start : start + prefix] = np.arange(prefix)
        supervised[end - 1] = True
    tokens = TokenizedSet(ids, supervised, offsets, np.ones(3), 0)
    assert tokens.first_rows.tolist() == [11, 13, 10]
    batch = _collate([0, 1, 2], tokens)
    assert batch.num_shared == prefix == num_shared([0, 1, 2], tokens)
    assert batch.starts == [10, 12, 16]
    assert batch.positions_1T[0].tolist() == [*range(10), 10, 11, 10, 11, 12, 13, 10]
    assert batch.packed.whole.seqlens_q == [10, 2, 4, 1]
    assert batch.packed.whole.seqlens_k == [10, 12, 14, 11]
    # Keys: the prefix three times, then the examples' own 2, 4 and 1.
    assert batch.packed.last.key_order is not None and batch.packed.last.num_copies == 3
    assert batch.packed.last.key_order.tolist()[12:26] == [*range(10, 20), 32, 33, 34, 35]
    order = batch.packed.whole.key_order
    assert order is not None and sorted(order.tolist()) == list(range(4 * 10 + 7))
    assert batch.labels_R.tolist() == [ids[12], ids[27], ids[39]]
    assert num_shared([1], tokens) == 0
    # Supervises the seventh token of the second example: only tokens before it can be shared.
    tokens.supervised[20] = True
    assert num_shared([0, 1, 2], TokenizedSet(ids, tokens.supervised, offsets, np.ones(3), 0)) == 0
