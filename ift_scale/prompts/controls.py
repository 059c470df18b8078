"""Control tokens and text. Only a chat template or the tokenizer writes control tokens.

Everything that a question, an answer or a message contains is text, even if it spells a control
token (`</s>`, `<|im_end|>`).

In: a tokenizer. Out: `mask` and `unmask`, which carry a message's text through its template, and
`encode`, which tokenises such texts in one pass with a copy of the tokenizer. In the copy each
control token has a private random name. Ids, normalizer and merges are the tokenizer's own, so no
other token changes.

An added token is a control token if it is flagged special, or written as markup outside the model's
own vocabulary (`<think>`). Other added tokens are ordinary text: runs of spaces or line breaks,
words, and HTML tags that the vocabulary was trained with.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, SupportsIndex

_MARKUP = re.compile(r"<.+>|\[.+\]|⟨.+⟩|｟.+｠|◁.+▷", re.DOTALL)
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NOTHING = re.compile(r"(?!)")
_INSEPARABLE = (
    "the text spells a control token, which this tokenizer cannot distinguish from the token itself"
)


class ChatText(str):
    """A rendered conversation, without the masks of `Controls`.

    `controls`: (start, end) of every control token that the template wrote. None if the contents
    spell no control token, so each one in the text is the template's. Text that is appended must
    not spell a control token.
    """

    controls: tuple[tuple[int, int], ...] | None

    def __new__(cls, text: str, controls: tuple[tuple[int, int], ...] | None = None) -> "ChatText":
        rendered = super().__new__(cls, text)
        rendered.controls = controls
        return rendered

    def __add__(self, other: str) -> "ChatText":
        return ChatText(super().__add__(other), self.controls)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        part = super().__getitem__(key)
        if not isinstance(key, slice) or key.step not in (None, 1):
            return part
        if self.controls is None:
            return ChatText(part)
        first, last, _ = key.indices(len(self))
        inside = (
            (start - first, end - first)
            for start, end in self.controls
            if first <= start and end <= last
        )
        return ChatText(part, tuple(inside))


class Controls:
    """The control tokens of a tokenizer.

    `backend` is its `tokenizers.Tokenizer`, None for Python-only tokenizers.
    """

    def __init__(self, tokenizer: Any, backend: Any):
        self._tokenizer, self._backend = tokenizer, backend
        added = getattr(tokenizer, "added_tokens_decoder", {})
        in_model = (
            (lambda text: backend.model.token_to_id(text) is not None)
            if backend is not None
            else lambda text: False
        )
        self.ids: dict[str, int] = {
            token.content: number for number, token in added.items() if _is_control(token, in_model)
        }
        self._first = tuple({text[0] for text in self.ids})
        self._last = tuple({text[-1] for text in self.ids})
        self._longest = max(map(len, self.ids), default=1) - 1
        # Parts that a template could complete to a control token at a content's edge.
        self._beginnings = {text[:n] for text in self.ids for n in range(1, len(text))}
        self._ends = {text[n:] for text in self.ids for n in range(1, len(text))}
        # Digits between private-use characters, which no template trims, splits or recases.
        self._nonce = str(secrets.randbits(96))
        self._masks: dict[str, str] = {}
        self._masked: list[str] = []
        words = {token.content for token in added.values() if token.single_word}
        self.pattern = _any_of(self.ids, words)
        # Tokens matched after normalization, such as lowercasing, also match in other spellings.
        self._normalizer: Any = backend.normalizer if backend is not None else None
        normalized = [
            token.content
            for token in added.values()
            if token.content in self.ids and token.normalized
        ]
        self._respelled = _any_of(
            [self._normalizer.normalize_str(t) for t in normalized] if self._normalizer else [],
            words,
        )
        mask = rf"\ue000{self._nonce}(\d+)\ue001"
        self._mask_or_control = re.compile(f"{mask}|{self.pattern.pattern}" if self.ids else mask)

    def spelled_in(self, text: str) -> bool:
        """True if a plain text, or the contents of a ChatText, spell a control token."""
        if isinstance(text, ChatText):
            return text.controls is not None
        return (
            any(first in text for first in self._first) and self.pattern.search(text) is not None
        ) or self._is_respelled(text)

    def _is_respelled(self, text: str) -> bool:
        """True if the text spells a control token once it is normalized."""
        if self._normalizer is None or self._respelled is _NOTHING:
            return False
        return self._respelled.search(self._normalizer.normalize_str(text)) is not None

    def mask(self, content: str) -> str:
        """Returns a message's content with a mask for each control token that it spells.

        Parts at an edge that a template could complete to a control token are masked too. A content
        that spells a control token only after normalization gets one mask as a whole.
        """
        if self._respelled is not _NOTHING and self._is_respelled(self.pattern.sub("", content)):
            return self._mask(content)
        # Fast path: most contents have no character that begins a control token.
        head, tail = content[: self._longest], content[-self._longest :]
        if not (
            any(map(content.__contains__, self._first)) or any(map(head.__contains__, self._last))
        ):
            return content
        plain, spelled = self.pattern.split(content), self.pattern.findall(content)
        if (
            not spelled
            and not any(map(tail.__contains__, self._first))
            and not any(map(head.__contains__, self._last))
        ):
            return content
        # The end of the content may begin a token that the template's text completes ...
        cut = _longest_edge(lambda n: plain[-1][-n:], self._longest, plain[-1], self._beginnings)
        if cut:
            plain[-1:] = [plain[-1][:-cut], ""]
            spelled.append(content[-cut:])
        # ... and its beginning may end one.
        cut = _longest_edge(lambda n: plain[0][:n], self._longest, plain[0], self._ends)
        if cut:
            plain[:1] = ["", plain[0][cut:]]
            spelled.insert(0, content[:cut])
        masks = [*map(self._mask, spelled), ""]
        return "".join(text + mask for text, mask in zip(plain, masks, strict=True))

    def _mask(self, spelled: str) -> str:
        if spelled not in self._masks:
            self._masks[spelled] = f"\ue000{self._nonce}{len(self._masked)}\ue001"
            self._masked.append(spelled)
        return self._masks[spelled]

    def unmask(self, text: str) -> ChatText:
        """Returns the text of a conversation that was rendered from masked contents.

        Raises ValueError if it contains a mask and this tokenizer cannot distinguish the masked
        text from a control token.
        """
        if self._nonce not in text:
            return ChatText(text)
        self._check_separable()
        pieces: list[str] = []
        controls: list[tuple[int, int]] = []
        position = length = 0
        for match in self._mask_or_control.finditer(text):
            piece = match[0] if match[1] is None else self._masked[int(match[1])]
            pieces += [text[position : match.start()], piece]
            length += len(pieces[-2])
            if match[1] is None:
                controls.append((length, length + len(piece)))
            length += len(piece)
            position = match.end()
        return ChatText("".join([*pieces, text[position:]]), tuple(controls))

    def _check_separable(self) -> None:
        if self._backend is None:
            raise ValueError(f"{_INSEPARABLE} (it has no tokenizer.json)")
        if self._inseparable is not None:
            raise ValueError(f"{_INSEPARABLE}: {self._inseparable!r}")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns ids of texts whose contents spell control tokens, without start tokens.

        Raises ValueError if this tokenizer cannot distinguish them from control tokens.
        """
        if self._backend is None:
            return self._split(texts)
        private = [self._private(text) for text in texts]
        return [
            encoding.ids
            for encoding in self._copy.encode_batch_fast(private, add_special_tokens=False)
        ]

    def _split(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes whole contents with a Python-only tokenizer.

        Such a tokenizer can only treat either all or none of a text's special tokens as text.
        """
        if any(isinstance(text, ChatText) for text in texts):
            self._check_separable()
        rows = self._tokenizer(
            list(texts), add_special_tokens=False, split_special_tokens=True
        ).input_ids
        if any(set(row) & set(self.ids.values()) for row in rows):
            self._check_separable()
        return rows

    def _private(self, text: str) -> str:
        """Returns the text with private names for the control tokens that are not content."""
        if not isinstance(text, ChatText):
            return text
        if text.controls is None:
            return self.pattern.sub(lambda match: self._names[match[0]], text)
        pieces, position = [], 0
        for start, end in text.controls:
            pieces += [
                str.__getitem__(text, slice(position, start)),
                self._names[str.__getitem__(text, slice(start, end))],
            ]
            position = end
        return "".join([*pieces, str.__getitem__(text, slice(position, None))])

    @cached_property
    def _names(self) -> dict[str, str]:
        """Private names of equal length, so none is a prefix of another.

        Their characters survive every normalizer. Each begins and ends like its token, because that
        decides whether a neighbour is a word of its own.
        """
        secret = secrets.token_hex(12)
        return {
            text: f"{text[0]}{secret}{number:08x}{text[-1]}" for text, number in self.ids.items()
        }

    @cached_property
    def _copy(self) -> Any:
        """The tokenizer with private names for control tokens."""
        return renamed(self._backend, self._names)

    @cached_property
    def _inseparable(self) -> str | None:
        """A text for which the copy's ids differ from the tokenizer's; None if there is none."""
        contexts = ("{}", "a{}b", " {} c", "\n{}\n", "{0}{0}A", "A.{}\n")
        texts = [ChatText(context.format(text)) for text in self.ids for context in contexts]
        expected = self._backend.encode_batch_fast(list(map(str, texts)), add_special_tokens=False)
        copied = self._copy.encode_batch_fast(
            list(map(self._private, texts)), add_special_tokens=False
        )
        pairs = zip(texts, expected, copied, strict=True)
        return next((str(text) for text, own, copy in pairs if own.ids != copy.ids), None)


def _longest_edge(edge: Callable[[int], str], limit: int, text: str, parts: set[str]) -> int:
    """Returns the length of the longest edge of `text`, at most `limit`, that is one of `parts`."""
    lengths = range(min(limit, len(text)), 0, -1)
    return next((n for n in lengths if edge(n) in parts), 0)


def _is_control(token: Any, in_model: Callable[[str], bool]) -> bool:
    text = token.content
    if not text.strip() or _BYTE.fullmatch(text):
        return False
    # A single character, such as a pad token "!", cannot be written in other tokens.
    if in_model(text):
        return token.special and len(text) > 1
    return token.special or _MARKUP.fullmatch(text) is not None


def _any_of(texts: Sequence[str] | dict[str, int], words: set[str]) -> re.Pattern[str]:
    """Matches the longest of `texts`; those in `words` only if no letter or digit is adjacent."""
    if not texts:
        return _NOTHING
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(
        "|".join(
            rf"(?<!\w){re.escape(t)}(?!\w)" if t in words else re.escape(t) for t in longest_first
        )
    )


def renamed(backend: Any, names: dict[str, str]) -> Any:
    """Returns a copy of a `tokenizers.Tokenizer` with renamed tokens and the same ids.

    Merges that would produce a renamed token from text are dropped.
    """
    from tokenizers import Tokenizer

    state = json.loads(backend.to_str())
    state |= {"post_processor": None, "truncation": None, "padding": None}
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {
            names.get(piece, piece): number for piece, number in model["vocab"].items()
        }
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        inner = model.get("continuing_subword_prefix") or ""
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [
            (a, b) for a, b in pairs if not {a, b, a + b.removeprefix(inner)} & names.keys()
        ]
    return Tokenizer.from_str(json.dumps(state))
