"""The judge: what it is asked, what of its replies is used, and resuming."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ift_scale.config.screen import JudgeConfig
from ift_scale.errors import EnvironmentProblem
from ift_scale.records import Question
from ift_scale.screen.facts import JudgedFacts, parse
from ift_scale.write import endpoint
from tests.write.test_endpoint import Answer, Asked, Server

FACT = '{"question": "What is ice?", "choices": ["water", "salt", "tin", "wax"], "answer": "A"}'


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    servers: list[Server] = []

    def start(script: Callable[[int, Asked], Answer]) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def _long(number: int) -> Question:
    return Question(
        id=f"data.jsonl:{number}",
        domain="d",
        subject="long",
        collection="pool",
        split="train",
        kind="free",
        question=f"Tell me about ice {number}.",
        aliases=["Ice is frozen water."],
    )


def _judge(url: str) -> JudgeConfig:
    return JudgeConfig(base_url=url, model="m", concurrency=2, max_retries=1)


def test_every_answer_is_judged_once(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(lambda number, asked: Answer(f"Here they are:\n[{FACT}]"))
    facts = JudgedFacts(tmp_path, _judge(server.url))
    facts.collect(iter([_long(n) for n in range(5)]), 5)
    assert len(server.asked) == 5 and server.asked[0].path.endswith("/chat/completions")
    sent = server.asked[0].body["messages"][0]["content"]
    assert "Ice is frozen water." in sent and "at most 4" in sent
    (fact,) = facts.of(_long(3))
    assert (fact.question, fact.answer, fact.id) == ("What is ice?", 0, "data.jsonl:3, fact 1")
    again = JudgedFacts(tmp_path, _judge(server.url))
    again.collect(iter([_long(n) for n in range(6)]), 6)
    assert len(server.asked) == 6


def test_a_server_that_fails_is_reported_and_replies_are_kept(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    fails = serve(lambda number, asked: Answer("[]") if number <= 3 else Answer("down", 500))
    with pytest.raises(EnvironmentProblem, match=r"screen\.judge refuses with status 500"):
        JudgedFacts(tmp_path, _judge(fails.url)).collect(iter([_long(n) for n in range(20)]), 20)
    works = serve(lambda number, asked: Answer("[]"))
    JudgedFacts(tmp_path, _judge(works.url)).collect(iter([_long(n) for n in range(20)]), 20)
    assert 14 <= len(works.asked) <= 17


@pytest.mark.parametrize(
    "reply",
    [
        "I cannot do that.",
        "[not JSON]",
        '[{"question": "", "choices": ["a", "b"], "answer": "A"}]',
        '[{"question": "q", "choices": ["a"], "answer": "A"}]',
        '[{"question": "q", "choices": ["a", "a"], "answer": "A"}]',
        '[{"question": "q", "choices": ["a", "b"], "answer": "C"}]',
        '[{"question": "q", "choices": "ab", "answer": "A"}]',
        '["a"]',
    ],
)
def test_unusable_replies_are_counted(reply: str) -> None:
    unusable: Counter[str] = Counter()
    assert parse(reply, _long(0), 4, unusable) == []
    assert unusable.total() == 1


def test_no_facts_is_a_valid_reply_and_more_than_asked_are_cut() -> None:
    unusable: Counter[str] = Counter()
    assert parse("[]", _long(0), 4, unusable) == []
    assert len(parse(f"```json\n[{FACT}, {FACT}, {FACT}]\n```", _long(0), 2, unusable)) == 2
    assert not unusable
