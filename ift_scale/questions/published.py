"""Loads a published dataset: its description, its limits, and the checks common to all datasets.

Other modules of this package describe one dataset each as a `PublishedDataset`: where it is, which
splits serve as ours, and how a row's columns map to our fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ift_scale import draws
from ift_scale.config.questions import DatasetSource, collection_of
from ift_scale.errors import Place
from ift_scale.io.dataset import Opened, open_dataset
from ift_scale.io.jsonl import Row
from ift_scale.questions import sampling
from ift_scale.questions.checks import choice_question, free_question, optional_text
from ift_scale.questions.reading import RowSelection, select_split
from ift_scale.records import Collection, Kind, Question, Split

Placed = tuple[Place, Question]
Fields = Callable[[Place, Row], Row]


@dataclass(frozen=True)
class RandomSplit:
    """Describes how a dataset with one split is divided.

    Each split in `counts` gets that many random rows; the remaining rows go to `rest`.
    """

    split: str
    counts: dict[Split, int]
    rest: Split


@dataclass(frozen=True)
class PublishedDataset:
    """A published dataset.

    `fields` maps a row to question, choices and answer (or aliases), and to id, subject and
    explanation if the dataset has them.
    """

    path: str
    domain: str
    splits: dict[Split, str] | RandomSplit
    fields: Fields
    name: str | None = None
    kind: Kind = "choice"


@dataclass(frozen=True)
class QuestionOrigin:
    """The common properties of a source's questions.

    Their ids begin with `prefix`, the split and `part`.
    """

    prefix: str
    domain: str
    collection: Collection
    kind: Kind = "choice"
    part: str = ""

    def question(self, place: Place, fields: Row, split: Split, id: str) -> Question:
        """Returns the Question of a row's fields."""
        make = choice_question if self.kind == "choice" else free_question
        return make(
            place,
            fields,
            id=f"{self.prefix}/{split}/{self.part}{id}",
            domain=self.domain,
            subject=optional_text(place, fields, "subject") or self.domain,
            collection=self.collection,
            split=split,
        )


def load(source: DatasetSource, dataset: PublishedDataset, seed: int) -> Iterator[Placed]:
    """Yields the questions, split by split."""
    path = source.path or dataset.path
    # A local folder often has no configuration, so the dataset's usual one is not required there.
    opened = open_dataset(path, source.name or dataset.name, name_required=source.name is not None)
    domain = source.domain or dataset.domain
    target = QuestionOrigin(f"{source.kind}/{domain}", domain, collection_of(source), dataset.kind)
    selections = selections_of(
        opened, dataset.fields, source.splits or dataset.splits, f"{seed}/{domain}"
    )
    limits = {"train": source.max_train, "test": source.max_test}
    yield from questions(selections, dataset.fields, target, limits, seed)


def selections_of(
    opened: Opened, fields: Fields, splits: dict[Split, str] | RandomSplit, key: str
) -> dict[Split, RowSelection]:
    """Returns the rows of each of our splits."""
    if not isinstance(splits, RandomSplit):
        return {split: select_split(opened, split, spec) for split, spec in splits.items()}
    return split_randomly(select_only_split(opened, splits), fields, splits, key)


def select_only_split(opened: Opened, random_split: RandomSplit) -> RowSelection:
    """Returns the split to divide; in a copy with only one split, that one."""
    only = next(iter(opened.splits)) if len(opened.splits) == 1 else random_split.split
    return select_split(opened, random_split.rest, only)


def split_randomly(
    whole: RowSelection, fields: Fields, random_split: RandomSplit, key: str
) -> dict[Split, RowSelection]:
    """Divides rows among splits at random, depending only on their ids and `key`."""
    positions = sampling.assign_to_splits(
        _ids(whole, fields), random_split.counts, random_split.rest, key
    )
    return {split: whole.at(rows) for split, rows in positions.items()}


def questions(
    selections: dict[Split, RowSelection],
    fields: Fields,
    target: QuestionOrigin,
    limits: dict[str, int | None],
    seed: int,
) -> Iterator[Placed]:
    """Yields questions row by row; in a limited split, only the rows that `seed` draws."""
    for split, selection in selections.items():
        kept, limit, unique = selection, limits.get(split), draws.Unique()
        if limit is not None and limit < len(selection.numbers):
            kept = selection.at(
                sorted(
                    sampling.lowest(
                        _ids(selection, fields),
                        limit,
                        f"{seed}/{target.domain}/{target.part}{split}",
                    )
                )
            )
        for _, place, row in kept.rows():
            mapped = fields(place, row)
            yield (
                place,
                target.question(place, mapped, split, sampling.unique_id(place, mapped, unique)),
            )


def _ids(selection: RowSelection, fields: Fields) -> Iterator[str]:
    return (sampling.id_of(fields(place, row)) for _, place, row in selection.rows())
