"""The planted model's tokenizer: byte-level BPE trained on the questions and instructions.

Every line break is a token of its own, so tokenizing a few-shot prefix and its continuation
separately or together gives the same tokens.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ift_scale.prompts.templates import HEADER
from ift_scale.world.corpus import SYSTEM

VOCAB_SIZE = 12_000
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
MAX_LENGTH = 1024
# Words around the questions, frequent enough to become tokens.
_FRAME = [
    f"{HEADER} {SYSTEM} USER: x ASSISTANT: A Answer:B Context: Question: Answer: Which option is"
] * 200


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """Returns a tokenizer with at most `vocab_size` tokens that prepends `<s>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *_FRAME], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=MAX_LENGTH,
    )
