"""Each training path, by two ranks of DeepSpeed, against the class' own passes in a plain loop."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from ift_scale.engines.rope import RopeLimits
from ift_scale.train.data import dataset, packing
from ift_scale.train.engine import deepspeed
from ift_scale.train.proof import shrink
from tests.engines.quantised import quantised_to_fp8
from tests.train import group, own_experts, path_ranks
from tests.train.path_ranks import BATCH, STEPS

pytestmark = pytest.mark.engine
EXAMPLES = BATCH * STEPS
_DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_DEEPSEEK = DeepseekV3Config()
MODELS: dict[str, tuple[PretrainedConfig, str]] = {
    "gemma2": (Gemma2Config(), "pruned"),
    "gpt2": (GPT2Config(**_NO_DROPOUT), "packed"),
    "gpt_oss": (GptOssConfig(), "packed"),
    "bloom": (BloomConfig(), "padded"),
    "jamba": (JambaConfig(), "padded"),
    "llama_dynamic": (LlamaConfig(rope_parameters=_DYNAMIC, max_position_embeddings=32), "single"),
    "mixtral": (MixtralConfig(), "pruned"),
    "deepseek_v3": (_DEEPSEEK, "packed"),
    "deepseek_v3_bfloat16": (_DEEPSEEK, "packed"),
    "mixtral_balanced": (MixtralConfig(router_aux_loss_coef=0.5), "packed"),
    "qwen3_moe_balanced": (Qwen3MoeConfig(router_aux_loss_coef=0.5), "packed"),
}


def _tokens() -> dataset.TokenizedSet:
    """Examples of very different lengths, with one or two supervised spans after a prefix."""
    rng = np.random.default_rng(0)
    lengths = 10 + rng.integers(6, 40, EXAMPLES)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(16, 120, offsets[-1]).astype(np.int32)
    supervised = np.zeros(offsets[-1], dtype=bool)
    for start, end in pairwise(offsets):
        ids[start : start + 10] = np.arange(10) + 20
        supervised[end - rng.integers(3, 5) : end - rng.integers(0, 2)] = True
        supervised[start + 12 : start + 12 + rng.integers(0, 3)] = True
    return dataset.TokenizedSet(ids, supervised, offsets, np.ones(EXAMPLES), 0)


def _plain_losses(folder: Path, tokens: dataset.TokenizedSet, balanced: bool) -> list[float]:
    """One process, one example per forward pass, all logits; the model's own auxiliary loss."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=True
    ).train()
    config, rope = path_ranks.settings(2), RopeLimits(model)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    losses = []
    steps = packing.step_examples(EXAMPLES, BATCH, 1, 0)
    for number, step in enumerate(steps):
        total, balance, count = torch.zeros(()), torch.zeros(()), 0
        for i in step:
            ids = torch.tensor(tokens.example(i).astype("int64"))[None]
            learnt = torch.tensor(tokens.supervised[tokens.offsets[i] : tokens.offsets[i + 1]])[1:]
            computed = ids[:, : int(tokens.computed_lengths[i])] if balanced else ids
            more = {"output_router_logits": True} if balanced else {}
            rope.reset()
            output = model(computed, use_cache=False, **more)
            logits = output.logits[0, : ids.shape[1] - 1]
            rows = learnt[: len(logits)]
            total = total + F.cross_entropy(
                logits[: len(rows)][rows], ids[0, 1:][learnt], reduction="sum"
            )
            if balanced:
                balance = balance + model.router_aux_loss_coef * output.aux_loss
            count += int(learnt.sum())
        loss = total / count + balance / len(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        optimizer.param_groups[0]["lr"] = deepspeed.learning_rate(config, number, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_every_path_learns_what_the_plain_loop_learns(tmp_path: Path) -> None:
    folder, tokens = tmp_path / "models", _tokens()
    expected = {}
    for name, (settings, _) in MODELS.items():
        kind, settings = shrink.text_class(settings)
        small = shrink.shrink(settings)
        shrink.tiny_model(kind, small, 0).save_pretrained(folder / name)
    own_experts.write(folder / "own_experts")
    values = quantised_to_fp8(shutil.copytree(folder / "mixtral", folder / "mixtral_fp8"))
    for model in folder.iterdir():
        dataset.save(tokens, model / "tokens")
    plain = tmp_path / "plain"
    shutil.copytree(folder / "mixtral", plain)
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    for model in folder.iterdir():
        dequantised = plain if model.name == "mixtral_fp8" else model
        expected[model.name] = _plain_losses(dequantised, tokens, model.name.endswith("balanced"))
    out = tmp_path / "found.pt"
    group.run("tests.train.path_ranks", folder, out, world_size=2, logs=tmp_path)
    found = torch.load(out)
    paths = {name: path for name, (_, path) in MODELS.items()}
    for name, path in (paths | {"own_experts": "pruned", "mixtral_fp8": "pruned"}).items():
        tolerance = 2e-2 if name.endswith("bfloat16") else 2e-5
        for stage in path_ranks.stages(name):
            case = found[name, stage]
            assert case["path"] == path, (name, case["path"])
            assert case["micro_batches"] > 1
            assert case["losses"] == pytest.approx(expected[name], rel=tolerance), (name, stage)
            weights = load_file(folder / name / "model.safetensors")
            assert all(torch.equal(value, weights[n]) for n, value in case["buffers"].items()), name
    biased = found["deepseek_v3_bfloat16", 3]["buffers"]
    assert any("e_score_correction_bias" in n for n in biased)
