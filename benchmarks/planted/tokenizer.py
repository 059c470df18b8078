"""The planted model's tokenizer: byte-level BPE, trained on the chosen questions and the general instructions.

Every line break is a token of its own, so a few-shot prefix and what follows it are the same tokens apart and together.
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ift_scale.prompts.templates import HEADER
from ift_scale.world.corpus import SYSTEM

VOCAB_SIZE = 12_000
SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
MAX_LENGTH = 1024
# The words around the questions, often enough to become tokens.
_FRAME = [
    f"{HEADER} {SYSTEM} USER: x ASSISTANT: A Answer:B Context: Question: Answer: Which option is"
] * 200


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> PreTrainedTokenizerFast:
    """At most `vocab_size` tokens; `<s>` is put in front of a text."""
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
