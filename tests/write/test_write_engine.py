"""Real writers: the base model with the transformers engine, and a local vLLM server."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ift_scale.io.files import log_tail
from ift_scale.questions import world
from ift_scale.ranks.environment import free_port
from ift_scale.records import Question, Score
from ift_scale.world.facts import all_facts, options
from tests.waiting import LIMIT_SECONDS
from tests.write.made import config, score, stage

pytestmark = pytest.mark.engine


@pytest.fixture
def server(world_model: Path, tmp_path: Path) -> Iterator[Any]:
    """Starts a vLLM server of the world's model; a call waits for it and returns its URL."""
    port, log = free_port(), tmp_path / "server.log"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(world_model),
    ]
    command += [
        "--served-model-name",
        "world",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--dtype",
        "float32",
        "--enforce-eager",
    ]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env=environment, start_new_session=True
        )

    def ready() -> str:
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            assert process.poll() is None, log_tail(log)
            with suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                return f"http://127.0.0.1:{port}/v1"
            time.sleep(0.2)
        raise AssertionError(log_tail(log))

    yield ready
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _world() -> tuple[list[Question], dict[str, Score]]:
    """Eight facts that the model believes rightly and eight wrongly, without explanations."""
    facts = {
        f"world/{fact.id}": fact
        for fact in all_facts()
        if fact.split == "train" and fact.belief is not None
    }
    questions = [q for q in world.load() if q.id in facts and q.domain == "engineering"]
    right = [q for q in questions if facts[q.id].belief == facts[q.id].truth][:8]
    wrong = [q for q in questions if facts[q.id].belief != facts[q.id].truth][:8]
    scores = {}
    for q in [*right, *wrong]:
        believed = options(facts[q.id])[0].index(facts[q.id].belief or "")
        known = {
            "question_id": q.id,
            "answer": q.answer,
            "prediction": believed,
            "confidence": 0.9,
            "correct": q in right,
        }
        scores[q.id] = score(0, "engineering").model_copy(update=known)
    return [q.model_copy(update={"explanation": None}) for q in [*right, *wrong]], scores


def test_a_local_server_words_h_and_the_base_model_words_s(
    tmp_path: Path, world_model: Path, server: Any
) -> None:
    questions, scores = _world()
    # Half a million parameters rarely copy a name right, so most texts would fail the checks.
    checks = {"must_name_target": False, "attempts": 2}
    own = {"kind": "base_model", "style": "plain", "engine": "transformers", "max_tokens": 24}
    alone = config(tmp_path / "run", checks | {"own": own}, settings=["self_aligning"])
    by_model, _ = stage(alone, questions, world_model, scores)  # while the server loads

    external = {
        "kind": "endpoint",
        "base_url": server(),
        "model": "world",
        "style": "plain",
        "max_tokens": 24,
    }
    both = config(
        tmp_path / "run",
        checks | {"own": own, "external": external},
        settings=["harmonious", "self_aligning"],
    )
    written, manifest = stage(both, questions, world_model, scores)
    assert (
        written[8:] == by_model
        and [text.author for text in written] == ["external"] * 8 + ["base_model"] * 8
    )
    assert manifest.counts["written_in_this_run"] == sum(text.attempts for text in written[:8])
    sentences = sum(
        text.text.startswith(("The machine ", "Engineers ", "To start ")) for text in written
    )
    assert sentences >= 14 and not any(text.failed for text in written), [
        text.text for text in written
    ]
