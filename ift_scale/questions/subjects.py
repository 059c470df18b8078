"""Loading a benchmark that is published in parts, one for each subject: CMMLU, C-Eval and EntityQuestions.

A subject is a configuration of the hub's dataset, or a file of the unpacked archive, `dev/agronomy.csv` for example. Of a local
folder that has no such files, a copy of the hub's, `datasets` finds the configurations.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ift_scale.config import EntityQuestionsSource, SubjectSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.questions.checks import Row
from ift_scale.questions.known import Fields, Placed, Target, questions
from ift_scale.questions.reading import Opened, named_section, open_dataset, open_files
from ift_scale.records import Kind, Split


@dataclass(frozen=True)
class Parts:
    """How a benchmark is published. `file_suffix` stands behind the subject in a file's name, below the split's folder."""

    splits: dict[Split, str]
    file_suffix: str
    fields: Fields
    path: str | None = None
    domains: Callable[[], dict[str, str]] | None = None
    hub_files: str | None = None
    revision: str | None = None
    kind: Kind = "choice"


def domains_file(name: str) -> dict[str, str]:
    """Subject -> the paper's domain, or `other`, of a data file beside this module."""
    return json.loads((resources.files("ift_scale.questions") / name).read_text(encoding="utf-8"))[
        "subjects"
    ]


def load(
    source: SubjectSource | EntityQuestionsSource, parts: Parts, seed: int
) -> Iterator[Placed]:
    """Subject by subject and split by split; of each subject's test questions those that `seed` draws."""
    path = source.path or parts.path
    assert path is not None
    splits = dict(source.splits or parts.splits)
    domain_of = _domains(source, parts)
    for subject in _subjects(source, parts, path, splits):
        opened = _open(path, subject, parts, splits)
        for split, spec in splits.items():
            # The ids are of the content alone: the archives' own are row numbers.
            def fields(place: Place, row: Row, subject: str = subject) -> Row:
                return {**parts.fields(place, row), "subject": subject, "id": None}

            target = Target(
                source.kind, domain_of(subject), source.collection, parts.kind, f"{subject}/"
            )
            limits = {"test": source.max_per_subject}
            yield from questions(
                {split: named_section(opened, split, spec)}, fields, target, limits, seed
            )


def _domains(source: SubjectSource | EntityQuestionsSource, parts: Parts) -> Callable[[str], str]:
    if isinstance(source, EntityQuestionsSource):
        return lambda subject: source.domain
    assert parts.domains is not None
    known = parts.domains() | source.domains

    def domain_of(subject: str) -> str:
        if subject not in known:
            problem = f"is no subject of {source.kind} that we know"
            raise DataError(
                Place("questions.sources", field="domains"),
                problem,
                "Give its domain there",
                subject,
            )
        return known[subject]

    return domain_of


def _subjects(
    source: SubjectSource | EntityQuestionsSource, parts: Parts, path: str, splits: dict[Split, str]
) -> list[str]:
    """The subjects asked for, or all: those of the local files, else those of our data file."""
    name = _name(next(reversed(splits.values())))
    suffix = parts.file_suffix.format(split=name)
    found = sorted(file.name.removesuffix(suffix) for file in Path(path, name).glob(f"*{suffix}"))
    if not found and parts.domains is not None:
        found = list(parts.domains())
    if not found:
        remedy = "Set questions.sources.*.path to the folder that holds the splits' folders"
        raise DataError(Place(Path(path, name)), f"no file *{suffix}", remedy)
    for field in ("subjects", "domains"):
        for subject in getattr(source, field, None) or []:
            if subject not in found:
                raise DataError(
                    Place(path, field=field),
                    "no such subject",
                    did_you_mean(subject, found),
                    subject,
                )
    return source.subjects or found


def _open(path: str, subject: str, parts: Parts, splits: dict[Split, str]) -> Opened:
    names = dict.fromkeys(_name(spec) for spec in splits.values())
    files = {
        name: Path(path, name, f"{subject}{parts.file_suffix.format(split=name)}") for name in names
    }
    missing = [file for file in files.values() if not file.is_file()]
    if not missing:
        return open_files(f"{path}/{subject}", files)
    if len(missing) < len(files):
        raise DataError(
            Place(missing[0]),
            "no such file",
            "Unpack the archive again, or leave the subject out of `subjects`",
        )
    if path == parts.path and parts.hub_files is not None:
        data_files = {name: parts.hub_files.format(subject=subject, split=name) for name in names}
        return open_dataset(path, data_files=data_files, revision=parts.revision)
    return open_dataset(path, subject)


def _name(spec: str) -> str:
    """The split's name in a spec such as `val[:10]`."""
    return spec.split("[")[0]
