"""Screens instruction data: reads it, asks the model block by block, classifies and filters.

Out, in the output folder: screen.parquet (one row per example), index.html, filtered.jsonl, and
measures/ with the model's answers. A stopped screen loses at most the blocks in progress. Another
run with other thresholds or another treatment uses the measures and asks nothing again.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ift_scale.config import Config
from ift_scale.config.instructions import InstructionSource
from ift_scale.config.screen import ScreenClass
from ift_scale.engines import model_folder
from ift_scale.engines.pool import engine_workers
from ift_scale.engines.protocol import resolved_identity
from ift_scale.io.files import atomic_path, remove_incomplete, write_text
from ift_scale.io.integrity import is_intact
from ift_scale.io.locks import locked
from ift_scale.io.manifests import digest_of, file_digest, folder_digest, has_key, write_manifest
from ift_scale.io.progress import progress, say
from ift_scale.models.config_file import CONTEXT_FIELDS, model_config
from ift_scale.plan.text import duration
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.ranks.environment import engines_on_gpu
from ift_scale.scoring import embedding
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.runner import Share, compute
from ift_scale.scoring.scores import write_rows
from ift_scale.scoring.target import Target, work_of
from ift_scale.screen import page
from ift_scale.screen.asker import SCHEMA, BlockAsker, KindClock
from ift_scale.screen.classes import CLASSES, classify
from ift_scale.screen.facts import JudgedFacts
from ift_scale.screen.filtered import Filter
from ift_scale.screen.gather import Gathered, conversations, gather
from ift_scale.screen.kinds import KINDS, recognise

VERSION = 1
TABLE, PAGE, FILTERED, MEASURES = "screen.parquet", "index.html", "filtered.jsonl", "measures"
_EXAMPLES, _ANSWERS = "examples.jsonl", "answers.parquet"
_ROWS = 1024
_UNLIMITED = 1 << 20
T = TypeVar("T")
_CHARACTERS_PER_TOKEN = 4

TABLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("class", pa.string()),
        ("score", pa.float64()),
        ("reason", pa.string()),
        ("recognised_by", pa.string()),
        ("duplicate_of", pa.int64()),
        ("leak", pa.string()),
        *SCHEMA,
    ]
)
"""The columns of screen.parquet. `duplicate_of`: row of the first example with this prompt."""


class Screened(NamedTuple):
    """The result of a screen: examples by class, what became of them, and the seconds."""

    classes: dict[ScreenClass, int]
    treated: Counter[str]
    seconds: float


def screen(config: Config, sources: Sequence[InstructionSource], with_pools: bool) -> Screened:
    """Screens the sources with `config.model` and writes everything to `config.output_dir`.

    `with_pools`: search for the test questions of `config.questions`. Raises DataError for data,
    settings or a model that cannot be used.
    """
    started, folder = time.monotonic(), Path(config.output_dir)
    model_path = model_folder.resolve(config.model.path)
    with locked(folder):
        remove_incomplete(folder)
        measures = folder / MEASURES
        gathered = gather(sources, config, with_pools, measures / _EXAMPLES)
        _announce(gathered, config)
        facts = _collect_facts(gathered, config, folder)
        _measure(gathered, config, model_path, folder, facts)
        judged = facts.unusable if facts is not None else Counter[str]()
        statistics, treated = _write(gathered, config, sources, folder, judged)
    for text in page.warnings(statistics, config.screen, judged):
        say(f"note: {text}")
    classes = {name: statistics.total(name) for name in CLASSES}
    say(", ".join(f"{count:,} {page.NAMES[name]}" for name, count in classes.items()))
    say(", ".join(f"{count:,} {name}" for name, count in sorted(treated.items())))
    say(f"page: {(folder / PAGE).resolve()}")
    say(f"filtered set: {(folder / FILTERED).resolve()}")
    return Screened(classes, treated, time.monotonic() - started)


def _announce(gathered: Gathered, config: Config) -> None:
    """Prints the examples by kind and the work: requests, and tokens to read and to write."""
    counts, probe, long = gathered.kinds, config.probe, config.screen.long
    draws = probe.reliability.demonstration_draws
    say(", ".join(f"{counts[kind]:,} {page.NAMES[kind]}" for kind in KINDS if counts[kind]))
    answers = counts["short"] * draws * (1 + probe.free.num_samples)
    written = answers * probe.free.max_tokens
    written += counts["long"] * (1 + long.num_samples) * long.max_tokens
    times = {"choice": draws + 1, "short": draws * 2, "long": 5}
    read = sum(gathered.characters[kind] * n for kind, n in times.items()) // _CHARACTERS_PER_TOKEN
    say(
        f"work: about {read:,} tokens to read after shared prefixes and at most {written:,} tokens "
        f"to write, in {-(-len(gathered) // probe.chunk_size)} blocks; each block is kept"
    )
    if gathered.num_copies or gathered.leaks:
        say(f"{gathered.num_copies:,} copies of prompts, {len(gathered.leaks):,} test questions")


def _collect_facts(gathered: Gathered, config: Config, folder: Path) -> JudgedFacts | None:
    if config.screen.judge is None or not gathered.kinds["long"]:
        return None
    facts = JudgedFacts(folder / "judge", config.screen.judge)
    file = QuestionFile(gathered.path)
    long = (q for q in _read(file) if q.subject == "long")
    facts.collect(long, gathered.kinds["long"])
    return facts


def _blocks(items: Iterable[T]) -> Iterator[list[T]]:
    """Yields the items in lists of at most _ROWS."""
    rest = iter(items)
    while block := list(islice(rest, _ROWS)):
        yield block


def _read(file: QuestionFile) -> Iterator[Any]:
    for rows in _blocks(range(len(file.lengths))):
        yield from file.read(rows)


def _measure(
    gathered: Gathered, config: Config, model_path: Path, folder: Path, facts: JudgedFacts | None
) -> None:
    """Asks the model about all examples, unless their measures exist already."""
    measures, started = folder / MEASURES, time.monotonic()
    key = measures_key(gathered, config, model_path)
    if is_intact(measures, key):
        say("the model was asked already; using its answers")
        return
    tokenizer = PromptTokenizer(model_path, config.model.trust_remote_code)
    asker = BlockAsker(
        tokenizer,
        gathered.demonstrations,
        config.probe,
        config.screen,
        context_of(config, model_path),
        None if facts is None else facts.of,
    )
    questions = QuestionFile(gathered.path)

    def finish(target: Target, shards: list[Path]) -> None:
        write_rows(measures / _ANSWERS, SCHEMA, shards, lambda table: table)
        work = work_of(target)
        seconds = {"total": time.monotonic() - started} | work.seconds
        counts: dict[str, float] = {"examples": len(gathered), "computed_examples": work.questions}
        inputs = {"model": folder_digest(model_path)}
        write_manifest(measures, "screen", key, config.screen.model_dump(), inputs, counts, seconds)

    target = Target(
        "screen",
        measures,
        key,
        [np.arange(len(gathered))],
        asker,
        model_path,
        finish,
        config.probe.chunk_size,
        partial(has_key, measures, key),
    )
    embedding.check([target], questions, tokenizer, model_path)
    with progress("screening", len(gathered)) as bar:
        log = folder / "logs" / "screen.log"
        workers = engine_workers(config.probe, config.model, log, None, bar)
        asker.after_block = _Estimate(gathered.kinds, len(workers))
        compute(questions, [target], workers, Share(), bar)


class _Estimate:
    """Prints once how long the engines will need, when every kind of example has been timed."""

    def __init__(self, counts: Mapping[str, int], num_engines: int):
        self._counts, self._num_engines, self._printed = counts, num_engines, False

    def __call__(self, clock: KindClock) -> None:
        seconds = clock.estimate(self._counts)
        if seconds is not None and not self._printed:
            self._printed = True
            each = seconds / self._num_engines
            say(f"all examples take about {duration(each)} of engine time, as measured so far")


# Settings that only classify and filter what was measured.
_LATER = {
    "treatment",
    "treated",
    "weights",
    "refusal",
    "remove_duplicates",
    "remove_leaks",
    "confidence_threshold",
}
_LATER_LONG = {"known_surprisal", "known_agreement", "contradiction"}
_SPEED = {"base_url", "api_key_variable", "concurrency", "timeout", "max_retries", "wrong_share"}


def measures_key(gathered: Gathered, config: Config, model_path: Path) -> str:
    """Returns the digest of everything that the measures depend on."""
    settings = config.screen.model_dump(exclude=_LATER)
    settings["long"] = config.screen.long.model_dump(exclude=_LATER_LONG)
    if config.screen.judge is not None:
        settings["judge"] = config.screen.judge.model_dump(exclude=_SPEED)
        # The facts are counted with the threshold.
        settings["judge"]["threshold"] = config.screen.confidence_threshold
    engine = resolved_identity(
        config.probe,
        config.model.dtype,
        engines_on_gpu(None),
        model_path,
        config.model.trust_remote_code,
    )
    inputs = [folder_digest(model_path), file_digest(gathered.path)]
    return digest_of([VERSION, settings, engine, inputs])


def context_of(config: Config, model_path: Path) -> int:
    """Returns the most tokens of a prompt: `probe.max_model_len` or the model's own, less one."""
    fields = model_config(model_path)
    fields = fields.get("text_config") or fields
    stated = next((n for name in CONTEXT_FIELDS if (n := fields.get(name)) and n > 0), _UNLIMITED)
    return min(config.probe.max_model_len or stated, stated) - 1


def _write(
    gathered: Gathered,
    config: Config,
    sources: Sequence[InstructionSource],
    folder: Path,
    judged: Counter[str],
) -> tuple[page.Statistics, Counter[str]]:
    """Writes the table, the filtered set and the page in one pass over data and measures."""
    statistics, chosen = page.Statistics(), Filter(config.screen)
    with (
        atomic_path(folder / TABLE) as table_path,
        atomic_path(folder / FILTERED) as filtered_path,
        pq.ParquetWriter(table_path, TABLE_SCHEMA) as table,
        filtered_path.open("w", encoding="utf-8") as filtered,
    ):
        examples = enumerate(
            zip(conversations(sources), _answers(folder / MEASURES / _ANSWERS), strict=True)
        )
        for block in _blocks(examples):
            rows = []
            for number, (conversation, measures) in block:
                recognised = recognise(conversation.messages)
                verdict = classify(measures, recognised.why, config.screen)
                first = int(gathered.copy_of[number])
                leak = gathered.leaks.get(number)
                statistics.add(number, recognised, verdict, measures)
                line = chosen.line(
                    conversation, recognised, verdict, measures, first != number, leak is not None
                )
                if line is not None:
                    filtered.write(line + "\n")
                rows.append(
                    measures
                    | {
                        "id": conversation.id,
                        "file": str(conversation.place.file),
                        "line": conversation.place.line,
                        "class": verdict.name,
                        "score": verdict.score,
                        "reason": verdict.reason,
                        "recognised_by": recognised.why,
                        "duplicate_of": first if first != number else None,
                        "leak": leak,
                    }
                )
            table.write_table(pa.Table.from_pylist(rows, schema=TABLE_SCHEMA))
    found = [("copies of an earlier prompt", gathered.num_copies)]
    found.append(("test questions of the pools", len(gathered.leaks)))
    title = f"{', '.join(source.path for source in sources)} with {config.model.path}"
    notes = page.warnings(statistics, config.screen, judged)
    text = page.render(title, statistics, chosen.counts, found, notes, config.screen)
    write_text(folder / PAGE, text)
    return statistics, chosen.counts


def _answers(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS):
            yield from batch.to_pylist()
