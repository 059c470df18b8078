"""TRL's SFTTrainer with DeepSpeed ZeRO-2 on the workload's own tokens.

    .venv-trl/bin/python -m torch.distributed.run --nproc_per_node 2 trl_sft.py runs/peers/train runs/peers/trl.json [options]

In: the workload (train_set.py). Out: loss and seconds of each optimizer step. The defaults are the best setting found (README.md).
"""

import sys
import time
from pathlib import Path
from typing import Any

import click
import torch.distributed as dist
from datasets import Dataset

sys.path.append(str(Path(__file__).parent))

import trainer_peer as peer
from transformers import Trainer
from trl import SFTConfig, SFTTrainer


class PlainLoss(SFTTrainer):
    """SFTTrainer with transformers' own loss in place of TRL's, by the override that TRL names for this."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs["use_cache"] = False
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


@click.command()
@click.argument("workload", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--steps", "num_steps", default=6, show_default=True)
@click.option("--batch", default=32, show_default=True, help="Examples of a step.")
@click.option(
    "--micro-batch", default=4, show_default=True, help="Examples a rank and forward pass."
)
@click.option("--padding-free/--padded", default=False, show_default=True)
@click.option(
    "--loss", "loss_kind", type=click.Choice(["trl", "plain"]), default="trl", show_default=True
)
@click.option(
    "--by-length/--in-order", default=True, show_default=True, help="Order inside a step."
)
@click.option("--attention", default="sdpa", show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--optimizer", type=click.Choice(["torch", "cpu_adam"]), default="torch", show_default=True
)
@click.option("--threads", default=1, show_default=True)
@click.option("--workers", default=0, show_default=True)
@click.option("--learning-rate", default=5e-4, show_default=True)
@click.option("--save", type=click.Path(path_type=Path), help="Folder for the trained weights.")
def main(
    workload: Path,
    output: Path,
    num_steps: int,
    learning_rate: float,
    threads: int,
    save: Path | None,
    **settings: Any,
) -> None:
    """Train on WORKLOAD and write losses and seconds to OUTPUT."""
    started = time.perf_counter()
    peer.ready(threads)
    rows = peer.read_rows(workload, num_steps, settings["by_length"])
    config = peer.zero_2(settings["dtype"], settings["optimizer"])
    args = SFTConfig(
        **peer.arguments(output, config, settings, num_steps, learning_rate),
        max_length=None,
        padding_free=settings["padding_free"],
        packing=False,
        shuffle_dataset=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    model, tokenizer = peer.load(workload, settings["dtype"])
    model.set_attn_implementation(settings["attention"])
    clock = peer.Clock(num_steps)
    trainer = (PlainLoss if settings["loss_kind"] == "plain" else SFTTrainer)(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(
            [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
        ),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    if save is not None and dist.get_rank() == 0:  # ZeRO-2 leaves every rank all weights
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(save)
    kept = settings | {"threads": threads, "learning_rate": learning_rate}
    peer.write(output, "trl", trainer, kept, clock, rows, time.perf_counter() - started)


if __name__ == "__main__":
    main()
