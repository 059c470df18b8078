"""Tokenises a large set on all cores, a block of lines at a time, and resumes after a kill.

A block is the lines that begin in a range of bytes of the set's file. Each finished block is a
folder of its own; in the end all are joined. Blocks differ neither in tokens nor in errors from the
whole file: the error of the first bad line is raised.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ift_scale.config import Config
from ift_scale.errors import DataError, EnvironmentProblem
from ift_scale.io.children import die_with_parent
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.train.data import dataset
from ift_scale.train.data.tokenize import tokenize

BLOCK_BYTES = 4 << 20
# A process takes seconds to start, in which one tokenises about as much as this.
BYTES_PER_PROCESS = 8 << 20

Note = Callable[[str], None]


@dataclass(frozen=True)
class TokenBlock:
    """A range of bytes of a set's file, and the folder of its tokens."""

    source: Path
    start: int
    end: int
    folder: Path


def write(
    source: Path, folder: Path, tokenizer: PromptTokenizer, config: Config, note: Note
) -> None:
    """Writes the tokens of the set in `source` to `folder`; finished blocks are next to it.

    `note` is called with the progress. Raises DataError as `tokenize` does.
    """
    parts = folder.with_name(f".{folder.name}.blocks")
    size = source.stat().st_size
    blocks = [
        TokenBlock(source, start, start + BLOCK_BYTES, parts / f"{start}-{start + BLOCK_BYTES}")
        for start in range(0, max(size, 1), BLOCK_BYTES)
    ]
    pending = [block for block in blocks if not dataset.is_intact(block.folder)]
    for number, error in enumerate(_tokenized(pending, tokenizer, config), start=1):
        if error is not None:
            raise error
        note(f"tokenising {len(blocks) - len(pending) + number} of {len(blocks)} blocks")
    dataset.join([dataset.load(block.folder) for block in blocks], folder)
    shutil.rmtree(parts)


def _tokenized(
    blocks: list[TokenBlock], tokenizer: PromptTokenizer, config: Config
) -> Iterator[DataError | None]:
    """Tokenises blocks; yields the error of each, in their order."""
    num_bytes = len(blocks) * BLOCK_BYTES
    processes = min(len(os.sched_getaffinity(0)), num_bytes // BYTES_PER_PROCESS)
    if processes < 2:
        for block in blocks:
            yield _write_block(block, tokenizer, config)
        return
    # Not forked: a copy of a process with threads may wait for a lock forever. This process
    # tokenises too, because the others start with seconds of imports.
    pool = ProcessPoolExecutor(
        processes - 1,
        get_context("spawn"),
        initializer=_start,
        initargs=(os.getpid(), tokenizer.path, config),
    )
    futures = [pool.submit(_write_in_child, block) for block in blocks]
    own: dict[int, DataError | None] = {}
    try:
        for number, future in enumerate(futures):
            while number not in own and not future.done():
                waiting = range(number, len(blocks))
                free = next((n for n in waiting if n not in own and futures[n].cancel()), None)
                if free is None:
                    break
                own[free] = _write_block(blocks[free], tokenizer, config)
            yield own[number] if number in own else future.result()
    except BrokenProcessPool:
        raise EnvironmentProblem(
            "a process that tokenises the set died, perhaps for lack of memory. Finished blocks "
            "are kept; run the same command again."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _write_block(block: TokenBlock, tokenizer: PromptTokenizer, config: Config) -> DataError | None:
    """Writes a block's tokens. Returns an error of the set instead of raising it."""
    try:
        tokens = tokenize(
            block.source, tokenizer, config.evaluate.template, config.train, block.start, block.end
        )
    except DataError as error:
        return error
    dataset.save(tokens, block.folder)
    return None


_own: tuple[PromptTokenizer, Config]
"""A child's tokenizer and settings."""


def _start(parent: int, path: Path, config: Config) -> None:
    global _own
    die_with_parent(parent)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes already use all cores
    _own = PromptTokenizer(path, config.model.trust_remote_code), config


def _write_in_child(block: TokenBlock) -> DataError | None:
    return _write_block(block, *_own)
