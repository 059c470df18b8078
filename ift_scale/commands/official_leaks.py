"""Counts test questions of the paper's pools that also occur in the authors' released sets.

The sets contain only a part of each pool's train questions, so the counts are lower bounds.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ift_scale.config.questions import AuditConfig, PaperSource
from ift_scale.construct import official
from ift_scale.errors import DataError, Place
from ift_scale.io.files import read_jsonl, write_jsonl
from ift_scale.questions import audit, audit_result
from ift_scale.questions.sources import load_source
from ift_scale.records import Question


class Leak(NamedTuple):
    """`leaked` of the `total` test questions of the pool `tested` also occur in `domain`."""

    tested: str
    domain: str
    leaked: int
    total: int


def leaks(models: Sequence[Path], pools: Path) -> list[Leak]:
    """Returns the leaks by pool and by the domain where the questions also occur, largest first.

    Sets, demonstrations and other tests count. `models`: folders MODEL of the release. `pools`: the
    folder of DOMAIN/{dev,test}.jsonl, as in the paper's code.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_jsonl(folder / "questions.jsonl", _questions(models, pools))
        audited = audit.audit(folder / "questions.jsonl", AuditConfig(), folder)
        pairs = read_jsonl(folder / audit.PAIRS, audit_result.Pair)
    items: dict[tuple[str, str], set[str]] = {}
    for pair in pairs:
        sides = (pair.id, pair.cell), (pair.other_id, pair.other_cell)
        for (id, cell), (_, other) in (sides, sides[::-1]):
            _, split, domain = cell.split("/")
            if split == "test":
                items.setdefault((domain, other.split("/")[2]), set()).add(id)
    sizes = {cell.domain: size for cell, size in audited.sizes.items() if cell.split == "test"}
    rows = [
        Leak(domain, elsewhere, len(ids), sizes[domain])
        for (domain, elsewhere), ids in items.items()
    ]
    return sorted(rows, key=lambda row: (-row.leaked, row.tested, row.domain))


def _questions(models: Sequence[Path], pools: Path) -> Iterator[Question]:
    """Yields each question once; I and S, and the sets of two models, share questions."""
    folders = sorted(path for path in pools.iterdir() if path.is_dir()) if pools.is_dir() else []
    if not folders:
        raise DataError(
            Place(pools),
            "contains no pool",
            "Give the folder that contains DOMAIN/{dev,test}.jsonl",
        )
    for folder in folders:
        source = PaperSource(kind="paper", domain=folder.name, path=str(folder))
        for _, question in load_source(source, 0, with_train=False):
            if question.split != "train":
                yield question
    seen = set()
    for model in models:
        for by_setting in official.load(model).values():
            for question in (row.question for rows in by_setting.values() for row in rows):
                key = (question.domain, question.id.rpartition("/")[2])
                if key not in seen:
                    seen.add(key)
                    yield question


def table(rows: Sequence[Leak]) -> str:
    """Formats the counts as text."""
    title = "Test questions that also occur in the released sets, or in another pool's dev or test:"
    lines = (f"{row.leaked:>7,} of {row.total:,} {row.tested} in {row.domain}" for row in rows)
    return "\n".join([title, *lines])
