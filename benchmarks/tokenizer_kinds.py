"""Small tokenizers of the real kinds: trained on the text at hand, with the pre-tokenizer, special tokens and template of a family.

Real vocabularies hold tokens such as `:A`, which decide how an option letter is read. A small vocabulary that is trained on
few-shot prompts by the family's own rules holds them too, so every family is tried with its own difficulties.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

SIZE = 1500
TEMPLATES = Path(__file__).parent / "chat_templates"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pattern: str, texts: Sequence[str], specials: Sequence[str]) -> Tokenizer:
    """Byte-level BPE that splits by `pattern`, as GPT-2, Llama-3, Qwen and most others."""
    tokenizer = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, texts, specials)


def deepseek(texts: Sequence[str], specials: Sequence[str]) -> Tokenizer:
    """DeepSeek's sequence of splits before byte-level BPE."""
    tokenizer = Tokenizer(BPE())
    parts = [
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
    splits = [pre_tokenizers.Split(Regex(part), behavior="isolated") for part in parts]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _trained(tokenizer, texts, specials)


def sentencepiece(prepend: bool) -> Callable[[Sequence[str], Sequence[str]], Tokenizer]:
    """BPE with byte fallback over text whose blanks are `▁`, as Llama-2 and Gemma.

    `prepend`: one more `▁` before the text, and line breaks are bytes (Llama-2, Mistral); Gemma has tokens for runs of them.
    """

    def build(texts: Sequence[str], specials: Sequence[str]) -> Tokenizer:
        # Trained on words: like a real vocabulary it has no token across a blank or a line break, whatever the merges then see.
        trained = Tokenizer(BPE(byte_fallback=True))
        words = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
        breaks = pre_tokenizers.Split(Regex(r"\n+"), behavior="removed" if prepend else "isolated")
        scripts = pre_tokenizers.Split(
            Regex(r"▁*\p{L}+|\p{N}|▁*[^\p{L}\p{N}▁]+"), behavior="isolated"
        )
        trained.pre_tokenizer = pre_tokenizers.Sequence([breaks, words, scripts])
        fallback = [f"<0x{byte:02X}>" for byte in range(256)]
        _trained(trained, texts, [*specials, *fallback], alphabet=["▁"])
        model = json.loads(trained.to_str())["model"]
        merges = [tuple(merge) for merge in model["merges"]]
        tokenizer = Tokenizer(
            BPE(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        steps = [normalizers.Prepend("▁")] if prepend else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if prepend else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        tokenizer.add_special_tokens([_special(token) for token in specials])
        return tokenizer

    return build


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _trained(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    specials: Sequence[str],
    alphabet: Sequence[str] = (),
) -> Tokenizer:
    letters = list(alphabet) or pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[_special(token) for token in specials],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def by_pattern(pattern: str) -> Callable[[Sequence[str], Sequence[str]], Tokenizer]:
    return lambda texts, specials: byte_level(pattern, texts, specials)


@dataclass(frozen=True)
class Kind:
    """One family's tokenizer.

    `template`: a file in chat_templates, shortened to user and assistant turns; `starts`: the tokens that begin a text;
    `settings`: further entries of tokenizer_config.json.
    """

    build: Callable[[Sequence[str], Sequence[str]], Tokenizer]
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    template: str
    starts: tuple[str, ...] = ()
    tokenizer_class: str = "PreTrainedTokenizerFast"
    settings: tuple[tuple[str, object], ...] = ()


def write(kind: Kind, texts: Sequence[str], folder: Path) -> int:
    """Writes the tokenizer's files into `folder` as a downloaded model has them; returns the size of its vocabulary."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = kind.build(texts, kind.specials)
    ids = [(token, tokenizer.token_to_id(token)) for token in kind.starts]
    if ids:
        before = " ".join(kind.starts)
        tokenizer.post_processor = TemplateProcessing(
            single=f"{before} $A", pair=f"{before} $A {before} $B", special_tokens=ids
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": kind.tokenizer_class,
        "bos_token": kind.bos,
        "eos_token": kind.eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1 << 30,
        **dict(kind.settings),
    }
    if "<unk>" in kind.specials:
        config["unk_token"] = "<unk>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    copyfile(TEMPLATES / f"{kind.template}.jinja", folder / "chat_template.jinja")
    return tokenizer.get_vocab_size()


_SP = ("<unk>", "<s>", "</s>")
_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LEGACY = (("legacy", True), ("add_bos_token", True), ("add_eos_token", False))

KINDS = {
    "llama-2": Kind(
        sentencepiece(True), _SP, "<s>", "</s>", "llama-2", ("<s>",), "LlamaTokenizer", _LEGACY
    ),
    "llama-3": Kind(
        by_pattern(LLAMA3),
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "llama-3",
        ("<|begin_of_text|>",),
    ),
    "mistral": Kind(
        sentencepiece(True), _SP, "<s>", "</s>", "mistral", ("<s>",), "LlamaTokenizer", _LEGACY
    ),
    "qwen2": Kind(by_pattern(QWEN2), _IM, None, "<|im_end|>", "chatml", (), "Qwen2Tokenizer"),
    "qwen3": Kind(
        by_pattern(QWEN2),
        (*_IM, "<think>", "</think>"),
        None,
        "<|im_end|>",
        "qwen3",
        (),
        "Qwen2Tokenizer",
    ),
    "gemma": Kind(
        sentencepiece(False),
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        "gemma",
        ("<bos>",),
        "GemmaTokenizer",
    ),
    "phi-3": Kind(
        sentencepiece(True),
        (*_SP, "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        "<s>",
        "<|endoftext|>",
        "phi-3",
        (),
        "LlamaTokenizer",
        (("legacy", False), ("add_bos_token", False), ("add_eos_token", False)),
    ),
    "phi-4": Kind(by_pattern(LLAMA3), (*_IM, "<|im_sep|>"), "<|endoftext|>", "<|im_end|>", "phi-4"),
    "olmo": Kind(
        by_pattern(LLAMA3), ("<|endoftext|>", "<|pad|>"), "<|endoftext|>", "<|endoftext|>", "tulu"
    ),
    "gpt-oss": Kind(
        by_pattern(O200K),
        (
            "<|startoftext|>",
            "<|endoftext|>",
            "<|return|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
        ),
        "<|startoftext|>",
        "<|return|>",
        "harmony",
    ),
    "granite": Kind(
        by_pattern(GPT2),
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        "<|end_of_text|>",
        "<|end_of_text|>",
        "granite",
    ),
    "smollm": Kind(by_pattern(GPT2), _IM, "<|im_start|>", "<|im_end|>", "chatml"),
    "smollm3": Kind(by_pattern(LLAMA3), _IM, None, "<|im_end|>", "chatml"),
    "falcon": Kind(by_pattern(GPT2), ("<|endoftext|>",), None, "<|endoftext|>", "falcon"),
    "glm-4": Kind(
        by_pattern(LLAMA3),
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
        None,
        "<|endoftext|>",
        "glm-4",
        ("[gMASK]", "<sop>"),
    ),
    "deepseek": Kind(
        deepseek,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "deepseek",
        ("<｜begin▁of▁sentence｜>",),
    ),
    "gpt-2": Kind(
        by_pattern(GPT2),
        ("<|endoftext|>",),
        "<|endoftext|>",
        "<|endoftext|>",
        "plain",
        (),
        "GPT2Tokenizer",
    ),
    "gpt-neox": Kind(
        by_pattern(GPT2),
        ("<|endoftext|>",),
        "<|endoftext|>",
        "<|endoftext|>",
        "plain",
        (),
        "GPTNeoXTokenizer",
    ),
}
