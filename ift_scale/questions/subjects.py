"""Loads a benchmark published per subject: CMMLU, C-Eval and EntityQuestions.

A subject is a configuration of the hub's dataset or a file of the unpacked archive, for example
`dev/agronomy.csv`. In a local folder without such files, `datasets` looks for configurations.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ift_scale.config.questions import EntityQuestionsSource, SubjectSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.io.dataset import Opened, open_dataset, open_files
from ift_scale.io.jsonl import Row
from ift_scale.questions.published import Fields, Placed, QuestionOrigin, questions
from ift_scale.questions.reading import select_split
from ift_scale.records import Kind, Split


@dataclass(frozen=True)
class PerSubjectDataset:
    """Describes how a benchmark is published.

    `file_suffix` follows the subject in a file's name; files are in one folder per split.
    """

    splits: dict[Split, str]
    file_suffix: str
    fields: Fields
    path: str | None = None
    domains: Callable[[], dict[str, str]] | None = None
    hub_files: str | None = None
    revision: str | None = None
    kind: Kind = "choice"


def domains_file(name: str) -> dict[str, str]:
    """Returns subject -> the paper's domain, or `other`, from a data file of this package."""
    return json.loads((resources.files("ift_scale.questions") / name).read_text(encoding="utf-8"))[
        "subjects"
    ]


def load(
    source: SubjectSource | EntityQuestionsSource, parts: PerSubjectDataset, seed: int
) -> Iterator[Placed]:
    """Yields questions by subject and split; test only those that `seed` draws."""
    path = source.path or parts.path
    assert path is not None
    splits = dict(source.splits or parts.splits)
    domain_of = _domains(source, parts)
    for subject in _subjects(source, parts, path, splits):
        opened = _open(path, subject, parts, splits)
        for split, spec in splits.items():
            # Ids are derived from the content: the archives' own are row numbers.
            def fields(place: Place, row: Row, subject: str = subject) -> Row:
                return {**parts.fields(place, row), "subject": subject, "id": None}

            target = QuestionOrigin(
                source.kind, domain_of(subject), source.collection, parts.kind, f"{subject}/"
            )
            limits = {"test": source.max_per_subject}
            yield from questions(
                {split: select_split(opened, split, spec)}, fields, target, limits, seed
            )


def _domains(
    source: SubjectSource | EntityQuestionsSource, parts: PerSubjectDataset
) -> Callable[[str], str]:
    """Returns the function from a subject to its domain."""
    if isinstance(source, EntityQuestionsSource):
        return lambda subject: source.domain
    assert parts.domains is not None
    known = parts.domains() | source.domains

    def domain_of(subject: str) -> str:
        if subject not in known:
            problem = f"is not a known subject of {source.kind}"
            raise DataError(
                Place("questions.sources", field="domains"),
                problem,
                "Add its domain there",
                subject,
            )
        return known[subject]

    return domain_of


def _subjects(
    source: SubjectSource | EntityQuestionsSource,
    parts: PerSubjectDataset,
    path: str,
    splits: dict[Split, str],
) -> list[str]:
    """Returns the configured subjects, or all in the local files, else all in our data file."""
    name = _name(next(reversed(splits.values())))
    suffix = parts.file_suffix.format(split=name)
    available = sorted(
        file.name.removesuffix(suffix) for file in Path(path, name).glob(f"*{suffix}")
    )
    if not available and parts.domains is not None:
        available = list(parts.domains())
    if not available:
        remedy = "Set questions.sources.*.path to the folder with one folder per split"
        raise DataError(Place(Path(path, name)), f"no file *{suffix}", remedy)
    for field in ("subjects", "domains"):
        for subject in getattr(source, field, None) or []:
            if subject not in available:
                raise DataError(
                    Place(path, field=field),
                    "no such subject",
                    did_you_mean(subject, available),
                    subject,
                )
    return source.subjects or available


def _open(path: str, subject: str, parts: PerSubjectDataset, splits: dict[Split, str]) -> Opened:
    """Opens one subject: its local files, else its files or configuration on the hub."""
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
            "Unpack the archive again, or remove the subject from `subjects`",
        )
    if path == parts.path and parts.hub_files is not None:
        data_files = {name: parts.hub_files.format(subject=subject, split=name) for name in names}
        return open_dataset(path, data_files=data_files, revision=parts.revision)
    return open_dataset(path, subject)


def _name(spec: str) -> str:
    """Returns the split's name in a spec such as `val[:10]`."""
    return spec.split("[")[0]
