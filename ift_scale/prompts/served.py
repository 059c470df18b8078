"""The chat template and stop tokens exported with a trained model.

Users of the exported model prompt it with the same tokens as in training.
"""

import json

from ift_scale.errors import DataError, Place
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.records import Message


def template_source(tokenizer: PromptTokenizer, template: str) -> str:
    """Returns a template for which `apply_chat_template` gives the tokens of training.

    It writes the start tokens that `encode` adds and, in the generation prompt, everything before
    an answer. Raises DataError if no form of the template gives these tokens.
    """
    start = json.dumps("".join(tokenizer.tokenizer.convert_ids_to_tokens(tokenizer.start)))
    if tokenizer.start == [tokenizer.tokenizer.bos_token_id]:
        start = "bos_token"
    # After a start token, some tokenizers drop the space that they put before a text's first word.
    # The comment starts the template on a new line, because its white space may depend on that.
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
        f"no form of the template '{template}' gives the exported model the tokens of training",
        "Set evaluate.template to another",
    )


def _serves(tokenizer: PromptTokenizer, source: str, template: str) -> bool:
    """True if `source`, rendered and tokenised by transformers, gives our tokens."""
    turns = [
        Message(role="user", content="Question"),
        Message(role="assistant", content="Answer"),
    ] * 2
    for number in range(1, 5):
        generation = turns[number - 1].role == "user"
        try:
            expected = tokenizer.encode([tokenizer.render(turns[:number], template, generation)])
        except (ValueError, DataError):
            return number > 2  # the template takes only one question and its answer
        if (
            tokenizer.control_ids(
                [tokenizer.chat(template).text(turns[:number], generation, source)]
            )
            != expected
        ):
            return False
    return True


def turn_ends(tokenizer: PromptTokenizer, template: str) -> list[int]:
    """Returns the ids that end an answer: EOS and the control token that closes a turn."""
    eos, closing = tokenizer.tokenizer.eos_token_id, tokenizer.chat(template).turn.closing.strip()
    first = [
        token
        for token in tokenizer.control_ids([closing])[0][:1]
        if token in tokenizer.controls.ids.values()
    ]
    return list(dict.fromkeys([*([] if eos is None else [eos]), *first]))
