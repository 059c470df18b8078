"""Compiled decoder layers give the results of plain ones, whatever the examples' lengths."""

import copy

import pytest
import torch
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy

from ift_scale.config import TrainConfig
from ift_scale.train.data.collate import collate
from ift_scale.train.model.packed import PackedCausalLM, compile_layers
from ift_scale.train.model.recompute import checkpoint_activations
from tests.train.families import build
from tests.train.model.test_packed import CPU, SCALE, _tokens

pytestmark = pytest.mark.engine


def test_compiled_layers_give_the_same_loss_and_gradient() -> None:
    """With recomputed activations; without, see the GPU kit's test."""
    config = TrainConfig(compile=True, activation_checkpointing="full")
    plain = build("llama")
    compiled = copy.deepcopy(plain)
    for model in (plain, compiled):
        checkpoint_activations(model, config)
    compile_layers(compiled, config)
    wrapped = [
        PackedCausalLM(model, config, CPU, linear_cross_entropy) for model in (plain, compiled)
    ]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for examples, prefix in (([0, 1, 2], 0), ([1], 0), ([0, 2], 11), ([2, 0, 1], 11)):
        tokens = _tokens(prefix)
        losses = []
        for model in wrapped:
            model.zero_grad()
            loss, _ = model(collate(examples, tokens, torch.full((3,), SCALE).numpy(), CPU))
            loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    # Other lengths need no new programs: a few graphs per layer rather than one per batch.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 16
