"""The probe without an engine: questions per second and core of reading, tokenizing and storing.

    python -m benchmarks.bench_pipeline [--mmlu ../shared/data/mmlu] [--repeats 5]
        [--sizes 1000,10000,100000,1000000]

Real 5-shot MMLU prompts, repeated under new ids up to the pool's size, go through the probe stage
with a null engine that returns immediately. Rates are per second of the process' CPU time, so they
are per core; peak memory is the process' own. `parts` times each part separately on one thread.
Each size runs in its own process. The sustained rate is that between `--base` and four times as
many questions on one core, which excludes start-up.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import click
import pyarrow.parquet as pq

from benchmarks.peers import model as peers_model
from benchmarks.suite.rows import Gate, Sheet
from ift_scale.config import MmluSource, ProbeConfig
from ift_scale.config.file import from_dict
from ift_scale.engines.null import NullEngine
from ift_scale.engines.pool import EngineWorker
from ift_scale.engines.process import EngineProcess
from ift_scale.engines.protocol import EngineSpec
from ift_scale.io.files import write_jsonl
from ift_scale.io.progress import Bar, say
from ift_scale.probe import run as probe
from ift_scale.probe.selection import is_probed
from ift_scale.prompts.templates import Demonstrations
from ift_scale.prompts.tokenizer import PromptTokenizer
from ift_scale.questions import mmlu
from ift_scale.records import PROBE_FILE, Question
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.scores import ChoiceScores
from ift_scale.stage import Task

MMLU = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
GATE = Gate(checked="questions missing in the merged table", gap=0, tolerance=0)
NULL = "ift_scale.engines.null:NullEngine"


def write_pool(path: Path, questions: list[Question], size: int) -> None:
    """Writes the dev questions, then test questions repeated under new ids."""
    dev = [q for q in questions if q.split == "dev"]
    test = [q for q in questions if q.split == "test"]
    copies = (
        test[i % len(test)].model_copy(update={"id": f"{test[i % len(test)].id}/{i // len(test)}"})
        for i in range(size)
    )
    write_jsonl(path, (q for part in (dev, copies) for q in part))


def one_run(folder: Path, pool: Path, model: Path) -> dict[str, float]:
    """Runs the probe stage on an existing pool; returns CPU time and peak memory."""
    config = from_dict(
        {"output_dir": str(folder), "probe": {"engine": "transformers", "chunk_size": 4096}}
    )

    def start(path: Path) -> EngineProcess:
        return EngineProcess(
            EngineSpec(str(path), "float32", config.probe, factory=NULL), folder / "null.log"
        ).ready()

    engine = start(model)  # imports torch, which is not part of the pipeline
    PromptTokenizer(model)  # imports transformers
    before = time.monotonic(), time.process_time()
    questions = QuestionFile(pool)
    bar = Bar("probe", 0, None)
    worker = EngineWorker(lambda path: engine, bar)
    task = Task("probe", folder / "probe", "key", {})
    with patch.object(probe, "engine_workers", lambda *_: [worker]):
        probe.ask(config, task, model, questions, folder, None, bar)
    wall, own = time.monotonic() - before[0], time.process_time() - before[1]
    asked = len(questions.select(lambda group: is_probed(config.probe, group)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    merged = pq.read_metadata(folder / "probe" / PROBE_FILE).num_rows
    if merged != asked:
        raise SystemExit(
            f"{merged} of {asked} questions are in the merged table: nothing is stored"
        )
    engine_seconds = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "questions": asked,
        "wall_seconds": wall,
        "processor_seconds": own,
        "questions_per_core_second": asked / own,
        "questions_per_second": asked / wall,
        "peak_mib": peak,
        "engine_processor_seconds": engine_seconds.ru_utime + engine_seconds.ru_stime,
    }


def parts(pool: Path, model: Path, count: int = 8192) -> dict[str, float]:
    """Returns microseconds per question of each part, on one thread."""
    config = ProbeConfig()
    questions = QuestionFile(pool)
    rows = questions.select(lambda group: group.split == "test")[:count]
    tokenizer = PromptTokenizer(model)
    asker = probe.asker_of(
        config,
        tokenizer,
        Demonstrations(questions.dev, config.num_shots, config.demonstration_seed),
    )
    asker.write(questions.read(rows[:512]))  # warm-up
    seconds: dict[str, float] = {}

    def timed(name: str, work: object) -> object:
        started = time.process_time()
        found = work()  # type: ignore[operator]
        seconds[name] = (time.process_time() - started) / count * 1e6
        return found

    read = timed("reading", lambda: questions.read(rows))
    written = timed("writing and tokenising", lambda: asker.write(read))  # type: ignore[arg-type]
    tokenised = [tokenizer.decode(r.suffix) for r in written.requests]  # type: ignore[attr-defined]
    timed("of that: the tokenizer itself", lambda: tokenizer._plain(tokenised))
    engine = NullEngine(EngineSpec("", "", config))
    table = timed("table of log-probabilities", lambda: asker.ask(engine, written))
    timed("scores", lambda: ChoiceScores(config.reliability).rows(table))  # type: ignore[arg-type]
    return seconds


@click.group(invoke_without_command=True)
@click.pass_context
@click.option("--mmlu", "folder", default=MMLU, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--model",
    default=Path("runs/peers/model"),
    type=click.Path(path_type=Path),
    help="Created by peers/model.py if missing.",
)
@click.option("--repeats", default=5, show_default=True)
@click.option(
    "--base",
    default=14042,
    show_default=True,
    help="Questions of the smaller of two pools on one core; all of MMLU.",
)
@click.option(
    "--sizes",
    default="1000,10000,100000,1000000",
    show_default=True,
    help="Of the growth, on all cores.",
)
@click.option("--quick", is_flag=True, help="512 and 2,048 questions, one repeat, no growth.")
def main(
    context: click.Context,
    folder: Path,
    model: Path,
    repeats: int,
    base: int,
    sizes: str,
    quick: bool,
) -> None:
    """Measure and store the rows of `pipeline`."""
    if context.invoked_subcommand:
        return
    peers_model.create(model)
    if quick:
        repeats, base, sizes = 1, 512, ""
    questions = [
        question for _, question in mmlu.load(MmluSource(kind="mmlu", path=str(folder)), 0)
    ]
    sheet = Sheet("pipeline", quick)
    with tempfile.TemporaryDirectory() as temporary:
        pool, work = Path(temporary) / "questions.jsonl", Path(temporary)
        write_pool(pool, questions, base)
        for part, value in json.loads(
            _child("parts", str(pool), str(model), one_core=True)
        ).items():
            sheet.add(part, "processor time per question", "us", [value], GATE)
        small = [_apart(work / f"small{n}", pool, model, one_core=True) for n in range(repeats)]
        write_pool(pool, questions, 4 * base)
        large = [_apart(work / f"large{n}", pool, model, one_core=True) for n in range(repeats)]
        both = [_apart(work / f"both{n}", pool, model) for n in range(repeats)]
        add_rates(sheet, base, small, large, both)
        for size in filter(None, sizes.split(",")):
            write_pool(pool, questions, int(size))
            add_growth(sheet, _apart(work / f"size{size}", pool, model))
    say(f"stored: {sheet.store()}")


Run = dict[str, float]


def add_rates(sheet: Sheet, base: int, small: list[Run], large: list[Run], both: list[Run]) -> None:
    pairs = zip(small, large, strict=True)
    sustained = [3 * base / (b["processor_seconds"] - a["processor_seconds"]) for a, b in pairs]
    about = {"questions": 4 * base}
    sheet.add(
        "sustained",
        "questions per core second",
        "1/s",
        sustained,
        GATE,
        better="higher",
        about=about,
    )
    for case, runs in (("one core", large), ("all cores", both)):
        rates = [run["questions_per_second"] for run in runs]
        sheet.add(case, "questions per second", "1/s", rates, GATE, better="higher", about=about)


def add_growth(sheet: Sheet, run: Run) -> None:
    at = {"questions": run["questions"]}
    for name, quantity, unit in (
        ("wall_seconds", "seconds", "s"),
        ("processor_seconds", "processor seconds", "s"),
        ("engine_processor_seconds", "the engine's processor seconds", "s"),
        ("peak_mib", "peak memory", "MiB"),
    ):
        sheet.add("growth", quantity, unit, [run[name]], GATE, at=at)


def _child(*arguments: str, one_core: bool = False) -> str:
    # A separate process, next to the engine's, which only answers.
    pinned = ["taskset", "-c", "0"] if one_core else []
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false" if one_core else "true"}
    command = [*pinned, sys.executable, "-m", "benchmarks.bench_pipeline", *arguments]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout.splitlines()[-1]


def _apart(folder: Path, pool: Path, model: Path, one_core: bool = False) -> dict[str, float]:
    found: dict[str, float] = json.loads(
        _child("one", str(folder), str(pool), str(model), one_core=one_core)
    )
    print(found, flush=True)
    return found


@main.command("one")
@click.argument("paths", nargs=3, type=click.Path(path_type=Path))
def one(paths: tuple[Path, Path, Path]) -> None:
    print(json.dumps(one_run(*paths)))


@main.command("parts")
@click.argument("paths", nargs=2, type=click.Path(path_type=Path))
def parts_command(paths: tuple[Path, Path]) -> None:
    print(json.dumps(parts(*paths)))


if __name__ == "__main__":
    main()
