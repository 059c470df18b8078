"""Reading settings from YAML.

`load(path, overrides)` reads a YAML file, applies `a.b=value` overrides and returns a `Config`. If
anything is wrong it raises one `ConfigError` that lists every problem: unknown keys (with the
nearest valid name), wrong types, values out of range, and settings that cannot work together.
"""

import copy
import os
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ift_scale.config import Config, Section, Source, impossible_combinations
from ift_scale.errors import ConfigError, did_you_mean, has_user_info, printable, shorten
from ift_scale.io import yaml_text
from ift_scale.io.files import folder_problem


def load(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Returns the configuration in `path` with `key=value` overrides applied.

    For a study, these are the settings that its variants share. Raises ConfigError with every
    problem.
    """
    return load_study(path, overrides).config


@dataclass(frozen=True)
class Study:
    """A configuration and its variants by name.

    The variants are runs that share questions, probe results, texts and equal arms.
    """

    config: Config
    variants: dict[str, Config]


def load_study(path: str | Path, overrides: tuple[str, ...] = ()) -> Study:
    """Returns a configuration with its variants.

    The file's `variants: {NAME: {a: {b: value}}}` are each merged over its other settings.
    Overrides apply to every variant. Raises ConfigError like `load`.
    """
    path = Path(path)
    raw = _read(path, ())
    problems = [problem for override in overrides if (problem := _apply(raw, override))]
    changes = _variants(path, raw.pop("variants", {}), problems)
    config = from_dict(copy.deepcopy(raw), str(path), problems)
    variants = {}
    for name, change in changes.items():
        merged = merge(raw, change | {"output_dir": str(Path(config.output_dir) / name)})
        # A value set on the command line applies to every variant.
        variant_problems = [
            problem
            for override in overrides
            if not override.startswith("output_dir") and (problem := _apply(merged, override))
        ]
        variants[name] = from_dict(merged, f"{path}, variant {name}", variant_problems)
    return Study(config, variants)


def _variants(path: Path, changes: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the settings of each variant; appends the problems of their names."""
    if not isinstance(changes, dict) or not all(
        change is None or isinstance(change, dict) for change in changes.values()
    ):
        raise ConfigError(str(path), ["variants: must be a mapping of names to settings"])
    for name, change in changes.items():
        if not isinstance(name, str):
            problems.append(f"variants: the name {name!r} is not a text; put it in quotes")
        elif not _NAME.match(name):
            problems.append(f"variants: {name!r} must be letters, digits, '_' or '-'")
        if change and "output_dir" in change:
            problems.append(
                f"variants.{name}.output_dir: cannot be set (value: "
                f"{shorten(change['output_dir'])}); a variant's folder is output_dir/{name}"
            )
    if "report" in changes:
        problems.append("variants: 'report' is the name of the study's own report; choose another")
    return {str(name): change or {} for name, change in changes.items()}


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\Z")


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Returns `base` updated with `over`, section by section; lists are replaced."""
    merged = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _read(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """Returns the mapping in a file, merged over the files that its `extends` names.

    Paths in `extends` are relative to the file; later ones override earlier ones. `below` are the
    files that are being read already.
    """
    own = Path(os.path.realpath(path))  # resolve() raises RuntimeError for a loop of links
    if own in below:
        raise ConfigError(
            str(path), [f"extends: forms a cycle through {below[-1]}; remove one of the references"]
        )
    raw = yaml_text.read_mapping(path)
    named = raw.pop("extends", [])
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(
            str(path), [f"extends: must be a path or a list of paths (value: {shorten(named)})"]
        )
    base: dict[str, Any] = {}
    for name in named:
        base = merge(base, _read(path.parent / name, (*below, own)))
    return merge(base, raw)


def with_overrides(raw: dict[str, Any], overrides: tuple[str, ...], source: str) -> Config:
    """Validates settings after applying `a.b=value` overrides to them. ConfigError like `load`."""
    problems = [problem for override in overrides if (problem := _apply(raw, override))]
    return from_dict(raw, source, problems)


def from_dict(
    raw: dict[str, Any], source: str = "configuration", problems: list[str] | None = None
) -> Config:
    """Validates settings that are already a dict. Raises ConfigError like `load`.

    `problems` are those known before validation; the error lists them too.
    """
    problems = problems or []
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += [_describe(details) for details in error.errors()]
        _drop_faulty(raw, error)
        try:
            config = Config.model_validate(raw)
        except ValidationError:
            raise ConfigError(source, problems) from None
    problems += [*impossible_combinations(config), *_credentials(config.model_dump())]
    if problem := folder_problem(Path(config.output_dir)):
        problems.append(f"output_dir: {problem} (value: {config.output_dir!r}); choose another")
    if problems:
        raise ConfigError(source, problems)
    return config


def _credentials(value: Any, name: str = "") -> Iterator[str]:
    """Yields a problem for each setting with a password in a URL, without showing it.

    Settings are written to config.yaml, manifests and reports.
    """
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _credentials(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _credentials(part, f"{name}.{number}")
    elif isinstance(value, str) and has_user_info(value):
        yield (
            f"{name}: contains a user name or password (value: {printable(value)!r}), and settings"
            " are stored in the run's folder. Leave it out of the address; a server's key belongs"
            " in the variable that api_key_variable names"
        )


def _apply(raw: dict[str, Any], override: str) -> str | None:
    """Sets one dotted key in place. Returns the problem, or None."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        return f"--set {override}: must have the form section.key=value"
    try:
        value = yaml_text.parse(text)
    except yaml_text.InvalidYaml as error:
        return f"--set {override}: the value is not valid YAML: {error}"
    node: Any = raw
    *parents, last = key.split(".")
    for parent in parents:
        node = (
            node[int(parent)]
            if isinstance(node, list) and _is_index(parent, node)
            else _child(node, parent)
        )
        if not isinstance(node, dict | list):
            return f"--set {override}: '{parent}' is not a section"
    if isinstance(node, list):
        if not _is_index(last, node):
            return f"--set {override}: '{last}' is not an index of the {len(node)} entries"
        node[int(last)] = value
    else:
        node[last] = value
    return None


def _is_index(text: str, node: list[Any]) -> bool:
    return _INDEX.fullmatch(text) is not None and int(text) < len(node)


_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


def _child(node: Any, name: str) -> Any:
    if not isinstance(node, dict):
        return None
    if node.get(name) is None:
        node[name] = {}
    return node[name]


def _describe(details: Any) -> str:
    loc = details["loc"]
    path = ".".join(shorten(str(part))[1:-1] for part in _without_tags(loc))
    value = shorten(details["input"])
    if details["type"] == "union_tag_not_found":
        return f"{path}.kind: missing (value: {value}); known: {', '.join(_SOURCES)}"
    if details["type"] == "union_tag_invalid":
        tag = str(details["ctx"]["tag"])
        return (
            f"{path}.kind: not one of the choices (value: {tag!r}); {did_you_mean(tag, _SOURCES)}"
        )
    if details["type"] == "string_pattern_mismatch":
        return f"{path}: must be letters, digits, '_' or '-' (value: {value})"
    if details["type"] == "extra_forbidden":
        known = _fields_at(loc[:-1])
        return f"{path}: unknown key (value: {value}); {did_you_mean(str(loc[-1]), known)}"
    if details["type"] == "missing":
        return f"{path}: missing; give it a value"
    if details["type"] == "value_error":
        return f"{path}: {details['ctx']['error']} (value: {value})"
    if details["type"] == "literal_error":
        expected = details["ctx"]["expected"]
        choices = re.findall(r"'([^']*)'", expected) or [expected]
        nearest = did_you_mean(str(details["input"]), choices)
        return f"{path}: not one of the choices (value: {value}); {nearest}"
    return f"{path}: {details['msg'][0].lower()}{details['msg'][1:]} (value: {value})"


_SOURCES: dict[str, type[Section]] = {
    kind: section
    for section in typing.get_args(typing.get_args(Source)[0])
    for kind in typing.get_args(section.model_fields["kind"].annotation)
}


def _without_tags(loc: tuple[Any, ...]) -> tuple[Any, ...]:
    """Removes the source's kind, which pydantic inserts after its number, from a location."""
    is_tag = [
        i == 3 and loc[:2] == ("questions", "sources") and part in _SOURCES
        for i, part in enumerate(loc)
    ]
    return tuple(part for part, tag in zip(loc, is_tag, strict=True) if not tag)


def _fields_at(loc: tuple[Any, ...]) -> list[str]:
    """Returns the names of the settings that are valid at `loc`."""
    section: type[BaseModel] = Config
    for part in loc:
        if part in _SOURCES:
            section = _SOURCES[part]
        elif part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if (
        isinstance(annotation, type)
        and not isinstance(annotation, types.GenericAlias)
        and issubclass(annotation, BaseModel)
    ):
        return annotation
    return next(
        (inner for part in typing.get_args(annotation) if (inner := _section_of(part))), None
    )


def _drop_faulty(raw: dict[str, Any], error: ValidationError) -> None:
    """Removes the invalid settings, so that combinations of the others can still be checked."""
    for details in error.errors():
        node: Any = raw
        for part in details["loc"]:
            child = node.get(part)
            if part == details["loc"][-1] or not isinstance(child, dict):
                node.pop(part, None)
                break
            node = child
    raw.setdefault("output_dir", ".")
