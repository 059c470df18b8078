"""The probe without an engine: questions a second a core that reading, writing prompts, tokenising, scoring and storing sustain.

    python benchmarks/bench_pipeline.py [--mmlu ../shared/data/mmlu] [--repeats 5]

Real 5-shot MMLU prompts, repeated under new ids up to the pool's size, go through the probe stage with a null engine that returns
at once. Rates are per second of the process' own processor time, so they are a core's whatever the number of cores; peak memory
is the process' own. `parts` times each part alone, on one thread. Each size runs in a process of its own.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))

from rows import quantiles, store

from ift_scale import artifacts
from ift_scale.config import MmluSource, ProbeConfig
from ift_scale.config_file import from_dict
from ift_scale.inference.engine import EngineSpec
from ift_scale.inference.null_engine import NullEngine
from ift_scale.inference.process import EngineProcess
from ift_scale.inference.prompts import Demonstrations
from ift_scale.inference.question_file import QuestionFile
from ift_scale.inference.scores import ChoiceScores
from ift_scale.inference.slots import Slot
from ift_scale.inference.tokens import PromptTokenizer
from ift_scale.probe import run as probe
from ift_scale.progress import Bar
from ift_scale.questions import mmlu
from ift_scale.records import Question

MMLU = Path(__file__).parents[2] / "shared" / "data" / "mmlu"
NULL = "ift_scale.inference.null_engine:NullEngine"


def write_pool(path: Path, questions: list[Question], size: int) -> None:
    """The dev questions, then test questions over and over with ids of their own."""
    dev = [q for q in questions if q.split == "dev"]
    test = [q for q in questions if q.split == "test"]
    copies = (test[i % len(test)].model_copy(update={"id": f"{test[i % len(test)].id}/{i // len(test)}"}) for i in range(size))
    artifacts.write_jsonl(path, (q for part in (dev, copies) for q in part))


def one_run(folder: Path, pool: Path, model: Path) -> dict[str, float]:
    """The probe stage on a pool that is there; processor time and peak memory of this process and its engine."""
    config = from_dict({"output_dir": str(folder), "probe": {"engine": "transformers", "chunk_size": 4096}})

    def start(path: Path) -> EngineProcess:
        return EngineProcess(EngineSpec(str(path), "float32", config.probe, factory=NULL), folder / "null.log").ready()

    engine = start(model)  # imports torch, which is no part of the pipeline
    PromptTokenizer(model)  # imports transformers
    before = time.monotonic(), time.process_time()
    questions = QuestionFile(pool)
    bar = Bar("probe", 0, None)
    probe.slots_for = lambda *_: [Slot(lambda path: engine, bar)]  # type: ignore[assignment]
    probe.run(config, folder / "probe", "key", {}, model, questions, folder, None, bar)
    wall, own = time.monotonic() - before[0], time.process_time() - before[1]
    asked = len(questions.select(lambda group: probe.wanted(config.probe, group)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
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
    """Microseconds a question of each part alone, on one thread."""
    config = ProbeConfig()
    questions = QuestionFile(pool)
    rows = questions.select(lambda group: group.split == "test")[:count]
    tokenizer = PromptTokenizer(model)
    asker = probe.asker_of(config, tokenizer, Demonstrations(questions.dev, config.num_shots, config.demonstration_seed))
    asker.write(questions.read(rows[:512]))  # warm
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
    "--model", default=Path("runs/peers/model"), type=click.Path(path_type=Path, exists=True), help="Made by peers/model.py."
)
@click.option("--repeats", default=5, show_default=True)
@click.option("--sizes", default="14042,100000,1000000", show_default=True)
def main(context: click.Context, folder: Path, model: Path, repeats: int, sizes: str) -> None:
    """Measure the first size and four times it `repeats` times, the other sizes once; store benchmarks/results/pipeline.json."""
    if context.invoked_subcommand:
        return
    questions = [question for _, question in mmlu.load(MmluSource(kind="mmlu", path=str(folder)), 0)]
    smallest, *others = [int(size) for size in sizes.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        pool = Path(temporary) / "questions.jsonl"
        write_pool(pool, questions, smallest)
        found: dict[str, object] = {"parts_microseconds": json.loads(_child("parts", str(pool), str(model), one_core=True))}
        small = [_apart(Path(temporary) / f"small{n}", pool, model, one_core=True) for n in range(repeats)]
        write_pool(pool, questions, 4 * smallest)
        large = [_apart(Path(temporary) / f"large{n}", pool, model, one_core=True) for n in range(repeats)]
        both = [_apart(Path(temporary) / f"both{n}", pool, model) for n in range(repeats)]
        growth = [small[0]]
        for size in others:
            write_pool(pool, questions, size)
            growth.append(_apart(Path(temporary) / f"size{size}", pool, model))
    more = 3 * smallest
    pairs = list(zip(small, large, strict=True))
    found |= {
        "sustained_questions_per_core_second": quantiles(
            [more / (b["processor_seconds"] - a["processor_seconds"]) for a, b in pairs]
        ),
        "one_core_all_questions_per_second": quantiles([run["questions_per_second"] for run in large]),
        "all_cores_questions_per_second": quantiles([run["questions_per_second"] for run in both]),
    }
    print(store("pipeline", found | {"questions": 4 * smallest, "growth": growth}).read_text())


def _child(*arguments: str, one_core: bool = False) -> str:
    # Beside the engine's process, which does nothing but answer.
    pinned = ["taskset", "-c", "0"] if one_core else []
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false" if one_core else "true"}
    command = [*pinned, sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()[-1]


def _apart(folder: Path, pool: Path, model: Path, one_core: bool = False) -> dict[str, float]:
    found: dict[str, float] = json.loads(_child("one", str(folder), str(pool), str(model), one_core=one_core))
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
