"""Items to answers: one row per item and form, of an arm or of the base model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ift_scale.config.learnt import LearntConfig
from ift_scale.engines.protocol import Engine, Sampling, TextRequest
from ift_scale.learnt.forms import AskedForm, Measured, forms_of
from ift_scale.learnt.items import Presentation
from ift_scale.prompts.answer_parsing import option_in_words
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.records import Question
from ift_scale.scoring.cloze import Cloze, ClozeRequests, option_scores
from ift_scale.scoring.letters import Chat, LetterAsker, LetterRequests, chat_prompt

SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("domain", pa.string()),
        ("form", pa.string()),
        ("number", pa.int16()),
        ("order", pa.list_(pa.int8())),
        ("context", pa.string()),
        ("answer", pa.int16()),
        ("prediction", pa.int16()),
        ("logprobs", pa.list_(pa.float64())),
        ("response", pa.string()),
        ("target", pa.int16()),
    ]
)
"""One row per prompt. `form` and `number`: see `forms`. `order`: the options as shown. `context`:
the text before the question in training. `answer`, `prediction`, `target`: the right, the answered
and the taught option, in the question's own order; no target for the base model. `logprobs`: in
nats and the question's own order, of each option's letter over the whole vocabulary; for forms
without options of sets with `construct.response: text`, the score of each option's text (`cloze`),
which is no log-probability if it is `pmi`. The form `free` has none, but a `response`."""

Forms = list[tuple[Question, AskedForm]]


@dataclass(frozen=True)
class FormRequests:
    """The prompts of a chunk of questions, by how they are answered.

    `texts` are those of sets with `construct.response: text`, else None.
    """

    questions: list[Question]
    forms: Mapping[Measured, Forms]
    texts: ClozeRequests | None
    lettered: LetterRequests
    free: list[TextRequest]
    max_tokens: int

    @property
    def tokens(self) -> int:
        scored = self.lettered.tokens + (self.texts.tokens if self.texts else 0)
        return scored + sum(len(request.suffix) for request in self.free)

    @property
    def num_requests(self) -> int:
        scored = self.lettered.num_requests + (self.texts.num_requests if self.texts else 0)
        return scored + len(self.free)

    def lengths(self) -> Iterator[tuple[Question, int]]:
        if self.texts:
            yield from self.texts.lengths()
        yield from self.lettered.lengths()
        for (question, _), request in zip(self.forms["words"], self.free, strict=True):
            yield question, len(request.suffix) + self.max_tokens


class FormAsker:
    """Asks every form of every presentation of a question, 0-shot in the training template.

    `texts`: scores the options' texts, for sets with `construct.response: text`; None for others.
    `shown`: the presentations by question id. `paraphrases`: the written ones, by question id.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        writer: Chat,
        texts: Cloze | None,
        shown: Mapping[str, Sequence[Presentation]],
        paraphrases: Mapping[str, Sequence[str]],
        config: LearntConfig,
        max_tokens: int,
    ):
        self.tokenizer, self.template = tokenizer, writer.template
        self.lettered, self.texts = LetterAsker(writer, plain), texts
        self.shown, self.paraphrases, self.config = shown, paraphrases, config
        self.max_tokens = max_tokens

    def write(self, questions: list[Question]) -> FormRequests:
        forms: dict[Measured, Forms] = {"texts": [], "letters": [], "words": []}
        by_text = self.texts is not None
        for question in questions:
            written = self.paraphrases.get(question.id, ())
            for shown in self.shown[question.id]:
                for form in forms_of(question, shown, self.config, written, by_text):
                    forms[form.measured].append((question, form))
        asked = {measured: [form.asked for _, form in pairs] for measured, pairs in forms.items()}
        prompts = [chat_prompt(self.tokenizer, self.template, each) for each in asked["words"]]
        return FormRequests(
            questions,
            forms,
            self.texts.write(asked["texts"]) if self.texts else None,
            self.lettered.write(asked["letters"]),
            [TextRequest([], ids, []) for ids in self.tokenizer.encode(prompts)],
            self.max_tokens,
        )

    def ask(self, engine: Engine, written: FormRequests) -> pa.Table:
        """Returns rows of SCHEMA without targets."""
        scores = self._text_scores(engine, written)
        scores += self.lettered.ask(engine, written.lettered)["logprobs"].to_pylist()
        sampling = Sampling(self.max_tokens, self.tokenizer.line_end_tokens)
        answers = engine.generate(written.free, sampling)
        rows = [
            _row(*pair) | _chosen(pair[1], logprobs)
            for pair, logprobs in zip(
                [*written.forms["texts"], *written.forms["letters"]], scores, strict=True
            )
        ]
        for pair, (first,) in zip(written.forms["words"], answers, strict=True):
            response = self.tokenizer.decode(first).strip()
            named = option_in_words(response, pair[0].choices)
            rows.append(_row(*pair) | {"prediction": named, "response": response})
        return pa.Table.from_pylist(rows, SCHEMA)

    def _text_scores(self, engine: Engine, written: FormRequests) -> list[list[float]]:
        """Returns the scores of the options' texts, by prompt."""
        if self.texts is None or written.texts is None:
            return []
        rows = self.texts.ask(engine, written.texts).to_pylist()
        return [
            option_scores(self.texts.score, **{k: np.array(v) for k, v in row.items()}).tolist()
            for row in rows
        ]


def _row(question: Question, form: AskedForm) -> dict[str, Any]:
    return {
        "question_id": question.id,
        "domain": question.domain,
        "form": form.form,
        "number": form.number,
        "order": list(form.order),
        "context": form.shown.context,
        "answer": question.answer,
    }


def _chosen(form: AskedForm, logprobs: list[float]) -> dict[str, Any]:
    """`logprobs` are in the order shown; ties go to the first option, as in evaluate."""
    best = max(range(len(logprobs)), key=lambda shown: logprobs[shown])
    of_option = dict(zip(form.order, logprobs, strict=True))
    return {
        "prediction": form.order[best],
        "logprobs": [of_option[option] for option in range(len(logprobs))],
    }
