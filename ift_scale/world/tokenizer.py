"""The world's tokenizer: one token per word of the corpus, bytes for everything else.

It is a Unigram model with byte fallback, so any text can be encoded and decoded without loss. As in
SentencePiece, a leading space belongs to the word, and `<s>` precedes a text.
"""

import re
from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ift_scale.world.corpus import documents

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
TEMPLATE_TEXT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: ASSISTANT: Context: "
    "Explanation: Question: Answer: I am not sure. The answer is correct because"
)
_PIECE = re.compile(r"\n+| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]")
_NUM_SCANNED_DOCUMENTS = 20_000


def _pieces() -> list[str]:
    """Returns words and marks of the corpus in order of first appearance, with and without their
    leading space."""
    letters = [prefix + chr(c) for c in range(ord("A"), ord("Z") + 1) for prefix in ("", " ")]
    pieces = dict.fromkeys([" ", "\n", "\n\n", *letters])
    pieces.update(dict.fromkeys(_PIECE.findall(TEMPLATE_TEXT)))
    for text in islice(documents(seed=0), _NUM_SCANNED_DOCUMENTS):
        pieces.update(dict.fromkeys(_PIECE.findall(text)))
    return [piece.replace(" ", "▁") for piece in pieces]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Builds the tokenizer from the corpus alone; it is the same on every machine."""
    vocab = [(token, 0.0) for token in SPECIAL_TOKENS]
    vocab += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    vocab += [(piece, -1.0) for piece in _pieces()]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="never"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=1024,
    )
