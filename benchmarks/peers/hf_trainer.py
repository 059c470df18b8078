"""The paper's recipe: HF Trainer, every row padded to the maximum length, with DeepSpeed ZeRO-2 on the workload's own tokens.

    .venv-trl/bin/python -m torch.distributed.run --nproc_per_node 2 hf_trainer.py runs/peers/train runs/peers/hf.json [options]

In: the workload (train_set.py). Out: loss and seconds of each optimizer step. As in the authors' released training code: rows
padded when they are tokenised, an attention mask, nothing packed. In the recipe's favour: no activation checkpointing.
"""

import sys
import time
from pathlib import Path
from typing import Any

import click
import torch
from datasets import Dataset

sys.path.append(str(Path(__file__).parent))

import trainer_peer as peer
from transformers import Trainer, TrainingArguments, default_data_collator


def padded(rows: list[dict[str, Any]], length: int, pad: int) -> Dataset:
    """Rows of exactly `length` tokens with their attention mask; a click error where one is longer."""
    longest = max(len(row["input_ids"]) for row in rows)
    if longest > length:
        raise click.BadParameter(f"an example has {longest} tokens", param_hint="--pad-to")
    found = []
    for row in rows:
        room = length - len(row["input_ids"])
        found.append(
            {
                "input_ids": row["input_ids"] + [pad] * room,
                "labels": row["labels"] + [-100] * room,
                "attention_mask": [1] * len(row["input_ids"]) + [0] * room,
            }
        )
    return Dataset.from_list(found).with_format("torch")


class WarmUp(peer.Clock):
    """Runs one row through the model before the clock starts: a step of this recipe takes too long to be thrown away."""

    def on_train_begin(
        self, *args: Any, model: Any = None, train_dataloader: Any = None, **rest: Any
    ) -> None:
        row = {name: value[None] for name, value in train_dataloader.dataset[0].items()}
        loss = model.module(**row).loss if hasattr(model, "module") else model(**row).loss
        torch.autograd.grad(loss, list(model.parameters()))
        super().on_train_begin(*args, **rest)


@click.command()
@click.argument("workload", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--steps", "num_steps", default=1, show_default=True, help="Steps to take, all of them timed."
)
@click.option(
    "--of",
    "num_planned",
    default=6,
    show_default=True,
    help="Steps that the learning rate is planned for.",
)
@click.option("--batch", default=32, show_default=True, help="Examples of a step.")
@click.option("--micro-batch", default=2, show_default=True, help="Rows a rank and forward pass.")
@click.option(
    "--pad-to", default=2048, show_default=True, help="Tokens of every row; the paper's is 2048."
)
@click.option("--attention", default="sdpa", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--optimizer", type=click.Choice(["torch", "cpu_adam"]), default="torch", show_default=True
)
@click.option("--threads", default=1, show_default=True)
@click.option("--learning-rate", default=5e-4, show_default=True)
def main(
    workload: Path,
    output: Path,
    num_steps: int,
    num_planned: int,
    learning_rate: float,
    threads: int,
    **settings: Any,
) -> None:
    """Train on WORKLOAD and write losses and seconds to OUTPUT."""
    started = time.perf_counter()
    peer.ready(threads)
    rows = peer.read_rows(workload, num_steps, by_length=False)
    config = peer.zero_2(settings["dtype"], settings["optimizer"])
    args = TrainingArguments(**peer.arguments(output, config, settings, num_planned, learning_rate))
    model, tokenizer = peer.load(workload, settings["dtype"])
    model.set_attn_implementation(settings["attention"])
    clock = WarmUp(num_steps)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=padded(rows, settings["pad_to"], tokenizer.pad_token_id),
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    kept = settings | {"threads": threads, "learning_rate": learning_rate}
    peer.write(output, "hf_trainer", trainer, kept, clock, rows, time.perf_counter() - started)


if __name__ == "__main__":
    main()
