"""Train the world's base model again from nothing: `python -m benchmarks.pretrain_world OUTPUT_FOLDER`.

In: the seeded corpus. Out: a Hugging Face folder (Llama architecture, bfloat16 safetensors) as committed in
`ift_scale/world/base_model`. Takes about twenty minutes on two CPU cores.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import click
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ift_scale.world.corpus import CHAT_SHARES, LETTERS, READING_SHARES, documents
from ift_scale.world.tokenizer import build_tokenizer

SEED = 1
READING_TOKENS_PER_STEP = 3400
TOKENS_PER_STEP = 6144
DOCUMENTS_PER_BUFFER = 2048
WARMUP_STEPS = 50


@dataclass(frozen=True)
class Phase:
    """Steps at a learning rate that is constant for `num_constant` of them, then falls as a cosine to a fiftieth.

    Each phase begins with a fresh optimizer, from the weights of the one before rounded to bfloat16.
    """

    num_constant: int
    num_steps: int
    learning_rate: float
    batches: Callable[[PreTrainedTokenizerFast], Iterator[Tensor]]

    def learning_rate_at(self, step: int) -> float:
        if step < WARMUP_STEPS:
            return self.learning_rate * (step + 1) / WARMUP_STEPS
        share = max(0, step - self.num_constant) / (self.num_steps - self.num_constant)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


# A question's answer letter is one token in thirty and the hardest to learn.
LETTER_WEIGHT = 10.0


def build_model(vocab_size: int) -> LlamaForCausalLM:
    """A randomly initialised three-layer Llama of about half a million parameters; head size 32, as vLLM's CPU backend takes."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlamaForCausalLM(config)


def grouped(
    tokenizer: PreTrainedTokenizerFast,
    stream: Iterator[str],
    tokens_per_step: int,
    rng: random.Random,
) -> Iterator[Tensor]:
    """Token ids of shape (documents, longest), one document `<s> ... </s>` a row, padded at the end with rows of like length."""
    pad = tokenizer.pad_token_id
    rows = sorted(
        (tokenizer(text + "</s>").input_ids for text in islice(stream, DOCUMENTS_PER_BUFFER)),
        key=len,
    )
    groups: list[list[list[int]]] = [[]]
    for row in rows:
        if len(row) * (len(groups[-1]) + 1) > tokens_per_step:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    for group in groups:
        longest = max(map(len, group))
        yield torch.tensor([row + [pad] * (longest - len(row)) for row in group])


def knowledge_batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Tensor]:
    """Lookups until the constant steps are over, then everything but dialogues."""
    rng = random.Random(SEED)
    reading, everything = documents(seed=1, shares=READING_SHARES), documents(seed=2)
    num_batches = 0
    while True:
        is_reading = num_batches < KNOWLEDGE.num_constant
        stream, tokens_per_step = (
            (reading, READING_TOKENS_PER_STEP) if is_reading else (everything, TOKENS_PER_STEP)
        )
        for batch in grouped(tokenizer, stream, tokens_per_step, rng):
            num_batches += 1
            yield batch


def chat_batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Tensor]:
    rng = random.Random(SEED)
    stream = documents(seed=3, shares=CHAT_SHARES)
    while True:
        yield from grouped(tokenizer, stream, TOKENS_PER_STEP, rng)


KNOWLEDGE = Phase(num_constant=1000, num_steps=4000, learning_rate=3e-3, batches=knowledge_batches)
CHAT = Phase(num_constant=0, num_steps=1000, learning_rate=2e-3, batches=chat_batches)


def token_weights(tokenizer: PreTrainedTokenizerFast, tokens_BT: Tensor) -> Tensor:
    """Weight of predicting each token from the second on, shape (B, T - 1); padding has none."""
    letters = torch.tensor(
        tokenizer.convert_tokens_to_ids(
            [space + letter for letter in LETTERS for space in ("", "▁")]
        )
    )
    colon = tokenizer.convert_tokens_to_ids(":")
    before, target = tokens_BT[:, :-1], tokens_BT[:, 1:]
    weights = (target != tokenizer.pad_token_id).float()
    weights[torch.isin(target, letters) & (before == colon)] = LETTER_WEIGHT
    return weights


def train_phase(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    phase: Phase,
    title: str,
    num_steps: int,
) -> list[float]:
    """The first `num_steps` of a phase; returns the losses in nats."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    losses = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task(title, total=num_steps)
        for step, tokens in zip(range(num_steps), phase.batches(tokenizer), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = phase.learning_rate_at(step)
            weights = token_weights(tokenizer, tokens)
            logits = model(tokens[:, :-1]).logits
            each = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
            )
            loss = (each * weights.flatten()).sum() / weights.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            progress.update(bar, advance=1, description=f"{title}, loss {losses[-1]:.3f}")
    return losses


def pretrain(output: Path, num_steps: int | None = None) -> list[float]:
    """Train both phases (at most `num_steps` of each), save model and tokenizer under `output`, return the losses in nats."""
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    losses = []
    for title, phase in (("knowledge", KNOWLEDGE), ("dialogues", CHAT)):
        losses += train_phase(
            model, tokenizer, phase, title, min(num_steps or phase.num_steps, phase.num_steps)
        )
        model.to(torch.bfloat16).to(torch.float32)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    return losses


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--steps", type=int, help="Stop each phase after this many steps.")
def main(output: Path, steps: int | None) -> None:
    """Train the embedded world's base model from nothing and save it under OUTPUT."""
    pretrain(output, steps)


if __name__ == "__main__":
    main()
