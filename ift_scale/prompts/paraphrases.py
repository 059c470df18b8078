"""Checks a question in other words: that it still asks the same, without its answer.

Pure functions. The checks are of form; a paraphrase that passes may still ask for something else.
"""

import re

from ift_scale.prompts.explanations import names, normalise
from ift_scale.records import ParaphraseFlaw, Question

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"[.?!:]\s+|\n")
_QUOTED = re.compile(r'["“„«]([^"“”„«»]+)["”“»]')


def unquoted(text: str) -> str:
    """Returns a text without the quotation marks around all of it, which models like to write."""
    quoted = _QUOTED.fullmatch(text)
    return text if quoted is None else quoted[1].strip()


def flaws(text: str, question: Question) -> list[ParaphraseFlaw]:
    """Returns the checks that a paraphrase of `question` fails.

    It must be one line that ends with a question mark, differ from the question in more than
    punctuation and case, name no option that the question does not name, and have the question's
    numbers and capitalised words. Words that begin a sentence do not count as capitalised.
    """
    found: list[ParaphraseFlaw] = []
    if "\n" in text or not text.endswith("?"):
        found.append("not one question")
    if normalise(text) == normalise(question.question):
        found.append("repeats the question")
    options = range(len(question.choices))
    asked = question.question
    if any(names(text, question, i) and not names(asked, question, i) for i in options):
        found.append("gives an option away")
    if any(normalise(word) not in normalise(text) for word in _kept(asked)):
        found.append("lacks a name or number")
    return found


def _kept(asked: str) -> list[str]:
    """Returns the words with a digit, and those with a capital letter after a sentence's first."""
    kept = []
    for sentence in _SENTENCE_END.split(asked):
        for number, word in enumerate(_WORD.findall(sentence)):
            has_digit = any(letter.isdigit() for letter in word)
            if has_digit or (number > 0 and word[0].isupper()):
                kept.append(word)
    return kept
