"""TRL's SFTTrainer preparing a data set: seconds of its tokenisation, and the tokens.

    .venv-trl/bin/python trl_tokenize.py WORK OUTPUT.json [--processes N] [--repeats N]

WORK: pairs.jsonl with conversational `prompt` and `completion`, chat.jinja, and a folder `model`.
Output: seconds of each repeat, token ids, and labels (-100: not supervised). Timed is what the
trainer does to the data before training (`_prepare_dataset`), without reading the file.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import datasets
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


class TimedPreparation(SFTTrainer):  # type: ignore[misc]
    """Keeps the seconds of the preparation."""

    seconds: list[float] = []  # noqa: RUF012  (of all trainers)

    def _prepare_dataset(self, *arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        prepared = super()._prepare_dataset(*arguments, **named)
        self.seconds.append(time.perf_counter() - started)
        return prepared


@click.command()
@click.argument("work", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--processes", default=1, show_default=True)
@click.option("--repeats", default=1, show_default=True)
def main(work: Path, output: Path, processes: int, repeats: int) -> None:
    datasets.disable_caching()
    rows = [json.loads(line) for line in (work / "pairs.jsonl").read_text("utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(work / "model")
    tokenizer.chat_template = (work / "chat.jinja").read_text("utf-8")
    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            args = SFTConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                max_length=None,
                packing=False,
                dataset_num_proc=processes if processes > 1 else None,
                report_to="none",
            )
            trainer = TimedPreparation(
                model=model,
                args=args,
                train_dataset=datasets.Dataset.from_list(rows),
                processing_class=tokenizer,
            )
    prepared = trainer.train_dataset
    found = {
        "seconds": TimedPreparation.seconds,
        "ids": prepared["input_ids"][:],
        "labels": prepared["labels"][:],
    }
    output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
