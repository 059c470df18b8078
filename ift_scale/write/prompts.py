"""Prompts for writers: explain one option, write the knowledge that a question needs, or ask the
question in other words.

There are three styles (WriterConfig.style). `urial` is an instruction and one demonstration in the
markup of URIAL (Lin et al. 2023, arXiv 2312.01552). It begins the answer with the option, so that a
base model explains it instead of choosing another; the text ends with the closing fence. `chat` is
one user message. `plain` is the question, its answer and `Explanation:`, up to the end of the line.
A writer of paraphrases sees neither the options nor the answer.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from ift_scale.prompts.explanations import contradicts, names
from ift_scale.prompts.templates import gold_text, question_text, response_text
from ift_scale.records import Question, TextKind

Style = Literal["urial", "chat", "plain"]
FENCE = "```"
_LONGEST_DEMONSTRATION = 1200

_INSTRUCTION = """# Instruction

Below is a list of conversations between a human and an AI assistant (you).
Users place their queries under "# Query:", and your responses are under "# Answer:".
You are a helpful and knowledgeable assistant: you state facts plainly, in a few complete \
sentences, and stay with the question.

"""
_BLOCK = f"# Query:\n{FENCE}\n{{query}}\n{FENCE}\n\n# Answer:\n{FENCE}\n{{answer}}"
_EXPLAIN = "Answer the question and explain in a few sentences why this option is the answer."
_TELL = (
    "The answer is: {gold}\n\nWrite down, in a few sentences, the background knowledge from which"
    " this follows. Do not mention the question, the options or their letters."
)
_EXPLAIN_CHAT = (
    "{question}\n\nThe answer is {answer}. Explain in a few sentences why. Name this answer in your"
    " explanation, and call no other option the answer."
)
_REPHRASE = (
    "Ask the same question in other words. Keep all names and numbers, and do not answer it."
)
_REPHRASED = "In other words:"

# The demonstration for topics without a dev question that has a usable explanation.
FIXED = Question(
    id="fixed",
    domain="biology",
    subject="biology",
    collection="pool",
    split="dev",
    question="Which gas do plants take up from the air for photosynthesis?",
    choices=["Oxygen", "Carbon dioxide", "Nitrogen", "Hydrogen"],
    answer=1,
    explanation=(
        "Plants take up carbon dioxide through small pores in their leaves. With the energy of"
        " light they make sugar of it and of water, and give off oxygen."
    ),
)
_FIXED_PARAPHRASE = "For photosynthesis, plants need which gas from the air?"


class Prompt(NamedTuple):
    """A prompt for a writer, as a user's message if `chat`. The answer ends before `stop`."""

    question_id: str
    text: str
    chat: bool
    stop: str


def prompt(
    question: Question, kind: TextKind, target: int | None, style: Style, shown: Question
) -> Prompt:
    """Returns the prompt for an explanation of option `target`, a context or a paraphrase.

    `shown` is the demonstration of the first two. The prompt for a context contains the right
    answer without its letter.
    """
    if kind == "paraphrase":
        return _paraphrase(question, style)
    query = question_text(question)
    if style == "plain":
        answer = f" {gold_text(question)}" if question.kind == "free" else _answer(question, target)
        return Prompt(question.id, f"{query}{answer}\nExplanation:", False, "\n")
    query = query.removesuffix("\nAnswer:").replace(FENCE, "'''")
    if style == "chat":
        text = f"{query}\n\n{_tell(question)}"
        if kind == "explanation":
            text = _EXPLAIN_CHAT.format(question=query, answer=_answer(question, target))
        return Prompt(question.id, text, True, "")
    text = (
        _INSTRUCTION
        + f"{_block(shown, kind, shown.answer)} {shown.explanation}\n{FENCE}\n\n"
        + _block(question, kind, target)
    )
    return Prompt(question.id, text, False, FENCE)


def _paraphrase(question: Question, style: Style) -> Prompt:
    asked = question.question.replace(FENCE, "'''")
    if style == "plain":
        return Prompt(question.id, f"{question.question}\n{_REPHRASED}", False, "\n")
    if style == "chat":
        text = f"{asked}\n\n{_REPHRASE} Write only the new question."
        return Prompt(question.id, text, True, "")
    shown, own = (
        _BLOCK.format(query=f"{text}\n\n{_REPHRASE}", answer=_REPHRASED)
        for text in (FIXED.question, asked)
    )
    text = f"{_INSTRUCTION}{shown} {_FIXED_PARAPHRASE}\n{FENCE}\n\n{own}"
    return Prompt(question.id, text, False, FENCE)


def _block(question: Question, kind: TextKind, target: int | None) -> str:
    """Returns a query and the beginning of its answer."""
    query = question_text(question).removesuffix("\nAnswer:").replace(FENCE, "'''")
    if kind == "explanation":
        return _BLOCK.format(
            query=f"{query}\n\n{_EXPLAIN}", answer=f"{_answer(question, target)}\nExplanation:"
        )
    return _BLOCK.format(query=f"{query}\n\n{_tell(question)}", answer="Background:")


def _answer(question: Question, target: int | None) -> str:
    chosen = question.answer if target is None else target
    assert chosen is not None
    return response_text(question, chosen, "letter_text").replace(FENCE, "'''")


def _tell(question: Question) -> str:
    return _TELL.format(gold=gold_text(question).replace(FENCE, "'''"))


def cut(text: str, stop: str) -> str:
    """Returns the generated text up to its end, without surrounding white space."""
    for end in (stop, *(("# Query:",) if stop == FENCE else ())):
        text = text.lstrip().partition(end)[0] if end else text
    return text.strip()


class TopicDemonstrations:
    """The demonstration of each topic.

    It is the topic's first dev question whose explanation is short, names the answer and claims no
    other option.
    """

    def __init__(self, dev: Sequence[Question]):
        self._by_topic: dict[tuple[str, str], Question] = {}
        for question in dev:
            if _usable(question):
                self._by_topic.setdefault((question.collection, question.topic), question)

    def of(self, question: Question) -> Question:
        return self._by_topic.get((question.collection, question.topic), FIXED)


def _usable(question: Question) -> bool:
    text, answer = (question.explanation or "").strip(), question.answer
    if not text or answer is None or len(text) > _LONGEST_DEMONSTRATION or FENCE in text:
        return False
    return names(text, question, answer) and not contradicts(text, question, answer)
