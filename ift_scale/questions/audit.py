"""Questions that occur twice, and questions whose right option has a copy among the others. Always counted, left out by setting.

Duplicates are looked for between what is trained on and what is asked, across domains and collections.

In: the stage's questions.jsonl. Out next to it: audit.json (counts by cell, a collection's split of
a domain), audit.jsonl (each pair) and equal_options.jsonl (each question with such an option).
Memory grows with the held-out questions (every pool's test and dev, and the benchmarks') and with
the pairs found; 10 bytes are kept per train question. A benchmark's train split, which no arm is
trained on or asked, is left aside.
"""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel
from pydantic_core import from_json

from ift_scale.config import AuditConfig
from ift_scale.io.files import atomic_path, write_json, write_jsonl
from ift_scale.questions.similarity import Normal, SimilarIndex
from ift_scale.records import AUDIT_FILE, LETTERS, Question

PAIRS = "audit.jsonl"
EQUAL_OPTIONS = "equal_options.jsonl"
_NOTE = "items: distinct questions of the first cell that stand in the second too"


class Cell(NamedTuple):
    """Where a question belongs."""

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
    """A line of audit.jsonl."""

    id: str
    cell: str
    other_id: str
    other_cell: str
    kind: Literal["exact", "near"]
    similarity: float


class EqualOptions(BaseModel):
    """A line of equal_options.jsonl: a question whose right option has a copy among the others.

    `exact`: equal but for white space. Otherwise equal only without regard to case and to Unicode
    compatibility forms (NFKC), where the difference may be the point: BB and Bb, x² and x2.
    """

    id: str
    cell: str
    answer: str
    equal: list[str]
    exact: bool


class Entry(NamedTuple):
    """A question as the audit reads it. `row` is its line, from 0."""

    row: int
    id: str
    cell: Cell
    normal: Normal
    equal: EqualOptions | None = None


@dataclass
class Overlap:
    """What one cell's questions share with another's. Rows of the first cell's questions; of the second's, how many."""

    pairs: Counter[str] = field(default_factory=Counter)
    items: dict[str, set[int]] = field(default_factory=dict)

    def add(self, kind: str, row: int) -> None:
        self.pairs[kind] += 1
        self.items.setdefault(kind, set()).add(row)

    def count(self, *kinds: str) -> int:
        return len(set().union(*(self.items.get(kind, set()) for kind in kinds)))


@dataclass
class Found:
    """The audit's result, with the rows that a setting may leave out.

    `trained` and `tested`: train and test questions that are on the other side too. `demonstrated`:
    tests that are demonstrations too. `ambiguous`: train and test questions with an option equal to
    the right one.
    """

    sizes: Counter[Cell] = field(default_factory=Counter)
    overlaps: dict[tuple[Cell, Cell], Overlap] = field(default_factory=dict)
    trained: dict[int, Cell] = field(default_factory=dict)
    tested: dict[int, Cell] = field(default_factory=dict)
    demonstrated: dict[int, Cell] = field(default_factory=dict)
    ambiguous: dict[int, Cell] = field(default_factory=dict)
    equal: Counter[tuple[Cell, bool]] = field(default_factory=Counter)
    listed: list[EqualOptions] = field(default_factory=list)

    def see(self, entry: Entry) -> None:
        """Count a question, and whether one of its options equals the right one."""
        self.sizes[entry.cell] += 1
        if entry.equal is None:
            return
        self.listed.append(entry.equal)
        self.equal[entry.cell, entry.equal.exact] += 1
        if entry.equal.exact and entry.cell.split != "dev":
            self.ambiguous[entry.row] = entry.cell

    def equal_options(self) -> dict[str, dict[str, int]]:
        """By cell, how many questions have an option equal to the right one: exactly, and normalised."""
        cells = sorted({cell for cell, _ in self.equal})
        counts = {cell: (self.equal[cell, True], self.equal[cell, False]) for cell in cells}
        return {
            cell.name: {"exact": exact, "normalised": exact + other, "of": self.sizes[cell]}
            for cell, (exact, other) in counts.items()
        }

    def add(self, kind: str, first: Entry, second: Entry) -> None:
        """The first is the held-out one, where one of them is trained on."""
        self.overlaps.setdefault((first.cell, second.cell), Overlap()).add(kind, first.row)
        if second.cell.is_train and not first.cell.is_train and kind != "same text":
            self.trained[second.row] = second.cell
            if first.cell.split == "test":
                self.tested[first.row] = first.cell
        if (first.cell.split, second.cell.split) == ("test", "dev") and kind != "same text":
            self.demonstrated[first.row] = first.cell

    def rows(self) -> list[dict[str, Any]]:
        """One for each two cells that share something, those with most items first."""
        found = []
        for (first, second), overlap in self.overlaps.items():
            row: dict[str, Any] = {"cell": first.name, "in": second.name}
            row |= {"items": overlap.count("exact", "near"), "of": self.sizes[first]}
            row |= {f"{kind}_items": overlap.count(kind) for kind in ("exact", "near")}
            row |= {"same_text_items": overlap.count("same text")}
            row |= {f"{kind}_pairs": overlap.pairs[kind] for kind in ("exact", "near")}
            found.append(row)
        return sorted(
            found, key=lambda row: (-row["items"], -row["same_text_items"], row["cell"], row["in"])
        )

    def counts(self) -> dict[str, int]:
        """For the manifest; of two cells that share a question text only, nothing."""
        found = {
            (a, b): overlap.count("exact", "near") for (a, b), overlap in self.overlaps.items()
        }
        duplicates = {
            f"duplicates: {a.label} in {b.label}": count for (a, b), count in found.items() if count
        }
        equal = {
            f"equal options: {cell.label}": count
            for (cell, exact), count in sorted(self.equal.items())
            if exact
        }
        return duplicates | equal


class HeldOut:
    """The questions that must not be trained on, to be looked up."""

    def __init__(self, config: AuditConfig):
        self.entries: list[tuple[int, str, Cell]] = []
        self._equal: dict[bytes, list[int]] = {}
        self._text: dict[bytes, list[int]] = {}
        self._similar = (
            SimilarIndex(config.threshold, config.num_permutations) if config.near else None
        )

    def add(self, entry: Entry, shingles: set[int]) -> None:
        number = len(self.entries)
        self.entries.append((entry.row, entry.id, entry.cell))
        self._equal.setdefault(entry.normal.digest(), []).append(number)
        self._text.setdefault(entry.normal.text_digest(), []).append(number)
        if self._similar is not None:
            self._similar.add(number, shingles)

    def shingles(self, entry: Entry) -> set[int]:
        return entry.normal.shingles() if self._similar is not None else set()

    def alike(self, entry: Entry, shingles: set[int]) -> Iterator[tuple[int, str, float]]:
        """(number, kind, similarity) of what was added in other cells; an exact one is not told as near too."""
        equal = self._equal.get(entry.normal.digest(), [])
        found = [(number, "exact", 1.0) for number in equal]
        found += [
            (number, "same text", 0.0) for number in self._text.get(entry.normal.text_digest(), [])
        ]
        if self._similar is not None:
            known = set(equal)
            found += [
                (number, "near", s)
                for number, s in self._similar.similar(shingles)
                if number not in known
            ]
        return (item for item in found if self.entries[item[0]][2] != entry.cell)


def entries(path: Path, wanted: Callable[[int, Cell], bool]) -> Iterator[Entry]:
    """The questions whose cell (and row) is wanted, one by one."""
    with path.open("rb") as file:
        for row, line in enumerate(file):
            question = from_json(line)
            cell = Cell(question["collection"], question["split"], question["domain"])
            if wanted(row, cell):
                choices = question.get("choices", ())
                normal = Normal.of(question["question"], choices)
                # Normal merges all that is equal here, and more: without a merged option there is nothing to look for.
                alike = len(normal.options) < len(choices)
                yield Entry(
                    row,
                    question["id"],
                    cell,
                    normal,
                    _equal_options(question, cell) if alike else None,
                )


def _equal_options(question: dict[str, Any], cell: Cell) -> EqualOptions | None:
    choices, answer = question["choices"], question["answer"]

    def copies(of: list[str]) -> list[str]:
        return [
            LETTERS[index]
            for index, option in enumerate(of)
            if index != answer and option == of[answer]
        ]

    exact = copies([" ".join(option.split()) for option in choices])
    found = exact or copies(
        [" ".join(unicodedata.normalize("NFKC", option).casefold().split()) for option in choices]
    )
    if not found:
        return None
    return EqualOptions(
        id=question["id"], cell=cell.name, answer=LETTERS[answer], equal=found, exact=bool(exact)
    )


def audit(path: Path, config: AuditConfig, folder: Path) -> Found:
    """Compare the questions of `path`; write FOLDER/audit.json and audit.jsonl."""
    found = Found()
    with atomic_path(folder / PAIRS) as temporary, temporary.open("w", encoding="utf-8") as file:
        for kind, similarity, first, second in _pairs(path, config, found):
            found.add(kind, first, second)
            if kind != "same text":
                pair = Pair(
                    id=first.id,
                    cell=first.cell.name,
                    other_id=second.id,
                    other_cell=second.cell.name,
                    kind="exact" if kind == "exact" else "near",
                    similarity=similarity,
                )
                file.write(pair.model_dump_json() + "\n")
    left_out = rows_left_out(found, config)
    write_jsonl(folder / EQUAL_OPTIONS, found.listed)
    summary = {
        "settings": config.model_dump(),
        "note": _NOTE,
        "cells": {cell.name: size for cell, size in sorted(found.sizes.items())},
        "duplicates": found.rows(),
        "equal_options": found.equal_options(),
        "left_out": dict(Counter(f"{cell.name}: {reason}" for cell, reason in left_out.values())),
    }
    write_json(folder / AUDIT_FILE, summary)
    return found


Compared = tuple[str, float, Entry, Entry]
_NOTHING = Normal("", ())


def _pairs(path: Path, config: AuditConfig, found: Found) -> Iterator[Compared]:
    held_out = HeldOut(config)
    for entry in entries(path, lambda row, cell: cell.is_held_out):
        found.see(entry)
        shingles = held_out.shingles(entry)
        for number, kind, similarity in held_out.alike(entry, shingles):
            other = Entry(*held_out.entries[number], _NOTHING)
            # The same way round whichever stands first in the file: tests in demonstrations, pools in benchmarks.
            first, second = sorted(
                (entry, other),
                key=lambda e: (e.cell.split == "dev", e.cell.collection != "pool", e.cell.domain),
            )
            yield kind, similarity, first, second
        held_out.add(entry, shingles)
    digests, domains = array("Q"), array("H")
    numbers: dict[str, int] = {}
    for entry in entries(path, lambda row, cell: cell.is_train):
        found.see(entry)
        digests.append(int.from_bytes(entry.normal.digest()[:8], "little"))
        domains.append(numbers.setdefault(entry.cell.domain, len(numbers)))
        for number, kind, similarity in held_out.alike(entry, held_out.shingles(entry)):
            yield kind, similarity, Entry(*held_out.entries[number], _NOTHING), entry
    yield from _across_pools(
        path, np.frombuffer(digests, np.uint64), np.frombuffer(domains, np.uint16)
    )


def _place(entry: Entry) -> tuple[bool, bool, str]:
    return entry.cell.split == "dev", entry.cell.collection != "pool", entry.cell.domain


def _across_pools(path: Path, digests: np.ndarray, domains: np.ndarray) -> Iterator[Compared]:
    """Equal train questions of different domains, each with the first of every other domain that stands before it."""
    suspects = set(_of_several_domains(digests, domains).tolist())
    if not suspects:
        return
    seen: dict[bytes, dict[Cell, Entry]] = {}
    numbers = iter(range(len(digests)))
    for entry in entries(path, lambda row, cell: cell.is_train and next(numbers) in suspects):
        before = seen.setdefault(entry.normal.digest(), {})
        for other in before.values():
            if other.cell != entry.cell:
                first, second = sorted((entry, other), key=lambda e: e.cell)
                yield "exact", 1.0, first, second
        before.setdefault(entry.cell, entry)


def _of_several_domains(digests: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """Positions of the train questions whose digest stands in more than one domain."""
    order = np.lexsort((domains, digests))
    same = digests[order][1:] == digests[order][:-1]
    differ = same & (domains[order][1:] != domains[order][:-1])
    return np.flatnonzero(np.isin(digests, digests[order][1:][differ]))


LeftOut = dict[int, tuple[Cell, str]]


def rows_left_out(found: Found, config: AuditConfig) -> LeftOut:
    """By row, the questions that the setting leaves out, with the reason.

    Never a demonstration, and nothing that two tests or two pools share.
    """
    reasons = {
        "train": (found.trained, "duplicates"),
        "held_out": (found.tested, "duplicates"),
        "demonstrated": (found.demonstrated, "demonstrations"),
        "equal_options": (found.ambiguous, "equal options"),
    }
    chosen = [reasons[name] for name in reasons if name in config.removed]
    return {row: (cell, reason) for rows, reason in reversed(chosen) for row, cell in rows.items()}


def leave_out(path: Path, rows: LeftOut, report: Callable[[Question, str], None]) -> None:
    """Write the file without these lines; `report` gets each question left out and the reason."""
    with atomic_path(path) as temporary, temporary.open("wb") as target, path.open("rb") as source:
        for row, line in enumerate(source):
            if row in rows:
                report(Question.model_construct(**from_json(line)), rows[row][1])
            else:
                target.write(line)


def table(summary: dict[str, Any]) -> str:
    """audit.json as a person reads it."""
    settings = summary["settings"]
    near = (
        f"near: Jaccard similarity of at least {settings['threshold']:g}"
        if settings["near"]
        else "near ones were not looked for"
    )
    lines = [
        f"exact: equal words and equal set of options; {near}; same text: equal question, any options"
    ]
    for row in summary["duplicates"]:
        parts = f"{row['exact_items']} exact, {row['near_items']} near, {row['same_text_items']} same text"
        lines.append(f"{row['items']:>7,} of {row['of']:,} {row['cell']} in {row['in']} ({parts})")
    if not summary["duplicates"]:
        lines.append("      0 duplicates")
    for cell, equal in summary["equal_options"].items():
        lines.append(
            f"{equal['exact']:>7,} of {equal['of']:,} {cell} have an option equal to the right one "
            f"({equal['normalised']} without regard to case and Unicode form)"
        )
    lines += [f"{count:>7,} of {cell} left out" for cell, count in summary["left_out"].items()]
    return "\n".join(lines)
