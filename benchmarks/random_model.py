"""A randomly initialised Llama and a tokenizer trained on a pool: `python -m benchmarks.random_model POOL OUTPUT`.

It knows nothing; it shows that real pools, real vocabulary sizes and real prompts go through every stage where no weights
can be had.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ift_scale.io import jsonl
from ift_scale.questions.reading import SPLITS

SEED = 0
VOCAB_SIZE = 32_000


def texts(files: Iterable[Path]) -> Iterator[str]:
    """Questions, options and explanations of files in a pool's format."""
    for file in files:
        for _, row in jsonl.rows(file):
            yield "\n".join(
                [str(row["question"]), *map(str, row["choices"]), str(row.get("explanation") or "")]
            )


def train_tokenizer(files: Iterable[Path]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with up to 32,000 tokens, BOS in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    letters = [f"Answer:{c} ASSISTANT: {c}" for c in "ABCD"] * 100
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts(files), *letters], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def random_llama(layers: int = 4, hidden_size: int = 256) -> LlamaForCausalLM:
    """About ten million parameters, most of them in the vocabulary of 32,000."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


@click.command()
@click.argument("pool", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
def main(pool: Path, output: Path) -> None:
    """Train a tokenizer on POOL, initialise a small Llama, save both under OUTPUT."""
    train_tokenizer(jsonl.find(pool, split) for split in SPLITS).save_pretrained(output)
    random_llama().save_pretrained(output)


if __name__ == "__main__":
    main()
