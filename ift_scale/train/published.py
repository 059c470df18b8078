"""The tokenizer that is exported beside an arm's weights: whoever chats with the arm or trains it further gets what we trained."""

from typing import Any

from ift_scale.inference.tokens import PromptTokenizer


def publish(tokenizer: PromptTokenizer, template: str, model_config: Any) -> Any:
    """The transformers tokenizer, with the arm's chat template, and with a pad token of its own in it and in the model's config."""
    exported = tokenizer.tokenizer
    exported.chat_template = tokenizer.chat_source(template)
    part_pad_from_eos(exported, model_config)
    return exported


def part_pad_from_eos(tokenizer: Any, model_config: Any) -> None:
    """Where the pad token is the end of the sequence, take the tokenizer's unknown token instead, or none.

    Many trainers mask every pad token in their labels: with such a tokenizer the next fine-tuning would never learn to end an
    answer. Where there is none they say so. We pad nothing.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token == eos:
        tokenizer.pad_token = None if tokenizer.unk_token == eos else tokenizer.unk_token
    if getattr(model_config, "pad_token_id", None) == tokenizer.eos_token_id:
        model_config.pad_token_id = tokenizer.pad_token_id
