"""A micro-batch as text is the micro-batch: marks, factors, lengths, what is not computed."""

import numpy as np
import torch

from ift_scale.train.data import packing, show
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet

WORDS = "a b C d e F g h I J k l".split()


def _decode(ids: list[int]) -> str:
    return " ".join(WORDS[i] for i in ids)


def test_what_is_shown_is_what_is_trained() -> None:
    """Capital words are supervised: two turns followed by a word, and one turn."""
    supervised = np.array([word.isupper() for word in WORDS])
    tokens = TokenizedSet(
        np.arange(12, dtype=np.int32), supervised, np.array([0, 7, 12]), np.array([1.0, 3.0]), 0
    )
    scales = packing.loss_scales([0, 1], tokens.supervised_counts, tokens.weights, "token")
    shown = list(show.examples(collate([1, 0], tokens, scales, torch.device("cpu")), tokens))
    assert [example.number for example in shown] == [1, 0]
    texts = [str(show.text_of(example, _decode, colour=False)) for example in shown]
    assert texts == ["h[[ I J]](( k l))", "a b[[ C]] d e[[ F]](( g))"]
    assert [(example.num_computed, example.num_learnt) for example in shown] == [(2, 2), (5, 2)]
    assert [example.factor for example in shown] == [np.float32(3 / 8), np.float32(1 / 8)]
    assert (
        shown[0].heading()
        == "line 2: 5 tokens, 2 computed, 2 supervised, weight 3, 0.375 per token in the loss"
    )


def test_a_terminal_shows_colours_instead_of_marks() -> None:
    example = show.ShownExample(0, [0, 1, 2, 3], ["seen", "seen", "learnt", "dropped"], 2, 1.0, 0.5)
    text = show.text_of(example, _decode, colour=True)
    assert text.plain == "a b C d"
    assert [
        (str(span.style), text.plain[span.start : span.end]) for span in text.spans if span.style
    ] == [
        ("bold green", " C"),
        ("dim", " d"),
    ]
