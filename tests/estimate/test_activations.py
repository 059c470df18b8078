"""The activation formulas, compared with the bytes that transformers' models hold on a CPU."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from ift_scale_kernels.linear_cross_entropy import chunked
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import AutoConfig, AutoModelForCausalLM

from ift_scale.estimate import activations
from ift_scale.estimate.activations import Checkpointing, Precision
from ift_scale.estimate.shape_of import shape_of
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.model import attention
from tests.estimate.live_bytes import LiveBytes

SMALL = {
    "vocab_size": 64,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "pad_token_id": 0,
}
KEPT = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def _model(config: dict[str, Any], checkpointing: Checkpointing, dtype: torch.dtype) -> Any:
    settings = {k: v for k, v in config.items() if k != "model_type"}
    built = AutoConfig.for_model(config["model_type"], **settings)
    model: Any = AutoModelForCausalLM.from_config(built, attn_implementation="sdpa")
    model.to(dtype).train()

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in KEPT else CheckpointPolicy.PREFER_RECOMPUTE

    for layer in model.model.layers:
        if checkpointing == "full":
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        elif checkpointing == "selective":
            contexts = partial(create_selective_checkpoint_contexts, policy)
            layer.forward = partial(
                checkpoint, layer.forward, use_reentrant=False, context_fn=contexts
            )
    for parameter in model.parameters():  # as ZeRO takes gradients as soon as they exist
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    return model


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("llama", torch.float32),
        ("qwen3", torch.bfloat16),
        ("gemma2", torch.bfloat16),
    ],
)
def test_activations_are_what_a_model_holds(
    family: str, dtype: torch.dtype, checkpointing: Checkpointing
) -> None:
    config = {"model_type": family, **SMALL, "num_hidden_layers": 3}
    tokens, model = 128, _model(config, checkpointing, dtype)
    with LiveBytes(model) as live:
        hidden = model.model(
            input_ids=torch.randint(0, 64, (1, tokens)), use_cache=False
        ).last_hidden_state
        kept = live.now
        hidden.backward(torch.ones_like(hidden))
    shape, precision = shape_of(config), Precision(dtype.itemsize, fused=False)
    expected = tokens * activations.kept(shape, precision, checkpointing)
    assert expected == pytest.approx(kept, rel=0.02)
    assert expected + tokens * activations.working(
        shape, precision, checkpointing
    ) == pytest.approx(live.peak, rel=0.06)


@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_repeated_keys_and_values_are_what_packed_attention_holds(
    checkpointing: Checkpointing,
) -> None:
    """With grouped heads, SDPA per example holds what is counted, and less without repetition."""
    config = {"model_type": "llama", **SMALL, "num_key_value_heads": 1, "num_hidden_layers": 3}
    model, tokens = _model(config, checkpointing, torch.float32), 128
    model.config._attn_implementation = attention.NAMES["sdpa"]
    length = tokens + 1  # the last one is only predicted
    row = TokenizedSet(
        np.zeros(length, np.int32), np.ones(length, bool), np.array([0, length]), np.ones(1), 0
    )
    batch = collate([0], row, np.ones(1), torch.device("cpu"), False)
    with LiveBytes(model) as live:
        hidden = model.model(
            input_ids=batch.ids_1T,
            position_ids=batch.positions_1T,
            packed=batch.packed,
            use_cache=False,
        ).last_hidden_state
        kept = live.now
        hidden.backward(torch.ones_like(hidden))
    shape = shape_of(config)
    counted, without = (
        tokens
        * activations.kept(shape, Precision(4, fused=False, repeated=repeated), checkpointing)
        for repeated in (True, False)
    )
    # SDPA holds each example's output. The copy in one row for the next product is not counted.
    assert counted == pytest.approx(kept, rel=0.05)
    assert checkpointing == "selective" or without < 0.9 * kept


def test_the_head_is_bounded_by_its_chunk() -> None:
    """More rows than a chunk need only more hidden states and their gradients."""
    shape = shape_of(
        {"model_type": "llama", **SMALL, "vocab_size": 128_256, "num_hidden_layers": 1}
    )
    precision = Precision(2, fused=True)
    more = activations.head(shape, precision, 8192) - activations.head(shape, precision, 4096)
    assert more == pytest.approx(
        4096 * 2 * 2 * shape.hidden, rel=0.2
    )  # chunks have equal sizes below the maximum
    assert (
        activations.head(shape, precision, 8)
        < activations.head(shape, precision, 4096) - activations.GPU_LOGITS
    )


@pytest.mark.parametrize("rows", [50, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_is_what_the_loss_holds(
    dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one chunk and in several."""
    vocab, size = 3000, 128
    for module, name in ((chunked, "CPU_BYTES"), (activations, "CPU_LOGITS")):
        monkeypatch.setattr(module, name, 4 * vocab * 150)
    head = torch.nn.Linear(size, vocab, bias=False, dtype=dtype)
    labels = torch.randint(0, vocab, (rows,))
    with LiveBytes(head) as live:
        hidden = torch.randn(rows, size, dtype=dtype, requires_grad=True)
        loss, _ = linear_cross_entropy(hidden, head.weight, labels)
        peak = live.peak
        live.peak = 0
        loss.backward()
    shape = shape_of({"model_type": "llama", **SMALL, "vocab_size": vocab, "num_hidden_layers": 1})
    precision = Precision(dtype.itemsize, fused=True, on_gpu=False)
    assert activations.head(shape, precision, rows) == pytest.approx(peak, rel=0.05)
    own = rows * size * dtype.itemsize  # the rows themselves, which count as activations
    assert activations.head_gradients(shape, precision, rows) == pytest.approx(
        live.peak - own, rel=0.02
    )


def test_the_bounds_of_logits_are_the_kernels() -> None:
    assert (activations.GPU_LOGITS, activations.CPU_LOGITS) == (
        chunked.GPU_BYTES,
        chunked.CPU_BYTES,
    )
