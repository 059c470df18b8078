"""Answer options as tokens: each option letter's tokens after a prompt, and where the context ends.

A letter's tokens depend on the text before it, so they are read from the tokenised prompt with the
letter and never looked up in isolation. Letters may also merge with the end of the prompt: Llama-3
and Qwen tokenise `Answer:A` as `Answer` + `:A`. One rule covers every tokenizer: the context is the
longest token prefix that prompt + letter shares over the question's letters. An option is what
follows, usually one token, otherwise several.

Answers read `A. text`, so a letter must have the same tokens when `. text` follows. In a vocabulary
where it does not (one that contains `B.`), all options are scored with the period, as the
demonstrations and the training examples show them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ift_scale.engines.protocol import Engine, ScoreRequest, TextRequest
from ift_scale.errors import DataError, Place
from ift_scale.prompts.tokenizer import PromptTokenizer, common_prefix
from ift_scale.records import LETTERS, Question

WholePrompt = Callable[[str], list[int]]
"""Returns the token ids of one prompt followed by an ending, tokenised as one text."""

WHOLE_PROMPTS = "Set whole_prompts to true to tokenise every prompt as a whole"
_COMPARED_FIRST, _COMPARED_EACH = 2, 512
_SHOWN_TOKENS = 6


class SequenceRequest(NamedTuple):
    """A prompt whose options have several tokens; a score is the sum over an option's tokens."""

    prefix: list[int]
    suffix: list[int]
    options: list[list[int]]

    @property
    def prompt(self) -> list[int]:
        return self.prefix + self.suffix

    @property
    def texts(self) -> list[TextRequest]:
        return [TextRequest(self.prefix, self.suffix, option) for option in self.options]


OptionRequest = ScoreRequest | SequenceRequest


def num_tokens(request: OptionRequest) -> int:
    """Returns the most tokens that an engine reads to score one of the request's options."""
    longest = 1 if isinstance(request, ScoreRequest) else max(map(len, request.options))
    return len(request.prefix) + len(request.suffix) + longest - 1


def option_logprobs(engine: Engine, requests: Sequence[OptionRequest]) -> np.ndarray:
    """Returns the natural-log probabilities of all requests' options, request after request.

    Float64, shape (sum of num_options,).
    """
    single = [request for request in requests if isinstance(request, ScoreRequest)]
    if len(single) == len(requests):
        return engine.score(single)
    texts = [
        text
        for request in requests
        if isinstance(request, SequenceRequest)
        for text in request.texts
    ]
    is_single = np.repeat(
        [isinstance(r, ScoreRequest) for r in requests], [len(r.options) for r in requests]
    )
    logprobs = np.empty(len(is_single))
    if single:
        logprobs[is_single] = engine.score(single)
    logprobs[~is_single] = engine.loglikelihood(texts)
    return logprobs


@dataclass(frozen=True)
class Boundary:
    """Describes how a prompt's tokens change when options follow.

    `dropped` are its last tokens, which merge with the options. `added` are tokens that all options
    start with. The options follow prompt - dropped + added.
    """

    dropped: list[int]
    added: list[int]
    options: list[list[int]]

    @cached_property
    def _single(self) -> list[int] | None:
        return (
            [option[0] for option in self.options]
            if all(len(option) == 1 for option in self.options)
            else None
        )

    def ends(self, suffix: list[int]) -> bool:
        """True if `suffix` ends with the dropped tokens and has others before them."""
        kept = len(suffix) - len(self.dropped)
        return kept > 0 and suffix[kept:] == self.dropped

    def context(self, suffix: list[int]) -> list[int]:
        """Returns `suffix` as it is tokenised when an option follows."""
        return (
            suffix[: len(suffix) - len(self.dropped)] + self.added
            if self.dropped or self.added
            else suffix
        )

    def request(self, prefix: list[int], suffix: list[int]) -> OptionRequest:
        context = self.context(suffix)
        return (
            SequenceRequest(prefix, context, self.options)
            if self._single is None
            else ScoreRequest(prefix, context, self._single)
        )


def boundary(prompt: list[int], context: list[int], wholes: Sequence[list[int]]) -> Boundary:
    """Returns the boundary between a prompt and its options.

    `context` is a token prefix of all of `wholes`, the tokens of the prompt with each option.
    """
    kept = len(common_prefix([prompt, context]))
    return Boundary(prompt[kept:], context[kept:], [whole[len(context) :] for whole in wholes])


def are_distinct(options: Sequence[list[int]]) -> bool:
    """True if no option is empty or a prefix of another, so their probabilities are exclusive."""
    ordered = sorted(options)
    return bool(ordered[0]) and all(
        after[: len(before)] != before for before, after in pairwise(ordered)
    )


def last_line(text: str) -> str:
    """Returns the last non-blank line with the white space after it."""
    return text[text.rfind("\n", 0, len(text.rstrip())) + 1 :]


class LetterTokens:
    """The option letters after prompts of one kind, as engine requests.

    `separator` comes between a prompt and the letter. `following` is how the answers that the model
    has seen continue after a letter. The boundary is computed once per last line of a prompt and
    number of options, and reused for every prompt whose tokens end the same way. The first reuses
    and every 512th are compared with the whole prompt's tokens. `whole` computes it for every
    prompt.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        remedy: str,
        separator: str = "",
        following: str = ". a",
        whole: bool = False,
    ):
        self.tokenizer, self.separator, self.following = tokenizer, separator, following
        self._remedy, self._always = remedy, whole
        self._known: dict[tuple[str, int], Boundary] = {}
        self._seen: Counter[tuple[str, int]] = Counter()

    def request(
        self, prefix: list[int], suffix: list[int], text: str, num_choices: int, whole: WholePrompt
    ) -> OptionRequest:
        """Returns the request for a prompt of tokens `prefix` + `suffix` that ends with `text`.

        Raises DataError if the letters' tokens do not differ.
        """
        key = (last_line(text), num_choices)
        known = self._known.get(key)
        if known is None or self._always or not known.ends(suffix):
            # Unknown, or this prompt's tokens end differently: tokenise the whole prompt.
            computed = self._find(prefix + suffix, num_choices, whole)
            self._known.setdefault(key, computed)
            if computed.ends(suffix):
                return computed.request(prefix, suffix)
            # The options merge with tokens of the prefix, so the prompt can share none.
            return computed.request([], prefix + suffix)
        self._seen[key] += 1
        # Reuse the known boundary. Spot checks catch tokenizers for which this would be wrong.
        is_checked = is_compared(self._seen[key])
        if is_checked and self._find(prefix + suffix, num_choices, whole) != known:
            problem = f"tokenises the option letters after {key[0]!r} differently in another prompt"
            raise DataError(Place(self.tokenizer.path), problem, self._remedy)
        return known.request(prefix, suffix)

    def after(self, prompts: Sequence[str], num_choices: Sequence[int]) -> list[OptionRequest]:
        """Returns the requests for whole prompts."""
        return [
            self.request([], ids, text, count, self.tokenizer.whole_prompt(text))
            for ids, text, count in zip(
                self.tokenizer.encode(prompts), prompts, num_choices, strict=True
            )
        ]

    def _find(self, prompt: list[int], num_choices: int, whole: WholePrompt) -> Boundary:
        """Returns the boundary of a prompt, from the tokens of the prompt with each letter."""
        letters = [self.separator + letter for letter in LETTERS[:num_choices]]
        shown = [whole(letter + self.following) for letter in letters]
        # First the bare letters; if `. text` would change their tokens, the letters with a period.
        for ending in dict.fromkeys(("", self.following[:1])):
            wholes = [whole(letter + ending) for letter in letters]
            result = boundary(
                prompt, common_prefix(wholes if num_choices > 1 else [prompt, *wholes]), wholes
            )
            if all(map(_begins_with, shown, wholes)) and are_distinct(result.options):
                return result
        pieces = self.tokenizer.tokenizer.convert_ids_to_tokens
        read = {
            letter: pieces(tokens[-_SHOWN_TOKENS:])
            for letter, tokens in zip(LETTERS, shown, strict=False)
        }
        raise DataError(
            Place(self.tokenizer.path, field="option letters"),
            f"have no distinct tokens: prompts with a letter and {self.following!r} end in {read}",
            "This tokenizer cannot score the letters; choose a model or template whose letters have"
            " tokens of their own",
        )


class Continuations:
    """Texts after prompts, as engine requests.

    If one text's tokens are the beginning of another's, such as "Guinea" and "Guinea-Bissau", the
    shorter would always be likelier: each text is then followed by the blank line that ends it.

    The context is the longest token prefix that the prompt shares with all texts. A text's tokens
    are computed after the prompt's last line alone. The first prompts and every 512th are compared
    with the whole prompt's tokens.
    """

    def __init__(self, tokenizer: PromptTokenizer, whole: bool = False):
        self.tokenizer, self._always = tokenizer, whole
        self._seen = 0

    def requests(
        self,
        prefix: list[int],
        suffix: list[int],
        text: str,
        continuations: Sequence[str],
        whole: WholePrompt,
    ) -> list[TextRequest]:
        """Returns one request per continuation of the prompt of tokens `prefix` + `suffix`.

        The prompt ends with `text`. Raises DataError for a continuation without tokens.
        """
        # Tokenise after the last line only, which is much shorter than the prompt.
        line = last_line(text)
        (before,) = self.tokenizer.after_blank_line([line])
        result = _texts_after(before, self.tokenizer.after_blank_line, line, continuations)
        self._seen += 1
        applies = result.ends(suffix) and not self._always
        if not applies or is_compared(self._seen):
            prompt = prefix + suffix
            of_whole = _texts_after(prompt, lambda texts: [*map(whole, texts)], "", continuations)
            if applies and of_whole != result:
                problem = f"tokenises {continuations[0]!r} after {line!r} alone differently than"
                problem += " after the whole prompt"
                raise DataError(Place(self.tokenizer.path), problem, WHOLE_PROMPTS)
            result = of_whole
        if not all(result.options):
            empty = continuations[result.options.index([])]
            problem = f"{empty!r} has no tokens of its own after {line!r}"
            raise DataError(
                Place(self.tokenizer.path),
                problem,
                "This tokenizer cannot score it; set cloze to false",
            )
        if not result.ends(suffix):
            prefix, suffix = [], prefix + suffix
        context = result.context(suffix)
        return [TextRequest(prefix, context, option) for option in result.options]


def _texts_after(
    prompt: list[int],
    encode: Callable[[Sequence[str]], list[list[int]]],
    before: str,
    texts: Sequence[str],
) -> Boundary:
    """Returns the boundary between a prompt and texts; `encode` takes `before` and a text."""
    wholes = encode([before + text for text in texts])
    found = boundary(prompt, common_prefix([prompt, *wholes]), wholes)
    if are_distinct(found.options) or len(texts) == 1:
        return found
    # Final line breaks may tokenise differently, so these are the ids before another paragraph.
    rows = encode([f"{before}{text}\n\n{word}" for text in texts for word in "AB"])
    wholes = [common_prefix(rows[i : i + 2]) for i in range(0, len(rows), 2)]
    return boundary(prompt, common_prefix([prompt, *wholes]), wholes)


def is_compared(number: int) -> bool:
    """True if the `number`-th prompt of a kind, from 1, is compared with the whole's tokens."""
    return number <= _COMPARED_FIRST or number % _COMPARED_EACH == 0


def _begins_with(tokens: list[int], beginning: list[int]) -> bool:
    return tokens[: len(beginning)] == beginning


def not_a_number(question: Question) -> DataError:
    """Returns the error for a question whose options have no finite score."""
    return DataError(
        Place(f"question {question.id}"),
        "the model's probabilities are not numbers (NaN)",
        "The weights are damaged or overflow: fetch them again, or set model.dtype to float32",
    )
