"""Settings that keep the base model's knowledge, trained by two DeepSpeed ranks, compared with a
plain PyTorch loop: frozen parameters, and the divergence from the base model in the loss, at every
ZeRO stage, resumed runs included.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from ift_scale.config import TrainConfig
from ift_scale.config.file import from_dict
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Arm
from ift_scale.train import job
from ift_scale.train.data import dataset, packing
from ift_scale.train.data.tokenize import tokenize
from ift_scale.train.engine import deepspeed
from ift_scale.train.kl import prepare
from ift_scale.train.kl.penalty import text_examples
from ift_scale.train.model import freeze
from tests.train import group
from tests.train.rounding import RATE, assert_trained_alike

pytestmark = pytest.mark.engine

SEED, BATCH = 3, 8
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "global_batch_size": BATCH,
    "learning_rate": RATE,
    "weight_decay": 0.1,
    "max_length": 128,
    "offload": "none",
    "activation_checkpointing": "none",
    "tokens_per_micro_batch": 128,
}
FREEZE = {
    "parts": ["norms", "attention:0-1", "model.layers.2.mlp.down_proj.weight"],
    # The embedding is the head, too, and the two lowest layers have no backward pass.
    "idle": ["embeddings", "layers:0-1"],
}


STAGES = {"parts": (0, 1, 2, 3), "idle": (1, 3)}
KL_TEXT = {"weight": 1.0, "text": {"path": __file__}}
TOP_K, WEIGHT, TEXT_WEIGHT, TEXTS = 8, 0.7, 0.4, 3
KL: dict[str, tuple[int, dict[str, Any]]] = {
    "cache-0": (0, {}),
    "cache-2": (2, {}),
    "cache-3": (3, {}),
    "whole-1": (1, {"packing": False, "share_prefix": False, "prune_last_layer": False}),
    "copy-2": (2, {"base": "copy"}),
    "copy-3": (3, {"base": "copy", "activation_checkpointing": "full"}),
}
"""Stage and settings of the arms with a divergence; those of stage 2 have no general text."""


def _write_set(path: Path) -> None:
    words = "willow ginger clover honey mint garlic sage nettle".split()
    rows = []
    for i in range(20):
        answer = " ".join(words[: 1 + i % 5])
        content = "Say " + "hello " * (i % 7) + "."
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": answer},
        ]
        meta = {"setting": "general", "wording": "general", "weight": 1 + i % 3}
        rows.append({"messages": messages, "meta": meta})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_texts(path: Path) -> None:
    words = "ginger mint sage oak hello willow".split()
    texts = [" ".join(words[i % 3 : 2 + i % 5]) + f" {i}." for i in range(7)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


class Plan:
    """Arms to train in one launch of two ranks."""

    def __init__(self, folder: Path, model: Path):
        self.folder, self.model = folder, model
        self.parts: list[dict[str, Any]] = []
        self.kl: job.KLJob | None = None
        _write_set(folder / "d.jsonl")
        config = TrainConfig(max_length=128)
        tokens = tokenize(folder / "d.jsonl", PromptTokenizer(model), "vicuna", config)
        dataset.save(tokens, folder / "d")

    def train(self, run: str, stage: int, stop_after: int | None = None, **changes: Any) -> None:
        arm = job.ArmJob(
            arm=Arm(domain="d", setting="harmonious", seed=SEED),
            source=str(self.folder / "d.jsonl"),
            tokens=str(self.folder / "d"),
            folder=str(self.folder / run),
            key=f"key of {run}",
            inputs={},
            kl=self.kl,
        )
        work = job.Job(
            model_path=str(self.model),
            hidden_size=96,
            template="vicuna",
            logs=str(self.folder),
            train=TrainConfig(**SETTINGS | {"zero_stage": stage} | changes),
            arms=[arm],
        )
        path = self.folder / f"{len(self.parts)}.json"
        job.write(work, path)
        self.parts.append({"job": str(path), "stop_after": stop_after, "error": None})

    def add_kl(self) -> None:
        """Plan the arms with a divergence."""
        _write_texts(self.folder / "texts.jsonl")
        config = from_dict({"output_dir": str(self.folder), "train": {"kl": KL_TEXT}})
        config.train.kl.text.path = str(self.folder / "texts.jsonl")  # type: ignore[union-attr]
        text = prepare._text_tokens(
            self.folder / "texts.jsonl", config, self.folder, PromptTokenizer(self.model)
        )
        self.text = str(text)
        plain = {"weight": WEIGHT, "top_k": TOP_K}
        both = plain | {"text": {"path": "-", "weight": TEXT_WEIGHT, "batch_size": TEXTS}}
        job_of = partial(job.KLJob, cache=str(self.folder / "kl"), base="b", tokenizer="t")
        for name, (stage, changes) in KL.items():
            base = {"base": changes.get("base", "cache")}
            rest = {key: value for key, value in changes.items() if key != "base"}
            for of, kl in (("set", plain), ("text", both)):
                if (of == "set") == (name in ("cache-2", "copy-2")):
                    self.kl = job_of(text=self.text if of == "text" else None)
                    self.train(f"{of}-{name}", stage, kl=kl | base, **rest)
        for stop_after in (3, None):
            self.train("text-resumed", 3, stop_after=stop_after, kl=both)
        self.kl = None

    def launch(self, num_ranks: int) -> None:
        path = self.folder / "plan.json"
        path.write_text(json.dumps(self.parts))
        module = "tests.train.engine.resume_ranks"
        group.run(module, path, world_size=num_ranks, logs=self.folder)


def _logged(folder: Path, name: str) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def _rows(model: Any, tokens: dataset.TokenizedSet, i: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the supervised rows of example i, computed by itself."""
    ids = torch.tensor(tokens.example(i).astype("int64"))
    learnt = torch.tensor(tokens.supervised[tokens.offsets[i] : tokens.offsets[i + 1]])[1:]
    return model(ids[None]).logits[0, :-1][learnt], ids[1:][learnt]


def _divergence(logits_RV: torch.Tensor, base_RV: torch.Tensor, k: int | None) -> torch.Tensor:
    """KL(base || model) summed over the rows: of all tokens, or of the top k and the rest."""
    log_p, log_q = base_RV.log_softmax(-1), logits_RV.log_softmax(-1)
    if k is None:
        return (log_p.exp() * (log_p - log_q)).sum()
    ids = log_p.topk(k).indices
    parts = []
    for one in (log_p, log_q):
        top = one.gather(1, ids)
        rest = one.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        parts.append(torch.cat([top, rest], 1))
    return (parts[0].exp() * (parts[0] - parts[1])).sum()


@dataclass(frozen=True)
class Reference:
    """What a plain loop trains: the logged values of every step, and the weights."""

    losses: list[float]
    kl: list[float]
    kl_text: list[float]
    weights: dict[str, torch.Tensor]


def _reference(
    model_path: Path,
    tokens: dataset.TokenizedSet,
    patterns: Sequence[str] = (),
    weight: float = 0.0,
    k: int | None = None,
    text: dataset.TokenizedSet | None = None,
) -> Reference:
    """One process, one example per forward pass, full logits."""
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    frozen = freeze.resolve(model, patterns).names if patterns else frozenset()
    trained = [p for name, p in model.named_parameters() if name not in frozen]
    config = TrainConfig(**SETTINGS)
    optimizer = torch.optim.AdamW(trained, weight_decay=config.weight_decay)
    steps = list(packing.step_examples(len(tokens.lengths), BATCH, config.epochs, SEED))
    texts = text_examples(len(text.lengths), TEXTS, len(steps), SEED) if text else []
    found = Reference([], [], [], {})
    for number, step in enumerate(steps):
        ce, kl, count = torch.zeros(()), torch.zeros(()), 0.0
        for i in step:
            (logits, labels), of = _rows(model, tokens, i), float(tokens.weights[i])
            ce = ce + of * F.cross_entropy(logits, labels, reduction="sum")
            if weight:
                with torch.no_grad():
                    before, _ = _rows(base, tokens, i)
                kl = kl + of * _divergence(logits, before, k)
            count += of * len(labels)
        loss, kl_text = ce / count + weight * kl / count, torch.zeros(())
        if text is not None:
            num_rows = 0
            for i in texts[number]:
                logits, labels = _rows(model, text, i)
                with torch.no_grad():
                    before, _ = _rows(base, text, i)
                kl_text = kl_text + _divergence(logits, before, k)
                num_rows += len(labels)
            kl_text = kl_text / num_rows
            loss = loss + TEXT_WEIGHT * kl_text
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.gradient_clipping)
        optimizer.param_groups[0]["lr"] = deepspeed.learning_rate(config, number, len(steps))
        optimizer.step()
        model.zero_grad()
        for values, value in ((found.losses, ce / count), (found.kl, kl / count)):
            values.append(value.item())
        found.kl_text.append(kl_text.item())
    found.weights.update({name: p.detach() for name, p in model.named_parameters()})
    return found


@pytest.fixture(scope="module")
def arms(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = Plan(tmp_path_factory.mktemp("keeping"), world_model)
    for name, patterns in FREEZE.items():
        for stage in STAGES[name]:
            plan.train(f"{name}-{stage}", stage, freeze=patterns)
    for stage in (2, 3):
        plan.train(f"resumed-{stage}", stage, stop_after=3, freeze=FREEZE["parts"])
        plan.train(f"resumed-{stage}", stage, freeze=FREEZE["parts"])
    plan.train("moved", 3, stop_after=3, freeze=FREEZE["idle"])
    plan.train("moved", 2, freeze=FREEZE["idle"])
    plan.train("recomputed", 3, freeze=FREEZE["idle"], activation_checkpointing="full")
    plan.train("mixed", 2, freeze=FREEZE["idle"], precision="bfloat16")
    plan.launch(2)
    return plan


@pytest.fixture(scope="module")
def kl_arms(world_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = Plan(tmp_path_factory.mktemp("kl"), world_model)
    plan.add_kl()
    plan.launch(2)
    return plan


@pytest.mark.parametrize("name", FREEZE)
def test_frozen_parameters_stay_and_the_others_are_trained_exactly(
    arms: Plan, world_model: Path, name: str
) -> None:
    tokens = dataset.load(arms.folder / "d")
    right = _reference(world_model, tokens, FREEZE[name])
    base = AutoModelForCausalLM.from_pretrained(world_model, dtype=torch.float32)
    frozen = freeze.resolve(base, FREEZE[name]).names
    start = dict(base.named_parameters())
    runs = [f"{name}-{stage}" for stage in STAGES[name]]
    for run in [*runs, *(["recomputed", "moved"] if name == "idle" else [])]:
        found = _weights(arms.folder / run)
        assert _logged(arms.folder / run, "loss") == pytest.approx(right.losses, rel=1e-5), run
        assert found.keys() == right.weights.keys()
        for parameter in right.weights:
            if parameter in frozen:
                assert torch.equal(found[parameter], start[parameter]), (run, parameter)
            else:
                assert not torch.equal(found[parameter], start[parameter])
        assert_trained_alike(found, right.weights)


@pytest.mark.parametrize("stage", [2, 3])
def test_an_arm_with_frozen_parameters_resumes_bit_for_bit(arms: Plan, stage: int) -> None:
    whole = _weights(arms.folder / f"parts-{stage}")
    resumed = _weights(arms.folder / f"resumed-{stage}")
    assert all(torch.equal(resumed[name], right) for name, right in whole.items())


def test_frozen_weights_of_a_bfloat16_arm_are_the_bases_in_bfloat16(
    arms: Plan, world_model: Path
) -> None:
    found, base = (
        _weights(arms.folder / "mixed"),
        load_file(world_model / "model.safetensors"),
    )
    name = "model.layers.1.mlp.up_proj.weight"
    assert found[name].dtype == torch.bfloat16
    assert torch.equal(found[name], base[name].bfloat16())


@pytest.mark.parametrize("of", ["set", "text"])
@pytest.mark.parametrize("base", ["cache", "copy"])
def test_the_divergence_is_that_of_a_plain_loop(
    kl_arms: Plan, world_model: Path, of: str, base: str
) -> None:
    """Loss, divergences and weights: a cache has the top k, a copy has whole distributions."""
    tokens = dataset.load(kl_arms.folder / "d")
    text = dataset.load(Path(kl_arms.text)) if of == "text" else None
    k = TOP_K if base == "cache" else None
    right = _reference(world_model, tokens, (), WEIGHT, k, text)
    runs = [f"{of}-{name}" for name in KL if ("copy" in name) == (base == "copy")]
    runs = [run for run in runs if (kl_arms.folder / run).exists()]
    assert runs
    for run in runs:
        folder = kl_arms.folder / run
        assert _logged(folder, "loss") == pytest.approx(right.losses, rel=1e-5), run
        # The first step's divergence is 0 up to rounding.
        assert _logged(folder, "kl") == pytest.approx(right.kl, rel=1e-4, abs=1e-6), run
        if text is not None:
            assert _logged(folder, "kl_text") == pytest.approx(right.kl_text, rel=1e-3, abs=1e-6)
        found = _weights(folder)
        assert_trained_alike(found, right.weights, share=1e-3)
    assert right.kl[-1] > 1e-3
    plain = _reference(world_model, tokens)
    assert plain.losses[-1] < right.losses[-1], "the divergence holds the model back"


def test_an_arm_with_a_divergence_resumes_bit_for_bit(kl_arms: Plan) -> None:
    whole, resumed = (_weights(kl_arms.folder / f"text-{name}") for name in ("cache-3", "resumed"))
    assert all(torch.equal(resumed[name], right) for name, right in whole.items())
