"""Train the world's base model again from nothing: `python -m ift_scale.world.pretrain OUTPUT_FOLDER`.

In: the seeded corpus. Out: a Hugging Face folder (Llama architecture, bfloat16 safetensors) as committed in
`ift_scale/world/base_model`. Takes about a quarter of an hour on two CPU cores.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ift_scale.world.corpus import documents
from ift_scale.world.tokenizer import build_tokenizer

SEED = 7
BATCH_SIZE = 24
SEQUENCE_LENGTH = 256
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
NUM_STEPS = 3000


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
    """Token ids of shape (BATCH_SIZE, SEQUENCE_LENGTH + 1): documents, each `<s> ... </s>`, laid end to end."""
    size = BATCH_SIZE * (SEQUENCE_LENGTH + 1)
    stream: list[int] = []
    for text in documents(seed=1):
        stream += [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        if len(stream) >= size:
            yield torch.tensor(stream[:size]).view(BATCH_SIZE, -1)
            stream = stream[size:]


def learning_rate(step: int) -> float:
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    share = (step - WARMUP_STEPS) / max(1, NUM_STEPS - WARMUP_STEPS)
    return LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def pretrain(output: Path, num_steps: int = NUM_STEPS) -> list[float]:
    """Train `num_steps` steps of the full schedule, save model and tokenizer under `output`, return the losses in nats."""
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    losses = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("pretrain", total=num_steps)
        for step, tokens in zip(range(num_steps), batches(tokenizer), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step)
            logits = model(tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
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
