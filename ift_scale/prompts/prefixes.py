"""Few-shot prefixes per topic and demonstration draw, written and tokenised once."""

from collections.abc import Callable, Sequence

from ift_scale.prompts.templates import DemonstrationSource
from ift_scale.prompts.tokenizer import Prefix, PromptTokenizer
from ift_scale.records import Question


class Prefixes:
    """The prefixes for one kind of question.

    `write(topic, demonstrations)` returns a prefix's text. `whole` is ProbeConfig.whole_prompts.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        demonstrations: DemonstrationSource,
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
        """Returns the prefix of the question's topic."""
        key = (question.collection, question.topic, draw)
        if key not in self._made:
            text = self.write(question.topic, self.demonstrations.of(question, draw))
            self._made[key] = self.tokenizer.prefix(text)
        return self._made[key]

    def encode(
        self, question: Question, draw: int, texts: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """Returns (shared ids, ids after them) per text after the prefix of its topic."""
        return self.tokenizer.encode_after(self.of(question, draw), texts, self.whole)

    def whole_prompt(self, question: Question, draw: int, text: str) -> Callable[[str], list[int]]:
        """Returns a function that tokenises the prompt ending with `text` and an ending as one."""
        return self.tokenizer.whole_prompt(self.of(question, draw).text + text)
