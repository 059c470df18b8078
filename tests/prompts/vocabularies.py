"""Small tokenizers like those of published families, and tiny random models for them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ift_scale.prompts.templates import few_shot_prefix, few_shot_prompt, open_prefix
from ift_scale.records import Question

WORDS = "copper willow granite amber cobalt maple quartz cedar basalt iron birch slate".split()
SPECIAL = ["<unk>", "<s>", "</s>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _ENDING + "|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _ENDING + "|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_CODER = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"\p{N}"]
"""The first DeepSeek models split signs from letters, so nothing merges."""

# No space between `Answer:` and the answer, so that the letter may merge with the colon.
TIGHT = (
    "{% for m in messages %}{{ ' USER: ' + m['content'] if m['role'] == 'user' else"
    " '\nAnswer:' + m['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\nAnswer:' }}{% endif %}"
)


def question(number: int, num_choices: int = 4, split: str = "test") -> Question:
    choices = [
        f"{WORDS[(number + place) % len(WORDS)]} {WORDS[(3 * number + place) % len(WORDS)]}"
        for place in range(num_choices)
    ]
    return Question(
        id=f"{split}{number}",
        domain="engineering",
        subject="engineering",
        collection="pool",
        split=split,  # type: ignore[arg-type]
        question=f"Which is part {number} of the {WORDS[number % len(WORDS)]}?",
        choices=choices,
        answer=number % num_choices,
    )


def corpus(letters: str) -> list[str]:
    """Answered prompts; only these letters come right after `Answer:`."""
    texts = []
    for number in range(60):
        shown = [question(number + place, split="dev") for place in range(4)]
        shown = [
            q.model_copy(update={"answer": "ABCD".index(letters[i % len(letters)])})
            for i, q in enumerate(shown)
        ]
        texts.append(few_shot_prompt(question(number), shown))
        texts.append(few_shot_prefix("engineering", shown) + open_prefix("engineering", shown))
    return texts + [f"ASSISTANT: {letter}. USER: {letter}" for letter in "ABCD" for _ in range(20)]


def _split(*patterns: str) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]


def byte_level(
    *patterns: str, letters: str = "ABCD", add_prefix_space: bool = False, more: Sequence[str] = ()
) -> Tokenizer:
    """Byte-level BPE with the given pre-tokenizer patterns (default GPT-2's) and whole pieces."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=not patterns)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_split(*patterns), level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(letters), trainer)
    if not more:
        return tokenizer
    parts = json.loads(tokenizer.to_str())
    vocabulary, merges = parts["model"]["vocab"], parts["model"]["merges"]
    for piece in more:  # the first merges of all, whatever the corpus says
        vocabulary.setdefault(piece, len(vocabulary))
        merges.insert(0, [piece[0], piece[1:]])
    return Tokenizer.from_str(json.dumps(parts))


def without(pieces: Sequence[str], tokenizer: Tokenizer) -> Tokenizer:
    """The BPE without these merges."""
    parts = json.loads(tokenizer.to_str())
    parts["model"]["merges"] = [
        pair for pair in parts["model"]["merges"] if "".join(pair) not in pieces
    ]
    return Tokenizer.from_str(json.dumps(parts))


def metaspace_bpe(scheme: str) -> Tokenizer:
    """Sentencepiece's BPE with byte fallback; a mark precedes the text or each of its parts."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*SPECIAL, *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(corpus("ABCD"), trainer)
    return tokenizer


def unigram(scheme: str, lines: bool) -> Tokenizer:
    """Sentencepiece's Unigram with byte fallback; without `lines` a line break is a space."""
    tokenizer = Tokenizer(models.Unigram())
    if not lines:
        tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(corpus("ABCD"), trainer)
    parts = json.loads(tokenizer.to_str())
    parts["model"]["byte_fallback"] = True
    parts["model"]["vocab"] += [[piece, -20.0] for piece in BYTES]
    return Tokenizer.from_str(json.dumps(parts))


def word_piece() -> Tokenizer:
    """BERT's: white space is lost, signs are words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(corpus("ABCD"), trainer)
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "llama-3": lambda: byte_level(LLAMA3),
    "llama-3, A and C merge": lambda: without([":B", ":D"], byte_level(LLAMA3, more=[":A", ":C"])),
    "qwen2": lambda: byte_level(QWEN2),
    "qwen2, D merges": lambda: without([":A", ":B", ":C"], byte_level(QWEN2, more=[":D"])),
    "o200k": lambda: byte_level(O200K),
    "deepseek-v3": lambda: byte_level(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK),
    "deepseek coder": lambda: byte_level(*DEEPSEEK_CODER),
    "gpt-2": lambda: byte_level(),
    "gpt-2 with a space before the text": lambda: byte_level(add_prefix_space=True),
    "metaspace bpe": lambda: metaspace_bpe("first"),
    "metaspace bpe, each part": lambda: metaspace_bpe("always"),
    "unigram": lambda: unigram("first", lines=True),
    "unigram, each part": lambda: unigram("always", lines=True),
    "unigram without lines": lambda: unigram("always", lines=False),
    "wordpiece": word_piece,
}


def save(
    tokenizer: Tokenizer,
    folder: Path,
    start: str = "<s>",
    end: str = "",
    template: str | None = None,
) -> Path:
    """The tokenizer in `folder`, which puts the tokens `start` before a text and `end` after it."""
    ids = [(piece, tokenizer.token_to_id(piece)) for piece in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}".strip(), special_tokens=ids
    )
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    whole.save_pretrained(folder)
    return folder


def random_model(folder: Path, vocab_size: int) -> LlamaForCausalLM:
    """A tiny random Llama, sharp enough that no two tokens are alike to it, saved in `folder`."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, max_position_embeddings=1024, initializer_range=0.3, **sizes
        )
    )
    model.save_pretrained(folder)
    return model.eval()
