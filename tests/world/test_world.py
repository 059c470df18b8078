"""The built-in world: its facts, tokenizer, corpus and stored base model match each other."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

from benchmarks import pretrain_world
from ift_scale.world import corpus, facts
from ift_scale.world.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_beliefs_are_wrong_as_often_as_intended() -> None:
    beliefs = [f for f in facts.all_facts() if f.belief is not None]
    assert 0.35 <= sum(f.belief != f.truth for f in beliefs) / len(beliefs) <= 0.40
    assert all(f.belief == f.truth for f in beliefs if f.split == "dev")


def test_the_belief_is_among_the_options() -> None:
    for fact in facts.all_facts():
        choices, answer = facts.options(fact)
        assert len(set(choices)) == facts.NUM_CHOICES and choices[answer] == fact.truth
        assert fact.belief is None or fact.belief in choices


def test_entities_are_distinct_and_splits_do_not_overlap() -> None:
    per_relation = Counter((f.relation.subject, f.entity) for f in facts.all_facts())
    assert max(per_relation.values()) == 1
    assert Counter(f.split for f in facts.all_facts()) == {"train": 640, "test": 640, "dev": 60}


def test_the_corpus_is_reproducible_and_has_all_kinds() -> None:
    first = list(islice(corpus.documents(5), 300))
    assert first == list(islice(corpus.documents(5), 300)) != list(islice(corpus.documents(6), 300))
    text = "\n".join(first)
    for mark in (
        "Context: ",
        "Explanation: ",
        "Question: ",
        "multiple choice questions about",
        "Which option is",
    ):
        assert mark in text


def test_the_stored_tokenizer_is_the_one_built_from_the_corpus(
    world_model: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    built = json.loads(tokenizer.backend_tokenizer.to_str())
    committed = json.loads((world_model / "tokenizer.json").read_text())
    assert built["model"] == committed["model"]


@pytest.mark.parametrize(
    "text",
    ["The remedy for Velora is willow.", "Zażółć 12 gęś\n\n Answer:A. x", "", "  two  spaces \n"],
)
def test_the_tokenizer_loses_nothing(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_the_stored_model_is_small_and_has_the_trained_shape(
    world_model: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert (world_model / "model.safetensors").stat().st_size < 1.3e6
    model = pretrain_world.build_model(len(tokenizer))
    with safe_open(world_model / "model.safetensors", framework="pt") as stored:
        shapes = {name: list(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    assert shapes == {name: list(p.shape) for name, p in model.named_parameters()}


@pytest.mark.engine
def test_pretraining_starts_to_learn(tmp_path: Path) -> None:
    """A few steps of the stored schedule; `python -m benchmarks.pretrain_world` runs all of it."""
    losses = pretrain_world.pretrain(tmp_path, num_steps=12)
    assert losses[-1] < 0.8 * losses[0]
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "tokenizer.json").is_file()


def test_token_weights_find_letters_and_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(
        "Which option is mint?\nA. mint\nB. sage\nAnswer:A. mint", return_tensors="pt"
    ).input_ids
    import torch

    padded = torch.cat([ids, torch.full((1, 2), tokenizer.pad_token_id)], dim=1)
    weights = pretrain_world.token_weights(tokenizer, padded)[0].tolist()
    heavy = [i for i, w in enumerate(weights) if w == pretrain_world.LETTER_WEIGHT]
    assert [tokenizer.convert_ids_to_tokens(int(ids[0, i + 1])) for i in heavy] == ["A"]
    assert weights[-2:] == [0.0, 0.0]
