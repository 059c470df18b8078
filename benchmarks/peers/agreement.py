"""Whether peers answer alike, and how fast each is: their result files in, a table out.

    python benchmarks/peers/agreement.py runs/peers/authors.json runs/peers/lm-eval-hf.json runs/peers/ours.json

The first file is what the others are held against. The exit code is 1 where one of them was asked other tokens.
"""

import json
from pathlib import Path
from typing import Any

import click


def compare(reference: dict[str, Any], other: dict[str, Any]) -> tuple[bool, int, float]:
    """Whether the tokens asked are the same, how many predictions are, and the largest difference of a probability."""
    pairs = list(zip(reference["answers"], other["answers"], strict=True))
    same_tokens = all(
        a["id"] == b["id"] and a["tokens_sha256"] == b["tokens_sha256"] for a, b in pairs
    )
    same_predictions = sum(a["prediction"] == b["prediction"] for a, b in pairs)
    differences = (
        abs(p - q)
        for a, b in pairs
        for p, q in zip(a["probabilities"], b["probabilities"], strict=True)
    )
    return same_tokens, same_predictions, max(differences)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
def main(files: tuple[Path, ...]) -> None:
    """Compare result FILES with the first of them."""
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    counts = {result["questions"] for result in results}
    if len(counts) > 1:
        raise click.ClickException(
            f"the files are of {sorted(counts)} questions; compare runs over the same prompts"
        )
    alike = True
    click.echo(
        "peer                     dtype     questions/s  tokens  same predictions  largest difference"
    )
    for result in results:
        tokens, predictions, difference = compare(results[0], result)
        alike &= tokens
        share = f"{predictions}/{result['questions']}"
        click.echo(
            f"{result['peer']:24} {result['settings']['dtype']:9} {result['questions_per_second']:11.2f}  "
            f"{'same' if tokens else 'OTHER':6}  {share:16}  {difference:.2e}"
        )
    if not alike:
        raise click.ClickException(
            "a peer was asked other tokens: its answers and its speed say nothing"
        )


if __name__ == "__main__":
    main()
