"""The peers' model: a random Llama with a byte-level BPE vocabulary of 32,000 and a fixed seed.

    python -m benchmarks.peers.model runs/peers/model [--data ../shared/data]

The tokenizer is trained on the texts of MMLU and of the pools, so that prompts have realistic
lengths. Writes a model folder for transformers, vLLM and lm-evaluation-harness. Speed does not
depend on a model's knowledge.
"""

from pathlib import Path

import click

from benchmarks.random_model import VOCAB_SIZE, random_llama, train_tokenizer
from ift_scale.errors import IFTScaleError

LAYERS, HIDDEN_SIZE = 6, 384
DATA = Path(__file__).parents[3] / "shared" / "data"


def files_with_text(data: Path) -> list[Path]:
    """Returns every file of MMLU and of the pools; a usage error if there is none."""
    files = sorted([*data.glob("mmlu/*.jsonl*"), *data.glob("pools/*/*.jsonl*")])
    if not files:
        raise click.BadParameter(
            f"no mmlu/*.jsonl or pools/*/*.jsonl (.gz too) in {data}", param_hint="--data"
        )
    return files


def create(output: Path, data: Path = DATA) -> None:
    """Writes the tokenizer and the model to the folder `output`, unless it has a model."""
    if (output / "model.safetensors").is_file():
        return
    files = files_with_text(data)
    click.echo(f"training the tokenizer on {len(files)} files")
    try:
        tokenizer = train_tokenizer(files)
    except IFTScaleError as error:
        raise click.ClickException(str(error)) from error
    model = random_llama(LAYERS, HIDDEN_SIZE)
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    unused = VOCAB_SIZE - len(tokenizer)
    click.echo(
        f"{output}: {model.num_parameters():,} parameters ({LAYERS} layers, hidden {HIDDEN_SIZE})"
    )
    click.echo(
        f"vocabulary: {len(tokenizer):,} tokens and {unused:,} unused rows of the embedding, "
        f"{VOCAB_SIZE:,} in total"
    )


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--data",
    default=DATA,
    type=click.Path(path_type=Path),
    help="Folder that contains mmlu/ and pools/.",
)
def main(output: Path, data: Path) -> None:
    """Train the tokenizer, initialize the model, and save both under OUTPUT."""
    create(output, data)


if __name__ == "__main__":
    main()
