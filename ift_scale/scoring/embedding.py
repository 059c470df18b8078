"""Refuses token ids beyond the model's embedding before an engine or a rank looks them up.

A tokenizer may have more tokens than the embedding has rows, as long as no text uses them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ift_scale.engines.model_folder import embedding_rows
from ift_scale.engines.null import NullEngine
from ift_scale.engines.protocol import EngineSpec, Sampling, ScoreRequest, TextRequest
from ift_scale.errors import DataError, Place
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.target import Target


class Surplus:
    """The tokens whose ids exceed the embedding of `folder`'s model; False if there are none."""

    def __init__(self, tokenizer: PromptTokenizer, folder: Path):
        self.num_rows = embedding_rows(folder)
        vocabulary: dict[str, int] = tokenizer.tokenizer.get_vocab()
        self._tokens = {
            number: token for token, number in vocabulary.items() if number >= self.num_rows
        }

    def __bool__(self) -> bool:
        return bool(self._tokens)

    def refuse(self, ids: Iterable[int], place: Place) -> None:
        """Raises DataError for the first id beyond the embedding."""
        beyond = next((number for number in ids if number >= self.num_rows), None) if self else None
        if beyond is not None:
            token = self._tokens.get(int(beyond), "?")
            problem = f"the token '{token}' has the id {beyond}, but the model's embedding has only"
            problem += f" {self.num_rows} rows"
            remedy = (
                "Use the tokenizer that belongs to the model, or resize and train the embedding"
            )
            remedy += " first"
            raise DataError(place, problem, remedy)


class _IdChecker(NullEngine):
    """An engine that only checks the ids of its requests."""

    def __init__(self, surplus: Surplus, place: Place):
        super().__init__(EngineSpec("", "", None))  # type: ignore[arg-type]
        self._surplus, self._place = surplus, place

    def _check_ids(self, requests: Sequence[Any]) -> None:
        for request in requests:
            for part in request:
                self._surplus.refuse(part, self._place)

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        self._check_ids(requests)
        return super().score(requests)

    def loglikelihood(self, requests: Sequence[TextRequest]) -> np.ndarray:
        self._check_ids(requests)
        return super().loglikelihood(requests)

    def generate(
        self, requests: Sequence[TextRequest], sampling: Sampling
    ) -> list[list[list[int]]]:
        self._check_ids(requests)
        return super().generate(requests, sampling)


def check(
    targets: Sequence[Target], questions: QuestionFile, tokenizer: PromptTokenizer, folder: Path
) -> None:
    """Raises DataError naming the question if a target uses an id beyond the embedding.

    This writes every prompt, but only if the tokenizer has such tokens at all.
    """
    surplus = Surplus(tokenizer, folder)
    if not surplus:
        return
    for target in targets:
        for question in (question for chunk in target.chunks for question in questions.read(chunk)):
            engine = _IdChecker(surplus, Place(f"question {question.id}"))
            target.asker.ask(engine, target.asker.write([question]))
