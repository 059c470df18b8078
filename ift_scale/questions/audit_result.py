"""The audit's result: duplicates counted by cell, and the questions that the settings may remove.

A cell is a collection's split of a domain.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from ift_scale.questions.similarity import Normal


class Cell(NamedTuple):
    """The collection, split and domain of a question."""

    collection: str
    split: str
    domain: str

    @property
    def name(self) -> str:
        return "/".join(self)

    @property
    def label(self) -> str:
        return f"{'benchmark ' if self.collection == 'benchmark' else ''}{self.domain} {self.split}"

    @property
    def is_train(self) -> bool:
        return (self.collection, self.split) == ("pool", "train")

    @property
    def is_held_out(self) -> bool:
        return self.split in ("dev", "test")


class Pair(BaseModel):
    """A line of audit.jsonl: two questions that are duplicates."""

    id: str
    cell: str
    other_id: str
    other_cell: str
    kind: Literal["exact", "near"]
    similarity: float


class EqualOptions(BaseModel):
    """A line of equal_options.jsonl: a question whose right option has a copy among the others.

    `exact`: equal except for white space. Otherwise equal only when ignoring case and Unicode
    compatibility forms (NFKC), where the difference may matter: BB and Bb, x² and x2.
    """

    id: str
    cell: str
    answer: str
    equal: list[str]
    exact: bool


class AuditedQuestion(NamedTuple):
    """A question as the audit reads it. `row` is its line number from 0."""

    row: int
    id: str
    cell: Cell
    normal: Normal
    equal: EqualOptions | None = None


@dataclass
class Overlap:
    """The questions that two cells share: pairs, and rows of the first cell, by kind."""

    pairs: Counter[str] = field(default_factory=Counter)
    items: dict[str, set[int]] = field(default_factory=dict)

    def add(self, kind: str, row: int) -> None:
        self.pairs[kind] += 1
        self.items.setdefault(kind, set()).add(row)

    def count(self, *kinds: str) -> int:
        return len(set().union(*(self.items.get(kind, set()) for kind in kinds)))


@dataclass
class AuditResult:
    """The audit's result, with the rows that the settings may remove.

    `trained` and `tested`: train and test questions that also occur on the other side.
    `demonstrated`: test questions that are also demonstrations. `ambiguous`: train and test
    questions with an option equal to the right one.
    """

    sizes: Counter[Cell] = field(default_factory=Counter)
    overlaps: dict[tuple[Cell, Cell], Overlap] = field(default_factory=dict)
    trained: dict[int, Cell] = field(default_factory=dict)
    tested: dict[int, Cell] = field(default_factory=dict)
    demonstrated: dict[int, Cell] = field(default_factory=dict)
    ambiguous: dict[int, Cell] = field(default_factory=dict)
    equal: Counter[tuple[Cell, bool]] = field(default_factory=Counter)
    listed: list[EqualOptions] = field(default_factory=list)

    def register(self, entry: AuditedQuestion) -> None:
        """Counts a question and, if it has one, its option equal to the right one."""
        self.sizes[entry.cell] += 1
        if entry.equal is None:
            return
        self.listed.append(entry.equal)
        self.equal[entry.cell, entry.equal.exact] += 1
        if entry.equal.exact and entry.cell.split != "dev":
            self.ambiguous[entry.row] = entry.cell

    def equal_options(self) -> dict[str, dict[str, int]]:
        """Returns, by cell, the questions with an option equal to the right one."""
        cells = sorted({cell for cell, _ in self.equal})
        counts = {cell: (self.equal[cell, True], self.equal[cell, False]) for cell in cells}
        return {
            cell.name: {"exact": exact, "normalised": exact + other, "of": self.sizes[cell]}
            for cell, (exact, other) in counts.items()
        }

    def add(self, kind: str, first: AuditedQuestion, second: AuditedQuestion) -> None:
        """Counts two similar questions; `first` is the held-out one if the other is trained on."""
        self.overlaps.setdefault((first.cell, second.cell), Overlap()).add(kind, first.row)
        if second.cell.is_train and not first.cell.is_train and kind != "same text":
            self.trained[second.row] = second.cell
            if first.cell.split == "test":
                self.tested[first.row] = first.cell
        if (first.cell.split, second.cell.split) == ("test", "dev") and kind != "same text":
            self.demonstrated[first.row] = first.cell

    def rows(self) -> list[dict[str, Any]]:
        """Returns one row per pair of cells that share something, most items first."""
        rows = []
        for (first, second), overlap in self.overlaps.items():
            row: dict[str, Any] = {"cell": first.name, "in": second.name}
            row |= {"items": overlap.count("exact", "near"), "of": self.sizes[first]}
            row |= {f"{kind}_items": overlap.count(kind) for kind in ("exact", "near")}
            row |= {"same_text_items": overlap.count("same text")}
            row |= {f"{kind}_pairs": overlap.pairs[kind] for kind in ("exact", "near")}
            rows.append(row)
        return sorted(
            rows, key=lambda row: (-row["items"], -row["same_text_items"], row["cell"], row["in"])
        )

    def counts(self) -> dict[str, int]:
        """Returns the manifest's counts; cells that share only question texts are omitted."""
        shared = {
            (a, b): overlap.count("exact", "near") for (a, b), overlap in self.overlaps.items()
        }
        duplicates = {
            f"duplicates: {a.label} in {b.label}": count
            for (a, b), count in shared.items()
            if count
        }
        equal = {
            f"equal options: {cell.label}": count
            for (cell, exact), count in sorted(self.equal.items())
            if exact
        }
        return duplicates | equal
