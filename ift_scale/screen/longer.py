"""Longer answers: their surprisal under the base model, and the model's own answers.

The response is scored in the few-shot frame of free questions, with the instruction and with an
empty one. The mean surprisal with the instruction over that without it is the instruction-following
difficulty of Li et al. (2024, arXiv 2308.12032). At the most surprising of the words that are
likely to carry a fact (`fact_words`), the model is also asked what it expects there instead, and
how likely that is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ift_scale.config.engines import ProbeConfig
from ift_scale.config.screen import LongConfig
from ift_scale.engines.protocol import Engine, Sampling, TextRequest
from ift_scale.prompts import templates
from ift_scale.prompts.answer_parsing import f1, tokens
from ift_scale.prompts.templates import DemonstrationSource
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Question
from ift_scale.scoring.cloze import EMPTY, FewShotTexts
from ift_scale.screen.fact_words import fact_words, token_starts

_EXPECTED_TOKENS = 8
_NEXT_QUESTION = "\n\nQuestion:"
"""Where an answer ends: a base model continues with another question."""


@dataclass(frozen=True)
class LongRequests:
    """Requests for the responses with and without their instructions, and for answers."""

    questions: list[Question]
    given: list[TextRequest]
    alone: list[TextRequest]
    asked: list[TextRequest]
    max_tokens: int

    def lengths(self) -> list[int]:
        """Returns the tokens of the longest request per question."""
        return [
            len(given.prompt) + max(len(given.continuation), self.max_tokens)
            for given in self.given
        ]


class LongAsker:
    """Asks for longer answers of one half."""

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        demonstrations: DemonstrationSource,
        probe: ProbeConfig,
        config: LongConfig,
        seed: int,
    ):
        self.tokenizer, self.probe, self.config, self.seed = tokenizer, probe, config, seed
        self.texts = FewShotTexts(tokenizer, demonstrations, probe.whole_prompts)
        self._end = tokenizer.ends_at("") or tokenizer.line_end_tokens

    def write(self, questions: list[Question]) -> LongRequests:
        given, alone, asked = [], [], []
        for question in questions:
            response = question.aliases[0]
            given += [self._cut(r) for r in self.texts.requests(question, [response])]
            without = question.model_copy(update={"question": EMPTY})
            alone += [self._cut(r) for r in self.texts.requests(without, [response])]
            prompt = templates.open_text(question)
            ((before, after),) = self.texts.prefixes.encode(question, 0, [prompt])
            asked.append(TextRequest(before, after, []))
        return LongRequests(questions, given, alone, asked, self.config.max_tokens)

    def _cut(self, request: TextRequest) -> TextRequest:
        return request._replace(continuation=request.continuation[: self.config.max_response])

    def ask(self, engine: Engine, written: LongRequests) -> list[dict[str, Any]]:
        """Returns the measures of each question, by column of `asker.SCHEMA`."""
        given = engine.token_logprobs(written.given)
        alone = engine.token_logprobs(written.alone)
        places = [
            self._fact_tokens(question, request)
            for question, request in zip(written.questions, written.given, strict=True)
        ]
        worst = [
            tokens[int(logprobs[tokens].argmin())]
            for tokens, logprobs in zip(places, given, strict=True)
        ]
        expected = self._expected(engine, written.given, worst)
        greedy, sampled = self._answers(engine, written.asked)
        rows = []
        for number in range(len(written.questions)):
            text, probability, differs = expected[number]
            surprisal, without = -given[number].mean(), -alone[number].mean()
            ids = written.given[number].continuation
            span = worst_window(given[number], self.config.span)
            # The reference is compared up to the length that an answer may have.
            reference = self.tokenizer.decode(ids[: self.config.max_tokens]).strip()
            asked = written.questions[number].question
            answer, ended = greedy[number]
            samples = [sample for sample, _ in sampled[number]]
            rows.append(
                {
                    "tokens": len(ids),
                    "surprisal": float(surprisal),
                    "surprisal_alone": float(without),
                    "difficulty": float(surprisal / without) if without > 0 else None,
                    "fact_surprisal": float(-given[number][places[number]].mean()),
                    "worst_span": self.tokenizer.decode(ids[span]).strip(),
                    "worst_surprisal": float(-given[number][span].mean()),
                    "reference_prob": float(np.exp(given[number][worst[number]])),
                    "other_prob": probability if differs else 0.0,
                    "other": text if differs else None,
                    "agreement": float(
                        np.mean([agreement(sample, reference, asked) for sample in samples])
                    ),
                    "consistency": consistency(samples, asked),
                    "response": answer if ended else None,
                    "samples": samples,
                }
            )
        return rows

    def _fact_tokens(self, question: Question, request: TextRequest) -> list[int]:
        """Returns the tokens that begin the words likely to carry a fact; all if there are none."""
        pieces = self.tokenizer.tokenizer.batch_decode([[id] for id in request.continuation])
        text = question.aliases[0]
        words = fact_words(text, question.question)
        return token_starts(words, text, pieces) or list(range(len(pieces)))

    def _expected(
        self, engine: Engine, given: Sequence[TextRequest], worst: Sequence[int]
    ) -> list[tuple[str, float, bool]]:
        """Returns what the model expects at token `worst` of each response.

        The text of the next tokens that it would write, the probability of the first of them, and
        True if that is not the response's own token.
        """
        at = [
            request._replace(suffix=request.suffix + request.continuation[:n], continuation=[])
            for request, n in zip(given, worst, strict=True)
        ]
        found = [tokens[0] for tokens in engine.generate(at, Sampling(_EXPECTED_TOKENS, self._end))]
        # No token means that the model expects the end of the text.
        found = [tokens or self._end[:1] for tokens in found]
        firsts = [
            request._replace(continuation=tokens[:1])
            for request, tokens in zip(at, found, strict=True)
        ]
        probabilities = np.exp(engine.loglikelihood(firsts))
        return [
            (
                self.tokenizer.decode(tokens).strip(),
                float(probability),
                tokens[0] != request.continuation[n],
            )
            for tokens, probability, request, n in zip(
                found, probabilities, given, worst, strict=True
            )
        ]

    def _answers(
        self, engine: Engine, asked: Sequence[TextRequest]
    ) -> tuple[list[tuple[str, bool]], list[list[tuple[str, bool]]]]:
        """Returns the greedy and the sampled answers, each with True if it ended by itself."""
        free, most = self.probe.free, self.config.max_tokens
        greedy = engine.generate(asked, Sampling(most, self._end))
        sampling = Sampling(
            most, self._end, free.temperature, free.top_p, self.config.num_samples, self.seed
        )
        sampled = engine.generate(asked, sampling)
        return (
            [self._answer(tokens[0]) for tokens in greedy],
            [[self._answer(sample) for sample in tokens] for tokens in sampled],
        )

    def _answer(self, tokens: list[int]) -> tuple[str, bool]:
        text, end, _ = self.tokenizer.decode(tokens).partition(_NEXT_QUESTION)
        return text.strip(), bool(end) or len(tokens) < self.config.max_tokens


def worst_window(logprobs: np.ndarray, size: int) -> slice:
    """Returns the window of at most `size` tokens with the lowest mean log-probability."""
    size = min(size, len(logprobs))
    start = int(np.convolve(logprobs, np.ones(size), "valid").argmin())
    return slice(start, start + size)


def agreement(answer: str, reference: str, prompt: str) -> float:
    """Returns the token F1 of two answers over the words that the prompt does not have.

    The prompt's words show no knowledge: all answers repeat them.
    """
    known = set(tokens(prompt))
    own, other = (
        " ".join(word for word in tokens(text) if word not in known) for text in (answer, reference)
    )
    return f1(own, [other]) if other else f1(answer, [reference])


def consistency(samples: Sequence[str], prompt: str) -> float:
    """Returns the mean agreement of all pairs of answers, 1 for a single one."""
    pairs = list(combinations(samples, 2))
    return float(np.mean([agreement(a, b, prompt) for a, b in pairs])) if pairs else 1.0
