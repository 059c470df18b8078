"""Token files of sets: made once, under a name that is the digest of all that they depend on."""

from collections.abc import Sequence
from pathlib import Path

from ift_scale.config import Config
from ift_scale.io.files import link_or_copy
from ift_scale.io.locks import made_once
from ift_scale.io.manifests import digest_of, file_digest
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset

TOKENS = ".tokens"
"""Folder of the token files, in the train stage's folder."""
TOKENS_VERSION = 2


def tokenized(set_path: Path, cache: Path, tokenizer: PromptTokenizer, config: Config) -> Path:
    """The set's token file, made where the same set, tokenizer, template and lengths have none yet."""
    template = tokenizer.chat(config.evaluate.template).source
    settings = [
        TOKENS_VERSION,
        template,
        config.train.max_length,
        config.train.too_long,
        config.train.supervise,
    ]
    path = (
        cache
        / f"{digest_of([file_digest(set_path), dataset.tokenizer_digest(tokenizer), settings])[:16]}.npz"
    )
    if not path.is_file():
        with made_once(path) as missing:
            if missing:
                dataset.save(
                    dataset.tokenize(set_path, tokenizer, config.evaluate.template, config.train),
                    path,
                )
    dataset.check_enough(dataset.load(path), set_path, config.train)
    return path


def share_tokens(folder: Path, others: Sequence[Path]) -> None:
    """Have the token files of other train folders here too: their names are digests of all that made them."""
    for path in sorted(path for other in others for path in (other / TOKENS).glob("*.npz")):
        if not (folder / TOKENS / path.name).exists():
            link_or_copy(path, folder / TOKENS / path.name)
