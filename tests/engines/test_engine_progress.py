"""Progress inside a chunk: from the engine's child process through the pipe to the bar."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ift_scale.config import EngineConfig
from ift_scale.engines.pool import EngineWorker
from ift_scale.engines.process import EngineDied, EngineProcess
from ift_scale.engines.protocol import EngineSpec, ScoreRequest, ignore
from ift_scale.io.files import write_jsonl
from ift_scale.io.progress import Bar
from ift_scale.prompts.views import View, plain
from ift_scale.records import Question
from ift_scale.scoring.letters import LetterAsker
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.runner import Share, compute
from ift_scale.scoring.target import Target
from tests.waiting import LIMIT_SECONDS

ENGINE = """
import logging, time
import numpy as np

class Engine:
    context_length = 50

    def __init__(self, spec):
        for _ in range(2):
            logging.getLogger("ift_scale.engines.strategies").warning("padded batches: not used")

    def score(self, requests):
        for request in requests:
            time.sleep(request.prefix[0] / 1000)
            self.finished(1)
        return np.zeros(len(requests))
"""


@pytest.mark.engine
def test_a_child_reports_finished_requests_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow_engine.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    counts: list[float] = []
    engine = EngineProcess(
        EngineSpec("m", "float32", EngineConfig(), factory="slow_engine:Engine"), tmp_path / "e.log"
    ).ready()
    try:
        engine.finished = counts.append
        started = time.monotonic()
        assert engine.score([ScoreRequest([0], [2], [3])] * 2000).shape == (2000,)
        assert len(counts) <= (time.monotonic() - started) / 0.5  # however long it took here
        counts.clear()
        assert engine.score([ScoreRequest([200], [2], [3])] * 8).shape == (8,)
    finally:
        engine.close()
    assert (
        len(counts) >= 2 and max(counts) < 8 and 0 < sum(counts) <= 8
    )  # each count is of what is new
    assert capsys.readouterr().out.count("engine: padded batches: not used") == 1
    assert (tmp_path / "e.log").read_text().count("padded batches: not used") == 2


class Watched(Bar):
    """A bar that records what it showed."""

    def __init__(self) -> None:
        super().__init__("t", None, None)
        self.shown: list[int] = []
        self.changed = threading.Condition()

    def advance(self, count: int = 1) -> None:
        with self.changed:
            super().advance(count)
            self.shown.append(self.done)
            self.changed.notify_all()

    def wait_for(self, done: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: done in self.shown, timeout=LIMIT_SECONDS), (
                f"{self.shown} never came to {done}"
            )


class Reporting:
    """Reports `count` requests, waits until the bar shows `then`, and answers or fails."""

    context_length = 50
    finished: Callable[[float], None] = staticmethod(ignore)

    def __init__(self, bar: Watched, then: Sequence[int], count: int = 2, dies_in: int = -1):
        self.bar, self.then, self.count, self.dies_in, self.calls = (
            bar,
            list(then),
            count,
            dies_in,
            0,
        )

    def score(self, requests: Sequence[ScoreRequest]) -> np.ndarray:
        self.calls += 1
        if self.then:
            self.finished(self.count)
            self.bar.wait_for(self.then.pop(0))
        if self.calls == self.dies_in:
            raise EngineDied("gone")
        return np.zeros(sum(len(request.options) for request in requests))

    def reset_cache(self) -> None: ...

    def ready(self) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Prompts:
    def requests(self, questions: Sequence[Question], views: Sequence[View]) -> list[ScoreRequest]:
        return [ScoreRequest([1], [2], [0, 1]) for _ in questions]


def _compute(
    tmp_path: Path, bar: Watched, engines: Sequence[Reporting], num_workers: int = 1, chunk: int = 4
) -> None:
    """12 questions in chunks; the engines are started one after the other."""
    made = [
        Question(
            id=f"q{i}",
            domain="a",
            subject="s",
            collection="pool",
            split="test",
            question="?",
            choices=["x", "y"],
            answer=1,
        )
        for i in range(12)
    ]
    write_jsonl(tmp_path / "questions.jsonl", made)
    questions, left = QuestionFile(tmp_path / "questions.jsonl"), list(engines)
    done = tmp_path / "done"
    target = Target(
        "t",
        tmp_path,
        "k",
        [np.arange(12)],
        LetterAsker(Prompts(), plain),
        Path("m"),
        lambda *_: done.touch(),
        chunk,
        done.is_file,
    )
    workers = [EngineWorker(lambda path: left.pop(0), bar) for _ in range(num_workers)]  # type: ignore[arg-type, return-value]
    compute(questions, [target], workers, Share(), bar)


def test_the_bar_moves_inside_a_chunk_and_counts_nothing_twice(tmp_path: Path) -> None:
    bar = Watched()
    _compute(
        tmp_path, bar, [Reporting(bar, [2, 6, 10])]
    )  # 4 of each chunk that is done, 2 of the one in work
    assert bar.shown == sorted(bar.shown)
    assert bar.done == 12


def test_a_retried_chunk_is_counted_from_nothing(tmp_path: Path) -> None:
    bar = Watched()
    _compute(tmp_path, bar, [Reporting(bar, [2, 6], dies_in=2), Reporting(bar, [7, 11], count=3)])
    assert max(bar.shown[:-1]) <= 12 and bar.done == 12


def test_several_engines_add_up(tmp_path: Path) -> None:
    bar = Watched()
    # Of six chunks of 2 each engine is in one, and has answered 1.
    _compute(
        tmp_path,
        bar,
        [Reporting(bar, [2], count=1), Reporting(bar, [2], count=1)],
        num_workers=2,
        chunk=2,
    )
    assert bar.done == 12


def test_vllm_can_read_the_elapsed_time_where_bars_are_disabled() -> None:
    """vLLM divides by it; tqdm reads TQDM_DISABLE once, when it is imported."""
    code = (
        "from ift_scale.engines.vllm import _counted\n"
        "counts = []\n"
        "bar = _counted(counts.append)(total=2, desc='prompts')\n"
        "bar.update(2)\n"
        "assert bar.format_dict['elapsed'] > 0 and bar.n == 2 and counts == [2]"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TQDM_DISABLE": "1"},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
