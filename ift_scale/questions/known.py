"""Loading a published dataset: what a source's module says of it, the limits, and the checks common to all.

A module beside this one describes one dataset as a `Known`: where it is, which splits serve as ours, and how a row's
columns become our fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ift_scale import draws
from ift_scale.config import DatasetSource, collection_of
from ift_scale.errors import Place
from ift_scale.questions import sampling
from ift_scale.questions.checks import Row, choice_question, free_question, optional_text
from ift_scale.questions.reading import Opened, Section, named_section, open_dataset
from ift_scale.records import Collection, Kind, Question, Split

Placed = tuple[Place, Question]
Fields = Callable[[Place, Row], Row]


@dataclass(frozen=True)
class Drawn:
    """How a dataset of one split is dealt: `counts` rows at random to some of our splits, what remains to `rest`."""

    split: str
    counts: dict[Split, int]
    rest: Split


@dataclass(frozen=True)
class Known:
    """`fields` maps a row to question, choices and answer (or aliases), and where there are such: id, subject, explanation."""

    path: str
    domain: str
    splits: dict[Split, str] | Drawn
    fields: Fields
    name: str | None = None
    kind: Kind = "choice"


@dataclass(frozen=True)
class Target:
    """What the questions of a source have in common. Their ids begin with `prefix`, the split and `part`."""

    prefix: str
    domain: str
    collection: Collection
    kind: Kind = "choice"
    part: str = ""

    def question(self, place: Place, fields: Row, split: Split, id: str) -> Question:
        """The Question of a row's fields."""
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


def load(source: DatasetSource, known: Known, seed: int) -> Iterator[Placed]:
    """The questions, split by split."""
    path = source.path or known.path
    # A local folder of files often has no configuration, and then not the dataset's usual one either.
    opened = open_dataset(path, source.name or known.name, name_required=source.name is not None)
    domain = source.domain or known.domain
    target = Target(f"{source.kind}/{domain}", domain, collection_of(source), known.kind)
    sections = sections_of(opened, known.fields, source.splits or known.splits, f"{seed}/{domain}")
    limits = {"train": source.max_train, "test": source.max_test}
    yield from questions(sections, known.fields, target, limits, seed)


def sections_of(
    opened: Opened, fields: Fields, splits: dict[Split, str] | Drawn, key: str
) -> dict[Split, Section]:
    if not isinstance(splits, Drawn):
        return {split: named_section(opened, split, spec) for split, spec in splits.items()}
    return deal(whole_section(opened, splits), fields, splits, key)


def whole_section(opened: Opened, drawn: Drawn) -> Section:
    """The split that is dealt; in a copy that has one split, that one, whatever its name."""
    only = next(iter(opened.splits)) if len(opened.splits) == 1 else drawn.split
    return named_section(opened, drawn.rest, only)


def deal(whole: Section, fields: Fields, drawn: Drawn, key: str) -> dict[Split, Section]:
    positions = sampling.dealt(_ids(whole, fields), drawn.counts, drawn.rest, key)
    return {split: whole.at(found) for split, found in positions.items()}


def questions(
    sections: dict[Split, Section],
    fields: Fields,
    target: Target,
    limits: dict[str, int | None],
    seed: int,
) -> Iterator[Placed]:
    """Row by row; of a limited split, the rows that `seed` draws."""
    for split, section in sections.items():
        kept, limit, unique = section, limits.get(split), draws.Unique()
        if limit is not None and limit < len(section.numbers):
            kept = section.at(
                sorted(
                    sampling.lowest(
                        _ids(section, fields), limit, f"{seed}/{target.domain}/{target.part}{split}"
                    )
                )
            )
        for _, place, row in kept.rows():
            made = fields(place, row)
            yield (
                place,
                target.question(place, made, split, sampling.unique_id(place, made, unique)),
            )


def _ids(section: Section, fields: Fields) -> Iterator[str]:
    return (sampling.id_of(fields(place, row)) for _, place, row in section.rows())
