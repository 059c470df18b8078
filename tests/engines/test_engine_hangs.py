"""An engine that hangs, at its start or in a chunk, is ended with a message and leaves nothing."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ift_scale.config import EngineConfig
from ift_scale.engines.pool import EngineWorker
from ift_scale.engines.process import EngineHangs, EngineProcess
from ift_scale.engines.protocol import EngineSpec, ScoreRequest
from ift_scale.io.files import write_jsonl
from ift_scale.io.progress import Bar
from ift_scale.prompts.views import plain
from ift_scale.records import Question
from ift_scale.scoring.letters import LetterAsker
from ift_scale.scoring.question_file import QuestionFile
from ift_scale.scoring.runner import Share, compute
from ift_scale.scoring.target import Target
from tests.waiting import wait_for

pytestmark = pytest.mark.engine

# Hangs for the token 0 of a prefix; at its start if the model's path says so.
ENGINE = """
import pathlib, subprocess, time
import numpy as np

def hang():
    time.sleep(600)

class Engine:
    context_length = 50

    def __init__(self, spec):
        if spec.model_path.endswith("hanging"):
            subprocess.Popen(["sleep", "600"])
            (pathlib.Path(spec.model_path) / "started").touch()
            hang()

    def reset_cache(self):
        pass

    def score(self, requests):
        for request in requests:
            if request.prefix[0] == 0:
                hang()
            time.sleep(0.4)
            self.finished(1)
        return np.zeros(sum(len(request.options) for request in requests))
"""


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EngineProcess]:
    (tmp_path / "hanging_engine.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def start(model: str = "m", **limits: float) -> EngineProcess:
        config = EngineConfig(**limits)  # type: ignore[arg-type]
        spec = EngineSpec(model, "float32", config, factory="hanging_engine:Engine")
        return EngineProcess(spec, tmp_path / "e.log")

    return start


def _assert_gone(group: int) -> None:
    """No process of the engine's group is left, after the kernel has removed them."""

    def is_gone() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(is_gone, "a process of the engine is left")


def test_an_engine_that_hangs_at_its_start(
    tmp_path: Path, started: Callable[..., EngineProcess]
) -> None:
    model = tmp_path / "hanging"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"0" * (1 << 20))
    engine = started(str(model), start_timeout=1.0)
    wait_for((model / "started").exists)
    with pytest.raises(EngineHangs) as caught:
        engine.ready()
    message = str(caught.value)
    assert "did not start within start_timeout = 1 s" in message and caught.value.exit_code == 3
    assert f"Model: {model} (0.0 GiB of weights in 1 files)" in message
    assert str(tmp_path / "e.log") in message and "in hang" in (tmp_path / "e.log").read_text()
    _assert_gone(engine._child.pid)


def test_a_stopped_engine_that_reads_nothing(started: Callable[..., EngineProcess]) -> None:
    """The call is longer than the pipe's buffer, so that sending it blocks, too."""
    engine = started(request_timeout=1.0).ready()
    os.kill(engine._child.pid, signal.SIGSTOP)
    with pytest.raises(EngineHangs, match="about 0 of 1 requests were finished"):
        engine.score([ScoreRequest([1], list(range(1 << 20)), [3])])
    _assert_gone(engine._child.pid)
    engine.close()


class _HangingPrompts:
    """One request per question; the engine hangs in that of q15."""

    def requests(self, questions: list[Question], views: object) -> list[ScoreRequest]:
        return [ScoreRequest([int(q.id != "q15")], [2], [0, 1]) for q in questions]


def test_a_chunk_that_hangs_is_named_and_finished_ones_are_kept(
    tmp_path: Path, started: Callable[..., EngineProcess]
) -> None:
    asked = [
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
        for i in range(16)
    ]
    write_jsonl(tmp_path / "questions.jsonl", asked)
    questions = QuestionFile(tmp_path / "questions.jsonl")
    target = Target(
        "probe",
        tmp_path,
        "k",
        [np.arange(16)],
        LetterAsker(_HangingPrompts(), plain),  # type: ignore[arg-type]
        Path("m"),
        lambda *_: None,
        8,
        lambda: False,
    )
    bar = Bar("t", None, None)
    # The first chunk takes longer than the limit, with a sign of progress every 0.4 s.
    worker = EngineWorker(lambda path: started(str(path), request_timeout=2.5), bar)
    with pytest.raises(EngineHangs) as caught:
        compute(questions, [target], [worker], Share(), bar)
    message = str(caught.value)
    assert message.startswith("probe, chunk 2 of 2 (questions q8 to q15): the engine finished no")
    assert "for request_timeout = 2.5 s and was ended. Call: score, about " in message
    assert " of 8 requests were finished, the longest prompt is request 0 with 2 tokens" in message
    assert "Finished chunks are kept; the same command resumes" in message
    assert "in hang" in (tmp_path / "e.log").read_text()
    assert target.shards.present() == {0}
