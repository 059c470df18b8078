"""The few-shot prefix of each topic and demonstration draw: written and tokenised once, shared by all questions behind it."""

from collections.abc import Callable, Sequence

from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import Prefix, PromptTokenizer
from ift_scale.records import Question


class Prefixes:
    """`write(topic, demonstrations)` gives a prefix' text; one object serves one kind of question. `whole` as in ProbeConfig."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        demonstrations: Demonstrations,
        write: Callable[[str, Sequence[Question]], str],
        whole: bool,
    ):
        self.tokenizer, self.demonstrations, self.write, self.whole = (
            tokenizer,
            demonstrations,
            write,
            whole,
        )
        self._made: dict[tuple[str, str, int], Prefix] = {}

    def of(self, question: Question, draw: int) -> Prefix:
        """The prefix of the question's topic."""
        key = (question.collection, question.topic, draw)
        if key not in self._made:
            text = self.write(question.topic, self.demonstrations.of(question, draw))
            self._made[key] = self.tokenizer.prefix(text)
        return self._made[key]

    def encode(
        self, question: Question, draw: int, texts: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """(shared ids, ids after them) of each text after the prefix of the question's topic."""
        return self.tokenizer.encode_behind(self.of(question, draw), texts, self.whole)

    def whole_prompt(self, question: Question, draw: int, text: str) -> Callable[[str], list[int]]:
        """Tokenises the prompt that ends with `text`, with an ending, as one text."""
        return self.tokenizer.whole_prompt(self.of(question, draw).text + text)
