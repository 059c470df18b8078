"""The reference engine against one plain forward pass a prompt."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    XGLMConfig,
)

from ift_scale.config import EngineConfig
from ift_scale.engines.protocol import EngineSpec, Sampling, ScoreRequest, TextRequest
from ift_scale.engines.shared_prefix import PackedSuffixes
from ift_scale.engines.strategies import SharedPrefix, SingleRows, num_shared_tokens
from ift_scale.engines.transformers import TransformersEngine

STRATEGIES = (
    SharedPrefix.name,
    "padded batches with a cached prefix",
    "padded batches",
    SingleRows.name,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=101, max_position_embeddings=128, initializer_range=0.3, **sizes)
    )
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def _engine(folder: Path, strategy: str = "", batch_tokens: int = 150) -> TransformersEngine:
    """An engine that uses one way only, by its name (every one, as it likes, if empty)."""
    engine = TransformersEngine(
        EngineSpec(
            str(folder), "float32", EngineConfig(engine="transformers", batch_tokens=batch_tokens)
        )
    )
    engine._selector.strategies = [
        w for w in engine._selector.strategies if w.name == strategy or not strategy
    ]
    assert strategy == SingleRows.name or engine._selector.strategies
    return engine


def _expected(model: PreTrainedModel, prompt: list[int], targets: list[list[int]]) -> np.ndarray:
    """Log-probabilities of each of the last positions' targets, from a plain forward pass."""
    with torch.no_grad():
        logprobs_TV = (
            model(torch.tensor([prompt])).logits[0, -len(targets) :].double().log_softmax(-1)
        )
    return np.concatenate([logprobs_TV[row, ids].numpy() for row, ids in enumerate(targets)])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("prefix", "stated"), [(0, 0), (1, 0), (17, 0), (17, 17), (17, 9)])
def test_batches_equal_single_prompts(
    folder: Path, prefix: int, stated: int, strategy: str
) -> None:
    """Whatever part of the common beginning is stated as prefix, with mixed numbers of options."""
    rng = random.Random(prefix)
    common = [rng.randrange(101) for _ in range(prefix)]
    prompts = [
        common + [rng.randrange(101) for _ in range(rng.randrange(1, 30))] for _ in range(23)
    ]
    given_prefix = common[:stated]
    requests = [
        ScoreRequest(
            given_prefix, p[stated:], [rng.randrange(101) for _ in range(rng.choice((2, 4, 7)))]
        )
        for p in prompts
    ]
    scores = _engine(folder, strategy).score(requests)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = np.concatenate(
        [_expected(model, request.prompt, [request.options]) for request in requests]
    )
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_likelihoods_of_continuations(folder: Path, strategy: str) -> None:
    rng = random.Random(3)
    prefix = [rng.randrange(101) for _ in range(11)]
    texts = [[rng.randrange(101) for _ in range(rng.randrange(2, 9))] for _ in range(6)]
    requests = [
        TextRequest(prefix, text, [rng.randrange(101) for _ in range(n)])
        for text in texts
        for n in (1, 2, 5)
    ]
    found = _engine(folder, strategy).loglikelihood(requests)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = [
        _expected(
            model, r.prompt + r.continuation[:-1], [[token] for token in r.continuation]
        ).sum()
        for r in requests
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stated", [0, 5])
def test_texts_that_begin_alike(folder: Path, stated: int, strategy: str) -> None:
    """Random trees of options: siblings, one the beginning of another, the same one twice."""
    rng = random.Random(1)
    common = [rng.randrange(101) for _ in range(stated)]
    requests = []
    for _ in range(12):
        prompt = [rng.randrange(101) for _ in range(rng.randrange(1, 9))]
        options = [[rng.randrange(101) for _ in range(rng.randrange(1, 5))] for _ in range(4)]
        options += [options[0][:1], [*options[1], 3], options[2]]
        requests += [TextRequest(common, prompt, option) for option in options]
    rng.shuffle(requests)
    engine = _engine(folder, strategy)
    found = engine.loglikelihood(requests)
    for request, value in zip(requests, found, strict=True):
        ids = common + request.suffix + request.continuation
        targets = [[token] for token in request.continuation]
        assert value == pytest.approx(_expected(engine.model, ids[:-1], targets).sum(), abs=1e-4)


def test_a_common_beginning_is_computed_once() -> None:
    suffixes = [[5, 6, 7, 8], [5, 6, 9], [5, 6], [4, 6, 7]]
    packed = PackedSuffixes(suffixes, [2, 1, 1, 3], {}, 10)
    assert packed.ids_N == [5, 6, 7, 8, 9, 4, 6, 7]
    assert packed.positions_N.tolist() == [10, 11, 12, 13, 12, 10, 11, 12]
    assert packed.rows_R.tolist() == [2, 3, 4, 1, 5, 6, 7]


def test_greedy_generation_follows_the_arg_max_up_to_a_stop(folder: Path) -> None:
    rng = random.Random(5)
    prompts = [[rng.randrange(101) for _ in range(length)] for length in (3, 9, 14)]
    engine = _engine(folder)
    (free, *_) = engine.generate([TextRequest([], prompts[0], [])], Sampling(6, [100]))
    stop = free[0][3]
    found = engine.generate([TextRequest(p[:2], p[2:], []) for p in prompts], Sampling(6, [stop]))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, (tokens,) in zip(prompts, found, strict=True):
        expected: list[int] = []
        while len(expected) < 6:
            with torch.no_grad():
                token = int(model(torch.tensor([prompt + expected])).logits[0, -1].argmax())
            if token == stop:
                break
            expected.append(token)
        assert tokens == expected
    samples = engine.generate(
        [TextRequest([], p, []) for p in prompts],
        Sampling(4, [100], temperature=1.0, num_samples=5),
    )
    assert [len(s) for s in samples] == [5, 5, 5]
    assert len({tuple(t) for s in samples for t in s}) > 5


@pytest.mark.parametrize("samples", [1, 3])
def test_texts_after_a_prefix_that_is_computed_once(folder: Path, samples: int) -> None:
    """Two prefixes in one call. Every method draws the same samples, a batch being a stream."""
    rng = random.Random(6)
    prefixes = [[rng.randrange(101) for _ in range(length)] for length in (20, 33)]
    requests = [
        TextRequest(prefixes[n % 2], [rng.randrange(101) for _ in range(1 + n % 5)], [])
        for n in range(14)
    ]
    found = {}
    for method in range(2):
        engine = _engine(folder, batch_tokens=2000)
        engine._generator.methods = engine._generator.methods[method : method + 1]
        name = engine._generator.methods[0].name
        computed = _tokens_computed(engine)
        greedy = engine.generate(requests, Sampling(5, [100]))
        found[name] = greedy, engine.generate(requests, Sampling(5, [100], 0.8, 1.0, samples, 3))
        tokens, verified = computed.total(), engine._generator.verified
        assert verified and {m.name for m, _ in verified} == {name}, "no other method was used"
        found[name] += (tokens,)
    shared, padded = (
        found["left-padded batches after a shared prefix"],
        found["left-padded batches"],
    )
    assert shared[:2] == padded[:2]
    assert shared[2] < 0.8 * padded[2]


@pytest.mark.parametrize("kind", [MistralConfig, Gemma3TextConfig])
def test_texts_that_cross_a_sliding_window_after_a_shared_prefix(
    tmp_path: Path, kind: type[PreTrainedConfig]
) -> None:
    """Padding after a cached prefix would use up the window of the shorter rows."""
    torch.manual_seed(0)
    config = kind(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, vocab_size=101, max_position_embeddings=256,
        sliding_window=40, initializer_range=0.5, pad_token_id=0, eos_token_id=100,
        bos_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    rng = random.Random(7)
    prefix = [rng.randrange(2, 99) for _ in range(22)]
    prompts = [prefix + [rng.randrange(2, 99) for _ in range(length)] for length in (1, 5, 14, 2)]
    engine = _engine(tmp_path, batch_tokens=2000)
    requests = [TextRequest(prefix, prompt[22:], []) for prompt in prompts]
    found = engine.generate(requests, Sampling(24, [100]))
    with torch.no_grad():
        for prompt, (tokens,) in zip(prompts, found, strict=True):
            text = list(prompt)
            while len(text) < len(prompt) + 24:
                token = int(engine.model(torch.tensor([text])).logits[0, -1].argmax())
                if token == 100:
                    break
                text.append(token)
            assert tokens == text[len(prompt) :]


def test_the_check_of_a_method_computes_what_its_use_computes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(folder, batch_tokens=2000)
    computed: list[tuple[int, int, int]] = []
    generate = engine._generator._generate

    def recorded(prompts: list[list[int]], shared: int, **options: Any) -> Any:
        lengths = [*map(len, prompts)]
        computed.append((shared, min(lengths), max(lengths)))
        return generate(prompts, shared, **options)

    monkeypatch.setattr(engine._generator, "_generate", recorded)
    common = list(range(20))
    requests = [TextRequest(common, [5, *range(30, 30 + n)], []) for n in (9, 9, 3, 1)]
    engine.generate(requests, Sampling(3, [100], 1.0, num_samples=2))
    check, use = computed
    assert check == use == (21, 22, 30), "shared tokens, shortest and longest prompt"


def _tokens_computed(engine: TransformersEngine) -> Counter[str]:
    """Counts the tokens of all forward passes from now on."""
    counted: Counter[str] = Counter()
    embedding = engine.model.get_input_embeddings()
    embedding.register_forward_hook(lambda _, args, __: counted.update(tokens=args[0].numel()))
    return counted


def test_an_architecture_with_other_attention_takes_the_padded_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gemma 2 caps attention scores, which the shared strategy lacks: loading rules it out."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    caps = {
        "attn_logit_softcapping": 0.3,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 1,
        "head_dim": 32,
    }
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=101, max_position_embeddings=128, initializer_range=0.5, **sizes, **caps
        )
    )
    model.save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers"))
    )
    assert not engine.shares_prefix
    assert (
        "shared-prefix attention: not used (does not support this model: its attention has softcap)"
        in caplog.text
    )
    rng = random.Random(1)
    prefix = [rng.randrange(101) for _ in range(12)]
    requests = [
        ScoreRequest(prefix, [rng.randrange(101) for _ in range(n)], [1, 2, 3]) for n in (2, 5, 9)
    ]
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    )
    expected = np.concatenate(
        [_expected(model, request.prompt, [request.options]) for request in requests]
    )
    np.testing.assert_allclose(engine.score(requests), expected, atol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        XGLMConfig(
            vocab_size=101,
            d_model=64,
            ffn_dim=96,
            num_layers=2,
            attention_heads=2,
            max_position_embeddings=128,
        ),
        GPT2Config(vocab_size=101, n_embd=64, n_layer=2, n_head=2, n_positions=128),
    ],
    ids=["xglm", "gpt2"],
)
def test_models_without_the_shared_strategy_are_scored_correctly(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    """XGLM's layers have no rotary embedding, and GPT-2's layers are elsewhere."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = TransformersEngine(
        EngineSpec(str(tmp_path), "float32", EngineConfig(engine="transformers", max_model_len=128))
    )
    rng = random.Random(2)
    prefix = [rng.randrange(3, 101) for _ in range(12)]
    requests = [
        ScoreRequest(prefix, [rng.randrange(3, 101) for _ in range(n)], [1, 2, 3])
        for n in (2, 5, 9)
    ]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    expected = np.concatenate(
        [_expected(model, request.prompt, [request.options]) for request in requests]
    )
    np.testing.assert_allclose(engine.score(requests), expected, atol=1e-4)
    assert not engine.shares_prefix


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6))
def test_num_shared(prompts: list[list[int]]) -> None:
    length = num_shared_tokens(prompts)
    assert all(p[:length] == prompts[0][:length] for p in prompts)
    longer = length + 1
    assert longer > min(map(len, prompts)) - 1 or len({tuple(p[:longer]) for p in prompts}) > 1
