"""Counts of a training step and of a probe that are independent of machine speed. Prints JSON.

The step is that of rank 0 of two, in a process group without communication (torch's `fake`
backend): collectives are counted, and their outputs stay as they are. A tiny Llama, sixteen fixed
examples, and one thread, so that allocations have a fixed order.
"""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from ift_scale.config import ProbeConfig, TrainConfig
from ift_scale.engines.model_folder import resolve
from ift_scale.engines.protocol import EngineSpec
from ift_scale.engines.transformers import TransformersEngine
from ift_scale.estimate.shape import train_flops
from ift_scale.estimate.shape_of import shape_of
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.questions import world
from ift_scale.ranks.environment import Ranks
from ift_scale.scoring.letters import FewShot, LetterAsker
from ift_scale.scoring.options import option_logprobs
from ift_scale.train.data import packing
from ift_scale.train.data.collate import num_saved, shared_prefixes
from ift_scale.train.data.dataset import TokenizedSet
from ift_scale.train.engine import deepspeed as engines

RANKS = 2
STAGES = (0, 1, 2, 3)
NUM_QUESTIONS = 24
LLAMA = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)


def examples() -> TokenizedSet:
    """Sixteen examples of 20 to 95 tokens with a common prefix of 12; the last third supervised."""
    lengths = 20 + 5 * np.arange(16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    positions = np.concatenate([np.arange(n) for n in lengths])
    ids = (7 * np.arange(offsets[-1]) + 3 * np.repeat(np.arange(16), lengths)) % 509 + 3
    ids[positions < 12] = np.tile(np.arange(12) + 3, 16)
    return TokenizedSet(
        ids.astype(np.int32),
        positions >= np.repeat(lengths * 2 // 3, lengths),
        offsets,
        np.ones(16),
        0,
    )


class Operations(TorchDispatchMode):
    """Counts dispatched operations, and collectives with the bytes of their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.collectives: Counter[str] = Counter()
        self.wire_bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        namespace, _, name = str(function).partition(".")
        if namespace == "c10d":
            kind = name.partition(".")[0]
            self.collectives[kind] += 1
            self.wire_bytes[kind] += sum(t.numel() * t.element_size() for t in _tensors(args))
        else:
            self.count += 1
        return function(*args, **(kwargs or {}))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in _tensors(part)] if isinstance(value, list | tuple) else []


def settings(stage: Any) -> TrainConfig:
    return TrainConfig(
        precision="float32",
        zero_stage=stage,
        offload="none",
        activation_checkpointing="none",
        epochs=1,
        global_batch_size=16,
        tokens_per_micro_batch=256,
        kernels="pytorch",
        max_length=512,
    )


def steps(stage: int, folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Runs two optimizer steps and counts the second: the first also allocates persistent state."""
    tokens, config = examples(), settings(stage)
    step = packing.planned_steps(tokens.computed_lengths, config, RANKS, LLAMA.hidden_size, 0)[0]
    engine = engines.build(
        folder, weights, config, torch.device("cpu"), Ranks(0, 0, RANKS, RANKS), len(step)
    )
    engines.run_step(engine, step, tokens, 0.0)
    found: dict[str, Any] = {}
    with Operations() as seen:
        engines.run_step(engine, step, tokens, 0.0)
    found["collectives"], found["wire_bytes"] = dict(seen.collectives), dict(seen.wire_bytes)
    found["operations"] = seen.count
    if stage == 0:  # the only stage whose buffers are not shared between ranks
        found |= _work(engine, step, tokens)
    engine.release()
    return found


def _work(engine: engines.TrainEngine, step: packing.Step, tokens: TokenizedSet) -> dict[str, Any]:
    """Returns FLOPs of matrix products, tokens, and the peak of allocated bytes over the start."""
    with FlopCounterMode(display=False) as flops:
        engines.run_step(engine, step, tokens, 0.0)
    with torch.profiler.profile(profile_memory=True) as profile:
        engines.run_step(engine, step, tokens, 0.0)
    held = np.cumsum(
        [
            event.nbytes()
            for event in profile.profiler.kineto_results.events()
            if event.name() == "[memory]"
        ]
    )
    flat = [i for micro in step for place in micro for i in place]
    lengths, supervised = tokens.computed_lengths[flat], tokens.supervised_counts[flat]
    shared = shared_prefixes(step, tokens)
    shape = shape_of(LLAMA.to_dict())
    return {
        "flops_of_products": flops.get_total_flops(),
        "flops_of_the_loss": round(
            train_flops(shape, lengths.tolist(), supervised.tolist(), engine.packed.pruned, shared)
        ),
        "micro_batches": len(step),
        "tokens": int(tokens.lengths[flat].sum()),
        "computed_tokens": int(lengths.sum()) - num_saved(shared),
        "peak_bytes": int(held.max()),
    }


def train_counts() -> dict[str, Any]:
    torch.set_num_threads(1)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    weights = {
        name: value.clone()
        for name, value in AutoModelForCausalLM.from_config(LLAMA).state_dict().items()
    }
    with tempfile.TemporaryDirectory() as folder:
        LLAMA.save_pretrained(folder)
        return {f"zero{stage}": steps(stage, Path(folder), weights) for stage in STAGES}


def probe_counts() -> dict[str, Any]:
    """Counts requests, prompt tokens and computed tokens of the world's first questions, 5-shot."""
    questions = world.load()
    path = resolve("world")
    asker = LetterAsker(FewShot(PromptTokenizer(path), Demonstrations(questions, 5, 42)), plain)
    asked = [
        question for question in questions if question.kind == "choice" and question.split != "dev"
    ][:NUM_QUESTIONS]
    written = asker.write(asked)
    engine = TransformersEngine(
        EngineSpec(str(path), "float32", ProbeConfig(engine="transformers"))
    )
    # The first call also verifies the engine with a plain pass over the longest row.
    option_logprobs(engine, written.requests)
    seen: list[int] = []
    engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].numel()), with_kwargs=True
    )
    option_logprobs(engine, written.requests)
    prompt = sum(len(request.prompt) for request in written.requests)
    return {
        "requests": len(written.requests),
        "forward_passes": len(seen),
        "prompt_tokens": prompt,
        "computed_tokens": sum(seen),
        "share_from_prefixes": round(1 - sum(seen) / prompt, 6),
    }


if __name__ == "__main__":
    print(json.dumps({"train": train_counts(), "probe": probe_counts()}))
