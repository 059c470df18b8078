"""Every architecture's rows against plain forward passes of batch 1.

Windows, chunks, rotary scaling and caches of all kinds.
"""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from ift_scale.config import EngineConfig
from ift_scale.engines.protocol import EngineSpec, Sampling, ScoreRequest, TextRequest
from ift_scale.engines.rope import LengthClass, RopeLimits
from ift_scale.engines.row_kinds import selects_tokens
from ift_scale.engines.selector import gap_in_tolerances
from ift_scale.engines.strategies import ForwardPasses, PaddedBatches, SharedPrefix
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.errors import DataError

LIMIT = 40
_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_ROPE = {"rope_theta": 10000.0}
_LONGROPE = _ROPE | {
    "rope_type": "longrope",
    "long_factor": [4.0, 6, 9, 12, 15, 20, 25, 30],
    "short_factor": [1.0] * 8,
    "original_max_position_embeddings": LIMIT,
}
_DYNAMIC = _ROPE | {"rope_type": "dynamic", "factor": 4.0}
_EVERY_SECOND = ["sliding_attention", "full_attention"] * 2


def _llama_like(name: str, **settings: Any) -> tuple[str, dict[str, Any]]:
    return f"{name}Config", _LLAMA | settings


MODELS = {
    "mistral": _llama_like("Mistral", sliding_window=8),
    "gemma2": _llama_like(
        "Gemma2", sliding_window=16, attn_logit_softcapping=5.0, query_pre_attn_scalar=4
    ),
    "gemma3": _llama_like(
        "Gemma3Text", sliding_window=8, layer_types=_EVERY_SECOND, query_pre_attn_scalar=4
    ),
    "gpt-oss": _llama_like(
        "GptOss",
        sliding_window=8,
        num_local_experts=4,
        layer_types=_EVERY_SECOND,
        rope_parameters=_ROPE | {"rope_type": "default"},
    ),
    "llama4": _llama_like(
        "Llama4Text", attention_chunk_size=8, num_local_experts=4, intermediate_size_mlp=96
    ),
    "qwen2": _llama_like("Qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 64,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
            "max_position_embeddings": 128,
        },
    ),
    "falcon-alibi": (
        "FalconConfig",
        {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "alibi": True,
            "new_decoder_architecture": False,
        },
    ),
    "mamba": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "recurrent-gemma": (
        "RecurrentGemmaConfig",
        {
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "attention_window_size": 8,
            "lru_width": 64,
        },
    ),
    "rwkv": ("RwkvConfig", {"hidden_size": 64, "num_hidden_layers": 8, "context_length": 128}),
    "deepseek-v4": (
        "DeepseekV4Config",
        {
            "hidden_size": 64,
            "moe_intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "head_dim": 16,
            "q_lora_rank": 16,
            "o_lora_rank": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "num_hash_layers": 1,
            "sliding_window": 8,
            "index_topk": 8,
            "index_head_dim": 16,
            "index_n_heads": 2,
            "layer_types": ["sliding_attention", "compressed_sparse_attention"] * 2,
        },
    ),
    "moshi": (  # its embedding has one row more than its head
        "MoshiConfig",
        {
            "hidden_size": 64,
            "ffn_dim": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "head_dim": 16,
            "max_position_embeddings": 128,
        },
    ),
    "longrope": _llama_like(
        "Phi3", original_max_position_embeddings=LIMIT, rope_parameters=_LONGROPE
    ),
    "dynamic": _llama_like("Llama", max_position_embeddings=LIMIT, rope_parameters=_DYNAMIC),
    "dynamic-in-some-layers": _llama_like(
        "Gemma3Text",
        sliding_window=8,
        layer_types=_EVERY_SECOND,
        max_position_embeddings=LIMIT,
        rope_parameters={
            "sliding_attention": _ROPE | {"rope_type": "default"},
            "full_attention": _DYNAMIC,
        },
    ),
    "longrope-in-some-layers": _llama_like(
        "Gemma3Text",
        sliding_window=8,
        layer_types=_EVERY_SECOND,
        rope_parameters={
            "sliding_attention": _ROPE | {"rope_type": "default"},
            "full_attention": _LONGROPE,
        },
    ),
}
# The strategy that the longest rows must use. If a fast one is exact, falling back costs speed.
EXPECTED_WAY = dict.fromkeys(MODELS, "padded batches with a cached prefix") | {
    "mamba": "padded batches",
    "recurrent-gemma": "padded batches",
    "rwkv": "padded batches",
    "deepseek-v4": None,
    "longrope": "shared-prefix attention",
}


def _model(name: str) -> PreTrainedModel:
    """A random model whose attention is far from flat."""
    torch.manual_seed(0)
    config, settings = MODELS[name]
    model = AutoModelForCausalLM.from_config(
        getattr(transformers, config)(vocab_size=101, **settings)
    )
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            sharp = any(
                part in parameter_name
                for part in ("q_proj", "k_proj", "query", "key", "qkv", "sinks")
            )
            if (
                parameter.dim() >= 2
                and "conv" not in parameter_name
                and "A_log" not in parameter_name
            ):
                parameter.normal_(0, 0.35 if sharp else 0.2)
    return model


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 101) for _ in range(count)]


def _plain(
    load: Callable[[], PreTrainedModel], prompt: list[int], targets: list[list[int]]
) -> list[float]:
    """From a plain forward pass of a model that has seen no other prompt."""
    with torch.no_grad():
        logprobs_TV = (
            load()(torch.tensor([prompt])).logits[0, -len(targets) :].double().log_softmax(-1)
        )
    return [float(logprobs_TV[row, token]) for row, ids in enumerate(targets) for token in ids]


@pytest.mark.parametrize("name", MODELS)
def test_rows_equal_plain_passes_of_one_row(name: str, tmp_path: Path) -> None:
    """With and without a prefix, shorter and longer than all limits, long before short and back."""
    _model(name).save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers", batch_tokens=300))
    )
    attention = "eager" if name == "gemma2" else None  # SDPA leaves Gemma 2's capping out

    def load() -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(
            tmp_path, dtype=torch.float32, attn_implementation=attention
        ).eval()

    once = load()
    rng = random.Random(0)
    for prefix_length, lengths in (
        (LIMIT + 8, (2, 12)),
        (20, (3, 33, 20, 21, 5)),
        (0, (1, 4, 39, 60, 40, 41)),
        (4, (3, 9)),
    ):
        prefix = _tokens(rng, prefix_length)
        requests = [
            ScoreRequest(prefix, _tokens(rng, length), _tokens(rng, rng.choice((2, 4))))
            for length in lengths
        ]
        # transformers 5.19 keeps dynamic frequencies and fails past LongRoPE's limit the second
        # time.
        plain = load if "dynamic" in name or "in-some-layers" in name else lambda: once
        expected = [value for r in requests for value in _plain(plain, r.prompt, [r.options])]
        np.testing.assert_allclose(engine.score(requests), expected, atol=1e-4)
        texts = [
            TextRequest(prefix, _tokens(rng, length), _tokens(rng, 3)) for length in lengths[:2]
        ]
        sums = [
            sum(_plain(plain, r.prompt + r.continuation[:-1], [[t] for t in r.continuation]))
            for r in texts
        ]
        np.testing.assert_allclose(engine.loglikelihood(texts), sums, atol=1e-4)
    assert _longest_way(engine) == EXPECTED_WAY[name]


def _longest_way(engine: TransformersEngine) -> str | None:
    verified = engine._selector.verified
    return max(verified, key=lambda key: verified[key])[0] if verified else None


@pytest.mark.parametrize(
    "name", ["gemma3", "llama4", "longrope", "longrope-in-some-layers", "dynamic"]
)
def test_greedy_texts_follow_plain_passes(name: str, tmp_path: Path) -> None:
    """Prompts before, at and past a rotary limit; windows shorter than every prompt."""
    _model(name).save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    rng = random.Random(1)
    prompts = [_tokens(rng, length) for length in (12, LIMIT - 2, 25, LIMIT + 6)]
    found = engine.generate([TextRequest([], prompt, []) for prompt in prompts], Sampling(5, [2]))

    for prompt, (tokens,) in zip(prompts, found, strict=True):
        for n, token in enumerate([*tokens, 2][:5]):
            model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
            with torch.no_grad():
                assert (
                    int(model(torch.tensor([prompt + tokens[:n]])).logits[0, -1].argmax()) == token
                )


def test_generation_is_compared_for_batches_after_single_prompts(tmp_path: Path) -> None:
    """RWKV mixes the rows of a batch when it reads one token with a state (transformers 5.19)."""
    _model("rwkv").save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rng = random.Random(5)
    for count in (1, 3):
        prompts = [_tokens(rng, 9) for _ in range(count)]
        found = engine.generate(
            [TextRequest([], prompt, []) for prompt in prompts], Sampling(5, [2])
        )
        for prompt, (tokens,) in zip(prompts, found, strict=True):
            for n, token in enumerate(tokens):
                with torch.no_grad():
                    logits_V = plain(torch.tensor([prompt + tokens[:n]])).logits[0, -1]
                assert int(logits_V.argmax()) == token


def test_padding_is_compared_that_the_first_batch_does_not_have(tmp_path: Path) -> None:
    """RecurrentGemma's states run over padding. The first batch has none."""
    _model("recurrent-gemma").save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers", batch_tokens=140))
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rng = random.Random(3)
    for lengths in ((30, 30, 30, 30), (30, 30, 30, 30, 9, 4, 17, 2)):
        prompts = [_tokens(rng, length) for length in lengths]
        found = engine.generate(
            [TextRequest([], prompt, []) for prompt in prompts], Sampling(5, [2])
        )
        for prompt, (tokens,) in zip(prompts, found, strict=True):
            for n, token in enumerate([*tokens, 2][:5]):
                with torch.no_grad():
                    assert (
                        int(plain(torch.tensor([prompt + tokens[:n]])).logits[0, -1].argmax())
                        == token
                    )


def test_a_way_that_turns_wrong_beyond_a_length_is_used_below_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows longer than the check at load are checked on first use; others stay on the fast one."""
    _model("falcon-alibi").save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers", batch_tokens=300))
    )
    exact = PaddedBatches._logits

    def wrong_when_long(
        self: PaddedBatches, rows: list[list[int]], counts: list[int], cache: Any
    ) -> Tensor:
        return exact(self, rows, counts, cache) * (2 if max(map(len, rows)) > 70 else 1)

    monkeypatch.setattr(PaddedBatches, "_logits", wrong_when_long)
    rng = random.Random(2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()

    def score(*lengths: int) -> None:
        requests = [ScoreRequest([], _tokens(rng, length), [5, 6, 7]) for length in lengths]
        expected = [v for r in requests for v in _plain(lambda: model, r.prompt, [r.options])]
        np.testing.assert_allclose(engine.score(requests), expected, atol=1e-4)

    score(30, 50, 31, 52)
    with caplog.at_level(logging.WARNING):
        score(75, 30, 50, 80, 31)
    assert (
        "padded batches with a cached prefix: not used for rows like these"
        " (differs from a plain forward pass by"
    ) in caplog.text
    alone: list[int] = []
    row = engine._selector.single_rows.row
    monkeypatch.setattr(
        engine._selector.single_rows,
        "row",
        lambda prefix, item, copies=1: alone.append(1) or row(prefix, item, copies),  # type: ignore[func-returns-value]
    )
    score(31, 50, 30, 49)
    assert not alone  # verified before, and still used
    score(77)
    assert alone


class _WrongForSomeRows(PaddedBatches):
    """Wrong for one kind of row, as strategies are for some models."""

    name = "wrong for some rows"

    def __init__(self, passes: ForwardPasses, is_wrong: Callable[[list[list[int]], int], bool]):
        super().__init__(passes, caches=False)
        self.name, self.is_wrong = _WrongForSomeRows.name, is_wrong

    def logprobs(self, prefix: list[int], prepared: Any, items: Any) -> list[Tensor]:
        rows = [item.suffix for item in items]
        exact = super().logprobs(prefix, prepared, items)
        return [
            values + (1.0 if self.is_wrong(rows, number) else 0.0)
            for number, values in enumerate(exact)
        ]


@pytest.mark.parametrize(
    "is_wrong",
    [
        lambda rows, number: len(rows[number]) < 3,
        lambda rows, number: len(rows[number]) < len(rows[0]),
        lambda rows, number: len(rows) > 1,
        lambda rows, number: number > 0,
        lambda rows, number: 8 <= len(rows[number]) < 11,
    ],
    ids=["short", "padded", "with others", "not first", "between limits"],
)
def test_a_strategy_is_checked_on_every_kind_of_row(
    is_wrong: Callable[[list[list[int]], int], bool], tmp_path: Path
) -> None:
    """Rows on which a strategy is right come first; those on which it is wrong come later."""
    _model("mistral").save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers", batch_tokens=300))
    )
    engine._selector.strategies = [_WrongForSomeRows(engine._passes, is_wrong)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    rng = random.Random(4)
    for lengths in ((40,), (40, 40), (40, 36), (40, 5, 4), (9, 9), (2,), (10, 1, 2), (3, 3)):
        requests = [ScoreRequest([], _tokens(rng, length), [5, 6, 7]) for length in lengths]
        expected = [v for r in requests for v in _plain(lambda: model, r.prompt, [r.options])]
        np.testing.assert_allclose(engine.score(requests), expected, atol=1e-4)
    assert engine._selector.verified


@pytest.mark.parametrize(
    ("name", "settings", "reach"),
    [
        ("mistral", {}, 8),
        ("gemma3", {}, 8),
        ("qwen2", {}, 8),
        (
            "qwen2",
            {"use_sliding_window": False},
            100,
        ),  # the fields are still there, and mean nothing
        ("qwen2", {"max_window_layers": 4}, 100),  # no layer has the window
        ("longrope", {}, 100),
    ],
)
def test_the_layers_masks_tell_how_far_they_are_causal(
    name: str, settings: dict[str, Any], reach: int
) -> None:
    config, own = MODELS[name]
    model = AutoModelForCausalLM.from_config(
        getattr(transformers, config)(vocab_size=101, **own | settings)
    )
    assert SharedPrefix(ForwardPasses(model, 100), 100).reach == reach


@pytest.mark.parametrize(
    ("config", "settings", "length"),
    [
        ("BloomConfig", {"hidden_size": 32, "n_layer": 1, "n_head": 2, "seq_length": 77}, 76),
        (
            "RobertaConfig",
            {
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 40,
                "is_decoder": True,
            },
            37,
        ),
        ("MptConfig", {"d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 78}, 77),
        (
            "MambaConfig",
            {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4},
            (1 << 20) - 1,
        ),
    ],
)
def test_context_lengths_under_other_names(
    config: str, settings: dict[str, Any], length: int, tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_config(
        getattr(transformers, config)(vocab_size=101, **settings)
    ).save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    assert engine.context_length == length


_ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        ("ElectraConfig", _ENCODER, "no causal language model.*is_decoder"),
        ("XLNetConfig", {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96}, "no causal"),
        (
            "ReformerConfig",
            {"hidden_size": 64, "attn_layers": ["lsh"], "axial_pos_embds": False}
            | {"is_decoder": True, "num_buckets": 4, "lsh_attn_chunk_length": 8},
            "is random: two passes",
        ),
    ],
)
def test_models_without_a_next_token_are_refused(
    config: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        getattr(transformers, config)(vocab_size=101, **settings)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=message):
        TransformersEngine(
            EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
        )


def test_penalties_of_the_folders_generation_config_are_not_applied(tmp_path: Path) -> None:
    model = _model("mistral")
    model.generation_config.repetition_penalty = 0.01  # says the prompt's tokens again
    model.save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    prompt = _tokens(random.Random(3), 20)
    ((found,),) = engine.generate([TextRequest([], prompt, [])], Sampling(8, [2]))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for n, token in enumerate(found):
        with torch.no_grad():
            assert int(plain(torch.tensor([prompt + found[:n]])).logits[0, -1].argmax()) == token
    assert found
    repeated = plain.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[
        0, len(prompt) :
    ]
    assert repeated[: len(found)].tolist() != found


@pytest.mark.parametrize(
    ("name", "selects"), [("deepseek-v4", True), ("gpt-oss", False), ("mistral", False)]
)
def test_selection_among_tokens_is_recognised(name: str, selects: bool) -> None:
    """A router's selection among experts is none."""
    assert selects_tokens(_model(name).eval(), 64) == selects


def test_rows_within_a_short_context_are_compared() -> None:
    config = GPT2Config(n_positions=32, n_layer=1, n_embd=32, n_head=2, vocab_size=64)
    assert not selects_tokens(GPT2LMHeadModel(config).eval(), 31)


class _Blocks(torch.nn.Module):
    """Selects among blocks of 64 tokens, of which short rows have one."""

    config = GPT2Config(block_size=64)
    device = torch.device("cpu")

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        num_blocks = -(-ids.shape[1] // 64)
        return torch.rand(num_blocks).topk(min(2, num_blocks)).values


def test_a_selection_among_blocks_is_recognised() -> None:
    """A row beyond two blocks is compared, if the context allows one."""
    assert selects_tokens(_Blocks(), 4096)
    assert not selects_tokens(_Blocks(), 17)


def test_rows_are_divided_at_rotary_limits() -> None:
    phi, llama, plain = (RopeLimits(_model(name)) for name in ("longrope", "dynamic", "mistral"))
    assert phi.class_of(LIMIT) == phi.class_of(1) != phi.class_of(LIMIT + 1) == phi.class_of(400)
    assert llama.class_of(LIMIT) == llama.class_of(1) == LengthClass(())
    assert llama.class_of(LIMIT + 1) != llama.class_of(
        LIMIT + 2
    )  # each length has frequencies of its own
    assert plain.class_of(1) == plain.class_of(10_000)


def test_a_model_keeps_nothing_of_a_longer_row() -> None:
    model = _model("dynamic")
    rope = RopeLimits(model)
    (module,) = rope.modules
    before = module.inv_freq.clone()
    with torch.no_grad():
        model(torch.tensor([[5] * (LIMIT + 20)]))
    assert not torch.equal(module.inv_freq, before)
    rope.reset()
    assert torch.equal(module.inv_freq, before)
    assert module.max_seq_len_cached == LIMIT


def test_differences_are_measured_in_tolerances() -> None:
    infinite, nan = -torch.inf, torch.nan
    assert gap_in_tolerances(
        torch.tensor([-1.0, infinite]), torch.tensor([-1.00005, infinite]), 1e-4
    ) == pytest.approx(0.5, rel=0.01)
    assert gap_in_tolerances(torch.tensor([-1.0]), torch.tensor([infinite]), 1e-4) == torch.inf
    assert gap_in_tolerances(torch.tensor([nan]), torch.tensor([-1.0]), 1e-4) == torch.inf
    assert gap_in_tolerances(torch.tensor([nan]), torch.tensor([nan]), 1e-4) == 0
