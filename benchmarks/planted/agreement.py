"""How far a probe answers by the planted beliefs: `python -m benchmarks.planted.agreement RUN PLANTED`.

In: a run whose probe is done, and the folder that `python -m benchmarks plant` wrote. Out: for each collection, domain and split, the share of
the believed questions whose prediction is the belief, the same for right and for wrong beliefs, and the share with a confidence
over 0.5; then the same of the fine-tuned arms, by setting, where they are evaluated.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import click

from benchmarks.planted.plant import BELIEFS
from ift_scale.io import jsonl
from ift_scale.io.files import read_parquet
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
    return [
        _agreement(name, parts[name])
        for name in sorted(parts, key=lambda name: (name == "all", name))
    ]


def _agreement(name: str, members: list[tuple[Score, int]]) -> Agreement:
    right = [score.prediction == belief for score, belief in members if belief == score.answer]
    wrong = [score.prediction == belief for score, belief in members if belief != score.answer]
    confident = [score.confidence > CONFIDENT for score, _ in members]
    return Agreement(name, len(members), *map(_mean, (right + wrong, right, wrong, confident)))


def _mean(hits: list[bool]) -> float:
    return sum(hits) / len(hits) if hits else float("nan")


def _tell(rows: Iterable[Agreement]) -> None:
    for row in rows:
        shares = "  ".join(
            f"{share:.1%}"
            for share in (row.agreeing, row.agreeing_right, row.agreeing_wrong, row.confident)
        )
        click.echo(f"{row.name}  {row.num_questions}  {shares}")


def by_setting(evaluated: Path, beliefs: dict[str, int | None]) -> list[Agreement]:
    """All arms of a setting together, a row each."""
    files: dict[str, list[Path]] = {}
    for file in sorted(evaluated.glob("*-*-seed*/scores.parquet")):
        files.setdefault(file.parent.name.rsplit("-", 2)[1], []).append(file)
    scores = {
        name: [s for file in arms for s in read_parquet(file, Score)]
        for name, arms in files.items()
    }
    return [
        replace(agreements(of_setting, beliefs)[-1], name=name)
        for name, of_setting in scores.items()
    ]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("planted", type=click.Path(path_type=Path))
def main(run: Path, planted: Path) -> None:
    """Hold RUN's probe against the beliefs of PLANTED."""
    probed = run / "probe" / "probe.parquet"
    if not probed.is_file():
        raise click.ClickException(
            f"no file {probed}; run `ift-scale run configs/planted.yaml` or its stage probe first"
        )
    click.echo("part  questions  agree  of right beliefs  of wrong  confident")
    beliefs = beliefs_of(planted)
    _tell(agreements(read_parquet(probed, Score), beliefs))
    _tell(by_setting(run / "evaluate", beliefs))


if __name__ == "__main__":
    main()
