"""The trainers' workload: a model, a real instruction set, and its token ids in training order.

    python -m benchmarks.peers.train_set runs/peers/train --steps 6 [--data ../shared/data]

Input: H of LLaMA-2-7B's engineering questions as released by the authors, and equally many general
instructions. Output, in the folder:
    model/          the peers' random Llama and tokenizer (model.py)
    set.jsonl       the examples in chat form; an answer is "B. copper", line break, explanation
    tokens      the same tokenized by ift_scale, for our side
    steps.jsonl     one row per example for the peers; label -100 is not learned:
                    {"step": 0, "input_ids": [...], "labels": [...]}
    workload.json   lengths, tokens per step, share of supervised tokens
A step contains the examples that ift_scale.train.data.packing draws for it, so all trainers take
the same steps with the same tokens.
"""

import json
import random
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.peers import model
from ift_scale.config import Config, EvaluateConfig
from ift_scale.construct import general
from ift_scale.io import jsonl
from ift_scale.io.files import write_json, write_jsonl, write_text
from ift_scale.prompts.templates import chat_messages, response_text
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import LETTERS, Example, ExampleMeta, Message, Question
from ift_scale.train.data import blocks
from ift_scale.train.data.dataset import TokenizedSet, load
from ift_scale.train.data.packing import step_examples

DATA = Path(__file__).parents[3] / "shared" / "data"
DOMAIN, SEED = "engineering", 0
CONFIG = Config(output_dir="unused", evaluate=EvaluateConfig(template="vicuna"))
"""Its template and its `train` settings determine the tokens."""
HARMONIOUS = f"official_groups/llama-2-7b/{DOMAIN}/consistent-correct-exp-sample.jsonl.gz"
GENERAL = "general/alpaca_en_demo.jsonl.gz"


def harmonious(path: Path) -> list[Example]:
    """Returns the authors' H as training examples with explanations after the answers."""
    found = []
    for _, row in jsonl.rows(path):
        question = Question(
            id=f"{DOMAIN}/train/{row['id']}",
            domain=DOMAIN,
            subject=DOMAIN,
            collection="pool",
            split="train",
            question=row["question"],
            choices=row["choices"],
            answer=row["answer"],
        )
        answer = f"{response_text(question, row['answer'], 'letter_text')}\n{row['explanation']}"
        meta = ExampleMeta(
            setting="harmonious",
            question_id=question.id,
            domain=DOMAIN,
            target=LETTERS[row["answer"]],
            wording="dataset",
        )
        found.append(
            Example(
                messages=[*chat_messages(question), Message(role="assistant", content=answer)],
                meta=meta,
            )
        )
    return found


def blended(data: Path, count: int) -> list[Example]:
    """Returns `count` examples of H and equally many general instructions, shuffled together."""
    known, path = harmonious(data / HARMONIOUS), data / GENERAL
    instructions = general.load(path)
    drawn = general.draw(general.shuffled(instructions, DOMAIN, SEED), len(known), 0.5, path)
    examples = [*known, *(instructions[id] for id in drawn)]
    if count > len(examples):
        raise click.BadParameter(
            f"{count} examples are required, but there are {len(examples)}", param_hint="--steps"
        )
    return random.Random(SEED).sample(examples, count)


def workload(tokens: TokenizedSet, steps: list[list[int]]) -> dict[str, Any]:
    """Returns statistics of the measured steps."""
    lengths, supervised = tokens.lengths, tokens.supervised_counts
    return {
        "examples": len(lengths),
        "steps": len(steps),
        "length": {
            "mean": float(lengths.mean()),
            "median": float(np.median(lengths)),
            "p95": float(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
        },
        "tokens_per_step": [int(lengths[step].sum()) for step in steps],
        "supervised_per_step": [int(supervised[step].sum()) for step in steps],
        "supervised_share": float(supervised.sum() / lengths.sum()),
    }


def peer_rows(tokens: TokenizedSet, steps: list[list[int]]) -> list[dict[str, Any]]:
    rows = []
    for number, step in enumerate(steps):
        for example in step:
            span = slice(tokens.offsets[example], tokens.offsets[example + 1])
            ids, supervised = tokens.ids[span], tokens.supervised[span].copy()
            supervised[0] = False  # the first token has no context to be predicted from
            rows.append(
                {
                    "step": number,
                    "input_ids": ids.tolist(),
                    "labels": np.where(supervised, ids, -100).tolist(),
                }
            )
    return rows


def create(output: Path, num_steps: int, batch: int, data: Path = DATA) -> dict[str, Any]:
    """Writes the workload to the folder `output`, and returns its statistics."""
    model.create(output / "model", data)
    examples = blended(data, num_steps * batch)
    write_jsonl(output / "set.jsonl", examples)
    tokenizer = PromptTokenizer(output / "model")
    blocks.write(output / "set.jsonl", output / "tokens", tokenizer, CONFIG, lambda _: None)
    tokens = load(output / "tokens")
    steps = list(step_examples(len(examples), batch, 1, SEED))
    write_text(
        output / "steps.jsonl", "".join(json.dumps(row) + "\n" for row in peer_rows(tokens, steps))
    )
    found = {"batch": batch, **workload(tokens, steps)}
    write_json(output / "workload.json", found)
    return found


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--steps",
    "num_steps",
    default=6,
    show_default=True,
    help="Optimizer steps, the warm-up's among them.",
)
@click.option("--batch", default=32, show_default=True, help="Examples per step.")
@click.option("--data", default=DATA, type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(output: Path, num_steps: int, batch: int, data: Path) -> None:
    """Write the workload to OUTPUT."""
    click.echo(json.dumps(create(output, num_steps, batch, data), indent=1))


if __name__ == "__main__":
    main()
