"""The packed model against each family's full forward: loss, gradient, no cross-talk."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ift_scale_kernels.linear_cross_entropy.reference import linear_cross_entropy
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from ift_scale.config import TrainConfig
from ift_scale.errors import ConfigError
from ift_scale.estimate.shape import train_flops
from ift_scale.estimate.shape_of import shape_of
from ift_scale.train.data.collate import collate
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.data.micro_batch import MicroBatch
from ift_scale.train.model import attention
from ift_scale.train.model.experts import expert_modules, has_listed_experts
from ift_scale.train.model.last_layer import attention_arguments
from ift_scale.train.model.packed import (
    PackedCausalLM,
)
from ift_scale.train.model.path import PRUNED, Head
from ift_scale.train.model.recompute import checkpoint_activations
from tests.train.families import CONFIGS, SIZES, WINDOW, build

CPU = torch.device("cpu")
SCALE = 0.1


def _tokens(prefix: int = 0) -> TokenizedSet:
    """One turn, several turns with gaps, and a short example, after `prefix` shared tokens.

    Longer than the families' sliding windows.
    """
    learnt = ([4, 5, 6, 7, 8], [3, 4, 9, 10, 12], [2, 3])
    lengths = [prefix + length for length in (9, 14, 5)]
    offsets = np.cumsum([0, *lengths])
    supervised = np.zeros(sum(lengths), dtype=bool)
    ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], sum(lengths)).astype(np.int32)
    for start, places in zip(offsets, learnt, strict=False):
        supervised[start + prefix + np.array(places)] = True
        ids[start : start + prefix] = np.arange(prefix) + 7
    return TokenizedSet(ids, supervised, offsets, np.ones(3), 0)


def _batch(tokens: TokenizedSet) -> MicroBatch:
    return collate([0, 1, 2], tokens, np.full(3, SCALE), CPU)


def _plain_loss(model: Any, tokens: TokenizedSet) -> Tensor:
    """The reference: one example per forward pass, the whole model, all logits."""
    total = torch.zeros(())
    for start, end in zip(tokens.offsets, tokens.offsets[1:], strict=False):
        ids, learnt = (
            torch.tensor(tokens.ids[start:end].astype("int64")),
            torch.tensor(tokens.supervised[start:end])[1:],
        )
        logits = model(ids[None]).logits[0, :-1].float()
        total = total + F.cross_entropy(logits[learnt], ids[1:][learnt], reduction="sum") * SCALE
    return total


def _packed(model: Any, **settings: Any) -> PackedCausalLM:
    config = TrainConfig(**settings)
    checkpoint_activations(model, config)
    caps = getattr(model.config, "final_logit_softcapping", None)
    path = PRUNED.model_copy(update={"head": Head(softcap=caps)})
    return PackedCausalLM(model, config, CPU, linear_cross_entropy, path)


@pytest.mark.parametrize(
    ("prune", "checkpointing", "prefix"),
    [
        (True, "none", 0),
        (True, "none", 11),
        (False, "none", 11),
        (False, "none", 0),
        (True, "selective", 11),
        (True, "full", 0),
    ],
)
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradient_are_the_full_models(
    family: str, prune: bool, checkpointing: str, prefix: int
) -> None:
    tokens, model = _tokens(prefix), build(family)
    expected = _plain_loss(model, tokens)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    packed = _packed(model, prune_last_layer=prune, activation_checkpointing=checkpointing)
    assert packed.pruned == prune
    batch = _batch(tokens)
    # Sharing ends at the first supervised row; equal ids after the prefix would be shared as well.
    assert (
        batch.num_shared == prefix
        and batch.ids_1T.shape[1] == tokens.computed_lengths.sum() - 2 * prefix
    )
    loss, losses_R = packed(batch)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert losses_R.sum().item() * SCALE == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, gradients[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
        )


def _changed(family: str, **fields: Any) -> Any:
    return type(CONFIGS[family])(
        **{
            name: v
            for name, v in CONFIGS[family].to_dict().items()
            if name in fields or name in SIZES
        }
        | fields
    )


SLIDING, FULL = "sliding_attention", "full_attention"
WINDOWS = {
    "ignored by Llama": (_changed("llama", sliding_window=WINDOW), None),
    "ignored by Gemma": (_changed("gemma", sliding_window=WINDOW), None),
    "switched off in Qwen2": (
        _changed("qwen2", use_sliding_window=False, sliding_window=WINDOW),
        None,
    ),
    "switched off in Qwen3": (
        _changed("qwen3", use_sliding_window=False, sliding_window=WINDOW),
        None,
    ),
    "not in Qwen2's last layer": (
        _changed(
            "qwen2",
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=[SLIDING, SLIDING, FULL],
        ),
        None,
    ),
    "in Qwen3's last layer": (
        _changed(
            "qwen3",
            use_sliding_window=True,
            sliding_window=WINDOW,
            layer_types=[FULL, FULL, SLIDING],
        ),
        WINDOW,
    ),
    "not in Gemma 2's last layer": (
        _changed("gemma2", sliding_window=WINDOW, layer_types=[SLIDING, SLIDING, FULL]),
        None,
    ),
    "in Gemma 3's last layer": (
        _changed("gemma3_text", sliding_window=WINDOW, layer_types=[SLIDING, FULL, SLIDING]),
        WINDOW,
    ),
    "absent from Mistral": (_changed("mistral", sliding_window=None), None),
    "in Mistral": (_changed("mistral", sliding_window=WINDOW), WINDOW),
}


@pytest.mark.parametrize("case", WINDOWS)
def test_the_last_layer_uses_a_window_only_if_the_architecture_does(case: str) -> None:
    config, window = WINDOWS[case]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(
                torch.randn_like(parameter) * (0.5 if "q_proj" in name or "k_proj" in name else 0.1)
            )
    expected = _plain_loss(model, _tokens()).item()
    assert attention_arguments(model.model.layers[-1].self_attn)["sliding_window"] == window
    assert _packed(model, activation_checkpointing="none")(_batch(_tokens()))[
        0
    ].item() == pytest.approx(expected, rel=1e-6)


class _Products(TorchDispatchMode):
    """Counts FLOPs of the matrix products of linear layers; on a CPU, attention has none."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = [x.shape for x in args if isinstance(x, Tensor)][-2:]
            self.flops += 2 * left[0] * left[1] * right[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("prefix", [0, 11])
@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_reported_flops_are_those_computed(family: str, prune: bool, prefix: int) -> None:
    """Exactly the products that MFU counts, with pruned rows, last layer and shared tokens."""
    tokens = _tokens(prefix)
    packed = _packed(build(family), prune_last_layer=prune, activation_checkpointing="none")
    with _Products() as products:
        packed(_batch(tokens))[0].backward()
    shape = shape_of(packed.model.config.to_dict())
    layer = dataclasses.replace(shape.last, pair_flops=0)
    no_attention = dataclasses.replace(shape, stack=((layer, shape.layers),))
    lengths, rows, shared = (
        tokens.computed_lengths.tolist(),
        tokens.supervised_counts.tolist(),
        [(prefix, 3)],
    )
    assert products.flops == train_flops(no_attention, lengths, rows, prune, shared)


@pytest.mark.parametrize("family", CONFIGS)
def test_no_example_sees_another(family: str) -> None:
    """Changing one example's tokens changes only its own logits; others are bit-identical."""
    tokens, packed = _tokens(), _packed(build(family))
    batch = _batch(tokens)
    before = packed.logits(batch)
    changed = copy.deepcopy(tokens)
    changed.ids[9:23] = (changed.ids[9:23] + 1) % SIZES["vocab_size"]
    after = packed.logits(_batch(changed))
    own = [5, 6, 7, 8, 9]
    others = [0, 1, 2, 3, 4, 10, 11]
    assert torch.equal(before[others], after[others])
    assert (before[own] - after[own]).abs().amax(1).min() > 1e-2


def test_attention_is_chosen_by_device_and_precision() -> None:
    cuda, bf16 = torch.device("cuda"), torch.bfloat16
    auto = TrainConfig()
    assert attention.implementation(auto, CPU, bf16) == "sdpa"
    assert attention.implementation(auto, cuda, torch.float32) == "sdpa"
    assert attention.implementation(auto, cuda, bf16) in ("varlen", "flash_attn")
    assert attention.implementation(auto, cuda, bf16, {"softcap"}) in ("sdpa", "flash_attn")
    with pytest.raises(
        ConfigError, match=r"train.attention: varlen needs a CUDA device; set it to auto"
    ):
        attention.implementation(TrainConfig(attention="varlen"), CPU, bf16)
    with pytest.raises(ConfigError, match="does not compute this model's softcap"):
        attention.implementation(TrainConfig(attention="varlen"), cuda, bf16, {"softcap"})
    assert attention.implementation(auto, cuda, bf16, {attention.VALUE_WIDTH}) == "sdpa"
    assert attention.implementation(auto, cuda, bf16, (), {64, 512}) == "sdpa"
    with pytest.raises(ConfigError, match="does not compute this model's heads of width 20"):
        attention.implementation(TrainConfig(attention="varlen"), cuda, bf16, (), {20})


def test_the_widths_of_heads_are_found_by_their_names() -> None:
    settings = DeepseekV3Config(num_hidden_layers=1, first_k_dense_replace=1)
    with torch.device("meta"):
        assert attention.head_widths(DeepseekV3ForCausalLM(settings)) >= {192, 128}


@pytest.mark.parametrize(
    ("name", "given", "term"),
    [
        ("varlen", {"softcap": 50.0}, "softcap"),
        ("varlen", {"dropout": 0.1}, "dropout"),
        ("flash_attn", {"s_aux": torch.zeros(2)}, "sinks"),
        ("varlen", {"value": torch.zeros(1, 2, 4, 16)}, attention.VALUE_WIDTH),
    ],
)
def test_a_kernel_raises_for_a_term_that_it_does_not_compute(
    name: str, given: dict[str, Any], term: str
) -> None:
    layer = torch.nn.Module()
    layer.config = SimpleNamespace(_attn_implementation=attention.NAMES[name])  # type: ignore[assignment]
    heads = torch.zeros(1, 2, 4, 8)
    inputs = {"query": heads, "key": heads, "value": heads, "attention_mask": None} | given
    with pytest.raises(TypeError, match=f"{name} does not compute this layer's {term}"):
        attention.attend(layer, **inputs, packed=_batch(_tokens()).packed)


class _ExpertMLP(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)


class _Block(nn.Module):
    """A layer with the parts that are given, by name."""

    def __init__(self, **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def _linears(count: int) -> list[nn.Module]:
    return [nn.Linear(2, 2) for _ in range(count)]


@pytest.mark.parametrize(
    "parts",
    [
        {"experts": nn.ModuleList(_linears(2))},
        {"experts": nn.ModuleDict({"expert_0": nn.Linear(2, 2), "expert_1": nn.Linear(2, 2)})},
        {"expert_list": nn.ModuleList(_linears(3))},
        {"local_experts": nn.ModuleList(_linears(2))},
        {"moe_experts": nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})},
        {"mlps": nn.ModuleList([_ExpertMLP(), _ExpertMLP()])},
        {"expert_0": nn.Linear(2, 2), "expert_1": nn.Linear(2, 2)},
        {"expert0": nn.Linear(2, 2), "expert1": nn.Linear(2, 2)},
    ],
    ids=lambda parts: ", ".join(f"{name}: {type(part).__name__}" for name, part in parts.items()),
)
def test_a_module_for_each_expert_is_found(parts: dict[str, nn.Module]) -> None:
    block = _Block(gate=nn.Linear(2, 2), **parts)
    model = nn.Sequential(nn.Linear(2, 2), block)
    assert has_listed_experts(model)
    assert expert_modules(model) == [block]


@pytest.mark.parametrize(
    "parts",
    [
        {"layers": nn.ModuleList(_linears(2))},
        {"shared_expert": nn.Linear(2, 2), "shared_expert_gate": nn.Linear(2, 2)},
        {"layers": nn.ModuleList([_Block(shared_expert=_ExpertMLP()) for _ in range(2)])},
    ],
    ids=["layers", "a shared expert", "layers with a shared expert"],
)
def test_modules_that_always_run_are_no_list_of_experts(parts: dict[str, nn.Module]) -> None:
    assert not has_listed_experts(_Block(**parts))
