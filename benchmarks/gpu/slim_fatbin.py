"""Drops, from a CUDA shared library, the machine code of every card but one kind, so that the file packs small.

    python3 slim_fatbin.py IN [OUT] [--keep 90]

Each fat binary keeps its place and its size: its wanted entries move to its front, byte for byte, its header gives their size, and
zeros follow. Wanted is the card's machine code; if there is none, the newest PTX that the card can take; if there is none of that
either, the smallest entry, so that the card is refused as before. Without OUT it only reports what would be kept.
"""

import argparse
import collections
import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<IHHQ")  # magic, version, header size, size of what follows
ENTRY = struct.Struct(
    "<HHIQIIHHI"
)  # kind, version, header size, payload size, compressed size, -, minor, major, architecture
PTX, ELF = 1, 2
Entry = tuple[int, int, int, int]
"""Place and size, header and payload together; kind; architecture."""


def groups(data: bytes | bytearray) -> Iterator[tuple[int, int, list[Entry]]]:
    """(place, end, entries) of each fat binary; ValueError where the format is another."""
    at = data.find(MAGIC)
    while at >= 0:
        _, version, size, rest = HEADER.unpack_from(data, at)
        if version != 1 or size != HEADER.size or at + size + rest > len(data):
            at = data.find(MAGIC, at + 4)
            continue
        place, end, found = at + size, at + size + rest, []
        while place < end:
            kind, _, header, payload, *_, arch = ENTRY.unpack_from(data, place)
            if kind not in (PTX, ELF) or not 40 <= header <= 512 or place + header + payload > end:
                raise ValueError(
                    f"an entry at {place:#x} is not understood: kind {kind}, header {header}, size {payload}"
                )
            found.append((place, header + payload, kind, arch))
            place += header + payload
        yield at, end, found
        at = data.find(MAGIC, end)


def wanted(group: list[Entry], keep: int) -> list[Entry]:
    own = [entry for entry in group if entry[2] == ELF and entry[3] == keep]
    if own:
        return own
    newest = max((arch for _, _, kind, arch in group if kind == PTX and arch <= keep), default=None)
    return [entry for entry in group if entry[2] == PTX and entry[3] == newest] or [
        min(group, key=lambda entry: entry[1])
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?")
    parser.add_argument("--keep", type=int, default=90)
    given = parser.parse_args()
    data = bytearray(given.source.read_bytes())
    kept: collections.Counter[str] = collections.Counter()
    for at, end, group in list(groups(data)):
        stay = wanted(group, given.keep) if group else []
        for entry in group:
            _, size, kind, arch = entry
            kept[f"{'PTX' if kind == PTX else 'code'} {arch}" if entry in stay else "dropped"] += (
                size
            )
        whole = b"".join(bytes(data[place : place + size]) for place, size, _, _ in stay)
        first = at + HEADER.size
        data[first:end] = whole + bytes(end - first - len(whole))
        HEADER.pack_into(data, at, *HEADER.unpack_from(data, at)[:3], len(whole))
    print(given.source.name, {name: f"{size / 2**20:.1f} MiB" for name, size in kept.items()})
    if given.target is not None:
        given.target.write_bytes(data)


if __name__ == "__main__":
    main()
