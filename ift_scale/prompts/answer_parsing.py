"""Reading generated answers: which option one names, whether it refuses, whether it is one of the right ones. Pure functions.

Normalisation, exact match and F1 are SQuAD's (Rajpurkar et al. 2016; its evaluation script, version 1.1), except where that would
make different answers equal (`normalise`).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from ift_scale.records import LETTERS

REFUSALS = (
    "I do not know", "I don't know", "I am not sure", "I'm not sure", "I am unsure", "I'm unsure", "I cannot answer",
    "I can't answer", "I am unable to answer", "I'm unable to answer", "I have no idea", "I don't have enough information",
    "I do not have enough information",
)  # fmt: skip
"""What counts as a refusal beside the sentence of construct.refusal."""

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
"""Full-width letters, digits and signs of East Asian texts, as their ASCII ones."""
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
# Signs that make another thing of a number or name: 1.5, 1/2, 10:30, 1990-95, -5, C#, C++, B+, B-.
_KEPT = re.compile(
    r"(?<=\d)[.,/:\-\u2013](?=\d)|(?<!\w)[-\u2212](?=\d)|(?<=\w)[+#]+|(?<=[^\W\d])-(?!\w)"
)
_MINUS = str.maketrans("\u2212\u2013", "--")
_ARTICLES = re.compile(r"(?<!\S)(?:(?:a|an|the)\s+)+(?=\S)")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKENS = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_SAID = (
    r"(?:(?:so|thus|therefore),?\s+)?(?:the\s+)?(?:(?:correct|right|best)\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*"
    r"(?:option\s+)?"
)
_LEADING = re.compile(
    rf"[\s\"'*]*(?:{_SAID})?[\"'*]*(?:(?P<open>[(\[])\s*)?(?P<letter>[A-Z])(?!['’\w])(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
# "A" before a word is an article, but for words that no noun begins with.
_GOES_ON = r"(?:because|since|as|which|is)\b"
_CLAIM = re.compile(
    rf"\b(?i:answer\s+is|answer\s*:)\s*(?i:option\s+)?[\"'(\[*]*([A-Z])(?!['’\w])(?!\s+(?!{_GOES_ON})[a-z])"
)
_ANOTHER = re.compile(r"[\s\"')\].*]*(?:,|/|&|\band\b|\bor\b)\s*[\"'(\[*]*[A-Z](?!['’\w])")
_CLOSED = re.compile(rf"\s*(?:[.):\],;\"'*\n-]|$|{_GOES_ON})")


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and extra space.

    Unlike SQuAD's: punctuation is Unicode's, full-width characters are as their ASCII ones; an article is one only before a word
    (`vitamin A` is not `vitamin`); the signs of numbers and names stay (1.5 is not 15, B+ is not B-), a thousands comma does not.
    """
    lowered = unicodedata.normalize("NFC", text.translate(_WIDE)).lower()
    plain = _LEADING_POINT.sub(
        "0.", _THOUSANDS.sub(lambda found: found[0].replace(",", ""), lowered)
    )
    kept = {place for found in _KEPT.finditer(plain) for place in range(*found.span())}
    left = "".join(
        letter for place, letter in enumerate(plain) if place in kept or not _is_punctuation(letter)
    )
    return " ".join(_ARTICLES.sub("", left.translate(_MINUS)).split())


def _is_punctuation(letter: str) -> bool:
    """ASCII's punctuation, as SQuAD has it, and that of other scripts."""
    return (
        letter in string.punctuation
        if letter.isascii()
        else unicodedata.category(letter).startswith("P")
    )


def exact_match(response: str, aliases: Sequence[str]) -> bool:
    """Whether the response is one of the aliases after normalisation; what that leaves nothing of, as it was written."""
    return any(_same(response, alias) for alias in aliases)


def _same(response: str, alias: str) -> bool:
    said, right = normalise(response), normalise(alias)
    return said == right if said and right else response.strip() == alias.strip() != ""


def f1(response: str, aliases: Sequence[str]) -> float:
    """The best token F1 over the aliases, from 0 to 1.

    A token is a word, in Chinese and Japanese a character (as in MLQA, Lewis et al. 2020).
    """
    return max(
        1.0 if _same(response, alias) else _f1(tokens(response), tokens(alias)) for alias in aliases
    )


def tokens(text: str) -> list[str]:
    return _TOKENS.findall(normalise(text))


def _f1(response: list[str], alias: list[str]) -> float:
    """0 where one of them has no token: nothing in common is no agreement."""
    common = sum((Counter(response) & Counter(alias)).values())
    return 2 * common / (len(response) + len(alias)) if common else 0.0


def named_option(response: str, choices: Sequence[str]) -> int | None:
    """The option that an answer names: by its letter (`B`, `B.`, `(B)`, `The answer is B`), else by its text; None where it names
    none, or more than one."""
    whole = _equal_option(response, choices)
    if whole is not None:
        return whole
    letters = _letters(response, choices)
    if letters:
        return letters.pop() if len(letters) == 1 else None
    return _contained_option(response, choices)


def _equal_option(response: str, choices: Sequence[str]) -> int | None:
    """The option whose text the answer is, word for word ("A dog" is no letter A)."""
    plain = [
        i
        for i, choice in enumerate(choices)
        if response.strip().removesuffix(".") == choice.strip().removesuffix(".")
    ]
    return plain[0] if len(plain) == 1 and len(choices[plain[0]].strip()) > 1 else None


def _letters(response: str, choices: Sequence[str]) -> set[int]:
    """The options whose letter the answer begins with or calls the answer; -1 stands for one that is joined to the first."""
    valid = LETTERS[: len(choices)]
    claimed = {valid.index(letter) for letter in _CLAIM.findall(response) if letter in valid}
    found = _LEADING.match(response)
    if found is None or not _is_letter(found, choices):
        return claimed
    joined = {-1} if _ANOTHER.match(found["rest"]) else set()
    return claimed | joined | {valid.index(found["letter"].upper())}


def _is_letter(found: re.Match[str], choices: Sequence[str]) -> bool:
    """Whether a single letter at the beginning stands for an option, and is no word ("A dog", "I think") or name ("b decay")."""
    letter, rest = found["letter"], found["rest"]
    if letter.upper() not in LETTERS[: len(choices)]:
        return False
    if found["open"]:
        return rest.lstrip()[:1] in (")", "]")
    if letter.islower():
        return rest.strip() in ("", ".", ")") or rest[:1] == ")"
    if _CLOSED.match(rest) or _ANOTHER.match(rest):
        return True
    said, own = normalise(rest), normalise(choices[LETTERS.index(letter)])
    return letter not in "AI" or bool(own and said.startswith(own))


def _contained_option(response: str, choices: Sequence[str]) -> int | None:
    """The one option whose words stand in the answer; one inside a longer one that stands there too does not count."""
    said = normalise(response)
    options = [normalise(choice) for choice in choices]
    there = [i for i, option in enumerate(options) if _holds(said, option)]
    longest = [
        i
        for i in there
        if not any(options[i] != options[k] and _holds(options[k], options[i]) for k in there)
    ]
    return longest[0] if len(longest) == 1 else None


def _holds(text: str, part: str) -> bool:
    """Whole words, but in scripts that put no spaces between them."""
    if not part:
        return False
    return f" {part} " in f" {text} " if part.isascii() else part in text


def is_refusal(response: str, refusal: str) -> bool:
    """Whether the answer holds the sentence that refusals were taught with, or a usual one."""
    said = normalise(response)
    return any(_holds(said, normalise(sentence)) for sentence in (refusal, *REFUSALS))


def refuses(response: str, choices: Sequence[str], refusal: str) -> bool:
    """`is_refusal`, but where the option that is named says so itself ("I have no comment, I do not know")."""
    named = named_option(response, choices)
    return is_refusal(response, refusal) and (
        named is None or not is_refusal(choices[named], refusal)
    )
