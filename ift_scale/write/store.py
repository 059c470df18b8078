"""Stores generated texts as they arrive, one per line.

A killed stage resumes with them, and a change of unrelated settings rewrites nothing. The key of a
text is the digest of its author, prompt, sampling, seed and attempt. Each run appends to a new
part. Lines truncated by a kill are ignored when the parts are read.
"""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from ift_scale.io.files import translate_disk_errors
from ift_scale.scoring.shards import SHARDS


class Store:
    """The texts in FOLDER/shards/NNNN.jsonl; `add` may be called from several threads."""

    def __init__(self, folder: Path):
        self._folder = folder / SHARDS
        parts = sorted(self._folder.glob("*.jsonl"))
        self._texts: dict[str, str] = {}
        for part in parts:
            self._texts |= _read(part)
        self._next = self._folder / f"{len(parts):04d}.jsonl"
        self._lock = threading.Lock()
        self._file: IO[str] | None = None
        self.added = 0

    def __contains__(self, key: str) -> bool:
        return key in self._texts

    def __getitem__(self, key: str) -> str:
        return self._texts[key]

    def add(self, texts: Mapping[str, str]) -> None:
        with self._lock, translate_disk_errors(self._next):
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = self._next.open("a", encoding="utf-8")
            self._file.write(
                "".join(
                    json.dumps({"key": key, "text": text}) + "\n" for key, text in texts.items()
                )
            )
            self._file.flush()
            self._texts |= texts
            self.added += len(texts)

    def close(self) -> None:
        with self._lock, translate_disk_errors(self._next):
            file, self._file = self._file, None
            if file is not None:
                file.close()


def _read(part: Path) -> dict[str, str]:
    texts = {}
    for line in part.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            texts[row["key"]] = row["text"]
        except (ValueError, KeyError, TypeError):
            continue  # truncated by a kill: it is written again
    return texts
