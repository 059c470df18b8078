"""All arms' answers to the same questions side by side: the form that every table is made from. A arms, Q questions, S seeds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.answers import Answers, ArmScores, answers_of, compare
from ift_scale.analyse.estimates import Table, estimate
from ift_scale.analyse.intervals import DIFFERENCE, Estimate, Measure
from ift_scale.records import Arm
from ift_scale.treatments import POOLED, in_order

GROUPS = ("HOMO", "ID", "OOD")
ALL_DOMAINS = "all"
SHARED_DOMAINS = "shared"
"""Rows over the domains that every setting has, where some setting lacks one: means that can be compared."""
NO_OPTIONS = "these questions have no options, so there is nothing to rank"


@dataclass(frozen=True)
class Panel:
    """A domain's arms on the questions of a group; `values` of each measure (`answers.compare`), shape (A, Q), NaN where none."""

    domain: str
    group: str
    questions: pd.Index
    arms: list[Arm]
    values: dict[str, np.ndarray]
    base: Answers

    @cached_property
    def _rows(self) -> dict[str, dict[int, int]]:
        rows: dict[str, dict[int, int]] = {}
        for row, arm in sorted(enumerate(self.arms), key=lambda item: item[1].seed):
            rows.setdefault(arm.setting, {})[arm.seed] = row
        return rows

    @property
    def key(self) -> tuple[str, str]:
        return self.domain, self.group

    @property
    def settings(self) -> set[str]:
        return set(self._rows)

    @property
    def settings_in_order(self) -> list[str]:
        return in_order(list(self._rows))

    def seeds(self, *settings: str) -> list[int]:
        """Those that all of the settings have, in rising order."""
        return [
            seed
            for seed in self._rows[settings[0]]
            if all(seed in self._rows[setting] for setting in settings)
        ]

    def rows(self, setting: str, seeds: Sequence[int] | None = None) -> list[int]:
        """A setting's rows of the values, in the order of its seeds or of these."""
        found = self._rows[setting]
        return list(found.values()) if seeds is None else [found[seed] for seed in seeds]

    def of(self, setting: str, measure: str) -> np.ndarray:
        """A setting's values, a row a seed, shape (S, Q)."""
        return self.values[measure][self.rows(setting)]

    def known_right(self, threshold: float) -> np.ndarray:
        """Whether the base model knows each question: right, with a confidence above the threshold; shape (Q,)."""
        return (
            (self.base.columns.correct == 1) & (self.base.columns.confidence > threshold)
        ).to_numpy()


class Panels:
    """Every (domain, group)."""

    def __init__(self, panels: Sequence[Panel]):
        self.domains = list(dict.fromkeys(panel.domain for panel in panels))
        self.groups = groups_in_order(panel.group for panel in panels)
        self.settings = in_order(list({setting for panel in panels for setting in panel.settings}))
        self._found = {panel.key: panel for panel in panels}
        self._numbers = _numbers(panels)

    def __iter__(self) -> Iterator[Panel]:
        """By domain, in it by group."""
        return iter(
            panel
            for d in self.domains
            for g in self.groups
            if (panel := self._found.get((d, g))) is not None
        )

    @property
    def single_domains(self) -> list[str]:
        """The domains, arms across domains aside."""
        return [domain for domain in self.domains if domain != POOLED]

    @property
    def choices(self) -> list[tuple[str, list[str]]]:
        """What a table has rows of: each domain, and all of them where there are several."""
        single = self.single_domains
        return [(domain, [domain]) for domain in self.domains] + (
            [(ALL_DOMAINS, single)] if len(single) > 1 else []
        )

    def chosen(self, domains: Sequence[str], group: str, *settings: str) -> list[Panel]:
        """The panels of these domains that have all of the settings."""
        found = [self._found.get((domain, group)) for domain in domains]
        return [panel for panel in found if panel is not None and panel.settings >= set(settings)]

    def places(self, *settings: str) -> Iterator[tuple[str, str, list[Panel]]]:
        """(domain or `all`, group, panels) of every row that a table has of these settings."""
        for name, domains in self.choices:
            for group in self.groups:
                if found := self.chosen(domains, group, *settings):
                    yield name, group, found

    def shared_places(self) -> Iterator[tuple[str, str, list[Panel]]]:
        """The same over the domains that every setting has, where some setting lacks one that others have."""
        for group in self.groups:
            every = self.chosen(self.single_domains, group)
            complete = self.chosen(
                self.single_domains, group, *{s for panel in every for s in panel.settings}
            )
            if 0 < len(complete) < len(every):
                yield SHARED_DOMAINS, group, complete

    def coverage(self, panels: Sequence[Panel]) -> dict[str, Any]:
        """The columns that say over which domains a row is: their number, the run's, and their names."""
        names = "; ".join(panel.domain for panel in panels)
        return {"domains": len(panels), "of_domains": len(self.single_domains), "over": names}

    def estimate(
        self,
        panels: Sequence[Panel],
        setting: str,
        name: str,
        measure: Measure,
        among: Mapping[str, np.ndarray] | None = None,
    ) -> Estimate | None:
        """A setting's mean over these domains (of one group); None where no question has the measure. `among`: of each domain the
        questions that are meant, (Q,) of bool."""
        tables = []
        for panel in panels:
            kept_Q = slice(None) if among is None else among[panel.domain]
            values_SQ = panel.of(setting, name)[:, kept_Q]
            tables.append(Table(values_SQ, self._numbers[panel.key][kept_Q], panel.seeds(setting)))
        return estimate(tables, measure)

    def difference(self, panels: Sequence[Panel], first: str, second: str) -> Estimate | None:
        """Accuracy of the first setting minus the second's, paired by question and seed; None where they share no seed."""
        tables = []
        for panel in panels:
            seeds, right_AQ = panel.seeds(first, second), panel.values["accuracy"]
            difference_SQ = right_AQ[panel.rows(first, seeds)] - right_AQ[panel.rows(second, seeds)]
            tables.append(Table(difference_SQ, self._numbers[panel.key], seeds))
        return estimate(tables, DIFFERENCE)


def _numbers(panels: Sequence[Panel]) -> dict[tuple[str, str], np.ndarray]:
    """Of each panel its questions as numbers: the same number for the same question."""
    number: dict[str, int] = {}
    return {
        p.key: np.array([number.setdefault(q, len(number)) for q in p.questions], dtype=np.int64)
        for p in panels
    }


def groups_in_order(groups: Iterable[str]) -> list[str]:
    """HOMO, ID, OOD, these groups' free questions, then a benchmark's own as they come."""
    there = list(dict.fromkeys(groups))
    first = [*GROUPS, *(f"{group} free" for group in GROUPS)]
    return [group for group in first if group in there] + [
        group for group in there if group not in first
    ]


def num_questions(panels: Sequence[Panel]) -> int:
    """Different questions: one that several domains ask counts once."""
    return (
        len(panels[0].questions)
        if len(panels) == 1
        else len({q for panel in panels for q in panel.questions})
    )


def panels_of(arms: Iterable[ArmScores], base: Answers) -> Panels:
    """`arms` may be an iterator that reads them one after another: only measures are kept."""
    found: dict[tuple[str, str], list[tuple[Arm, pd.DataFrame]]] = {}
    for evaluated in arms:
        for group, table in evaluated.groups.items():
            answers = answers_of(table)
            measures = compare(base.of(answers.columns.index), answers)
            found.setdefault((evaluated.arm.domain, group), []).append((evaluated.arm, measures))
    return Panels([_panel(domain, group, rows, base) for (domain, group), rows in found.items()])


def _panel(domain: str, group: str, rows: list[tuple[Arm, pd.DataFrame]], base: Answers) -> Panel:
    questions = rows[0][1].index
    aligned = [
        measures if measures.index.equals(questions) else measures.reindex(questions)
        for _, measures in rows
    ]
    values = {
        name: np.stack([measures[name].to_numpy() for measures in aligned]) for name in aligned[0]
    }
    assert np.isfinite(values["accuracy"]).all(), (
        f"arms of {domain} were asked different questions of {group}"
    )
    return Panel(domain, group, questions, [arm for arm, _ in rows], values, base.of(questions))
