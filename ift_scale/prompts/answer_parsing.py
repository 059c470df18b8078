"""Parses generated answers: which option one names, whether it refuses, whether it is right.

Pure functions. Normalisation, exact match and F1 follow SQuAD (Rajpurkar et al. 2016; evaluation
script 1.1), except where it would make different answers equal (`normalise`).
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from ift_scale.records import LETTERS

REFUSALS = (
    "I do not know",
    "I don't know",
    "I am not sure",
    "I'm not sure",
    "I am unsure",
    "I'm unsure",
    "I cannot answer",
    "I can't answer",
    "I am unable to answer",
    "I'm unable to answer",
    "I have no idea",
    "I don't have enough information",
    "I do not have enough information",
)
"""Phrases that count as refusals in addition to the sentence of construct.refusal."""

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
"""Full-width letters, digits and punctuation of East Asian texts, mapped to ASCII."""
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_LEADING_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
# Characters that change the meaning of a number or name: 1.5, 1/2, 10:30, 1990-95, -5, C#, C++, B+.
_KEPT = re.compile(
    r"(?<=\d)[.,/:\-\u2013](?=\d)|(?<!\w)[-\u2212](?=\d)|(?<=\w)[+#]+|(?<=[^\W\d])-(?!\w)"
)
_MINUS = str.maketrans("\u2212\u2013", "--")
_ARTICLES = re.compile(r"(?<!\S)(?:(?:a|an|the)\s+)+(?=\S)")
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKENS = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")
_INTRODUCTION = (
    r"(?:(?:so|thus|therefore),?\s+)?(?:the\s+)?(?:(?:correct|right|best)\s+)?"
    r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*(?:option\s+)?"
)
_LEADING = re.compile(
    rf"[\s\"'*]*(?:{_INTRODUCTION})?[\"'*]*(?:(?P<open>[(\[])\s*)?"
    r"(?P<letter>[A-Z])(?!['’\w])(?P<rest>.*)",
    re.DOTALL | re.IGNORECASE,
)
# "A" before a word is an article, except before words that cannot begin a noun phrase.
_FUNCTION_WORDS = r"(?:because|since|as|which|is)\b"
_LABEL = re.compile(r"\A[\s\"'(\[*]*[A-Z][.):\]]\s+")
_CLAIM = re.compile(
    rf"\b(?i:answer\s+is|answer\s*:)\s*(?i:option\s+)?[\"'(\[*]*([A-Z])(?!['’\w])"
    rf"(?!\s+(?!{_FUNCTION_WORDS})[a-z])"
)
_ANOTHER = re.compile(r"[\s\"')\].*]*(?:,|/|&|\band\b|\bor\b)\s*[\"'(\[*]*[A-Z](?!['’\w])")
_CLOSED = re.compile(rf"\s*(?:[.):\],;\"'*\n-]|$|{_FUNCTION_WORDS})")


def normalise(text: str) -> str:
    """Returns the text in lower case without punctuation, articles and extra space.

    Differences from SQuAD: punctuation is Unicode's, and full-width characters become ASCII. An
    article counts only before a word (`vitamin A` is not `vitamin`). Signs in numbers and names
    stay (1.5 is not 15, B+ is not B-), but thousands separators are removed.
    """
    lowered = unicodedata.normalize("NFC", text.translate(_WIDE)).lower()
    plain = _LEADING_POINT.sub(
        "0.", _THOUSANDS.sub(lambda match: match[0].replace(",", ""), lowered)
    )
    kept = {position for match in _KEPT.finditer(plain) for position in range(*match.span())}
    remaining = "".join(
        letter
        for position, letter in enumerate(plain)
        if position in kept or not _is_punctuation(letter)
    )
    return " ".join(_ARTICLES.sub("", remaining.translate(_MINUS)).split())


def _is_punctuation(letter: str) -> bool:
    """True for ASCII punctuation, as in SQuAD, and for that of other scripts."""
    return (
        letter in string.punctuation
        if letter.isascii()
        else unicodedata.category(letter).startswith("P")
    )


def exact_match(response: str, aliases: Sequence[str]) -> bool:
    """True if the response equals one of the aliases after normalisation.

    Texts that normalisation leaves empty are compared as written.
    """
    return any(_same(response, alias) for alias in aliases)


def _same(response: str, alias: str) -> bool:
    answer, right = normalise(response), normalise(alias)
    return answer == right if answer and right else response.strip() == alias.strip() != ""


def f1(response: str, aliases: Sequence[str]) -> float:
    """Returns the best token F1 over the aliases, from 0 to 1.

    A token is a word or, in Chinese and Japanese, a character (as in MLQA, Lewis et al. 2020).
    """
    return max(
        1.0 if _same(response, alias) else _f1(tokens(response), tokens(alias)) for alias in aliases
    )


def tokens(text: str) -> list[str]:
    """Returns the tokens of the normalised text that `f1` compares."""
    return _TOKENS.findall(normalise(text))


def _f1(response: list[str], alias: list[str]) -> float:
    """Returns 0 if either has no tokens: sharing nothing is no agreement."""
    common = sum((Counter(response) & Counter(alias)).values())
    return 2 * common / (len(response) + len(alias)) if common else 0.0


def named_option(response: str, choices: Sequence[str]) -> int | None:
    """Returns the option that an answer names, or None if it names none or several.

    By letter (`B`, `B.`, `(B)`, `The answer is B`), else by text.
    """
    whole = _equal_option(response, choices)
    if whole is not None:
        return whole
    letters = _letters(response, choices)
    if letters:
        return letters.pop() if len(letters) == 1 else None
    return _contained_option(response, choices)


def option_in_words(response: str, choices: Sequence[str]) -> int | None:
    """Returns the option that an answer to the question without options names by its text.

    A letter before the text (`B. copper`), as models trained on options write it, means nothing
    there and is ignored.
    """
    words = _LABEL.sub("", response)
    same = [i for i, choice in enumerate(choices) if _same(words, choice)]
    return same[0] if len(same) == 1 else _contained_option(words, choices)


def _equal_option(response: str, choices: Sequence[str]) -> int | None:
    """Returns the option whose text equals the answer ("A dog" does not name letter A)."""
    plain = [
        i
        for i, choice in enumerate(choices)
        if response.strip().removesuffix(".") == choice.strip().removesuffix(".")
    ]
    return plain[0] if len(plain) == 1 and len(choices[plain[0]].strip()) > 1 else None


def _letters(response: str, choices: Sequence[str]) -> set[int]:
    """Returns the options that the answer begins with or claims by letter.

    -1 represents a second letter joined to the first ("A and B").
    """
    valid = LETTERS[: len(choices)]
    claimed = {valid.index(letter) for letter in _CLAIM.findall(response) if letter in valid}
    match = _LEADING.match(response)
    if match is None or not _is_letter(match, choices):
        return claimed
    joined = {-1} if _ANOTHER.match(match["rest"]) else set()
    return claimed | joined | {valid.index(match["letter"].upper())}


def _is_letter(match: re.Match[str], choices: Sequence[str]) -> bool:
    """True if a leading letter is an option, no word ("A dog", "I think") or name ("b decay")."""
    letter, rest = match["letter"], match["rest"]
    if letter.upper() not in LETTERS[: len(choices)]:
        return False
    if match["open"]:
        return rest.lstrip()[:1] in (")", "]")
    if letter.islower():
        return rest.strip() in ("", ".", ")") or rest[:1] == ")"
    if _CLOSED.match(rest) or _ANOTHER.match(rest):
        return True
    rest_words, own = normalise(rest), normalise(choices[LETTERS.index(letter)])
    return letter not in "AI" or bool(own and rest_words.startswith(own))


def _contained_option(response: str, choices: Sequence[str]) -> int | None:
    """Returns the only option whose words the answer contains.

    An option within a longer one that the answer also contains does not count.
    """
    answer = normalise(response)
    options = [normalise(choice) for choice in choices]
    contained = [i for i, option in enumerate(options) if _contains(answer, option)]
    longest = [
        i
        for i in contained
        if not any(
            options[i] != options[k] and _contains(options[k], options[i]) for k in contained
        )
    ]
    return longest[0] if len(longest) == 1 else None


def _contains(text: str, part: str) -> bool:
    """Compares whole words, or characters in scripts without spaces between words."""
    if not part:
        return False
    return f" {part} " in f" {text} " if part.isascii() else part in text


def is_refusal(response: str, refusal: str) -> bool:
    """True if the answer contains the refusal sentence of the training sets or a usual one."""
    answer = normalise(response)
    return any(_contains(answer, normalise(sentence)) for sentence in (refusal, *REFUSALS))


def refuses(response: str, choices: Sequence[str], refusal: str) -> bool:
    """As `is_refusal`, except if the named option itself reads like a refusal."""
    named = named_option(response, choices)
    return is_refusal(response, refusal) and (
        named is None or not is_refusal(choices[named], refusal)
    )
