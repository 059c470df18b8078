"""Which columns of an unknown table hold question, options and answer, by their usual names."""

from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from ift_scale.errors import DataError, Place
from ift_scale.io.jsonl import Row

# Commonest first: a table may have several of them.
_QUESTION = ("question", "question_stem", "stem", "query", "prompt", "question_text", "Question")
_CHOICES = ("choices", "options", "endings", "answers", "candidates")
_ANSWER = tuple(
    "answer answerKey answer_key answer_idx answer_index correct correct_answer correct_option "
    "gold label target cop Answer".split()
)
_ALIASES = ("aliases", "possible_answers", "answers", "answer")
_ID = ("id", "question_id", "qid", "uid", "ID")
_SUBJECT = ("subject", "subject_name", "topic", "category")
_EXPLANATION = ("explanation", "rationale", "solution", "exp", "support", "Explanation")
# Columns of one option each: {0} is a letter or a number, {1} a capital.
_LETTERED = tuple(
    "{0} {1} option_{0} option_{1} option{1} option{0} op{0} choice_{0} choice_{1} ans{1}".split()
)
_NUMBERED = tuple("option{0} option_{0} choice{0} choice_{0} answer{0} answer_{0}".split())


def fields_of(path: str, row: Row) -> dict[str, Any]:
    """The `fields` of a huggingface source, as in a configuration; those at their default left out.

    DataError, with the columns that there are, if question, options or answer are not among them.
    """
    question = _first(row, _QUESTION)
    if question is None:
        raise _not_found(path, row, "the question", _QUESTION)
    choices = _choices(row)
    fields: dict[str, Any] = {"question": question}
    if choices is None:
        aliases = next((name for name in _ALIASES if isinstance(row.get(name), list)), None)
        if aliases is None:
            raise _not_found(
                path, row, "the options", (*_CHOICES, "A to D", "option_a to option_d")
            )
        fields["aliases"] = aliases
    else:
        answer = next((name for name in _ANSWER if name in row and name != choices), None)
        if answer is None:
            raise _not_found(path, row, "the answer", _ANSWER)
        fields |= {"choices": choices, "answer": answer}
        if answer == "cop":
            fields["answer_form"] = "index_from_1"  # MedMCQA's authors count so
    others = {"id": _ID, "subject": _SUBJECT, "explanation": _EXPLANATION}
    return fields | {ours: name for ours, names in others.items() if (name := _first(row, names))}


def _choices(row: Row) -> str | list[str] | None:
    """A column with a list of options, one with such a list inside, or a column for each option."""
    for name in _CHOICES:
        value = row.get(name)
        if _is_options(value):
            return name
        if isinstance(value, dict) and _is_options(value.get("text")):
            return f"{name}.text"
    patterns = [[p.format(c, c.upper()) for c in ascii_lowercase] for p in _LETTERED]
    patterns += [[p.format(n) for n in range(first, 10)] for p in _NUMBERED for first in (0, 1)]
    for names in patterns:
        found = _leading(row, names)
        if len(found) >= 2:
            return found
    return None


def _leading(row: Row, names: Sequence[str]) -> list[str]:
    """The names up to the first that is no column."""
    count = next((i for i, name in enumerate(names) if name not in row), len(names))
    return list(names[:count])


def _is_options(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(isinstance(v, str) for v in value)


def _first(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _not_found(path: str, row: Row, what: str, names: Sequence[str]) -> DataError:
    problem = f"no column is known to hold {what}; the columns are {', '.join(map(str, row))}"
    remedy = (
        f"Rename one ({', '.join(names)}), or write the source by hand with `fields` "
        "(docs/questions.md)"
    )
    return DataError(Place(path), problem, remedy)
