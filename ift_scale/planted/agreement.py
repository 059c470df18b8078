"""How far a probe answers by the planted beliefs: `python -m ift_scale.planted.agreement RUN PLANTED`.

In: a run whose probe is done, and the folder that `ift-scale plant` wrote. Out: for each collection, domain and split, the share of
the believed questions whose prediction is the belief, the same for right and for wrong beliefs, and the share with a confidence
over 0.5.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from ift_scale import artifacts, jsonl
from ift_scale.planted.plant import BELIEFS
from ift_scale.records import Score

CONFIDENT = 0.5


@dataclass(frozen=True)
class Agreement:
    """Of the believed questions of one part; shares are between 0 and 1."""

    name: str
    num_questions: int
    agreeing: float
    agreeing_right: float
    agreeing_wrong: float
    confident: float


def beliefs_of(folder: Path) -> dict[str, int | None]:
    return {row["id"]: row["belief"] for _, row in jsonl.rows(folder / BELIEFS)}


def agreements(scores: Iterable[Score], beliefs: dict[str, int | None]) -> list[Agreement]:
    """A part for each collection, domain and split, and `all`."""
    parts: dict[str, list[tuple[Score, int]]] = {}
    for score in scores:
        belief = beliefs[score.question_id]
        if belief is not None:
            for name in (f"{score.collection}/{score.domain}/{score.split}", "all"):
                parts.setdefault(name, []).append((score, belief))
    return [_agreement(name, parts[name]) for name in sorted(parts, key=lambda name: (name == "all", name))]


def _agreement(name: str, members: list[tuple[Score, int]]) -> Agreement:
    right = [score.prediction == belief for score, belief in members if belief == score.answer]
    wrong = [score.prediction == belief for score, belief in members if belief != score.answer]
    confident = [score.confidence > CONFIDENT for score, _ in members]
    return Agreement(name, len(members), *map(_mean, (right + wrong, right, wrong, confident)))


def _mean(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("planted", type=click.Path(path_type=Path))
def main(run: Path, planted: Path) -> None:
    """Hold RUN's probe against the beliefs of PLANTED."""
    click.echo("part  questions  agree  of right beliefs  of wrong  confident")
    for row in agreements(artifacts.read_parquet(run / "probe" / "probe.parquet", Score), beliefs_of(planted)):
        shares = "  ".join(f"{share:.1%}" for share in (row.agreeing, row.agreeing_right, row.agreeing_wrong, row.confident))
        click.echo(f"{row.name}  {row.num_questions}  {shares}")


if __name__ == "__main__":
    main()
