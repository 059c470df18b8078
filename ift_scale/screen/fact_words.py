"""Finds the words of a response that are likely to carry a fact: a heuristic, pure functions.

Most of a response's surprisal is about wording, not knowledge. Facts are more often at the end of a
clause ("was born in 1879", "the capital is Paris"), in numbers and in names. A word counts once,
and not if the prompt has it.
"""

import re
from collections.abc import Sequence

from ift_scale.prompts.answer_parsing import normalise

_WORD = re.compile(r"\w+(?:[.,'’\-/]\w+)*")
_ENDS_CLAUSE = re.compile(r"[\"'”’)\]]*\s*(?:[.!?;:,)\n]|$)")
_BEGINS_SENTENCE = re.compile(r"(?:^|[.!?:\n])[\s\"'“(\-*•\d.]*$")
_FUNCTION_WORDS = frozenset(
    "a about above after again all also always am an and any are as at be because been"
    " before being below between both but by can could did do does doing down during each"
    " either etc even ever few for from further get had has have having he her here hers"
    " him his how however i if in into is it its itself just like many may me might more"
    " most much must my no nor not now of off often on once one only or other our out"
    " over own same she should since so some such than that the their them then there"
    " these they this those through thus to too under until up upon us very was we well"
    " were what when where whether which while who whom whose why will with within"
    " without would yes yet you your".split()
)


def fact_words(response: str, prompt: str) -> list[tuple[int, int]]:
    """Returns the (start, end) characters of the words that are likely to carry a fact."""
    seen = {normalise(word) for word in _WORD.findall(prompt)}
    found = []
    for match in _WORD.finditer(response):
        word = normalise(match[0])
        if not word or word in seen or match[0].casefold() in _FUNCTION_WORDS:
            continue
        before = response[max(0, match.start() - 12) : match.start()]
        is_name = match[0][0].isupper() and not _BEGINS_SENTENCE.search(before)
        is_end = _ENDS_CLAUSE.match(response, match.end()) is not None
        if is_end or is_name or match[0][0].isdigit():
            found.append(match.span())
            seen.add(word)
    return found


def token_starts(words: Sequence[tuple[int, int]], text: str, pieces: Sequence[str]) -> list[int]:
    """Returns the number of the token in which each word begins, for words within the tokens.

    `pieces` are the texts of the tokens of `text`. Only characters that are not white space count,
    because some tokenizers drop the space of a single token.
    """
    starts, position = [], 0
    ends = []
    for piece in pieces:
        position += sum(not letter.isspace() for letter in piece)
        ends.append(position)
    visible = [0]
    for letter in text:
        visible.append(visible[-1] + (not letter.isspace()))
    number = 0
    for start, _ in words:
        while number < len(ends) and ends[number] <= visible[start]:
            number += 1
        if number == len(ends):
            break
        starts.append(number)
    return starts
