"""All arms' answers to the same questions, aligned: the input of every table.

Notation: A arms, Q questions, S seeds.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ift_scale.analyse.answers import Answers, ArmScores, answers_of, compare
from ift_scale.analyse.estimates import DomainValues, estimate
from ift_scale.analyse.intervals import DIFFERENCE, Estimate, Measure
from ift_scale.records import Arm
from ift_scale.treatments import POOLED, in_order

MoreMeasures = Callable[[Answers, Answers, Answers | None], pd.DataFrame]

GROUPS = ("HOMO", "ID", "OOD")
ALL_DOMAINS = "all"
SHARED_DOMAINS = "shared"
"""Name of rows over the domains that every setting has, so that means can be compared."""
NO_OPTIONS = "these questions have no options, so there is nothing to rank"


@dataclass(frozen=True)
class Panel:
    """A domain's arms on the questions of a group.

    `values` contains each measure of `answers.compare`, shape (A, Q), NaN if missing; with the base
    model's 0-shot answers also those of `format_content.parts_of`.
    """

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
        """Returns the seeds that all of the settings have, in ascending order."""
        return [
            seed
            for seed in self._rows[settings[0]]
            if all(seed in self._rows[setting] for setting in settings)
        ]

    def rows(self, setting: str, seeds: Sequence[int] | None = None) -> list[int]:
        """Returns a setting's row numbers in the values, for these seeds or all of them."""
        found = self._rows[setting]
        return list(found.values()) if seeds is None else [found[seed] for seed in seeds]

    def of(self, setting: str, measure: str) -> np.ndarray:
        """Returns a setting's values, one row per seed, shape (S, Q)."""
        return self.values[measure][self.rows(setting)]

    def known_right(self, threshold: float) -> np.ndarray:
        """Returns a mask (Q,): the base model is right with a confidence above the threshold."""
        return (
            (self.base.columns.correct == 1) & (self.base.columns.confidence > threshold)
        ).to_numpy()


class Panels:
    """The panels of every (domain, group)."""

    def __init__(self, panels: Sequence[Panel]):
        self.domains = list(dict.fromkeys(panel.domain for panel in panels))
        self.groups = groups_in_order(panel.group for panel in panels)
        # Not from sets, whose order differs between processes: own sets keep that of the arms.
        settings = dict.fromkeys(s for panel in panels for s in panel.settings_in_order)
        self.settings = in_order(list(settings))
        self._panels = {panel.key: panel for panel in panels}
        self._numbers = _numbers(panels)

    def __iter__(self) -> Iterator[Panel]:
        """Iterates by domain, then by group."""
        return iter(
            panel
            for d in self.domains
            for g in self.groups
            if (panel := self._panels.get((d, g))) is not None
        )

    @property
    def single_domains(self) -> list[str]:
        """The domains without `pooled`."""
        return [domain for domain in self.domains if domain != POOLED]

    @property
    def choices(self) -> list[tuple[str, list[str]]]:
        """The domain rows of a table: each domain, and all of them if there are several."""
        single = self.single_domains
        return [(domain, [domain]) for domain in self.domains] + (
            [(ALL_DOMAINS, single)] if len(single) > 1 else []
        )

    def chosen(self, domains: Sequence[str], group: str, *settings: str) -> list[Panel]:
        """Returns the panels of these domains that have all of the settings."""
        found = [self._panels.get((domain, group)) for domain in domains]
        return [panel for panel in found if panel is not None and panel.settings >= set(settings)]

    def cells(self, *settings: str) -> Iterator[tuple[str, str, list[Panel]]]:
        """Yields (domain or "all", group, panels) for every row of a table about these settings."""
        for name, domains in self.choices:
            for group in self.groups:
                if found := self.chosen(domains, group, *settings):
                    yield name, group, found

    def shared_cells(self) -> Iterator[tuple[str, str, list[Panel]]]:
        """Yields the rows over the domains that every setting has, if some setting lacks one."""
        for group in self.groups:
            every = self.chosen(self.single_domains, group)
            complete = self.chosen(
                self.single_domains, group, *{s for panel in every for s in panel.settings}
            )
            if 0 < len(complete) < len(every):
                yield SHARED_DOMAINS, group, complete

    def coverage(self, panels: Sequence[Panel]) -> dict[str, Any]:
        """Returns the columns on domains: number of the row's, number of the run's, and names."""
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
        """Returns a setting's mean over these panels of one group; None without any value.

        `among` restricts each domain to some questions, masks of shape (Q,).
        """
        tables = []
        for panel in panels:
            kept_Q = slice(None) if among is None else among[panel.domain]
            values_SQ = panel.of(setting, name)[:, kept_Q]
            numbers_Q = self._numbers[panel.key][kept_Q]
            tables.append(DomainValues(values_SQ, numbers_Q, panel.seeds(setting)))
        return estimate(tables, measure)

    def difference(self, panels: Sequence[Panel], first: str, second: str) -> Estimate | None:
        """Returns first minus second accuracy, paired by question and seed; None without seeds."""
        tables = []
        for panel in panels:
            seeds, right_AQ = panel.seeds(first, second), panel.values["accuracy"]
            difference_SQ = right_AQ[panel.rows(first, seeds)] - right_AQ[panel.rows(second, seeds)]
            tables.append(DomainValues(difference_SQ, self._numbers[panel.key], seeds))
        return estimate(tables, DIFFERENCE)


def _numbers(panels: Sequence[Panel]) -> dict[tuple[str, str], np.ndarray]:
    """Returns the numbers of each panel's questions; equal questions have equal numbers."""
    number: dict[str, int] = {}
    return {
        p.key: np.array([number.setdefault(q, len(number)) for q in p.questions], dtype=np.int64)
        for p in panels
    }


def groups_in_order(groups: Iterable[str]) -> list[str]:
    """Orders groups: HOMO, ID, OOD, their free questions, then others in order of appearance."""
    there = list(dict.fromkeys(groups))
    first = [*GROUPS, *(f"{group} free" for group in GROUPS)]
    return [group for group in first if group in there] + [
        group for group in there if group not in first
    ]


def num_questions(panels: Sequence[Panel]) -> int:
    """Returns the number of distinct questions."""
    return (
        len(panels[0].questions)
        if len(panels) == 1
        else len({q for panel in panels for q in panel.questions})
    )


def panels_of(arms: Iterable[ArmScores], base: Answers, also: MoreMeasures | None = None) -> Panels:
    """Builds the panels; `arms` may be an iterator, because only measures are kept.

    `also` computes further measures of the base model's answers, an arm's, and an arm's few-shot.
    """
    found: dict[tuple[str, str], list[tuple[Arm, pd.DataFrame]]] = {}
    for evaluated in arms:
        few_shot = None if evaluated.few_shot is None else answers_of(evaluated.few_shot)
        for group, table in evaluated.groups.items():
            answers = answers_of(table)
            before = base.of(answers.columns.index)
            measures = compare(before, answers)
            if also is not None:
                prompted = few_shot and few_shot.of(answers.columns.index)
                measures = measures.join(also(before, answers, prompted))
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
