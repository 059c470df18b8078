"""The chat template and the stops that are exported with a trained model: whoever is served it asks from the tokens of training."""

import json
from typing import TYPE_CHECKING

from ift_scale.errors import DataError, Place
from ift_scale.records import Message

if TYPE_CHECKING:
    from ift_scale.prompts.tokenizer import PromptTokenizer


def template_source(tokenizer: "PromptTokenizer", template: str) -> str:
    """A template with which transformers' `apply_chat_template` gives the tokens of training.

    It writes the start tokens, which `encode` puts, and in the generation prompt all that comes before an answer. DataError if no
    form of the template gives these tokens.
    """
    start = json.dumps("".join(tokenizer.tokenizer.convert_ids_to_tokens(tokenizer.start)))
    if tokenizer.start == [tokenizer.tokenizer.bos_token_id]:
        start = "bos_token"
    # After a start token, some tokenizers leave out the space that they put before a text's first word. The comment lets the
    # template begin on a line of its own, as its white space may depend on that.
    starts = [
        "",
        *(
            f"{{{{ {text} }}}}{{# the start of each training example #}}\n"
            for text in (start, f"{start} + ' '")
        ),
    ]
    for source in tokenizer.chat(template).served_sources():
        for before in starts if tokenizer.start else starts[:1]:
            if _serves(tokenizer, before + source, template):
                return before + source
    raise DataError(
        Place(tokenizer.path, field="chat_template"),
        f"no form of the template '{template}' gives the tokens of training to those who are served the trained model",
        "Set evaluate.template to another",
    )


def _serves(tokenizer: "PromptTokenizer", source: str, template: str) -> bool:
    """True if `source`, rendered and tokenised as by transformers, gives our tokens of prompts and conversations."""
    turns = [
        Message(role="user", content="Question"),
        Message(role="assistant", content="Answer"),
    ] * 2
    for number in range(1, 5):
        generation = turns[number - 1].role == "user"
        try:
            expected = tokenizer.encode([tokenizer.render(turns[:number], template, generation)])
        except (ValueError, DataError):
            return number > 2  # the template takes one question and its answer only
        if (
            tokenizer.control_ids(
                [tokenizer.chat(template).text(turns[:number], generation, source)]
            )
            != expected
        ):
            return False
    return True


def turn_ends(tokenizer: "PromptTokenizer", template: str) -> list[int]:
    """The ids that end what a trained model says: the end of the sequence, and the control token that closes a turn."""
    eos, closing = tokenizer.tokenizer.eos_token_id, tokenizer.chat(template).turn.closing.strip()
    first = [
        token
        for token in tokenizer.control_ids([closing])[0][:1]
        if token in tokenizer.controls.ids.values()
    ]
    return list(dict.fromkeys([*([] if eos is None else [eos]), *first]))
