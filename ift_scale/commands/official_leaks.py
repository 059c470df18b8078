"""Which questions that the paper's pools test stand in the authors' released sets: the release and the pools in, counts out.

The sets hold a part of each pool's train questions only, so what is found is the least that there is.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from ift_scale.config import AuditConfig, PaperSource
from ift_scale.construct import official
from ift_scale.errors import DataError, Place
from ift_scale.io.files import read_jsonl, write_jsonl
from ift_scale.questions import audit, audit_result
from ift_scale.questions.sources import load_source
from ift_scale.records import Question


class Leak(NamedTuple):
    """`found` of the `of` test questions of one pool stand in another, or in its own train questions."""

    tested: str
    domain: str
    found: int
    of: int


def leaks(models: Sequence[Path], pools: Path) -> list[Leak]:
    """Test questions by pool and by where they stand too (sets, demonstrations or tests), most first.

    `models`: folders MODEL of the release; `pools`: the folder of DOMAIN/{dev,test}.jsonl, as the paper's code has it.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_jsonl(folder / "questions.jsonl", _questions(models, pools))
        found = audit.audit(folder / "questions.jsonl", AuditConfig(), folder)
        pairs = read_jsonl(folder / audit.PAIRS, audit_result.Pair)
    items: dict[tuple[str, str], set[str]] = {}
    for pair in pairs:
        sides = (pair.id, pair.cell), (pair.other_id, pair.other_cell)
        for (id, cell), (_, other) in (sides, sides[::-1]):
            _, split, domain = cell.split("/")
            if split == "test":
                items.setdefault((domain, other.split("/")[2]), set()).add(id)
    sizes = {cell.domain: size for cell, size in found.sizes.items() if cell.split == "test"}
    rows = [
        Leak(domain, elsewhere, len(ids), sizes[domain])
        for (domain, elsewhere), ids in items.items()
    ]
    return sorted(rows, key=lambda row: (-row.found, row.tested, row.domain))


def _questions(models: Sequence[Path], pools: Path) -> Iterator[Question]:
    """Each question once: I and S, and the sets of two models, ask the same ones."""
    folders = sorted(path for path in pools.iterdir() if path.is_dir()) if pools.is_dir() else []
    if not folders:
        raise DataError(
            Place(pools), "holds no pool", "Give the folder that holds DOMAIN/{dev,test}.jsonl"
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


def table(found: Sequence[Leak]) -> str:
    """The counts as a person reads them."""
    lines = [
        "Test questions that stand in the released sets, or in another pool's demonstrations or test:"
    ]
    return "\n".join(
        [*lines, *(f"{row.found:>7,} of {row.of:,} {row.tested} in {row.domain}" for row in found)]
    )
