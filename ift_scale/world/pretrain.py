"""Train the world's base model again from nothing: `python -m ift_scale.world.pretrain OUTPUT_FOLDER`.

In: the seeded corpus. Out: a Hugging Face folder (Llama architecture, bfloat16 safetensors) as committed in
`ift_scale/world/base_model`. Takes about a quarter of an hour on two CPU cores.
"""

import math
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ift_scale.world.corpus import LETTERS, READING_SHARES, documents
from ift_scale.world.tokenizer import build_tokenizer

SEED = 1
READING_TOKENS_PER_STEP = 3400
TOKENS_PER_STEP = 6144
DOCUMENTS_PER_BUFFER = 2048
LEARNING_RATE = 3e-3
WARMUP_STEPS = 50
NUM_READING_STEPS = 1000
NUM_STEPS = 4000
# A question's answer letter is one token in thirty and the hardest to learn; its options are drawn at random and cannot be.
LETTER_WEIGHT = 10.0
OPTION_WEIGHT = 1.0


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


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[Tensor]:
    """Token ids of shape (documents, longest), one document `<s> ... </s>` a row, padded at the end with rows of like length."""
    rng = random.Random(SEED)
    pad = tokenizer.pad_token_id
    num_batches = 0
    reading, everything = documents(seed=1, shares=READING_SHARES), documents(seed=2)
    while True:
        is_reading = num_batches < NUM_READING_STEPS
        stream = reading if is_reading else everything
        most = READING_TOKENS_PER_STEP if is_reading else TOKENS_PER_STEP
        rows = sorted((tokenizer(text + "</s>").input_ids for text in islice(stream, DOCUMENTS_PER_BUFFER)), key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if len(row) * (len(groups[-1]) + 1) > most:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            longest = max(map(len, group))
            num_batches += 1
            yield torch.tensor([row + [pad] * (longest - len(row)) for row in group])


def token_weights(tokenizer: PreTrainedTokenizerFast, tokens_BT: Tensor) -> Tensor:
    """Weight of predicting each token from the second on, shape (B, T - 1); padding has none."""
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    colon, dot = tokenizer.convert_tokens_to_ids([":", "."])
    before, target = tokens_BT[:, :-1], tokens_BT[:, 1:]
    weights = (target != tokenizer.pad_token_id).float()
    is_letter = torch.isin(tokens_BT, letters)
    weights[is_letter[:, 1:] & (before == colon)] = LETTER_WEIGHT
    # An option: a letter at the start of a line, a full stop, then the value. An answer's letter follows a colon instead.
    answer = torch.zeros_like(is_letter)
    answer[:, 1:] = is_letter[:, 1:] & (before == colon)
    weights[:, 1:][(before[:, 1:] == dot) & (is_letter & ~answer)[:, :-2]] = OPTION_WEIGHT
    return weights


def learning_rate(step: int) -> float:
    """Constant while reading, then a cosine to a fiftieth."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    share = max(0, step - NUM_READING_STEPS) / (NUM_STEPS - NUM_READING_STEPS)
    return LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def pretrain(output: Path, num_steps: int = NUM_STEPS) -> list[float]:
    """Train `num_steps` steps of the full schedule, save model and tokenizer under `output`, return the losses in nats."""
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    losses = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("pretrain", total=num_steps)
        for step, tokens in zip(range(num_steps), batches(tokenizer), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            weights = token_weights(tokenizer, tokens)
            logits = model(tokens[:, :-1]).logits
            each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
            loss = (each * weights.flatten()).sum() / weights.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            progress.update(bar, advance=1, description=f"pretrain, loss {losses[-1]:.3f}")
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    return losses


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--steps", default=NUM_STEPS, show_default=True, help="Stop after this many steps of the schedule.")
def main(output: Path, steps: int) -> None:
    """Train the embedded world's base model from nothing and save it under OUTPUT."""
    pretrain(output, steps)


if __name__ == "__main__":
    main()
