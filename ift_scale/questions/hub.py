"""Any Hugging Face dataset, by hub name or local path, through a mapping of its columns.

Example of a source in a configuration; a column inside a column is written with a dot:
    {kind: huggingface, path: allenai/openbookqa, domain: science, splits: {dev: validation, train: train, test: test},
     fields: {question: question_stem, choices: choices.text, answer: answerKey, id: id}}
"""

from typing import Any

from ift_scale.config import HubSource
from ift_scale.errors import DataError, Place, did_you_mean
from ift_scale.questions.checks import UniqueIds, choice_question
from ift_scale.records import Question


def load(source: HubSource) -> list[Question]:
    """The questions of the mapped splits; DataError when the dataset, a split or a column is not there."""
    import datasets

    try:
        loaded = datasets.load_dataset(source.path, source.name)
    except Exception as error:  # datasets raises many unrelated types for a dataset that cannot be had
        remedy = "Check the name, or download it where there is a network and give the local path"
        raise DataError(Place(source.path), f"datasets cannot load it: {error}", remedy) from error
    questions = []
    for split, name in source.splits.items():
        if name not in loaded:
            remedy = did_you_mean(name, map(str, loaded))
            raise DataError(Place(source.path), f"has no split '{name}'", f"Set splits.{split}: {remedy}")
        unique = UniqueIds()
        for number, row in enumerate(loaded[name], start=1):
            place = Place(f"{source.path}[{name}]", number)
            mapped = _mapped(place, source, row)
            id = f"{source.domain}/{split}/{mapped['id'] if mapped['id'] is not None else number - 1}"
            unique.check(place, id)
            questions.append(
                choice_question(
                    place,
                    mapped,
                    id=id,
                    domain=source.domain,
                    subject=str(mapped["subject"] or source.domain),
                    collection=source.collection,
                    split=split,
                )
            )
    return questions


def _mapped(place: Place, source: HubSource, row: dict[str, Any]) -> dict[str, Any]:
    return {ours: _column(place, row, theirs) for ours, theirs in source.fields.model_dump().items()}


def _column(place: Place, row: Any, name: str | None) -> Any:
    if name is None:
        return None
    value = row
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            known = value if isinstance(value, dict) else row
            raise DataError(Place(place.file, place.line, name), "no such column", f"Set fields: {did_you_mean(part, known)}")
        value = value[part]
    return value
