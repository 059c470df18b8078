"""Replaces class labels by their names.

`datasets` stores a class's number, but the name has the meaning. A column of answers with the
classes B, C, D has the number 0 for B. Read as an index it would mean option A.
"""

from collections.abc import Mapping
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.io.jsonl import Row


def names_of(feature: Any) -> list[str] | None:
    """Returns the names of a column's classes, or None if it has none."""
    return list(feature.names) if type(feature).__name__ == "ClassLabel" else None


def feature_of(features: Mapping[str, Any], column: str) -> Any:
    """Returns the type of a column, nested ones written with a dot; None if unknown."""
    feature: Any = features
    for part in column.split("."):
        feature = feature.get(part) if isinstance(feature, Mapping) else None
    return feature


def refuse_one_based_classes(path: str, features: Mapping[str, Any], column: str) -> None:
    """Raises DataError for numeric class names that do not begin at 0: they are not indices."""
    names = names_of(feature_of(features, column)) or []
    numbers = sorted(int(name) for name in names if name.isdecimal())
    if numbers and len(numbers) == len(names) and numbers[0] != 0:
        problem = f"has the classes {', '.join(names)}, which do not count from 0"
        remedy = "Set fields.answer_form: index_from_1 (kind huggingface) if the first option is 1"
        raise DataError(Place(path, field=column), problem, remedy)


def named(place: Place, row: Row, features: Mapping[str, Any]) -> Row:
    """Returns the row with class numbers replaced by names, also in lists and nested columns."""
    return {
        column: _named(place, column, value, features.get(column)) for column, value in row.items()
    }


def has_classes(feature: Any) -> bool:
    """True if the column or something nested in it is a class label."""
    if isinstance(feature, Mapping):
        return any(map(has_classes, feature.values()))
    inner = _element(feature)
    return names_of(feature) is not None if inner is None else has_classes(inner)


def _named(place: Place, column: str, value: Any, feature: Any) -> Any:
    names = names_of(feature)
    if names is not None:
        return _name(place, column, value, names)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {
            key: _named(place, f"{column}.{key}", part, feature.get(key))
            for key, part in value.items()
        }
    if isinstance(value, list) and (inner := _element(feature)) is not None:
        return [_named(place, column, item, inner) for item in value]
    return value


def _element(feature: Any) -> Any:
    """Returns the type of a list's items, or None if the column is not a list."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)


def _name(place: Place, column: str, value: Any, names: list[str]) -> Any:
    """Returns the name of a class; raises DataError for a value that is no class."""
    if value is None or value in names or value == -1:  # -1: a row without a published label
        return value
    # Files whose README declares the classes may contain a class's number as text.
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(names):
        return names[number]
    problem = f"is not one of the column's {len(names)} classes {', '.join(names)}"
    raise DataError(Place(place.file, place.line, column), problem, "Fix or remove the row", value)
