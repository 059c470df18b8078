"""The authors' probing loop: plain transformers, one whole 5-shot prompt at a time.

    python -m benchmarks.peers.authors_loop runs/peers/prompts.jsonl runs/peers/model
        runs/peers/authors.json --dtype bfloat16

Input: prompts (`prompts.py`) and a model folder. Output: each question's probabilities (softmax
over the option letters' logits at the last position) and the seconds of the loop. Two forms differ
only in the letters' tokens:
- `--letters alone`, as released: the last token of the letter tokenized on its own. With
  SentencePiece's prefix space (LLaMA-2, Mistral) that is `_A`, although the demonstrations contain
  `Answer:A`, which ends in `A`.
- `--letters in-prompt`: the last token of the prompt with the letter after it, as in ours.

Follows eval/my_domain_eval.py of github.com/renmengjie7/Self-Aligning; imports nothing from
ift_scale.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.answers import LETTERS, WARM_UP, answer, read_prompts, read_tokenizer, write


def letter_ids(tokenizer: Any, prompt: str, num_choices: int) -> list[int]:
    """Returns the last token of each letter after `prompt` (empty in the released form)."""
    return [tokenizer(prompt + letter).input_ids[-1] for letter in LETTERS[:num_choices]]


@torch.no_grad()
def probe(
    model: Any, prompts: Sequence[list[int]], letters: Sequence[list[int]]
) -> list[list[float]]:
    """Returns the letters' logits after each prompt."""
    scores = []
    with click.progressbar(
        list(zip(prompts, letters, strict=True)), label="probing", show_pos=True
    ) as asked:
        for prompt, options in asked:
            logits_V = model(torch.tensor([prompt])).logits[0, -1]
            scores.append(logits_V[options].float().tolist())
    return scores


@click.command()
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--letters",
    "form",
    type=click.Choice(["alone", "in-prompt"]),
    default="alone",
    show_default=True,
)
def main(prompts: Path, model: Path, output: Path, dtype: str, form: str) -> None:
    """Probe MODEL with PROMPTS and write answers and seconds to OUTPUT."""
    rows = read_prompts(prompts)
    started = time.perf_counter()
    tokenizer = read_tokenizer(model)
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype), local_files_only=True
    ).eval()
    loading = time.perf_counter()
    ids = [tokenizer(row["prompt"]).input_ids for row in rows]
    letters = [
        letter_ids(tokenizer, row["prompt"] if form == "in-prompt" else "", row["num_choices"])
        for row in rows
    ]
    tokenising = time.perf_counter()
    probe(loaded, ids[:WARM_UP], letters[:WARM_UP])
    warm = time.perf_counter()
    scores = probe(loaded, ids, letters)
    seconds = {
        "loading": loading - started,
        "tokenising": tokenising - loading,
        "warm_up": warm - tokenising,
        "scoring": time.perf_counter() - warm,
    }
    answers = [
        answer(row["id"], *rest) for row, *rest in zip(rows, scores, ids, letters, strict=True)
    ]
    settings = {
        "dtype": dtype,
        "letters": form,
        "batch_size": 1,
        "threads": torch.get_num_threads(),
    }
    write(output, "authors_loop", settings, ["torch", "transformers"], seconds, answers)


if __name__ == "__main__":
    main()
