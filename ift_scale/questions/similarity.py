"""Compares questions: normalised words, digests of equal questions, and an index of similar ones.

A question is compared by its text together with its options, because many different questions share
a text ("Which of these is true?"). Options are compared as a set: copies of a question differ most
often in their order, and so in the right letter.
"""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

SHINGLE_WORDS = 3
_FOUND_AT_THRESHOLD = 0.99
# In scripts without spaces each character counts as a word. Only plain punctuation and blanks (___)
# are dropped: in "x - 1" the minus carries the meaning.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_BETWEEN = "\x1f"
_WORD = re.compile(
    rf"[{_UNSPACED}{_BETWEEN}]|[^\W_{_UNSPACED}]+|[^\w\s.,;:!?'\"()\[\]{{}}“”‘’…。、《》「」]"
)


class Normal(NamedTuple):
    """A question's words and signs in lower case, and those of its distinct options, sorted."""

    text: str
    options: tuple[str, ...]

    @classmethod
    def of(cls, text: str, options: Sequence[str]) -> "Normal":
        # All parts in one pass: this dominates the audit's time for a question without duplicates.
        whole = _BETWEEN.join([text, *options])
        whole = whole if whole.isascii() else unicodedata.normalize("NFKC", whole)
        first, *others = " ".join(_WORD.findall(whole.casefold())).split(_BETWEEN)
        return cls(first.strip(), tuple(sorted({option.strip() for option in others})))

    def text_digest(self) -> bytes:
        """Returns a digest of the question's text alone."""
        return _digest(self.text)

    def digest(self) -> bytes:
        """Returns a digest that is equal for equal texts with equal sets of options."""
        return _digest(_BETWEEN.join([self.text, *self.options]))

    def shingles(self) -> set[int]:
        """Returns checksums of all runs of SHINGLE_WORDS words in the text and in each option.

        A shorter part is one run.
        """
        return {
            zlib.crc32(run.encode())
            for part in (self.text, *self.options)
            for run in _runs(part.split())
        }


def _runs(part: Sequence[str]) -> Iterator[str]:
    for start in range(max(1, len(part) - SHINGLE_WORDS + 1) if part else 0):
        yield " ".join(part[start : start + SHINGLE_WORDS])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class SimilarIndex:
    """Finds similar questions by their shingles.

    MinHash signatures in a locality-sensitive index (Broder 1997; datasketch) give candidates,
    which are compared by exact Jaccard similarity. The signature's bands are chosen so that a pair
    at the threshold is found with probability 0.99, and a more similar one more reliably. Memory:
    about 8 kB per question.
    """

    def __init__(self, threshold: float, num_permutations: int):
        from datasketch import MinHash, MinHashLSH

        self.threshold = threshold
        self._empty: Any = MinHash(num_permutations, hashfunc=int)
        self._bands: Any = MinHashLSH(
            num_perm=num_permutations, params=bands(threshold, num_permutations)
        )
        self._shingles: dict[int, np.ndarray] = {}
        self._known: set[int] = set()

    def add(self, number: int, shingles: set[int]) -> None:
        if shingles:
            self._bands.insert(number, self._signature(shingles))
            self._shingles[number] = np.fromiter(shingles, np.uint32, len(shingles))
            self._known |= shingles

    def similar(self, shingles: set[int]) -> list[tuple[int, float]]:
        """Returns (number, Jaccard similarity) of added questions at or above the threshold."""
        # |A and B| >= t |A or B| >= t |A|: a question that shares fewer shingles with all others
        # together is similar to none. This avoids nearly every signature for unrelated pools.
        if not shingles or len(shingles & self._known) < self.threshold * len(shingles):
            return []
        matches = []
        for number in sorted(self._bands.query(self._signature(shingles))):
            other = self._shingles[number]
            common = len(shingles.intersection(other.tolist()))
            similarity = common / (len(shingles) + len(other) - common)
            if similarity >= self.threshold:
                matches.append((number, similarity))
        return matches

    def _signature(self, shingles: set[int]) -> Any:
        signature = self._empty.copy()
        signature.update_batch(shingles)
        return signature


def bands(threshold: float, num_permutations: int) -> tuple[int, int]:
    """Returns (bands, rows per band) with the most rows that still find pairs at the threshold.

    More rows per band give fewer candidates.
    """
    for rows in range(num_permutations, 1, -1):
        count = num_permutations // rows
        if 1 - (1 - threshold**rows) ** count >= _FOUND_AT_THRESHOLD:
            return count, rows
    return num_permutations, 1
