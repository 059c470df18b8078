"""Builds the tokenizer that a GGUF file describes, and checks it against the file.

transformers builds it from the file's vocabulary and merges. It takes GPT-2's way to split a text
into words for every type that it has no split for, and it adds no tokens at the beginning of a
text. Here the splits of more types are set, other types are refused, and the tokens at the
beginning and end are those that llama.cpp adds. The groups of types and the defaults are those of
llama.cpp's src/llama-vocab.cpp (`llm_tokenizer_bpe` and `llama_vocab::impl::load`).
"""

from typing import Any

from ift_scale.commands.gguf_file import GgufHeader
from ift_scale.errors import DataError

_KEY = "tokenizer.ggml."
_DIGITS_THEN_GPT2 = frozenset(
    {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
)
_GPT2 = frozenset({"gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion", "granite-docling"})
# Words that are in the vocabulary are taken whole, whatever the merges say.
_WHOLE_WORDS = frozenset(
    {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
    | {"jina-v5-nano", "tekken"}
)
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_USE_ANOTHER = "Convert the model again with a current llama.cpp, or use its Hugging Face folder"
_FETCH_AGAIN = "Copy or fetch the file again"


def build(header: GgufHeader) -> Any:
    """Returns the file's tokenizer as a transformers tokenizer.

    Raises DataError if the file has no tokenizer, one of a type that cannot be built exactly, or
    one whose tokens, ids or special tokens differ from the file's.
    """
    from transformers import AutoTokenizer

    tokens = header.fields.get(f"{_KEY}tokens")
    kind = header.text(f"{_KEY}model")
    if kind is None or not isinstance(tokens, list) or not tokens:
        field = f"{_KEY}model" if kind is None else f"{_KEY}tokens"
        raise DataError(header.place(field), "is missing: no tokenizer in the file", _USE_ANOTHER)
    if not all(isinstance(token, str) for token in tokens):
        raise DataError(header.place(f"{_KEY}tokens"), "must be strings", _FETCH_AGAIN)
    pre = _refuse_unknown(header, kind)
    special = {name: _token_id(header, key, len(tokens)) for name, key in _SPECIAL.items()}
    tokenizer = AutoTokenizer.from_pretrained(header.path.parent, gguf_file=header.path.name)
    if kind == "gpt2":
        _split_words(tokenizer.backend_tokenizer, pre)
    _add_at_the_ends(header, tokenizer, kind, pre, special)
    _compare(header, tokenizer, tokens, special)
    return tokenizer


def _refuse_unknown(header: GgufHeader, kind: str) -> str:
    """Returns the type of word splitting. Raises DataError for one that is not known."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_PRE_TOKENIZER_SPLITS,
        GGUF_TOKENIZER_TYPES,
    )

    if kind not in GGUF_TOKENIZER_TYPES:
        problem = f"is not a type that transformers builds ({', '.join(GGUF_TOKENIZER_TYPES)})"
        raise DataError(header.place(f"{_KEY}model"), problem, _USE_ANOTHER, kind)
    pre = header.text(f"{_KEY}pre") or "default"
    known = _DIGITS_THEN_GPT2 | _GPT2 | GGUF_PRE_TOKENIZER_SPLITS.keys()
    if kind == "gpt2" and pre not in known:
        problem = "names no known way to split a text into words, so token ids would differ"
        problem += f" (known: {', '.join(sorted(known))})"
        raise DataError(header.place(f"{_KEY}pre"), problem, _USE_ANOTHER, pre)
    return pre


def _token_id(header: GgufHeader, key: str, num_tokens: int) -> int | None:
    field = f"{_KEY}{key}_token_id"
    token = header.number(field)
    if token is not None and not 0 <= token < num_tokens:
        problem = f"must be below the number of tokens, {num_tokens}"
        raise DataError(header.place(field), problem, _FETCH_AGAIN, token)
    return token


def _split_words(backend: Any, pre: str) -> None:
    from tokenizers import pre_tokenizers

    if pre in _DIGITS_THEN_GPT2:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )
    if pre in _WHOLE_WORDS:
        backend.model.ignore_merges = True


def _add_at_the_ends(
    header: GgufHeader, tokenizer: Any, kind: str, pre: str, special: dict[str, int | None]
) -> None:
    """Sets which special tokens stand before and after each text."""
    from tokenizers import processors

    defaults = {"bos": kind != "gpt2" or pre in _WHOLE_WORDS, "eos": False}
    added = {}
    for name, default in defaults.items():
        field = f"{_KEY}add_{name}_token"
        wanted = header.fields.get(field, default and special[name] is not None)
        if not isinstance(wanted, bool):
            raise DataError(header.place(field), "must be true or false", _FETCH_AGAIN, wanted)
        if wanted and special[name] is None:
            missing = f"is true, but there is no {_KEY}{_SPECIAL[name]}_token_id"
            raise DataError(header.place(field), missing, _USE_ANOTHER)
        added[name] = [getattr(tokenizer, f"{name}_token")] if wanted else []
    single, second = ([*added["bos"], text, *added["eos"]] for text in ("$A", "$B"))
    ends = {token: special[name] for name in added for token in added[name]}
    tokenizer.backend_tokenizer.post_processor = (
        processors.TemplateProcessing(
            single=single,
            pair=[*single, *(f"{part}:1" for part in second)],
            special_tokens=list(ends.items()),
        )
        if ends
        else processors.ByteLevel(trim_offsets=False)  # changes offsets only
    )


def _compare(
    header: GgufHeader, tokenizer: Any, tokens: list[str], special: dict[str, int | None]
) -> None:
    """Compares every token and special token with the file's."""
    built = tokenizer.convert_ids_to_tokens(list(range(len(tokens))))
    for number, (ours, theirs) in enumerate(zip(built, tokens, strict=True)):
        if ours != theirs and ours not in _respelled(theirs):
            problem = f"token {number} is {theirs!r} in the file and {ours!r} in the tokenizer"
            raise DataError(header.place(f"{_KEY}tokens"), problem, _USE_ANOTHER)
    if len(tokenizer) != len(tokens):
        problem = f"the file has {len(tokens)} tokens and its tokenizer {len(tokenizer)}"
        raise DataError(header.place(f"{_KEY}tokens"), problem, _USE_ANOTHER)
    for name, token in special.items():
        if getattr(tokenizer, f"{name}_token_id") != token:
            problem = f"is not the tokenizer's {getattr(tokenizer, f'{name}_token_id')}"
            field = f"{_KEY}{_SPECIAL[name]}_token_id"
            raise DataError(header.place(field), problem, _USE_ANOTHER, token)


def _respelled(token: str) -> tuple[str, ...]:
    """Returns the spellings that transformers gives tokens of blanks, and control tokens with
    characters outside the byte alphabet."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelling = bytes_to_unicode()
    return (
        "\u2581" * len(token) if not token.strip(" ") else token,
        "".join(spelling[byte] for byte in token.encode("utf-8")),
    )
