"""Tokens of sets: written once, in a folder named by the digest of everything they depend on."""

from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import Config
from ift_scale.io.files import atomic_folder, link_or_copy
from ift_scale.io.locks import build_once
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.io.progress import say
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import blocks, dataset
from ift_scale.train.data.tokenize import tokenizer_digest

TOKENS = ".tokens"
"""Folder of the tokens, within the train stage's folder."""
TOKENS_VERSION = 4


def tokenized(
    set_path: Path,
    cache: Path,
    tokenizer: PromptTokenizer,
    config: Config,
    note: blocks.Note = lambda _: None,
) -> Path:
    """Returns the folder of the set's tokens; tokenises if none exists for the same set and
    settings, or if it is damaged, which is reported. `note` is called with the progress."""
    template = tokenizer.chat(config.evaluate.template).source
    settings = [
        TOKENS_VERSION,
        template,
        config.train.max_length,
        config.train.too_long,
        config.train.supervise,
    ]
    digest = digest_of([file_digest(set_path), tokenizer_digest(tokenizer), settings])
    path = cache / digest[:16]
    if not dataset.is_intact(path):
        with build_once(path, dataset.is_intact) as missing:
            if missing:
                if path.exists():
                    say(f"{path}: damaged tokens; {set_path.name} is tokenised again")
                blocks.write(set_path, path, tokenizer, config, note)
    return path


def share_tokens(folder: Path, others: Sequence[Path]) -> None:
    """Link or copy the tokens of other train folders. Their names identify their contents."""
    own = folder / TOKENS
    for source in sorted(path for other in others for path in (other / TOKENS).glob("[!.]*")):
        if source.is_file() and not (own / source.name).exists():
            link_or_copy(source, own / source.name)
        elif source.is_dir() and not (own / source.name).exists():
            with atomic_folder(own / source.name) as temporary:
                for file in source.iterdir():
                    link_or_copy(file, temporary / file.name)
