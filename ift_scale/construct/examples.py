"""Turns items into training examples in chat form."""

from collections.abc import Mapping

from ift_scale.config.construct import ConstructConfig
from ift_scale.construct.even_letters import swapped
from ift_scale.construct.items import Item
from ift_scale.prompts.templates import chat_messages, gold_text, response_text, without_options
from ift_scale.prompts.texts import AuthorGroup, TextKey
from ift_scale.records import (
    LETTERS,
    Example,
    ExampleMeta,
    Message,
    Question,
    Score,
    Text,
    TextKind,
    Wording,
)
from ift_scale.treatments import treatment


class Builder:
    """Builds the examples of one domain."""

    def __init__(
        self,
        config: ConstructConfig,
        questions: Mapping[str, Question],
        scores: Mapping[str, Score],
        texts: Mapping[TextKey, Text],
        invented: Mapping[str, Question],
    ):
        self._config, self._questions, self._scores, self._texts = config, questions, scores, texts
        self._invented = invented

    def question(self, item: Item) -> Question:
        questions = self._invented if item.target == "random" else self._questions
        return questions[item.question_id]

    def target(self, item: Item) -> int | None:
        """Returns the index of the option to teach; None for a refusal or a free question."""
        if item.target == "refusal":
            return None
        return (
            self._scores[item.question_id].prediction
            if item.target == "predicted"
            else self.question(item).answer
        )

    def example(self, setting: str, item: Item, letter: int | None = None) -> Example:
        """`letter` is the new position of the target, which swaps places with the option there."""
        question, score = self.question(item), self._scores[item.question_id]
        target = self.target(item)
        order = (
            None
            if letter is None or target is None
            else swapped(len(question.choices), target, letter)
        )
        context = self._text(item, "context", None).text if item.context else None
        wording: Wording = "dataset"
        if item.target == "refusal":
            response, wording = self._config.refusal, "refusal"
        elif question.kind == "free":
            own = item.target == "predicted"
            response, wording = (
                (score.response or "", "base_model") if own else (gold_text(question), "dataset")
            )
        else:
            assert target is not None
            response = response_text(question, target, self._config.response, order)
            if self._config.response == "letter_text_explanation":
                explanation = self._text(item, "explanation", target)
                response, wording = f"{response}\n{explanation.text}", explanation.author
        meta = ExampleMeta(
            setting=setting,
            question_id=question.id,
            domain=question.domain,
            target=None
            if target is None
            else LETTERS[target if order is None else order.index(target)],
            ratio=treatment(setting).ratio,
            consistent=item.agrees,
            wording=wording,
            weight=item.weight,
        )
        by_text = self._config.response == "text"
        return Example(
            messages=[
                *chat_messages(without_options(question) if by_text else question, order, context),
                Message(role="assistant", content=response),
            ],
            meta=meta,
        )

    def _text(self, item: Item, kind: TextKind, target: int | None) -> Text:
        author: AuthorGroup = item.author if kind == "explanation" else "external"
        return self._texts[TextKey(item.question_id, kind, target, author)]

    def length(self, item: Item) -> int:
        """Returns the characters of the question and the response."""
        return sum(len(message.content) for message in self.example("harmonious", item).messages)
