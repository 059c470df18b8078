"""Reads the header of a GGUF file and checks that the file is complete.

The reader in transformers trusts the file. One that is cut short, or has a damaged byte, ends in an
IndexError, in a request for exabytes, or in tensors that are views of other tensors' bytes. Here
every length is checked against the size of the file before it is used, and every offset against the
tensors before it, as llama.cpp does. No tensor data is read.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ift_scale.errors import DataError, EnvironmentProblem, Place
from ift_scale.io.text_file import refuse_unreadable

_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_NUMBERS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_DEEPEST_ARRAY = 2
_FETCH_AGAIN = "Copy or fetch the file again"


class GgufTensor(NamedTuple):
    """A tensor of a GGUF file. `shape` is in torch's order; `kind` is the name of its ggml type."""

    name: str
    shape: tuple[int, ...]
    kind: str
    num_bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """The metadata and tensors of a complete GGUF file."""

    path: Path
    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def num_values(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors)

    def place(self, field: str | None = None) -> Place:
        return Place(self.path, field=field)

    def number(self, field: str) -> int | None:
        """Returns an integer field, None if it is missing. Raises DataError for another type."""
        value = self.fields.get(field)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise DataError(self.place(field), "must be an integer", _FETCH_AGAIN, value)
        return value

    def text(self, field: str) -> str | None:
        """Returns a string field, None if it is missing. Raises DataError for another type."""
        value = self.fields.get(field)
        if value is not None and not isinstance(value, str):
            raise DataError(self.place(field), "must be a string", _FETCH_AGAIN, value)
        return value


def read_gguf(path: Path) -> GgufHeader:
    """Returns the header of a GGUF file.

    Raises DataError for a file that is not GGUF, cut short or damaged, and for tensor types that
    cannot be dequantised; EnvironmentProblem if the `gguf` package is missing.
    """
    types = _types()
    refuse_unreadable(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        raise DataError(Place(path), problem, "Give the path of a .gguf file") from error
    try:
        return _Reader(path, data).header(types)
    finally:
        if isinstance(data, mmap.mmap):
            data.close()


class _TensorType(NamedTuple):
    name: str
    block: int  # values per block
    block_bytes: int


def _types() -> dict[int, _TensorType]:
    """Returns the ggml types by id, from the `gguf` package."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise EnvironmentProblem(
            f"reading a GGUF file needs the package gguf ({error}). Install it: "
            "pip install 'ift-scale[gguf]', or pip install gguf"
        ) from error
    return {int(kind): _TensorType(kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _is_readable(kind: int, types: dict[int, _TensorType]) -> bool:
    """True if the `gguf` package dequantises the type."""
    import numpy as np
    from gguf import GGMLQuantizationType, dequantize

    if kind not in types:
        return False
    try:
        dequantize(np.zeros((1, types[kind].block_bytes), np.uint8), GGMLQuantizationType(kind))
    except NotImplementedError:
        return False
    return True


class _Reader:
    """A position in the file's bytes; every read names the field that it belongs to."""

    def __init__(self, path: Path, data: Any):
        self.path, self.data, self.size, self.position = path, data, len(data), 0

    def header(self, types: dict[int, _TensorType]) -> GgufHeader:
        num_tensors, num_fields = self._start()
        fields: dict[str, Any] = {}
        for number in range(num_fields):
            name = self._string(f"name of metadata field {number + 1} of {num_fields}")
            if name in fields:
                self._fail("occurs twice", name)
            fields[name] = self._value(name, self._number("<I", name))
        tensors = [self._tensor_info(number + 1, num_tensors) for number in range(num_tensors)]
        alignment = fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._fail("must be a power of two", "general.alignment", alignment)
        return GgufHeader(self.path, fields, self._checked(tensors, types, int(alignment)))

    def _start(self) -> tuple[int, int]:
        """Returns (number of tensors, number of metadata fields)."""
        magic = bytes(self.data[:4])
        if magic != b"GGUF":
            problem = "is not a GGUF file: it does not begin with 'GGUF'"
            raise DataError(Place(self.path), problem, "Give the path of a .gguf file", magic)
        self.position = 4
        version = self._number("<I", "version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            problem = "is written for big-endian machines" if swapped else "is not supported"
            remedy = "Convert the model again with a current llama.cpp, in little-endian order"
            raise DataError(Place(self.path, field="version"), problem, remedy, version)
        counts = self._number("<Q", "tensor_count"), self._number("<Q", "kv_count")
        for name, count in zip(("tensor_count", "kv_count"), counts, strict=True):
            if count > self.size:
                self._fail("is larger than the file", name, count)
        return counts

    def _fail(self, problem: str, field: str, value: object = None) -> NoReturn:
        raise DataError(Place(self.path, field=field), problem, _FETCH_AGAIN, value)

    def _take(self, length: int, field: str) -> bytes:
        end = self.position + length
        if end > self.size:
            problem = f"the file is cut short: it has {self.size:,} bytes and this needs {end:,}"
            self._fail(problem, field)
        self.position, taken = end, bytes(self.data[self.position : end])
        return taken

    def _number(self, layout: str, field: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout), field))[0]

    def _string(self, field: str) -> str:
        raw = self._take(self._number("<Q", field), field)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self._fail("is not UTF-8", field, raw[:40])

    def _value(self, field: str, kind: int, depth: int = 0) -> Any:
        if kind == _STRING:
            return self._string(field)
        if kind == _ARRAY and depth < _DEEPEST_ARRAY:
            kind, count = self._number("<I", field), self._number("<Q", field)
            if kind in _NUMBERS:
                layout = f"<{count}{_NUMBERS[kind][1]}"
                length = count * struct.calcsize(_NUMBERS[kind])
                return list(struct.unpack(layout, self._take(length, field)))
            if count > self.size:
                self._fail("has more entries than the file has bytes", field, count)
            return [self._value(field, kind, depth + 1) for _ in range(count)]
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind], field)
        self._fail("has an unknown type of value", field, kind)

    def _tensor_info(self, number: int, count: int) -> tuple[str, tuple[int, ...], int, int]:
        """Returns (name, shape, type id, offset)."""
        name = self._string(f"name of tensor {number} of {count}")
        dimensions = self._number("<I", name)
        if not 0 < dimensions <= _MOST_DIMENSIONS:
            self._fail(f"must have 1 to {_MOST_DIMENSIONS} dimensions", name, dimensions)
        shape = tuple(self._number("<Q", name) for _ in range(dimensions))[::-1]
        return name, shape, self._number("<I", name), self._number("<Q", name)

    def _checked(
        self,
        tensors: list[tuple[str, tuple[int, ...], int, int]],
        types: dict[int, _TensorType],
        alignment: int,
    ) -> tuple[GgufTensor, ...]:
        """Checks that the tensors follow each other without gaps, up to the end of the file."""
        start, expected, seen = _padded(self.position, alignment), 0, set()
        self._refuse_types({kind: name for name, _, kind, _ in reversed(tensors)}, types)
        checked = []
        for name, shape, kind, offset in tensors:
            if name in seen:
                self._fail("occurs twice", name)
            seen.add(name)
            stored = types[kind]
            if min(shape) < 1 or shape[-1] % stored.block:
                problem = f"must have rows of whole blocks of {stored.block} {stored.name} values"
                self._fail(problem, name, shape)
            if offset != expected:
                self._fail(f"must begin at byte {expected:,} of the data", name, offset)
            num_bytes = prod(shape) // stored.block * stored.block_bytes
            if start + offset + num_bytes > self.size:
                end = start + offset + num_bytes
                problem = f"the file is cut short: it has {self.size:,} bytes and this tensor ends"
                self._fail(f"{problem} at {end:,}", name)
            expected = _padded(offset + num_bytes, alignment)
            checked.append(GgufTensor(name, shape, stored.name, num_bytes))
        if not checked:
            self._fail("is 0: the file has no weights", "tensor_count")
        return tuple(checked)

    def _refuse_types(self, first_of: dict[int, str], types: dict[int, _TensorType]) -> None:
        """`first_of`: the first tensor of each type in the file."""
        for kind, name in first_of.items():
            if not _is_readable(kind, types):
                known = ", ".join(types[one].name for one in types if _is_readable(one, types))
                problem = "has a type that cannot be dequantised"
                remedy = f"Give a file whose tensors have these types only: {known}"
                shown = types[kind].name if kind in types else kind
                raise DataError(Place(self.path, field=name), problem, remedy, shown)


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
