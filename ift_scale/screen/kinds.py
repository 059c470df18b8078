"""Recognises what kind of example a conversation is, by its form alone.

    choice   the last user turn has lettered options, and the answer names one of them
    short    the answer has at most SHORT_WORDS words
    long     any other answer
    other    the answer does not come from knowledge: rewriting, given input, code, sums, fiction

`choice` and `short` follow from the form. `other` is a heuristic: measures where possible (how much
of the answer is in the prompt, how much of it is code), English words at the beginning of the
instruction otherwise. Pure functions.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from ift_scale.prompts.answer_parsing import named_option, normalise, tokens
from ift_scale.records import LETTERS, Message

KINDS = ("choice", "short", "long", "other")
ExampleKind = Literal["choice", "short", "long", "other"]
SHORT_WORDS = 8
COPIED_SHARE = 0.8
"""Least share of the answer's words that the prompt has in an answer made from the prompt."""
_GIVEN_WORDS = 8
"""Least words of a second paragraph that counts as input."""
_EXPLANATION_WORDS = 4
_LEAD_CHARACTERS = 60
"""Most characters before the option's text in an answer that begins by naming the option."""
_LETTER_FIRST = re.compile(
    r"\W*(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?\W*(?:option )?)?"
    r"\(?[A-Za-z][).:,]+",
    re.IGNORECASE,
)

# A letter as a mark of an option: `A.`, `A)`, `(A)`, `A:`, `[A]`, `**A.**`, at the beginning of a
# line or after white space.
_STYLES = tuple(
    re.compile(rf"(?P<before>{start})[*_]{{0,2}}{mark}[*_]{{0,2}}{after}", re.MULTILINE)
    for start, after in ((r"^[ \t]*(?:[-*•][ \t]+)?", r"[ \t]*"), (r"(?:^|(?<=[\s,;]))", r"[ \t]+"))
    for mark in (
        r"\((?P<letter>[A-Z])\)[.:]?",
        r"\[(?P<letter>[A-Z])\][.:]?",
        r"(?P<letter>[A-Z])\.(?!\w\.)",
        r"(?P<letter>[A-Z])\)",
        r"(?P<letter>[A-Z]):",
        r"\((?P<letter>[a-z])\)",
        r"(?P<letter>[a-z])\)",
        r"(?P<letter>[a-z])\.(?!\w\.)",
    )
)
_ANSWER_HERE = re.compile(
    r"^\W*(?:(?:the\s+)?(?:correct\s+)?(?:answer|response)\W*(?:is)?\W*"
    r"|(?:please\s+)?(?:answer|respond|reply|choose|select|pick|give|return|output)\b.*)$",
    re.IGNORECASE,
)
_OPTIONS_FOLLOW = re.compile(
    r"\s*(?:(?:answer\s+)?(?:options|choices)|select one|choose one)\s*:?\s*$", re.IGNORECASE
)
_QUESTION_FOLLOWS = re.compile(r"^\s*question\s*:\s*", re.IGNORECASE)
_PASSAGE = re.compile(
    r"^\s*(?:context|passage|paragraph|article|document|excerpt)\s*:"
    r"|\b(?:read|based on|according to|given) the (?:following|given|above)?\s*"
    r"(?:passage|context|paragraph|article|text|excerpt)",
    re.IGNORECASE | re.MULTILINE,
)

_START = r"(?i)^\W*(?:(?:please|now|next|can you|could you|would you|i want you to|help me)\W+)*"
_REWRITES = re.compile(
    _START + r"(?:translate|rewrite|re-write|rephrase|reword|paraphrase|summari[sz]e|edit|proofread"
    r"|revise|convert|transform|classify|categori[sz]e|extract|sort|arrange|rearrange|reorder"
    r"|replace|shorten|simplify|combine|reverse|transcribe|correct|fix|complete|fill in|add"
    r"|remove|change|turn|tag|label|highlight|underline|count|separate|split|group|unscramble"
    r"|detect|format|capitali[sz]e|find the error|identify the (?:error|mistake|part of speech"
    r"|tone|sentiment|subject|verb|noun|adjective|main idea))\b"
)
_FICTION = re.compile(
    _START + r"(?:(?:write|compose|create|generate|make up|make|tell me|tell|draft|craft|invent"
    r"|produce|come up with|give me|give|think of|suggest|design|develop|prepare|construct)\b"
    r"[^.?!\n]{0,80}?\b(?:poem|haiku|limerick|sonnet|verse|story|tale|song|lyrics|rap|slogan"
    r"|tagline|tweet|e-?mail|letter|dialogue|dialog|conversation|joke|riddle|pun|headline|title"
    r"|caption|speech|script|plot|character|scene|review|advertisement|ad|sentence|sentences"
    r"|name|names|post|message|metaphor|simile|analogy|paragraph|blog|cover|invitation|toast"
    r"|persona|fable|novel|world|logo|hashtag|hashtags)\b|imagine|pretend|role-?play|invent"
    r"|brainstorm|improvi[sz]e)"
)
_PROGRAMS = re.compile(
    _START + r"(?:write|create|implement|code|generate|develop|design|build|debug|refactor)\b"
    r"[^.?!\n]{0,80}?\b(?:function|program|script|code|query|class|regex|regular expression"
    r"|algorithm|sql|html|css|python|java|javascript|c\+\+|method|api|webpage|app)\b"
)
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import|return\b|for .*[:{]$|while .*[:{]$|if .*[:{]$"
    r"|else\s*[:{]|#include|public |private |var |let |const |function |SELECT |INSERT |UPDATE "
    r"|CREATE TABLE|<\/?\w+[^>]*>|[\w.\[\]]+\s*[-+*]?=\s*\S.*|[{}();\s]+$|print\(|console\.)"
)
_CODE_SHARE = 0.4
_SUMS = re.compile(
    _START + r"(?:(?:calculate|compute|evaluate|solve|simplify|round|multiply|divide|subtract"
    r"|factor|convert|find the (?:sum|product|average|mean|median|area|volume|perimeter|value"
    r"|square root|slope|derivative|integral|greatest|least|lowest|roots?|next))\b"
    r"|(?:what is|what's|how much is)\s+[-(]?\d)"
)
_OPERATION = re.compile(r"\d\s*[-+*/×÷^=]\s*\(?-?[\dx]")
_REFERS = re.compile(
    r"(?i)\b(?:following|given|this|these|above|below|provided|next|sentence|text|passage"
    r"|paragraph|list|table|article|input)\b|:\s*$"
)
_PARENTHESES = re.compile(r"\s*\([^()]*\)\s*")


class Lettered(NamedTuple):
    """A text with lettered options, taken apart. `question` is the rest of the text."""

    question: str
    choices: list[str]


class Recognised(NamedTuple):
    """What an example is. `question` is what is asked; `why` says by what it was recognised.

    Choice questions have `choices`, `answer` (an index) and the `explanation` after the answer, if
    any. `aliases` of other kinds are the texts that count as the reference.
    """

    kind: ExampleKind
    why: str
    question: str
    choices: list[str]
    answer: int | None
    aliases: list[str]
    explanation: str | None = None


def recognise(messages: Sequence[Message]) -> Recognised:
    """Returns the kind of a checked conversation, by its last user turn and the answer to it."""
    asked, response = prompt_text(messages), messages[-1].content.strip()
    lettered = options_in(messages[-2].content)
    if lettered is not None:
        answer = named_option(response, lettered.choices)
        if answer is not None:
            return _choice(messages, lettered, answer, response)
    reason = _not_about_knowledge(messages[-2].content.strip(), response)
    if reason is not None:
        return Recognised("other", reason, asked, [], None, [response])
    num_words = len(tokens(response))
    why = f"an answer of {num_words} words"
    if num_words <= SHORT_WORDS:
        return Recognised("short", why, asked, [], None, aliases(response))
    return Recognised("long", why, asked, [], None, [response])


def prompt_text(messages: Sequence[Message]) -> str:
    """Returns everything before the answer as text; earlier turns are named by their speaker."""
    turns = messages[:-1]
    if len(turns) == 1:
        return turns[0].content.strip()
    names = {"system": "", "user": "User: ", "assistant": "Assistant: "}
    if [turn.role for turn in turns] == ["system", "user"]:
        names["user"] = ""
    return "\n\n".join(names[turn.role] + turn.content.strip() for turn in turns)


def _choice(
    messages: Sequence[Message], lettered: Lettered, answer: int, response: str
) -> Recognised:
    asked = Message(role="user", content=lettered.question)
    before = prompt_text([*messages[:-2], asked, messages[-1]])
    if _PASSAGE.search(before):
        why = "options about a passage that the prompt contains"
        return Recognised("other", why, before, [], None, [response])
    count = len(lettered.choices)
    return Recognised(
        "choice",
        f"{count} lettered options, and the answer names {LETTERS[answer]}",
        before,
        lettered.choices,
        answer,
        [],
        explanation_of(response, lettered.choices[answer]),
    )


def options_in(text: str) -> Lettered | None:
    """Returns the question and the options if the text has a run of them, A, B, ... in order.

    Options begin at lines, or in the middle of one. The last run counts. Text after the last option
    belongs to the question unless it only asks for the answer.
    """
    for number, style in enumerate(_STYLES):
        marks = _run(list(style.finditer(text)))
        if marks is None:
            continue
        by_line = number < len(_STYLES) // 2
        ends = [mark.start() for mark in marks[1:]] + [_end_of_last(text, marks[-1])]
        choices = [
            text[mark.end() : end].strip(" \t\n,;*_") for mark, end in zip(marks, ends, strict=True)
        ]
        if not all(choices) or (by_line and any("\n\n" in choice for choice in choices[:-1])):
            continue
        if len({choice.casefold() for choice in choices}) < len(choices):
            continue
        question = text[: marks[0].start()]
        rest = [line for line in text[ends[-1] :].splitlines() if line.strip()]
        rest = [line for line in rest if not _ANSWER_HERE.match(line)]
        question = _QUESTION_FOLLOWS.sub("", _OPTIONS_FOLLOW.sub("", question)).strip()
        question = "\n".join([question, *rest]).strip()
        if question:
            return Lettered(question, choices)
    return None


def _run(marks: list[re.Match[str]]) -> list[re.Match[str]] | None:
    """Returns the last run A, B, ... of at least two marks, or None."""
    starts = [n for n, mark in enumerate(marks) if mark["letter"].upper() == "A"]
    for start in reversed(starts):
        run = [marks[start]]
        for mark in marks[start + 1 :]:
            if mark["letter"].upper() == LETTERS[min(len(run), len(LETTERS) - 1)]:
                run.append(mark)
            elif mark["letter"].upper() == "A":
                break
        if len(run) > 1:
            return run
    return None


def _end_of_last(text: str, mark: re.Match[str]) -> int:
    end = text.find("\n", mark.end())
    return len(text) if end < 0 else end


def explanation_of(response: str, choice: str) -> str | None:
    """Returns what a response says after it has named its option, None if it says no more."""
    position, letter = response.casefold().find(choice.casefold()), _LETTER_FIRST.match(response)
    rest = ""
    if 0 <= position <= _LEAD_CHARACTERS:
        rest = response[position + len(choice) :]
    elif letter:
        rest = response[letter.end() :]
    rest = rest.lstrip(' \t\n.,;:-–—)*"')
    return rest.strip() if len(tokens(rest)) >= _EXPLANATION_WORDS else None


def aliases(response: str) -> list[str]:
    """Returns the texts that count as a short answer: itself, and without its parentheses."""
    plain = _PARENTHESES.sub(" ", response).strip()
    return list(dict.fromkeys([response, *([plain] if normalise(plain) else [])]))


def copied_share(response: str, prompt: str) -> float:
    """Returns the share of the response's words that occur in the prompt, from 0 to 1."""
    words, known = tokens(response), set(tokens(prompt))
    return sum(word in known for word in words) / len(words) if words else 0.0


def code_share(text: str) -> float:
    """Returns the share of a text's non-empty lines that look like code, 1 if it has a fence."""
    if "```" in text:
        return 1.0
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(_CODE_LINE.match(line) is not None for line in lines) / max(1, len(lines))


def _not_about_knowledge(asked: str, response: str) -> str | None:
    """Returns why an answer does not come from knowledge, None if it may."""
    instruction, _, given = asked.partition("\n\n")
    has_input = len(tokens(given)) >= _GIVEN_WORDS and _REFERS.search(instruction) is not None
    if code_share(response) >= _CODE_SHARE or _PROGRAMS.search(instruction):
        return "code"
    if (_SUMS.search(instruction) and _OPERATION.search(asked)) or _is_sum(asked, response):
        return "a calculation with given numbers"
    if has_input or _PASSAGE.search(asked):
        return "works on input that the prompt contains"
    if _REWRITES.search(instruction):
        return "an instruction to change a text"
    if _FICTION.search(instruction):
        return "an instruction to invent a text"
    num_words = len(tokens(response))
    if num_words > 2 and len(tokens(asked)) >= num_words + 3:
        share = copied_share(response, asked)
        if share >= COPIED_SHARE and (num_words > SHORT_WORDS or len(tokens(asked)) > 30):
            return f"{share:.0%} of the answer's words are in the prompt"
    return None


def _is_sum(asked: str, response: str) -> bool:
    """True if the answer is a number and the prompt has several numbers or an operation."""
    is_number = re.fullmatch(r"[-+$€£]?[\d.,/ ]*\d[\d.,/ ]*%?\.?", response.strip()) is not None
    num_numbers = len(re.findall(r"\d+(?:\.\d+)?", asked))
    return is_number and (num_numbers > 1 or _OPERATION.search(asked) is not None)
