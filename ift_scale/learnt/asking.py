"""Items to answers: one row per item and form, of an arm or of the base model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from ift_scale.config.learnt import LearntConfig
from ift_scale.engines.protocol import Engine, Sampling, TextRequest
from ift_scale.learnt.forms import FREE, AskedForm, forms_of
from ift_scale.learnt.items import Presentation
from ift_scale.prompts.answer_parsing import option_in_words
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.prompts.views import plain
from ift_scale.records import Question
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
and the taught option, in the question's own order; no target for the base model. `logprobs`: of
each option's letter over the whole vocabulary, in the question's own order; none for the form
`free`, which has a `response`."""


@dataclass(frozen=True)
class FormRequests:
    """The prompts of a chunk of questions: those with letters, then those to be answered freely."""

    questions: list[Question]
    lettered_forms: list[tuple[Question, AskedForm]]
    lettered: LetterRequests
    free_forms: list[tuple[Question, AskedForm]]
    free: list[TextRequest]
    max_tokens: int

    @property
    def tokens(self) -> int:
        return self.lettered.tokens + sum(len(request.suffix) for request in self.free)

    @property
    def num_requests(self) -> int:
        return self.lettered.num_requests + len(self.free)

    def lengths(self) -> Iterator[tuple[Question, int]]:
        yield from self.lettered.lengths()
        for (question, _), request in zip(self.free_forms, self.free, strict=True):
            yield question, len(request.suffix) + self.max_tokens


class FormAsker:
    """Asks every form of every presentation of a question, 0-shot in the training template.

    `shown`: the presentations by question id. `paraphrases`: the user's, by question id.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        writer: Chat,
        shown: Mapping[str, Sequence[Presentation]],
        paraphrases: Mapping[str, Sequence[str]],
        config: LearntConfig,
        max_tokens: int,
    ):
        self.tokenizer, self.template = tokenizer, writer.template
        self.lettered = LetterAsker(writer, plain)
        self.shown, self.paraphrases, self.config = shown, paraphrases, config
        self.max_tokens = max_tokens

    def write(self, questions: list[Question]) -> FormRequests:
        forms = [
            (question, form)
            for question in questions
            for shown in self.shown[question.id]
            for form in forms_of(
                question, shown, self.config, self.paraphrases.get(question.id, ())
            )
        ]
        lettered = [pair for pair in forms if pair[1].form != FREE]
        free = [pair for pair in forms if pair[1].form == FREE]
        texts = [chat_prompt(self.tokenizer, self.template, form.asked) for _, form in free]
        return FormRequests(
            questions,
            lettered,
            self.lettered.write([form.asked for _, form in lettered]),
            free,
            [TextRequest([], ids, []) for ids in self.tokenizer.encode(texts)],
            self.max_tokens,
        )

    def ask(self, engine: Engine, written: FormRequests) -> pa.Table:
        """Returns rows of SCHEMA without targets."""
        scores = self.lettered.ask(engine, written.lettered)["logprobs"].to_pylist()
        sampling = Sampling(self.max_tokens, self.tokenizer.line_end_tokens)
        answers = engine.generate(written.free, sampling)
        rows = [
            _row(*pair) | _by_letter(pair[1], logprobs)
            for pair, logprobs in zip(written.lettered_forms, scores, strict=True)
        ]
        for pair, (first,) in zip(written.free_forms, answers, strict=True):
            response = self.tokenizer.decode(first).strip()
            named = option_in_words(response, pair[0].choices)
            rows.append(_row(*pair) | {"prediction": named, "response": response})
        return pa.Table.from_pylist(rows, SCHEMA)


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


def _by_letter(form: AskedForm, logprobs: list[float]) -> dict[str, Any]:
    """`logprobs` are in the order shown; ties go to the first letter, as in evaluate."""
    best = max(range(len(logprobs)), key=lambda letter: logprobs[letter])
    of_option = dict(zip(form.order, logprobs, strict=True))
    return {
        "prediction": form.order[best],
        "logprobs": [of_option[option] for option in range(len(logprobs))],
    }
