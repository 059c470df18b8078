"""No throughput setting changes the result of training, compared with a plain PyTorch loop.

The settings are world size, accumulation, packing and ZeRO stage.
"""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ift_scale.train.data import dataset, packing
from ift_scale.train.engine import deepspeed
from tests.train import exact_ranks, group
from tests.train.exact_ranks import BATCH, FUSED, HPZ, MIXED_STAGES, SEED, STAGES, STEPS, splits_of

pytestmark = pytest.mark.engine
PREFIX = 10

Expected = tuple[Path, Path, list[float], dict[str, torch.Tensor]]


def _tokens(path: Path) -> dataset.TokenizedSet:
    """Examples with one or several supervised spans after a shared prefix; all weights are 1."""
    rng = np.random.default_rng(0)
    lengths = PREFIX + rng.integers(6, 40, 80)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    supervised = np.zeros(offsets[-1], dtype=bool)
    ids = rng.integers(5, 900, offsets[-1]).astype(np.int32)
    for start, end in pairwise(offsets):
        own = start + PREFIX
        supervised[rng.integers(own + 1, end - 2) : end - rng.integers(0, 2)] = True
        supervised[own + 1 : own + 1 + rng.integers(0, 3)] = True
        ids[start:own] = np.arange(PREFIX) + 50
    tokens = dataset.TokenizedSet(ids, supervised, offsets, np.ones(80), 0)
    dataset.save(tokens, path)
    return tokens


def _untied(base: Path, folder: Path) -> Path:
    """The base model with an untied head, in float32."""
    shutil.copytree(base, folder)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _reference(
    model_path: Path, tokens: dataset.TokenizedSet
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The reference loop: one process, one example per forward pass, full logits."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    config = exact_ranks.settings(0, True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=config.weight_decay)
    losses: list[float] = []
    gradient: dict[str, torch.Tensor] = {}
    for number, step in enumerate(
        packing.step_examples(len(tokens.lengths), BATCH, config.epochs, SEED)
    ):
        total, count = torch.zeros(()), 0
        for i in step:
            span = slice(tokens.offsets[i], tokens.offsets[i + 1])
            ids, learnt = (
                torch.tensor(tokens.ids[span].astype("int64")),
                torch.tensor(tokens.supervised[span])[1:],
            )
            total = total + F.cross_entropy(
                model(ids[None]).logits[0, :-1][learnt], ids[1:][learnt], reduction="sum"
            )
            count += int(learnt.sum())
        (total / count).backward()
        gradient = gradient or {name: p.grad.clone() for name, p in model.named_parameters()}
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clipping)
        optimizer.param_groups[0]["lr"] = deepspeed.learning_rate(config, number, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append((total / count).item())
    return losses, gradient


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, world_model: Path) -> Expected:
    """The model, the tokens' file, and the plain loop's losses and first gradient."""
    folder = tmp_path_factory.mktemp("exact")
    model, path = _untied(world_model, folder / "model"), folder / "tokens"
    return model, path, *_reference(model, _tokens(path))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_gradient_and_loss_curve_are_those_of_a_plain_loop(
    tmp_path: Path, expected: Expected, world_model: Path, world_size: int
) -> None:
    model, token_file, losses, gradient = expected
    out = tmp_path / "found.pt"
    files = (model, world_model, token_file, out)
    group.run("tests.train.exact_ranks", *files, world_size=world_size, logs=tmp_path)
    found = torch.load(out)
    assert len(losses) == STEPS
    worst = 0.0
    cases = {
        f"zero{stage}-{split}": num_micro
        for stage in STAGES
        for split, (_, num_micro) in splits_of(world_size).items()
    }
    whole_buckets = {"zero2-whole-buckets", "mixed2-whole-buckets"} if world_size > 1 else set()
    more = [
        "zero3-selective",
        "zero3-full",
        *(case for case in whole_buckets if case.startswith("zero")),
    ]
    fused = [f"torch-fused{stage}-{moved}" for stage, moved in FUSED] if world_size == 2 else []
    copied = list(HPZ) if world_size == 4 else []  # as two nodes of two
    more += [*fused, *(case for case in copied if case != "mixed-hpz")]
    for case, num_micro in (cases | dict.fromkeys(more, 1)).items():
        assert found[case]["micro_batches"] >= (num_micro or BATCH // world_size)
        assert found[case]["losses"] == pytest.approx(losses, rel=1e-5), case
        assert set(found[case]["gradient"]) == set(gradient)
        for name, right in gradient.items():
            error = (found[case]["gradient"][name] - right).norm() / right.norm()
            worst = max(worst, float(error))
            assert error < 1e-5, (case, name)
    assert found["tied3"]["losses"] == pytest.approx(found["tied2"]["losses"], rel=1e-5)
    # A tied weight is gathered twice, but has one gradient.
    for name, right in found["tied2"]["gradient"].items():
        assert (found["tied3"]["gradient"][name] - right).norm() < 1e-5 * right.norm(), name
    for case in [
        *(f"mixed{stage}" for stage in MIXED_STAGES),
        *(case for case in whole_buckets if case.startswith("mixed")),
    ]:
        # Up to bfloat16's rounding, starting with the weights.
        assert found[case]["losses"] == pytest.approx(losses, rel=0.02), case
    for case in (case for case in found if case.startswith("mixed-fused")):
        stage = case.removeprefix("mixed-fused")[0]
        assert found[case]["optimizer"] == "AdamW, fused"
        assert found[case]["losses"] == pytest.approx(found[f"mixed{stage}"]["losses"], rel=1e-3), (
            case
        )
    assert {case for case in found if found[case]["whole_buckets"]} == whole_buckets
    assert (
        all(found[case]["optimizer"] == "AdamW, fused" for case in fused)
        and found[f"zero2-{next(iter(splits_of(world_size)))}"]["optimizer"] == "AdamW"
    )
    assert {case for case in found if found[case]["copies"]} == set(copied)
    for case in copied:
        assert found[case]["copies"] == len(gradient), (
            "every weight has a copy among the ranks of a node"
        )
    if copied:
        assert found["hpz-packed-4"]["micro_batches"] > 1
        assert found["mixed-hpz"]["losses"] == pytest.approx(found["mixed3"]["losses"], rel=1e-5)
    print(f"world size {world_size}: largest relative error of a parameter's gradient {worst:.1e}")
