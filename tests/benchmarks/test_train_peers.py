"""The trainers' benchmark: the peers' lock matches ours, and ablations do not change the loss."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ift_scale.train.data import packing
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.micro_batch import MicroBatch

ROOT = Path(__file__).parents[2]


def module(name: str) -> ModuleType:
    """A file of benchmarks/peers, which is no package."""
    spec = importlib.util.spec_from_file_location(
        name, ROOT / "benchmarks" / "peers" / f"{name}.py"
    )
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def tokens() -> TokenizedSet:
    """Five examples of 3 to 7 tokens, the last two of each supervised."""
    lengths = np.array([5, 3, 7, 4, 6])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    supervised = np.concatenate([np.arange(n) >= n - 2 for n in lengths])
    return TokenizedSet(np.arange(offsets[-1], dtype=np.int32), supervised, offsets, np.ones(5), 0)


def weighted_labels(batch: MicroBatch) -> list[tuple[int, float]]:
    """(label, weight) of the rows that count."""
    pairs = zip(batch.labels_R.tolist(), batch.weights_R.tolist(), strict=True)
    return sorted((label, weight) for label, weight in pairs if weight)


@pytest.mark.parametrize("change", ["with_padding", "on_all_rows"])
@pytest.mark.parametrize("examples", [[2, 0, 3], []])
def test_the_loss_stays(tokens: TokenizedSet, change: str, examples: list[int]) -> None:
    scales = np.linspace(0.1, 0.5, 5)
    plain = collate(examples, tokens, scales, torch.device("cpu"))
    changed = getattr(module("ablated_ranks"), change)(collate)(
        examples, tokens, scales, torch.device("cpu")
    )
    assert weighted_labels(changed) == weighted_labels(plain)
    assert changed.examples == plain.examples


def test_padding_is_computed_and_all_rows_are_asked_for(tokens: TokenizedSet) -> None:
    ablated, scales = module("ablated_ranks"), np.ones(5)
    padded = ablated.with_padding(collate)([2, 1], tokens, scales, torch.device("cpu"))
    assert padded.packed.whole.seqlens_q == [6, 6]
    whole = ablated.on_all_rows(collate)([2, 1], tokens, scales, torch.device("cpu"))
    assert len(whole.labels_R) == 6 + 2


def test_in_order_keeps_every_example_under_the_cap(tokens: TokenizedSet) -> None:
    assign = module("ablated_ranks").in_order(packing.assign_to_ranks)
    step = assign([4, 2, 0, 1, 3], tokens.lengths, 2, 10, 64)
    places = [place for micro in step for place in micro]
    assert [i for place in places for i in place] == [4, 2, 0, 1, 3]
    assert all(tokens.lengths[place].sum() <= 10 for place in places if place)
    assert all(len(micro) == 2 for micro in step)


def test_trl_stands_on_our_versions() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        pairs = (line.split(";")[0].strip().removesuffix("+cpu").split("==") for line in lines)
        return {name.lower().replace("_", "-"): version for name, version in pairs}

    ours, theirs = (
        pins(ROOT / "configs" / "locks" / "cpu.txt"),
        pins(ROOT / "benchmarks" / "peers" / "trl.txt"),
    )
    assert {
        name: version for name, version in theirs.items() if name != "trl"
    }.items() <= ours.items()
