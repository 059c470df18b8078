"""Packed micro-batches: rows and labels, and no example sees another."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ift_scale.train.batch import collate
from ift_scale.train.data import TokenizedSet, load, save

CPU = torch.device("cpu")


def _set(lengths: list[int], seed: int = 0) -> TokenizedSet:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    offsets = np.cumsum([0, *lengths])
    return TokenizedSet(rng.integers(300, 900, total).astype(np.int32), rng.random(total) < 0.5, offsets, 0)


def test_rows_predict_the_supervised_tokens() -> None:
    tokens = _set([4, 3, 5])
    batch = collate([2, 0], tokens, CPU)
    expected = np.concatenate([tokens.ids[7:12], tokens.ids[0:4]])
    assert batch.ids_1T[0].tolist() == expected.tolist()
    assert batch.positions_1T[0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert len(batch.rows_R) == tokens.supervised_counts[[2, 0]].sum()
    assert torch.equal(batch.ids_1T[0, batch.rows_R + 1], batch.labels_R)
    # No row lies at the end of an example, from where the next example's first token would be predicted.
    assert not set(batch.rows_R.tolist()) & {4, 8}


def test_an_empty_place_takes_part_without_rows() -> None:
    batch = collate([], _set([3]), CPU)
    assert batch.ids_1T.shape == (1, 1) and batch.labels_R.numel() == 0


def test_no_example_sees_another(world_model: Path) -> None:
    """Changing one example's tokens moves its own logits and nobody else's; packed equals alone."""
    model = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32, attn_implementation="sdpa")
    tokens = _set([9, 12, 7])
    batch = collate([0, 1, 2], tokens, CPU)

    def logits(ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]

    before = logits(batch.ids_1T, batch.positions_1T)
    changed = batch.ids_1T.clone()
    changed[0, 9:21] += 1
    after = logits(changed, batch.positions_1T)
    others = [*range(9), *range(21, 28)]
    assert torch.equal(before[others], after[others])
    assert (before[9:21] - after[9:21]).abs().max() > 0.1
    for start, end in ((0, 9), (9, 21), (21, 28)):
        alone = logits(batch.ids_1T[:, start:end], batch.positions_1T[:, start:end])
        torch.testing.assert_close(before[start:end], alone, atol=2e-4, rtol=1e-4)


def test_token_files_round_trip(tmp_path: Path) -> None:
    tokens = _set([4, 3, 5])
    save(tokens, tmp_path / "t.npz")
    again = load(tmp_path / "t.npz")
    assert (again.ids == tokens.ids).all() and (again.offsets == tokens.offsets).all()
    assert (again.supervised == tokens.supervised).all()


def test_loss_over_no_rows_is_zero_with_a_gradient(world_model: Path) -> None:
    from ift_scale.train.loop import loss_sum

    model = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32)
    loss = loss_sum(model, collate([], _set([3]), CPU))
    loss.backward()
    assert loss.item() == 0.0
