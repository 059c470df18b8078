"""Writes texts with a local model, through the same engines as the probe."""

import threading
from collections.abc import Sequence
from pathlib import Path

from ift_scale.config.write import WriterConfig
from ift_scale.engines.pool import EngineWorker
from ift_scale.engines.process import EngineDied
from ift_scale.engines.protocol import Sampling, TextRequest
from ift_scale.errors import DataError, Place
from ift_scale.io.progress import say
from ift_scale.prompts.served import turn_ends
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Message
from ift_scale.scoring.embedding import Surplus
from ift_scale.write.prompts import Prompt, cut

_MAX_RESTARTS = 2


class PromptIds:
    """Encodes prompts, and finds the stop tokens of their answers. Threads share one."""

    def __init__(self, model_path: Path, section: str, trust_remote_code: bool = False):
        self._tokenizer = PromptTokenizer(model_path, trust_remote_code)
        self._section = section
        self._surplus = Surplus(self._tokenizer, model_path)
        self._lock = threading.Lock()
        self._stops: dict[tuple[bool, str], list[int]] = {}

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Returns the prompts' token ids; DataError for an id beyond the model's embedding."""
        with self._lock:
            encoded = self._tokenizer.encode(
                [self._rendered(prompt) if prompt.chat else prompt.text for prompt in prompts]
            )
        for prompt, ids in zip(prompts, encoded, strict=True):
            self._surplus.refuse(ids, Place(f"question {prompt.question_id}"))
        return encoded

    def _rendered(self, prompt: Prompt) -> str:
        self._check_template()
        try:
            return self._tokenizer.render(
                [Message(role="user", content=prompt.text)], "model", generation=True
            )
        except ValueError as error:
            remedy = f"Change or remove the question, or set {self._section}.style to urial"
            raise DataError(Place(f"question {prompt.question_id}"), str(error), remedy) from error

    def _check_template(self) -> None:
        if not self._tokenizer.tokenizer.chat_template:
            place = Place(self._tokenizer.path, field="chat_template")
            problem = f"the tokenizer has none, but {self._section}.style = chat uses the model's"
            raise DataError(
                place, problem, f"Set {self._section}.style to urial, which is for base models"
            )

    def stop(self, prompt: Prompt) -> list[int]:
        """Returns the ids that end the answer to a prompt."""
        with self._lock:
            key = (prompt.chat, prompt.stop)
            if key not in self._stops:
                turn = turn_ends(self._tokenizer, "model") if prompt.chat else []
                self._stops[key] = [*self._tokenizer.ends_at(prompt.stop), *turn]
            return self._stops[key]

    def decode(self, ids: list[int]) -> str:
        """Returns the text of token ids."""
        with self._lock:
            return self._tokenizer.decode(ids)


class LocalWriter:
    """Writes texts with one engine and restarts it if it dies."""

    def __init__(
        self,
        worker: EngineWorker,
        model_path: Path,
        ids: PromptIds,
        config: WriterConfig,
        section: str,
    ):
        self._worker, self._model_path, self._ids, self._config, self._section = (
            worker,
            model_path,
            ids,
            config,
            section,
        )

    def write(self, prompts: Sequence[Prompt], seed: int) -> list[str]:
        encoded, stop = self._ids.encode(prompts), self._ids.stop(prompts[0])
        requests = [TextRequest([], ids, []) for ids in encoded]
        sampling = Sampling(
            self._config.max_tokens, stop, self._config.temperature, self._config.top_p, seed=seed
        )
        for deaths in range(_MAX_RESTARTS + 1):
            try:
                engine = self._worker.load(self._model_path)
                self._check_lengths(prompts, encoded, engine.context_length)
                engine.reset_cache()  # a chunk's texts must not depend on earlier ones
                written = engine.generate(requests, sampling)
                break
            except EngineDied as error:
                self._worker.close()
                if deaths == _MAX_RESTARTS or self._worker.killed:
                    raise
                say(f"{str(error).splitlines()[0]}; starting a new one")
        return [
            cut(self._ids.decode(samples[0]), prompt.stop)
            for samples, prompt in zip(written, prompts, strict=True)
        ]

    def _check_lengths(
        self, prompts: Sequence[Prompt], encoded: Sequence[list[int]], context_length: int
    ) -> None:
        # The engine's limit already reserves one token for an answer.
        whole, new = context_length + 1, self._config.max_tokens
        for prompt, ids in zip(prompts, encoded, strict=True):
            if len(ids) + new > whole:
                raise DataError(
                    Place(f"question {prompt.question_id}"),
                    f"its prompt has {len(ids)} tokens, and with {self._section}.max_tokens = {new}"
                    f" that exceeds the model's context of {whole}",
                    f"Lower {self._section}.max_tokens, set its style to plain, or choose a model"
                    " with a longer context",
                )

    def stop(self) -> None:
        """Kills the engine."""
        self._worker.kill()

    def close(self) -> None:
        """Ends the engine."""
        self._worker.close()
