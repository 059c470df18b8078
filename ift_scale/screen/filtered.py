"""Filters the examples by their classes: the treatments, as chat `messages` for any trainer.

A line of the filtered set, without line breaks:
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}],
     "weight": 0.5, "meta": {"id": "...", "class": "uncertain", "kind": "short", "score": 0.1}}
`weight` is written only by the treatment of that name or if the source has weights.
"""

import json
from collections import Counter
from typing import Any

from ift_scale.config.screen import ScreenConfig
from ift_scale.instructions.conversation import Conversation
from ift_scale.records import LETTERS, Message
from ift_scale.screen.classes import Classified
from ift_scale.screen.kinds import Recognised

_CONTEXT = "Context: {context}\n\n{question}"


class Filter:
    """Treats one example after the other. `counts`: what became of them, in words."""

    def __init__(self, config: ScreenConfig):
        self.config = config
        self.counts: Counter[str] = Counter()

    def line(
        self,
        conversation: Conversation,
        recognised: Recognised,
        verdict: Classified,
        measures: dict[str, Any],
        is_copy: bool,
        is_leak: bool,
    ) -> str | None:
        """Returns the example's line, or None if it is left out."""
        if is_leak and self.config.remove_leaks:
            self.counts["left out: asks a test question"] += 1
            return None
        if is_copy and self.config.remove_duplicates:
            self.counts["left out: a copy of an earlier prompt"] += 1
            return None
        messages = conversation.messages
        weight = conversation.weight
        if self.config.treatment == "weight":
            weight *= self._weight(verdict)
            self.counts[f"weight {self._weight(verdict):g}"] += 1
        elif verdict.name in self.config.treated:
            treated = self._treated(conversation.messages, recognised, measures)
            if treated is None:
                return None
            messages = treated
        else:
            self.counts["kept"] += 1
        row: dict[str, Any] = {"messages": [message.model_dump() for message in messages]}
        if self.config.treatment == "weight" or weight != 1.0:
            row["weight"] = weight
        row["meta"] = {
            "id": conversation.id,
            "class": verdict.name,
            "kind": recognised.kind,
            "score": verdict.score,
        }
        return json.dumps(row, ensure_ascii=False)

    def _weight(self, verdict: Classified) -> float:
        weights = self.config.weights
        by_class = {"uncertain": weights.uncertain, "contradicts": weights.wrong}
        return by_class.get(verdict.name, weights.right)

    def _treated(
        self, messages: list[Message], recognised: Recognised, measures: dict[str, Any]
    ) -> list[Message] | None:
        """Returns the treated conversation, None if the example is left out."""
        treatment = self.config.treatment
        if treatment == "discard":
            self.counts["left out by its class"] += 1
            return None
        if treatment == "open_book":
            return self._open_book(messages, recognised)
        response: str | None = self.config.refusal
        if treatment == "self_distil":
            response = own_response(messages[-1].content, recognised, measures)
            if response is None:
                self.counts["left out: no complete answer of the model's own"] += 1
                return None
        self.counts["refused" if treatment == "refuse" else "answered by the model"] += 1
        assert response is not None
        return [*messages[:-1], Message(role="assistant", content=response)]

    def _open_book(self, messages: list[Message], recognised: Recognised) -> list[Message] | None:
        """Puts the knowledge before the question: the explanation, or a longer answer itself."""
        context = recognised.explanation
        if context is None and recognised.kind == "long":
            context = messages[-1].content.strip()
        if context is None:
            self.counts["left out: its answer has no explanation to put before the question"] += 1
            return None
        self.counts["open book"] += 1
        asked = _CONTEXT.format(context=context, question=messages[-2].content)
        return [*messages[:-2], Message(role="user", content=asked), messages[-1]]


def own_response(response: str, recognised: Recognised, measures: dict[str, Any]) -> str | None:
    """Returns the model's own answer in the form of the response, None if it has none."""
    if recognised.kind != "choice":
        text: str | None = measures["response"]
        return text or None
    if measures["prediction"] is None:
        return None
    letter, choice = LETTERS[measures["prediction"]], recognised.choices[measures["prediction"]]
    bare = response.strip().strip("().:[]*")
    if len(bare) == 1:
        return response.strip().replace(bare, letter if bare.isupper() else letter.lower())
    assert recognised.answer is not None
    names_letter = bare[:1].upper() == LETTERS[recognised.answer] and not bare[1:2].isalnum()
    return f"{letter}. {choice}" if names_letter else choice
