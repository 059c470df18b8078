"""Token files of sets: written once, named by the digest of everything they depend on."""

from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import Config
from ift_scale.io.files import link_or_copy
from ift_scale.io.locks import build_once
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset
from ift_scale.train.data.tokenize import tokenize, tokenizer_digest

TOKENS = ".tokens"
"""Folder of the token files, within the train stage's folder."""
TOKENS_VERSION = 2


def tokenized(set_path: Path, cache: Path, tokenizer: PromptTokenizer, config: Config) -> Path:
    """Returns the set's token file; tokenises if none exists for the same set and settings."""
    template = tokenizer.chat(config.evaluate.template).source
    settings = [
        TOKENS_VERSION,
        template,
        config.train.max_length,
        config.train.too_long,
        config.train.supervise,
    ]
    digest = digest_of([file_digest(set_path), tokenizer_digest(tokenizer), settings])
    path = cache / f"{digest[:16]}.npz"
    if not path.is_file():
        with build_once(path) as missing:
            if missing:
                tokens = tokenize(set_path, tokenizer, config.evaluate.template, config.train)
                dataset.save(tokens, path)
    return path


def share_tokens(folder: Path, others: Sequence[Path]) -> None:
    """Link or copy the token files of other train folders. Their names identify their contents."""
    for path in sorted(path for other in others for path in (other / TOKENS).glob("*.npz")):
        if not (folder / TOKENS / path.name).exists():
            link_or_copy(path, folder / TOKENS / path.name)
