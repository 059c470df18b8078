"""Reads explanations: which options a text names, and which ones it calls the answer.

Pure functions. Validated on the authors' released sets (docs/writing.md): these rules reproduce the
shares of explanations that never name their option.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable

from ift_scale.records import LETTERS, Question

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W_]+")
# Words joined by a lost line break ("Hyalomma tickCRIMEAN"), as in MedMCQA.
_GLUED = re.compile(r"(?<=[a-z])(?=[A-Z])")

_OPENED, _CLOSED = r"[\"'“”‘’(\[*]*", r"[\"'“”‘’)\]*]*"
_LETTER = rf"{_OPENED}(?P<letter>[A-Z])(?![\w'’]){_CLOSED}"
_RIGHT = r"(?:correct|right|best|appropriate|accurate)"
_BE = r"(?:is|was|would\s+be|should\s+be|must\s+be|will\s+be)"
_SURELY = r"(?:\s+(?:therefore|thus|hence|clearly|indeed|actually|(?:most\s+)?likely|probably))?"
_IS = rf"(?:\s+{_BE}{_SURELY}\b,?\s*:?|\s*:)"
_HERE = r"(?:\s+(?:here|(?:to|for)\s+(?:this|the|your)(?:\s+(?:given|above))?\s+question))?"
_SAID = r"(?:(?:the\s+)?(?:correct\s+)?(?:option|choice|letter|answer)\s+)?"

# "The (correct) answer is", "correct option:", "Ans.", followed by a letter or an option's words.
_ANSWER_IS = re.compile(
    rf"\b(?:(?:{_RIGHT}\s+(?:answer|option|choice|response)|answer){_HERE}{_IS}"
    rf"|ans(?:wer)?\s*[.:-]+(?:\s*is)?)\s*{_SAID}",
    re.I,
)
_ANSWER_IS_NOT = re.compile(
    rf"\banswer{_HERE}\s+{_BE}{_SURELY}\s+not\s+(?:necessarily\s+)?{_SAID}", re.I
)
# Of two letters joined by "and", neither alone is the answer. "A" before a lower-case word is an
# article, except before some words.
_LETTER_HERE = re.compile(
    rf"{_LETTER}(?!\s*(?:,|and|or|&)\s*{_OPENED}[A-Z](?![\w'’]))"
    r"(?!(?<=A)\s+(?!because|as\b|since|for\b|which|is\b)[a-z])"
)
# MedMCQA's "Ans. (c) copper", "ANSWER: (B) copper", "Ans. is 'b' i.e. copper", "B i.e. copper".
_KEY = re.compile(
    r"\b(?:ans\b\s*[.:-]*|answer\s*[.:-]+)\s*(?:is\s+)?"
    r"(?:[\"'“(\[]+(?P<letter>[A-Z])[\"'”)\]]|(?P<dotted>[A-Z])(?:[).,]|\s+i\.?e\b))"
    r"|^\W*(?P<begun>[A-Z])\W{0,2}i\.?e\b",
    re.I,
)
# 'The answer "copper" is correct' or incorrect; "copper is the correct answer".
_QUOTED_ANSWER = re.compile(
    r"\b(?:answer|option|choice)(?:\s+(?:given|provided))?,?\s+[\"“'](?P<quoted>[^\"”]+?)[,.]?[\"”']"
    r"\s*,?\s+(?:given\s+)?is\s+(?:actually\s+)?(?:(?P<no>not|incorrect|wrong|inaccurate)"
    r"|(?:the\s+)?(?:most\s+)?(?:correct|right|accurate|best))\b",
    re.I,
)
_IS_ANSWER = re.compile(
    rf"[\"”']?\s+(?:is|are|was|were)\s+the\s+(?:only\s+)?{_RIGHT}\s+(?:answer|option|choice)\b",
    re.I,
)
# "B is correct", "option B is the right answer".
_LETTER_IS_ANSWER = re.compile(
    rf"(?<![\w'’]){_LETTER}\s+(?:is|was|would\s+be)\s+(?:therefore\s+|thus\s+)?"
    rf"(?:(?P<answer>the\s+(?:only\s+)?(?:{_RIGHT}\s+)?(?:answer|option|choice))"
    r"|(?:correct|right)\b(?!\s+(?:that|to|in)\b))"
)
_JOINED_BEFORE = re.compile(
    r"(?:[A-Z](?:,|\s+and|\s+or|\s*&)|neither|nor|both|,)\s*(?:[Oo]ptions?\s+)?$"
)
# Phrases that mention an option by its letter, the answer or not: "option B", "(B)", a sentence
# that is "B." or begins with "B:".
_SPOKEN_OF = re.compile(
    rf"\b(?i:options?|choices?|answers?)\s*:?\s+{_LETTER}"
    r"|\((?P<bracketed>[A-Z])\)"
    r"|(?:^|[.!?:]\s+|[\"“])(?P<listed>[A-Z])[.):](?=[\s\"”]|$)",
    re.MULTILINE,
)
_SUPPOSED = re.compile(
    r"\b(?:not|never|no|if|whether|why|unless|cannot|wrongly|mistakenly|incorrectly|instead\s+of"
    r"|rather\s+than)\b|n['’]t\b",
    re.I,
)
_ASKS_FOR_WRONG = re.compile(
    r"\b(?:not|except|incorrect|incorrectly|wrong|false|untrue|inaccurate|inappropriate|least"
    r"|cannot|improper|unreasonable|inconsistent)\b",
    re.I,
)
_LONGEST_OPTION = 600
_CLAUSE = re.compile(r"[.!?;\n]")


def normalise(text: str) -> str:
    """Returns lower-case words and numbers with spaces around, so `in` compares whole words."""
    words = _WORD.findall(unicodedata.normalize("NFKC", _GLUED.sub(" ", text)).casefold())
    return f" {' '.join(words)} " if words else ""


def names(text: str, question: Question, target: int) -> bool:
    """True if the text names option `target`, by its words or letter or as the answer."""
    return _has_option(text, question.choices, target) or target in _letters_spoken_of(
        text, len(question.choices)
    ) | claimed(text, question)


def contradicts(text: str, question: Question, target: int) -> bool:
    """True if the text calls another option the answer, or denies that this one is."""
    return bool(claimed(text, question) - {target}) or target in denied(text, question)


def claimed(text: str, question: Question) -> set[int]:
    """Returns the options that the text calls the answer, by letter or by words.

    A clause with a denial or a condition before the claim does not count. If the question asks for
    what is wrong, "B is correct" describes B and does not call it the answer.
    """
    choices, options_claimed = question.choices, set()
    for match in _ANSWER_IS.finditer(text):
        if not _is_supposed(text, match.start()):
            options_claimed |= _option_at(text[match.end() :], choices)
    for match in _KEY.finditer(text):
        options_claimed |= _indices(
            [(match["letter"] or match["dotted"] or match["begun"]).upper()], len(choices)
        )
    for match in _LETTER_IS_ANSWER.finditer(text):
        spoken_only = match["answer"] is None and _ASKS_FOR_WRONG.search(question.question)
        before = text[: match.start()]
        if (
            not spoken_only
            and not _is_supposed(text, match.start())
            and not _JOINED_BEFORE.search(before[-24:])
        ):
            options_claimed |= _indices([match["letter"]], len(choices))
    for match in _IS_ANSWER.finditer(text):
        if not _is_supposed(text, match.start()):
            options_claimed |= _option_before(_CLAUSE.split(text[: match.start()])[-1], choices)
    return options_claimed | {
        index
        for match in _QUOTED_ANSWER.finditer(text)
        if not match["no"]
        for index in _quoted(match, choices)
    }


def denied(text: str, question: Question) -> set[int]:
    """Returns the options explicitly called not the answer, as in "the answer is not B"."""
    options_denied = {
        index
        for match in _QUOTED_ANSWER.finditer(text)
        if match["no"]
        for index in _quoted(match, question.choices)
    }
    for match in _ANSWER_IS_NOT.finditer(text):
        options_denied |= _option_at(text[match.end() :], question.choices)
    return options_denied


def _quoted(match: re.Match[str], options: list[str]) -> set[int]:
    """Returns the options that equal a quotation, with or without their letter."""
    quoted = normalise(match["quoted"])
    return {
        i
        for i, option in enumerate(options)
        if quoted and quoted in (normalise(option), normalise(f"{LETTERS[i]}. {option}"))
    }


def _is_supposed(text: str, position: int) -> bool:
    """True if the clause before `position` denies or only supposes what follows."""
    clause = _CLAUSE.split(text[max(0, position - 80) : position])[-1]
    return _SUPPOSED.search(clause) is not None


def _option_at(text: str, options: list[str]) -> set[int]:
    """Returns the option that the text begins with.

    That is the longest option whose words match (an option may begin with "A"), else its letter's.
    """
    beginning = normalise(text[:_LONGEST_OPTION])
    named = _longest(
        options,
        lambda words: any(
            beginning.startswith(article + words) for article in ("", " the", " a", " an")
        ),
    )
    letter = None if named else _LETTER_HERE.match(text)
    return named if letter is None else _indices([letter["letter"]], len(options))


def _option_before(text: str, options: list[str]) -> set[int]:
    """Returns the longest option whose words end the text."""
    ending = normalise(text[-_LONGEST_OPTION:])
    return _longest(options, ending.endswith)


def _longest(options: list[str], matches: Callable[[str], bool]) -> set[int]:
    """Returns the longest matching option, or none if several are equally long."""
    matching = [
        (len(words), i)
        for i, option in enumerate(options)
        if (words := normalise(option)) and matches(words)
    ]
    longest = max((length for length, _ in matching), default=0)
    first = {i for length, i in matching if length == longest}
    return first if len(first) == 1 else set()


def _has_option(text: str, options: list[str], target: int) -> bool:
    """True if the text contains the option's words, not only within a longer option's."""
    option = normalise(options[target])
    if not option:
        return options[target].strip() in text
    if len(option) == 3 and option.strip().isalpha():
        return False  # a single letter is as likely an article or a pronoun
    words = normalise(text)
    for longer in sorted((normalise(option) for option in options), key=len, reverse=True):
        if longer != option and option in longer:
            words = words.replace(longer, " | ")
    return option in words or f"{option[:-1]}s " in words


def _letters_spoken_of(text: str, num_options: int) -> set[int]:
    """Returns the options that the text mentions by letter, as the answer or not."""
    letters = [
        match["letter"] or match["bracketed"] or match["listed"]
        for match in _SPOKEN_OF.finditer(text)
    ]
    return _indices(letters, num_options)


def _indices(letters: Iterable[str], num_options: int) -> set[int]:
    return {index for letter in letters if (index := LETTERS.index(letter)) < num_options}
