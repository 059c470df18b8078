"""Finds questions that occur twice, and questions whose right option has a copy among the others.

Both are always counted, and removed if configured. Duplicates are searched between what is trained
on and what is asked, across domains and collections.

In: the stage's questions.jsonl. Out, next to it: audit.json (counts by cell, a collection's split
of a domain), audit.jsonl (each pair) and equal_options.jsonl (each question with such an option).
Memory grows with the held-out questions (every pool's test and dev, and the benchmarks') and with
the number of pairs, plus 10 bytes per train question. A benchmark's train split is ignored, because
no arm is trained on it or asked it.
"""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from ift_scale.config.questions import AuditConfig
from ift_scale.io.files import atomic_path, write_json, write_jsonl
from ift_scale.questions.audit_result import AuditedQuestion, AuditResult, Cell, EqualOptions, Pair
from ift_scale.questions.similarity import Normal, SimilarIndex
from ift_scale.records import AUDIT_FILE, LETTERS, Question

PAIRS = "audit.jsonl"
EQUAL_OPTIONS = "equal_options.jsonl"
_NOTE = "items: distinct questions of the first cell that also occur in the second"


class HeldOut:
    """An index of the questions that must not be trained on."""

    def __init__(self, config: AuditConfig):
        self.entries: list[tuple[int, str, Cell]] = []
        self._equal: dict[bytes, list[int]] = {}
        self._text: dict[bytes, list[int]] = {}
        self._similar = (
            SimilarIndex(config.threshold, config.num_permutations) if config.near else None
        )

    def add(self, entry: AuditedQuestion, shingles: set[int]) -> None:
        number = len(self.entries)
        self.entries.append((entry.row, entry.id, entry.cell))
        self._equal.setdefault(entry.normal.digest(), []).append(number)
        self._text.setdefault(entry.normal.text_digest(), []).append(number)
        if self._similar is not None:
            self._similar.add(number, shingles)

    def shingles(self, entry: AuditedQuestion) -> set[int]:
        return entry.normal.shingles() if self._similar is not None else set()

    def matches(
        self, entry: AuditedQuestion, shingles: set[int]
    ) -> Iterator[tuple[int, str, float]]:
        """Yields (number, kind, similarity) of similar questions in other cells.

        An exact duplicate is not also reported as near.
        """
        equal = self._equal.get(entry.normal.digest(), [])
        similar = [(number, "exact", 1.0) for number in equal]
        similar += [
            (number, "same text", 0.0) for number in self._text.get(entry.normal.text_digest(), [])
        ]
        if self._similar is not None:
            known = set(equal)
            similar += [
                (number, "near", s)
                for number, s in self._similar.similar(shingles)
                if number not in known
            ]
        return (item for item in similar if self.entries[item[0]][2] != entry.cell)


def entries(path: Path, selects: Callable[[int, Cell], bool]) -> Iterator[AuditedQuestion]:
    """Yields the questions whose row and cell are selected, one by one."""
    with path.open("rb") as file:
        for row, line in enumerate(file):
            question = from_json(line)
            cell = Cell(question["collection"], question["split"], question["domain"])
            if selects(row, cell):
                choices = question.get("choices", ())
                normal = Normal.of(question["question"], choices)
                # Equal options are merged in Normal, so without a merge there is nothing to check.
                matches = len(normal.options) < len(choices)
                yield AuditedQuestion(
                    row,
                    question["id"],
                    cell,
                    normal,
                    _equal_options(question, cell) if matches else None,
                )


def _equal_options(question: dict[str, Any], cell: Cell) -> EqualOptions | None:
    """Returns the copies of a question's right option, or None if there are none."""
    choices, answer = question["choices"], question["answer"]

    def copies(of: list[str]) -> list[str]:
        return [
            LETTERS[index]
            for index, option in enumerate(of)
            if index != answer and option == of[answer]
        ]

    exact = copies([" ".join(option.split()) for option in choices])
    copied = exact or copies(
        [" ".join(unicodedata.normalize("NFKC", option).casefold().split()) for option in choices]
    )
    if not copied:
        return None
    return EqualOptions(
        id=question["id"], cell=cell.name, answer=LETTERS[answer], equal=copied, exact=bool(exact)
    )


def audit(path: Path, config: AuditConfig, folder: Path) -> AuditResult:
    """Audits the questions of `path` and writes the result files to `folder`."""
    result = AuditResult()
    with atomic_path(folder / PAIRS) as temporary, temporary.open("w", encoding="utf-8") as file:
        for kind, similarity, first, second in _pairs(path, config, result):
            result.add(kind, first, second)
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
    left_out = rows_left_out(result, config)
    write_jsonl(folder / EQUAL_OPTIONS, result.listed)
    summary = {
        "settings": config.model_dump(),
        "note": _NOTE,
        "cells": {cell.name: size for cell, size in sorted(result.sizes.items())},
        "duplicates": result.rows(),
        "equal_options": result.equal_options(),
        "left_out": dict(Counter(f"{cell.name}: {reason}" for cell, reason in left_out.values())),
    }
    write_json(folder / AUDIT_FILE, summary)
    return result


Compared = tuple[str, float, AuditedQuestion, AuditedQuestion]
_NOTHING = Normal("", ())


def _pairs(path: Path, config: AuditConfig, result: AuditResult) -> Iterator[Compared]:
    """Yields (kind, similarity, first, second) for all similar questions of different cells."""
    held_out = HeldOut(config)
    for entry in entries(path, lambda row, cell: cell.is_held_out):
        result.register(entry)
        shingles = held_out.shingles(entry)
        for number, kind, similarity in held_out.matches(entry, shingles):
            other = AuditedQuestion(*held_out.entries[number], _NOTHING)
            # Independent of the order in the file: tests before demonstrations, pools first.
            first, second = sorted((entry, other), key=_precedence)
            yield kind, similarity, first, second
        held_out.add(entry, shingles)
    digests, domains = array("Q"), array("H")
    numbers: dict[str, int] = {}
    for entry in entries(path, lambda row, cell: cell.is_train):
        result.register(entry)
        digests.append(int.from_bytes(entry.normal.digest()[:8], "little"))
        domains.append(numbers.setdefault(entry.cell.domain, len(numbers)))
        for number, kind, similarity in held_out.matches(entry, held_out.shingles(entry)):
            yield kind, similarity, AuditedQuestion(*held_out.entries[number], _NOTHING), entry
    yield from _across_pools(
        path, np.frombuffer(digests, np.uint64), np.frombuffer(domains, np.uint16)
    )


def _precedence(entry: AuditedQuestion) -> tuple[bool, bool, str]:
    return entry.cell.split == "dev", entry.cell.collection != "pool", entry.cell.domain


def _across_pools(path: Path, digests: np.ndarray, domains: np.ndarray) -> Iterator[Compared]:
    """Yields equal train questions of different domains.

    Each is paired with the first one of every other domain before it in the file.
    """
    suspects = set(_of_several_domains(digests, domains).tolist())
    if not suspects:
        return
    seen: dict[bytes, dict[Cell, AuditedQuestion]] = {}
    numbers = iter(range(len(digests)))
    for entry in entries(path, lambda row, cell: cell.is_train and next(numbers) in suspects):
        before = seen.setdefault(entry.normal.digest(), {})
        for other in before.values():
            if other.cell != entry.cell:
                first, second = sorted((entry, other), key=lambda e: e.cell)
                yield "exact", 1.0, first, second
        before.setdefault(entry.cell, entry)


def _of_several_domains(digests: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """Returns the positions of train questions whose digest occurs in several domains."""
    order = np.lexsort((domains, digests))
    same = digests[order][1:] == digests[order][:-1]
    differ = same & (domains[order][1:] != domains[order][:-1])
    return np.flatnonzero(np.isin(digests, digests[order][1:][differ]))


LeftOut = dict[int, tuple[Cell, str]]


def rows_left_out(result: AuditResult, config: AuditConfig) -> LeftOut:
    """Returns the questions that the settings remove, by row, with the reason.

    Demonstrations are never removed, nor questions that two tests or two pools share.
    """
    reasons = {
        "train": (result.trained, "duplicates"),
        "held_out": (result.tested, "duplicates"),
        "demonstrated": (result.demonstrated, "demonstrations"),
        "equal_options": (result.ambiguous, "equal options"),
    }
    chosen = [reasons[name] for name in reasons if name in config.removed]
    return {row: (cell, reason) for rows, reason in reversed(chosen) for row, cell in rows.items()}


def leave_out(path: Path, rows: LeftOut, report: Callable[[Question, str], None]) -> None:
    """Rewrites the file without these rows; `report` gets each removed question and the reason."""
    with atomic_path(path) as temporary, temporary.open("wb") as target, path.open("rb") as source:
        for row, line in enumerate(source):
            if row in rows:
                report(Question.model_construct(**from_json(line)), rows[row][1])
            else:
                target.write(line)


def table(summary: dict[str, Any]) -> str:
    """Formats audit.json for the terminal."""
    settings = summary["settings"]
    near = (
        f"near: Jaccard similarity of at least {settings['threshold']:g}"
        if settings["near"]
        else "near duplicates were not searched"
    )
    lines = [
        f"exact: equal words and equal set of options; {near};"
        " same text: equal question, any options"
    ]
    for row in summary["duplicates"]:
        parts = f"{row['exact_items']} exact, {row['near_items']} near,"
        parts += f" {row['same_text_items']} same text"
        lines.append(f"{row['items']:>7,} of {row['of']:,} {row['cell']} in {row['in']} ({parts})")
    if not summary["duplicates"]:
        lines.append("      0 duplicates")
    for cell, equal in summary["equal_options"].items():
        lines.append(
            f"{equal['exact']:>7,} of {equal['of']:,} {cell} have an option equal to the right one "
            f"({equal['normalised']} when ignoring case and Unicode form)"
        )
    lines += [f"{count:>7,} of {cell} left out" for cell, count in summary["left_out"].items()]
    return "\n".join(lines)
