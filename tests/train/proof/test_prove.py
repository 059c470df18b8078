"""The proof: which path each class gets, and classes made wrong on purpose are caught."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BigBirdConfig,
    BigBirdForCausalLM,
    DbrxConfig,
    DbrxForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoConfig,
    OlmoForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    ProphetNetConfig,
    ProphetNetForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from ift_scale.config import TrainConfig
from ift_scale.train.model.attention import VALUE_WIDTH
from ift_scale.train.model.path import TrainingPath
from ift_scale.train.proof.compare import TOLERANCE
from ift_scale.train.proof.prove import NotTrainable, prove
from ift_scale.train.proof.verdict import Proof

AUTO = TrainConfig()


@pytest.mark.parametrize(
    ("kind", "settings", "path"),
    [
        (LlamaForCausalLM, LlamaConfig(), "pruned"),
        (MixtralForCausalLM, MixtralConfig(), "pruned"),
        (OPTForCausalLM, OPTConfig(), "packed"),
        (GptOssForCausalLM, GptOssConfig(), "packed"),
        (FalconForCausalLM, FalconConfig(alibi=True), "padded"),
        (Mamba2ForCausalLM, Mamba2Config(), "padded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_fastest_exact_path(kind: Any, settings: Any, path: str) -> None:
    proof = prove(kind, settings)
    assert proof.fastest(AUTO).name == path
    taken = next(v for v in proof.verdicts if v.is_exact)
    assert taken.difference is not None and taken.difference <= proof.tolerance < 10 * TOLERANCE
    for verdict in proof.faster_than(proof.fastest(AUTO)):
        assert verdict.reason and verdict.path.name != path


def test_settings_can_ask_for_a_slower_path() -> None:
    proof = prove(MixtralForCausalLM, MixtralConfig())
    assert proof.fastest(TrainConfig(prune_last_layer=False)).name == "packed"
    assert proof.fastest(TrainConfig(router_aux_loss=True)).name == "packed"


def test_caps_and_scales_of_the_logits_are_found() -> None:
    head = (
        prove(Gemma2ForCausalLM, Gemma2Config(final_logit_softcapping=17.0)).verdicts[0].path.head
    )
    assert head is not None and head.softcap == 17.0


@pytest.mark.parametrize("base", [256, 2100, 2400])
def test_a_scale_of_the_logits_is_left_to_the_model(base: int) -> None:
    """MiniCPM3's depends on the width, which is smaller in the proof."""
    settings = MiniCPM3Config(
        hidden_size=2304, num_attention_heads=36, num_key_value_heads=36, dim_model_base=base
    )
    assert prove(MiniCPM3ForCausalLM, settings).fastest(AUTO).head is None


@pytest.mark.parametrize(("clip", "path"), [(None, "pruned"), (8.0, "packed")])
def test_a_last_layer_that_clips_is_not_pruned(clip: float | None, path: str) -> None:
    assert prove(OlmoForCausalLM, OlmoConfig(clip_qkv=clip)).fastest(AUTO).name == path


def test_dropout_of_a_part_of_the_config_is_found() -> None:
    parts = {"attn_pdrop": 0.3, "kv_n_heads": 8, "clip_qkv": 8, "rope_theta": 500_000.0}
    assert "dropout" in prove(DbrxForCausalLM, DbrxConfig(attn_config=parts)).fastest(AUTO).terms


def test_a_path_that_the_settings_exclude_does_not_count_for_a_slower_one() -> None:
    proof = prove(LlamaForCausalLM, LlamaConfig())
    pruned, packed = proof.verdicts
    padded = packed.model_copy(update={"path": TrainingPath(name="padded")})
    wrong = packed.model_copy(update={"is_exact": False})
    proof = proof.model_copy(update={"verdicts": [pruned, wrong, padded]})
    assert proof.fastest(AUTO).name == "pruned"
    assert proof.fastest(TrainConfig(prune_last_layer=False)).name == "padded"


class _LeakingGemma2(Gemma2ForCausalLM):
    """Adds the mean over all tokens before, so that it cannot be packed."""

    def __init__(self, config: Gemma2Config):
        super().__init__(config)
        self.model.norm.register_forward_hook(lambda _, args, out: out + _running_mean(out))


def test_what_sdpa_ignores_is_left_to_eager_attention() -> None:
    """transformers' SDPA computes Gemma 2 without the cap of its attention scores."""
    verdicts = prove(_LeakingGemma2, Gemma2Config()).verdicts
    exact = {(v.path.name, v.path.attention): v.is_exact for v in verdicts[2:]}
    assert exact == {("padded", "sdpa"): False, ("padded", "eager"): True}


def test_rotary_frequencies_by_length_leave_one_example_at_a_time() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
    proof = prove(LlamaForCausalLM, LlamaConfig(rope_parameters=rope))
    assert proof.fastest(AUTO).name == "single"


class _Layer(LlamaDecoderLayer):
    """A Llama layer whose output `mix` changes."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return self.mix(super().forward(hidden_states, *args, **kwargs))

    def mix(self, x_BTD: Tensor) -> Tensor:
        raise NotImplementedError


class _RunningMean(_Layer):
    """Adds the mean over all tokens before: causal, but a packed example sees the one before."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + _running_mean(x_BTD)


def _running_mean(x_BTD: Tensor) -> Tensor:
    return 0.1 * x_BTD.cumsum(1) / torch.arange(1, x_BTD.shape[1] + 1)[:, None]


class _BatchMean(_Layer):
    """Adds the mean over the batch, as batch normalisation does, and over all tokens before."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + 0.1 * x_BTD.mean(0, keepdim=True) + _running_mean(x_BTD)


class _NextToken(_Layer):
    """Adds the next token's state: not causal."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + 0.1 * torch.cat([x_BTD[:, 1:], x_BTD[:, :1]], 1)


class _Memory(_Layer):
    """Adds a state that the passes before have left."""

    state: Any = 0.0

    def mix(self, x_BTD: Tensor) -> Tensor:
        out = x_BTD + 0.1 * self.state
        self.state = x_BTD.detach().mean()
        return out


class _LongRows(_Layer):
    """Scales by the length of the row, so that padding and packing change it."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * (1 + 0.01 * x_BTD.shape[1])


class _WrongGradient(_Layer):
    """Right logits; the gradient is cut where a row holds more than one example's tokens."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if x_BTD.shape[1] < 60 else x_BTD.detach()


class _SmallWrongGradient(_Layer):
    """The gradient of one number, a millionth of the others', is wrong by a tenth in long rows."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.tiny = torch.nn.Parameter(torch.ones(()))

    def mix(self, x_BTD: Tensor) -> Tensor:
        wrong = 0.0 if x_BTD.shape[1] < 60 else 0.1 * (self.tiny - self.tiny.detach())
        return x_BTD * (1 + 1e-6 * (self.tiny + wrong))


class _UnsharedOnly(_Layer):
    """Cuts the gradient in a row of several examples without a common prefix."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        out = LlamaDecoderLayer.forward(self, hidden_states, **kwargs)
        rows = kwargs.get("packed")
        whole = getattr(rows, "packed", rows).whole if rows is not None else None
        unshared = whole is not None and not whole.num_shared and len(whole.seqlens_q) > 1
        return out.detach() if unshared else out


class _ChangedByEvaluation(_Layer):
    """Halves a weight in evaluation mode, for which an export after it would contain the half."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        if not self.training:
            self.mlp.down_proj.weight.data.mul_(0.5)
        return x_BTD


class _PositionBias(LlamaForCausalLM):
    """Adds a bias by position to the logits, after the head."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        bias_L = torch.arange(output.logits.shape[1]) * 0.1
        bias_LV = bias_L[:, None] * torch.arange(output.logits.shape[2]).sin()
        output.logits = output.logits + bias_LV
        return output


def test_a_head_that_depends_on_the_position_gets_whole_logits() -> None:
    path = prove(_PositionBias, LlamaConfig()).fastest(AUTO)
    assert (path.name, path.head) == ("single", None)


def _with(layer: type[_Layer]) -> Any:
    class Wrong(LlamaForCausalLM):
        def __init__(self, config: LlamaConfig):
            super().__init__(config)
            for number in range(len(self.model.layers)):
                self.model.layers[number] = layer(config, number)

    return Wrong


@pytest.mark.parametrize(
    ("layer", "path"),
    [(_RunningMean, "padded"), (_LongRows, "single")],
)
def test_a_class_that_leaks_gets_a_path_on_which_it_does_not(layer: Any, path: str) -> None:
    proof = prove(_with(layer), LlamaConfig())
    assert proof.fastest(AUTO).name == path
    rejected = proof.faster_than(proof.fastest(AUTO))
    assert {"pruned", "packed"} <= {verdict.path.name for verdict in rejected}
    assert all(verdict.difference is not None for verdict in rejected)


def test_a_class_that_leaks_across_a_batch_is_not_padded() -> None:
    proof = prove(_with(_BatchMean), LlamaConfig())
    assert proof.fastest(AUTO).name == "single"
    assert {"packed", "padded"} <= {v.path.name for v in proof.faster_than(proof.fastest(AUTO))}


class _OwnWindow(_Layer):
    """Forgets the row's first tokens past a window whose field no rule knows."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if x_BTD.shape[1] <= 300 else x_BTD * 1.5


@pytest.mark.parametrize(("max_length", "path"), [(256, "pruned"), (2048, "single")])
def test_a_length_of_an_unknown_name_is_passed_if_training_can(max_length: int, path: str) -> None:
    settings = LlamaConfig(local_window=300)
    assert prove(_with(_OwnWindow), settings, max_length).fastest(AUTO).name == path


class _OwnSpan(_Layer):
    """Changes past 48 tokens, which no example without regard to unknown lengths reaches."""

    def mix(self, x_BTD: Tensor) -> Tensor:
        return x_BTD if x_BTD.shape[1] <= 48 else x_BTD * 1.5


def test_a_short_length_of_an_unknown_name_is_passed() -> None:
    proof = prove(_with(_OwnSpan), LlamaConfig(local_span=48), 2048)
    assert proof.fastest(AUTO).name == "single"


def test_a_length_too_long_to_compare_leaves_the_reference() -> None:
    proof = prove(
        LlamaForCausalLM, LlamaConfig(reach=10_000, max_position_embeddings=16_384), 16_384
    )
    path = proof.fastest(AUTO)
    assert (path.name, path.attention, path.head) == ("single", "eager", None)
    assert all("10000 in its config" in verdict.reason for verdict in proof.verdicts[:-1])


@pytest.mark.parametrize(
    "fields",
    [
        {"local_window_size": 300},
        {"attn_config": {"reach": 300}},
        {"layer_windows": [300, 300]},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_length_is_found_in_tables_and_lists(fields: dict[str, Any]) -> None:
    assert prove(_with(_OwnWindow), LlamaConfig(**fields), 2048).fastest(AUTO).name == "single"


def test_learned_positions_reach_as_far_as_an_unknown_length() -> None:
    """ProphetNet's `relative_max_distance` of 128 is passed by rows that its small table lacked."""
    assert prove(ProphetNetForCausalLM, ProphetNetConfig(), 512).fastest(AUTO).name == "single"


def test_a_wrong_gradient_is_caught_where_the_logits_are_right() -> None:
    rejected = prove(_with(_WrongGradient), LlamaConfig()).verdicts[0]
    assert not rejected.is_exact and rejected.reason.startswith("the gradient of ")


def test_a_wrong_gradient_is_caught_however_small_it_is() -> None:
    proof = prove(_with(_SmallWrongGradient), LlamaConfig())
    assert proof.fastest(AUTO).name == "padded"
    assert all(".tiny differs" in verdict.reason for verdict in proof.verdicts[:2])


def test_a_prefix_that_is_not_shared_is_compared_too() -> None:
    proof = prove(_with(_UnsharedOnly), LlamaConfig())
    assert proof.fastest(AUTO).name == "padded"
    assert all("no shared prefix" in verdict.reason for verdict in proof.verdicts[:2])


def test_a_class_that_a_norm_of_ours_would_change_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The trainer replaces Llama's norms, and so must compute what they compute."""
    plain = LlamaRMSNorm.forward
    monkeypatch.setattr(LlamaRMSNorm, "forward", lambda self, x: plain(self, x + 0.1))
    with pytest.raises(NotTrainable, match="no training path is exact"):
        prove(LlamaForCausalLM, LlamaConfig())


def test_a_class_that_evaluation_changes_is_found() -> None:
    assert not prove(_with(_ChangedByEvaluation), LlamaConfig()).fastest(AUTO).evaluates
    assert prove(LlamaForCausalLM, LlamaConfig()).fastest(AUTO).evaluates


def test_rwkv_is_kept_from_dividing_its_weights() -> None:
    assert prove(RwkvForCausalLM, RwkvConfig()).fastest(AUTO).evaluates


def test_values_of_another_width_are_a_term() -> None:
    assert VALUE_WIDTH in prove(DeepseekV3ForCausalLM, DeepseekV3Config()).fastest(AUTO).terms


@pytest.mark.parametrize(
    ("layer", "reason"), [(_NextToken, "later tokens"), (_Memory, "passes before")]
)
def test_a_class_that_no_path_makes_right_is_refused(layer: Any, reason: str) -> None:
    with pytest.raises(NotTrainable, match=reason):
        prove(_with(layer), LlamaConfig())


def test_a_class_that_changes_after_a_short_row_is_refused() -> None:
    """BigBird attends to everything in rows of up to 704 tokens, and in all rows after one."""
    with pytest.raises(NotTrainable, match="passes before"):
        prove(BigBirdForCausalLM, BigBirdConfig(is_decoder=True))


def test_an_encoder_is_refused() -> None:
    with pytest.raises(NotTrainable, match="later tokens"):
        prove(BertLMHeadModel, BertConfig(is_decoder=False))


def test_a_proof_survives_its_file() -> None:
    proof = prove(LlamaForCausalLM, LlamaConfig())
    assert Proof.model_validate_json(proof.model_dump_json()) == proof


@pytest.mark.parametrize(("max_length", "path"), [(4096, "packed"), (4097, "single")])
def test_rotary_limits_that_no_example_reaches_do_not_count(max_length: int, path: str) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
    settings = Phi3Config(
        rope_parameters=rope | {"rope_theta": 10_000.0, "original_max_position_embeddings": 4096},
        max_position_embeddings=131_072,
    )
    assert prove(Phi3ForCausalLM, settings, max_length).fastest(AUTO).name == path
