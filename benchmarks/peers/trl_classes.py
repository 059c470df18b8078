"""TRL's SFTTrainer on small models of many classes, one after another, in one process on a CPU.

    .venv-trl/bin/python trl_classes.py WORK OUTPUT.json

WORK: steps.jsonl (class_speed.write), and a folder with a model for each class. Output: for each
folder loss and CPU seconds of each optimizer step, or why TRL does not train it. Batches are
padded, four examples each, in order of length within a step: TRL's fastest setting on a CPU
(README.md). The model's own attention, a constant learning rate, transformers' loss, and no
load-balancing loss of experts, all as on our side.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models

sys.path.append(str(Path(__file__).parent))

import trainer_peer as peer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig
from trl_sft import PlainLoss

MICRO_BATCH = 4


def tokenizer() -> Any:
    """Returns a tokenizer with a padding token; the examples are token ids already."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def train(folder: Path, rows: list[dict[str, Any]], batch: int, rate: float) -> dict[str, Any]:
    num_steps = rows[-1]["step"] + 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if hasattr(model, "router_aux_loss_coef"):  # TRL adds the load-balancing loss
        model.router_aux_loss_coef = model.config.router_aux_loss_coef = 0.0
    clock = Stopwatch(num_steps)
    with tempfile.TemporaryDirectory() as output:
        args = SFTConfig(
            output_dir=output,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=MICRO_BATCH,
            gradient_accumulation_steps=batch // MICRO_BATCH,
            max_steps=num_steps,
            learning_rate=rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch",
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            padding_free=False,
            packing=False,
            shuffle_dataset=False,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        trainer = PlainLoss(
            model=model,
            args=args,
            train_dataset=Dataset.from_list(
                [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
            ),
            processing_class=tokenizer(),
            callbacks=[clock],
        )
        trainer.train()
    return {"losses": clock.losses, "seconds": clock.cpu_seconds}


class Stopwatch(peer.Clock):
    """A clock for one process, which leaves the learning rate constant."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.start()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        pass


@click.command()
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--batch", default=32, show_default=True)
@click.option("--learning-rate", default=5e-4, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(work: Path, output: Path, batch: int, learning_rate: float, threads: int) -> None:
    torch.set_num_threads(threads)
    rows = peer.read_rows(work, sys.maxsize, by_length=True)
    found: dict[str, Any] = {}
    for config in sorted(work.glob("*/config.json")):
        try:
            found[config.parent.name] = train(config.parent, rows, batch, learning_rate)
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            found[config.parent.name] = {"error": f"{type(error).__name__}: {reason}"}
        output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
