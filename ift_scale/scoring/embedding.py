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
from ift_scale.models.config_file import model_config
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.target import Target


class Surplus:
    """The tokens whose ids exceed the embedding of `folder`'s model; False if there are none.

    Raises DataError if config.json shows that the tokenizer belongs to another model.
    """

    def __init__(self, tokenizer: PromptTokenizer, folder: Path):
        check_end_of_text(tokenizer, folder)
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


def check_end_of_text(tokenizer: PromptTokenizer, folder: Path) -> None:
    """Raises DataError if the ids that end a text, by config.json, are ordinary words.

    A model's tokenizer may end texts with another special token than config.json, as chat models
    do. An ordinary token shows that the tokenizer is another model's.
    """
    fields = model_config(folder)
    stated = fields.get("eos_token_id", (fields.get("text_config") or {}).get("eos_token_id"))
    ids = [stated] if isinstance(stated, int) else list(stated or [])
    own = tokenizer.tokenizer
    special = {*own.all_special_ids, *own.added_tokens_decoder}
    vocabulary: dict[str, int] = own.get_vocab()
    ordinary = {number: token for token, number in vocabulary.items() if number not in special}
    if ids and own.eos_token_id is not None and all(number in ordinary for number in ids):
        problem = f"the tokenizer has the ordinary token '{ordinary[ids[0]]}' there, and ends texts"
        problem += f" with '{own.eos_token}' (id {own.eos_token_id})"
        remedy = "Use the tokenizer that belongs to the model, or correct eos_token_id"
        place = Place(folder / "config.json", field="eos_token_id")
        raise DataError(place, problem, remedy, stated)


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

    def token_logprobs(self, requests: Sequence[TextRequest]) -> list[np.ndarray]:
        self._check_ids(requests)
        return super().token_logprobs(requests)

    def hidden_states(self, requests: Sequence[ScoreRequest]) -> tuple[np.ndarray, np.ndarray]:
        self._check_ids(requests)
        return super().hidden_states(requests)

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
