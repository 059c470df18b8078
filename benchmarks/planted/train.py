"""Train the planted model: token ids of the documents in, a Llama of about ten million parameters out.

One run of AdamW: warm-up, a constant rate, a cosine to a fiftieth; dialogues come in while the rate falls. Only rows whose next
token has a weight go through the head. A checkpoint lies in the work folder; the same command goes on from it.
"""

import math
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.planted.corpus import (
    CHAT_SHARES,
    DOCUMENT_SHARES,
    LETTER_WEIGHT,
    REPEATED_WEIGHT,
    Corpus,
    Document,
    Segment,
)
from ift_scale.io.files import atomic_path
from ift_scale.io.progress import Bar

NUM_WARMUP_STEPS = 50
_DOCUMENTS_PER_BUFFER = 256
_STEPS_BETWEEN_CHECKPOINTS = 100
_STEPS_TOLD = 20


@dataclass(frozen=True)
class Recipe:
    """Shape and schedule."""

    hidden_size: int = 320
    num_layers: int = 4
    num_steps: int = 1700
    chat_share: float = 0.3
    """Of the steps, at last: dialogues too, while the learning rate falls."""
    tokens_per_step: int = 1024
    learning_rate: float = 1e-3
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        if step < NUM_WARMUP_STEPS:
            return self.learning_rate * (step + 1) / NUM_WARMUP_STEPS
        num_falling = max(1.0, self.chat_share * self.num_steps)
        fallen = min(1.0, max(0.0, step - (self.num_steps - num_falling)) / num_falling)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fallen)))

    def shares_at(self, step: int) -> dict[str, float]:
        """Of the kinds of documents."""
        return DOCUMENT_SHARES if step < (1 - self.chat_share) * self.num_steps else CHAT_SHARES


@dataclass(frozen=True)
class Batch:
    """`tokens_BT`, and the weights of predicting each from the second on, (B, T - 1); padding has none."""

    tokens_BT: Tensor
    weights_BT: Tensor


def encode(tokenizer: PreTrainedTokenizerFast, document: Document) -> tuple[list[int], list[float]]:
    """Token ids of `<s> document </s>` and their weights."""
    assert tokenizer.eos_token is not None and tokenizer.bos_token_id is not None
    ids, weights = [int(tokenizer.bos_token_id)], [0.0]
    for segment in (*document, Segment(tokenizer.eos_token, REPEATED_WEIGHT)):
        new = tokenizer(segment.text, add_special_tokens=False).input_ids
        ids += new
        weights += [segment.weight] * len(new)
    return ids, weights


def batches(corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[Batch]:
    """One for each step: documents of like length, a row each."""
    rng = random.Random(f"planted/corpus/{recipe.seed}")
    step = 0
    while True:
        documents = islice(corpus.documents(rng, recipe.shares_at(step)), _DOCUMENTS_PER_BUFFER)
        groups = _grouped(
            [encode(tokenizer, document) for document in documents], recipe.tokens_per_step
        )
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group, int(tokenizer.pad_token_id))
        step += len(groups)


Row = tuple[list[int], list[float]]


def _grouped(rows: list[Row], tokens_per_step: int) -> list[list[Row]]:
    groups: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: len(row[0])):
        if len(row[0]) * (len(groups[-1]) + 1) > tokens_per_step and groups[-1]:
            groups.append([])
        groups[-1].append(row)
    return groups


def _padded(group: list[Row], pad: int) -> Batch:
    longest = max(len(ids) for ids, _ in group)
    tokens = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in group])
    weights = torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in group])
    return Batch(tokens, weights[:, 1:])


def loss_of(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Weighted mean over the tokens with a weight, in nats; and the share of the answer letters that are right."""
    hidden_BTD = model.model(batch.tokens_BT[:, :-1]).last_hidden_state
    kept = batch.weights_BT > 0
    logits_NV = model.lm_head(hidden_BTD[kept]).float()
    targets, weights = batch.tokens_BT[:, 1:][kept], batch.weights_BT[kept]
    each = torch.nn.functional.cross_entropy(logits_NV, targets, reduction="none")
    letters = weights == LETTER_WEIGHT
    right = (logits_NV[letters].argmax(-1) == targets[letters]).float().mean()
    return (each * weights).sum() / weights.sum(), right


def _optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


@dataclass
class Trained:
    losses: list[float]
    right: list[float]
    """Share of the answer letters that were right, by step; no number where a step had none."""
    num_tokens: int
    seconds: float


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    recipe: Recipe,
    device: torch.device,
    checkpoint: Path,
    key: str,
    bar: Bar,
) -> Trained:
    """All steps, from `checkpoint` on where it has this `key`."""
    model.to(device).train()
    optimizer = _optimizer(model)
    done = _restore(checkpoint, key, model, optimizer, device)
    first, started, tokens_before = (
        len(done.losses),
        time.monotonic() - done.seconds,
        done.num_tokens,
    )
    bar.advance(first)
    since = time.monotonic()
    on_gpu = device.type == "cuda"
    for step, batch in enumerate(
        islice(batches(corpus, tokenizer, recipe), first, recipe.num_steps), start=first
    ):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
            loss, right = loss_of(
                model, Batch(batch.tokens_BT.to(device), batch.weights_BT.to(device))
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done.losses.append(loss.item())
        done.right.append(right.item())
        done.num_tokens += batch.tokens_BT.numel()
        done.seconds = time.monotonic() - started
        _tell(
            bar,
            done,
            recipe,
            (done.num_tokens - tokens_before) / (time.monotonic() - since),
            step + 1 - first,
        )
        if (step + 1) % _STEPS_BETWEEN_CHECKPOINTS == 0:
            _save(checkpoint, key, model, optimizer, done)
    return done


def _tell(
    bar: Bar, done: Trained, recipe: Recipe, tokens_a_second: float, num_steps_here: int
) -> None:
    recent = done.losses[-_STEPS_TOLD:]
    right = [share for share in done.right[-_STEPS_TOLD:] if not math.isnan(share)]
    left = (recipe.num_steps - len(done.losses)) * recipe.tokens_per_step / tokens_a_second
    letters = f"letters {sum(right) / max(1, len(right)):.0%}"
    bar.note(
        f"loss {sum(recent) / len(recent):.3f}, {letters}, {tokens_a_second:.0f} tokens/s, {left / 60:.0f} min left"
    )
    bar.advance()


def _save(
    path: Path, key: str, model: LlamaForCausalLM, optimizer: torch.optim.AdamW, done: Trained
) -> None:
    state = {
        "key": key,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "done": vars(done),
    }
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def _restore(
    path: Path,
    key: str,
    model: LlamaForCausalLM,
    optimizer: torch.optim.AdamW,
    device: torch.device,
) -> Trained:
    if not path.is_file():
        return Trained([], [], 0, 0.0)
    state = torch.load(path, map_location=device, weights_only=True)
    if state["key"] != key:
        return Trained([], [], 0, 0.0)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Trained(**state["done"])
