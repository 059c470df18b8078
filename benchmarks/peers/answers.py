"""What every peer reads and writes, so that their answers can be compared: prompts in, probabilities and seconds out.

Imports nothing of ift_scale: the peers run without it, one of them in a virtual environment of its own.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WARM_UP = 4  # questions that each peer is asked before its time is taken
_FIELDS = ("id", "prompt", "num_choices")


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Rows of at least id, prompt and num_choices."""
    with path.open(encoding="utf-8") as file:
        rows = [_row(path, number, line) for number, line in enumerate(file, start=1)]
    if not rows:
        raise click.ClickException(f"{path}: no prompts. Make the file with prompts.py")
    return rows


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise click.ClickException(f"{path}:{number}: not valid JSON: {error}") from error
    missing = [field for field in _FIELDS if field not in row]
    if missing:
        raise click.ClickException(
            f"{path}:{number}: no {', '.join(missing)}. Make the file with prompts.py"
        )
    return row


def read_tokenizer(model: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True)
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"{model}: no tokenizer can be loaded: {error}. Make the folder with model.py"
        ) from error


def answer(
    id: str, scores: Sequence[float], prompt: Sequence[int], letters: Sequence[int]
) -> dict[str, Any]:
    """One question's answer. `scores`: logits or log-probabilities of the letters, which differ by a constant at most.

    The digest of the tokens that were asked, the letters' ids last, shows whether two peers asked the same.
    """
    best = max(scores)
    weights = [math.exp(score - best) for score in scores]
    tokens = ",".join(map(str, [*prompt, *letters]))
    return {
        "id": id,
        "prediction": LETTERS[scores.index(best)],
        "probabilities": [weight / sum(weights) for weight in weights],
        "prompt_tokens": len(prompt),
        "tokens_sha256": hashlib.sha256(tokens.encode()).hexdigest(),
    }


def write(
    output: Path,
    peer: str,
    settings: Mapping[str, Any],
    packages: Sequence[str],
    seconds: Mapping[str, float],
    answers: Sequence[Mapping[str, Any]],
) -> None:
    """Write a peer's result and tell its rate. `seconds["scoring"]` is what the rate is made of."""
    rate = len(answers) / seconds["scoring"]
    result = {
        "peer": peer,
        "settings": dict(settings),
        "versions": {name: version(name) for name in packages},
        "seconds": dict(seconds),
        "questions": len(answers),
        "questions_per_second": rate,
        "answers": list(answers),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
    click.echo(f"{peer}: {len(answers)} questions, {rate:.2f} a second ({parts}); {output}")
