"""Changes of valid files: of bytes, of the kind of file, and of the values in JSON and YAML."""

import gzip
import json
import re
from collections.abc import Callable
from typing import Any

from benchmarks.fuzz.case import Case, Content, Random
from benchmarks.fuzz.values import DEEP, any_value, like

_MARKS = (
    b"\x00",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\x1f\x8b",
    b"\n",
)
_BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{right}: &{right} [{', '.join([f'*{left}'] * 10)}]\n"
    for left, right in zip("abcdefghi", "bcdefghij", strict=True)
)
_YAML = (
    *("1", "2", "3", "0.5", "0", "world", "pool", "auto") * 3,
    "1:30",
    "12:30:45",
    "010",
    "0x1F",
    "1_000",
    "1e3",
    ".inf",
    ".nan",
    "true",
    "yes",
    "off",
    "~",
    "''",
    "2024-01-01",
    "=",
    "<<",
    "*unknown",
    "&a [*a]",
    "!!python/name:os.system",
    "!!int x",
    "!!binary eA==",
    "!!set {a, b}",
    "|\n  text",
    '"\\ud800"',
    '"\\0"',
    "'" + "x" * 5000 + "'",
    "9" * 5000,
    "-" + "9" * 100,
    "[" * DEEP,
    "{" * 200 + "}" * 200,
    "[[[[]]]]",
    "a: b: c",
    "\t",
    "%",
    "@",
    "`",
    '"open',
    "{a: 1, a: 2}",
)


def mutated(random: Random, case: Case) -> Case:
    """Changes one of the case's files, sometimes two, in one to three ways."""
    for _ in range(random.choice((1, 1, 1, 2))):
        name = random.choice(case.mutable)
        for _ in range(random.choice((1, 1, 1, 2, 3))):
            content = case.files[name]
            if not isinstance(content, bytes):
                break
            change = random.choices(_CHANGES, _WEIGHTS)[0]
            case.files[name] = change(random, name, content)
            case.changed.append(f"{name}: {change.__name__.strip('_')}")
    return case


def _flip(random: Random, name: str, content: bytes) -> Content:
    changed = bytearray(content or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _cut(random: Random, name: str, content: bytes) -> Content:
    return content[: random.randrange(len(content) + 1)]


def _without_range(random: Random, name: str, content: bytes) -> Content:
    start = random.randrange(len(content) + 1)
    return content[:start] + content[start + random.randrange(1, 40) :]


def _twice(random: Random, name: str, content: bytes) -> Content:
    start = random.randrange(len(content) + 1)
    end = start + random.randrange(1, 200)
    return content[:end] + content[start:end] + content[end:]


def _inserted(random: Random, name: str, content: bytes) -> Content:
    start = random.choice((0, len(content), random.randrange(len(content) + 1)))
    return content[:start] + random.choice(_MARKS) + content[start:]


def _encoded(random: Random, name: str, content: bytes) -> Content:
    text = content.decode("utf-8", "replace") + random.choice(("", "é", "ü ñ"))
    encoding = random.choice(("latin-1", "utf-16", "utf-16-le", "utf-32", "utf-8-sig", "cp1252"))
    return text.encode(encoding, "replace")


def _line_ends(random: Random, name: str, content: bytes) -> Content:
    return content.replace(b"\n", random.choice((b"\r\n", b"\r", b"\n\n", b"\x0b", b" ")))


def _packed(random: Random, name: str, content: bytes) -> Content:
    packed = gzip.compress(content, mtime=0)
    return packed if random.random() < 0.5 else packed[: random.randrange(len(packed))]


def _replaced(random: Random, name: str, content: bytes) -> Content:
    return random.choice(
        (b"", b"\n", b" ", b"null", b"[]", b"{}", b"0", b'"x"', b"null\n" * 3, b"\0" * 100)
    ) or bytes(random.randrange(256) for _ in range(50))


def _special(random: Random, name: str, content: bytes) -> Content:
    own = name.rpartition("/")[2]
    return random.choice(
        (
            ("fifo",),
            ("folder",),
            ("link", own),
            ("link", "/dev/zero"),
            ("link", "/dev/null"),
            ("link", "absent"),
        )
    )


def _structure(random: Random, name: str, content: bytes) -> Content:
    """Changes a value of a JSON file, or of one line of JSON lines; others byte by byte."""
    text = content.decode("utf-8", "replace")
    if name.endswith((".yaml", ".yml")):
        return _yaml(random, text).encode()
    if name.endswith(".json") and text.lstrip()[:1] == "{":
        return _json(random, text).encode("utf-8", "surrogatepass")
    if name.endswith((".json", ".jsonl", ".gz")) or text.startswith("{"):
        lines = text.splitlines(keepends=True)
        if not lines:
            return content
        number = random.randrange(len(lines))
        lines[number] = _json(random, lines[number].rstrip("\n")) + "\n"
        return "".join(lines).encode("utf-8", "surrogatepass")
    return _flip(random, name, content)


def _json(random: Random, text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    places = list(_places(value))
    if not places or random.random() < 0.05:
        return json.dumps(any_value(random))
    parent, key = random.choice(places)
    way = random.randrange(10)
    if way == 0 and isinstance(parent, dict):
        del parent[key]
    elif way == 1 and isinstance(parent, dict):
        parent[str(key)[:-1] + random.choice(("", "x", "_"))] = parent.pop(key)
    elif way == 2:
        marked = json.dumps(_with(value, parent, key, "@@"), ensure_ascii=False)
        raw = random.choice(_RAW)
        return marked.replace('"@@"', raw, 1)
    elif way == 3 and isinstance(parent, dict):
        marked = json.dumps(_with(value, parent, key, parent[key]), ensure_ascii=False)
        return re.sub(r"\{", '{"' + str(key) + '": 1, "' + str(key) + '": 2, ', marked, count=1)
    elif way < 7:
        parent[key] = like(random, parent[key])
    else:
        parent[key] = any_value(random)
    return json.dumps(value, ensure_ascii=random.random() < 0.5)


_RAW = (
    "[" * DEEP,
    "[" * 200 + "]" * 200,
    '{"a":' * 150 + "1" + "}" * 150,
    "9" * 5000,
    "-" + "9" * 50,
    "1e999",
    "NaN",
    "Infinity",
    '"\\ud800"',
    '"\\u0000"',
    "01",
    "tru",
    "'x'",
    "1,,2",
    "/* c */ 1",
)


def _with(value: Any, parent: Any, key: Any, new: Any) -> Any:
    parent[key] = new
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Returns (container, key) of every value inside, of which the first 5,000 count."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left and len(found) < 5000:
        part = left.pop()
        keys = (
            list(part)
            if isinstance(part, dict)
            else range(len(part))
            if isinstance(part, list)
            else ()
        )
        found += [(part, key) for key in keys]
        left += [part[key] for key in keys]
    return found


_SCALAR = re.compile(r"(?<=[:\[,] )([\w./+-]+)")


def _yaml(random: Random, text: str) -> str:
    scalars = list(_SCALAR.finditer(text))
    way = random.randrange(8)
    lines = text.splitlines(keepends=True)
    if way < 5 and scalars:
        found = random.choice(scalars)
        new = random.choice(_YAML)
        if way == 4:
            new = json.dumps(any_value(random))
        return text[: found.start()] + new + text[found.end() :]
    if way == 5 and lines:
        number = random.randrange(len(lines))
        return "".join([*lines[:number], lines[number], *lines[number:]])
    if way == 6:
        return random.choice(
            (
                _BOMB + text,
                text + "other: 1\n",
                text + "? [a]\n: 1\n",
                text + "1: 2\n",
                text + "<<: {b: 1}\n",
                text + "---\na: 1\n",
                text + "...\n",
                text.replace(": ", ":", 1),
            )
        )
    number = random.randrange(len(lines) or 1)
    return "".join(lines[:number] + lines[number + 1 :])


_Change = Callable[[Random, str, bytes], Content]
_CHANGES: tuple[_Change, ...] = (
    _structure,
    _flip,
    _cut,
    _without_range,
    _twice,
    _inserted,
    _encoded,
    _line_ends,
    _packed,
    _replaced,
    _special,
)
_WEIGHTS = (12, 3, 2, 1, 1, 2, 2, 1, 1, 1, 1.5)
