"""The one reader of YAML that users write: settings, machines, rates, the head of a dataset's card.

Numbers are those of YAML 1.2: `1:30` is a text and not 90, `010` is a text and not 8, `2e-5` is a
number, and a date is a text. Keys are texts: `on: true` is the setting `on`. Merge keys (`<<`)
work. Refused with words: duplicate keys, aliases that refer to themselves or stand for more than
100,000 values, deep nesting, and integers of more than 40 digits.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from ift_scale.errors import ConfigError, DataError, shorten
from ift_scale.io import json_text, text_file

_MOST_VALUES, _DEEPEST, _MOST_DIGITS, _MOST_CHARACTERS = 100_000, 50, 40, 4 << 20
_MERGE, _BOOL, _TEXT = (f"tag:yaml.org,2002:{name}" for name in ("merge", "bool", "str"))
_FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+"
    r"|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
)
_INT = re.compile(r"^[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][\d_]*)$")


class InvalidYaml(ValueError):
    """A text that is not YAML as `parse` accepts it. The message has line and column."""


class _Loader(yaml.SafeLoader):
    """SafeLoader with the numbers and limits of this module."""


_KEPT = {f"tag:yaml.org,2002:{name}" for name in ("bool", "null", "merge")}
_Loader.yaml_implicit_resolvers = {
    first: kept
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in pairs if tag in _KEPT])
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))


def parse(text: str) -> Any:
    """Returns the value of a text, None if it is empty. Raises InvalidYaml."""
    if len(text) > _MOST_CHARACTERS:
        raise InvalidYaml(f"has {len(text):,} characters, more than {_MOST_CHARACTERS:,}")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Checker(loader).num_values(node, 1)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise InvalidYaml(" ".join(str(error).split())) from error
    except RecursionError:
        raise InvalidYaml(f"too deeply nested: more than {_DEEPEST} levels") from None
    except (ValueError, TypeError, AttributeError) as error:  # tags with values of other types
        raise InvalidYaml(f"a value does not fit its tag ({error})") from error


def read_mapping(path: Path) -> dict[Any, Any]:
    """Returns the mapping in a file. Raises ConfigError if it cannot be read or has none."""
    try:
        raw = parse(text_file.read(path))
    except DataError as error:
        line = "" if error.place.line is None else f"line {error.place.line}: "
        raise ConfigError(str(path), [f"{line}{error.problem}; {error.remedy}"]) from error
    except InvalidYaml as error:
        raise ConfigError(str(path), [f"not valid YAML: {error}"]) from error
    if not isinstance(raw, dict):
        problem = f"must be a mapping of settings (value: {shorten(raw)}); write NAME: VALUE"
        raise ConfigError(str(path), [problem])
    return raw


class _Checker:
    """Checks the nodes of a document, each once, before values are made of them."""

    def __init__(self, loader: _Loader):
        self._loader = loader
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def num_values(self, node: yaml.Node, depth: int) -> int:
        """Returns the number of values that a node stands for, with those of its aliases."""
        if id(node) in self._sizes:
            return self._sizes[id(node)]
        if id(node) in self._open:
            raise _error("an alias refers to the value that contains it", node)
        if depth > _DEEPEST:
            raise _error(f"too deeply nested: more than {_DEEPEST} levels", node)
        self._open.add(id(node))
        size = 1 + sum(self.num_values(inner, depth + 1) for inner in self._inside(node))
        self._open.discard(id(node))
        if size > _MOST_VALUES:
            raise _error(f"its aliases stand for more than {_MOST_VALUES:,} values", node)
        self._sizes[id(node)] = size
        return size

    def _inside(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
            return []
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        keys = [key for key, _ in node.value]
        for key in keys:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("a key must be a name", key)
            if key.tag == _BOOL:
                key.tag = _TEXT
            _check_scalar(key)
        names = [self._loader.construct_object(key) for key in keys if key.tag != _MERGE]
        duplicate = next((name for name in names if names.count(name) > 1), None)
        if duplicate is not None:
            raise _error(f"duplicate key {duplicate!r}", node)
        return [value for _, value in node.value]


def _check_scalar(node: yaml.ScalarNode) -> None:
    if json_text.lone_surrogate(node.value):
        raise _error("contains half of a surrogate pair, which is not a character", node)
    if "\0" in node.value:
        raise _error("contains the character NUL", node)
    if node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS:
        raise _error(f"an integer of {len(node.value)} digits", node)


def _error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, node.start_mark)
