"""The stage with a server: requests, and a server that is down, slow, busy, wrong or silent."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ift_scale.errors import DataError, EnvironmentProblem
from ift_scale.ranks.environment import free_port
from ift_scale.write import endpoint
from tests.write.made import config, question, stage


class Answer(NamedTuple):
    text: str | None = "It is made of copper."
    status: int = 200
    delay: float = 0.0
    headers: dict[str, str] | None = None
    body: bytes | None = None


class Asked(NamedTuple):
    path: str
    body: dict[str, Any]
    key: str


class Server:
    """An OpenAI-compatible server that answers by `script(number of the request, request)`."""

    def __init__(self, script: Callable[[int, Asked], Answer]):
        self.asked: list[Asked] = []
        self.at_once, self.most_at_once = 0, 0
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                asked = Asked(self.path, body, self.headers["authorization"])
                with lock:
                    server.asked.append(asked)
                    number = len(server.asked)
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                answer = script(number, asked)
                time.sleep(answer.delay)
                with lock:
                    server.at_once -= 1
                choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "text": answer.text}
                if "chat" in self.path:
                    choice["message"] = {"role": "assistant", "content": answer.text}
                sent = json.dumps(
                    {"id": "x", "object": "x", "created": 0, "model": "m", "choices": [choice]}
                ).encode()
                if answer.status != 200:
                    sent = json.dumps({"message": answer.text}).encode()
                sent = sent if answer.body is None else answer.body
                try:
                    self.send_response(answer.status)
                    for name, value in {
                        "content-type": "application/json",
                        **(answer.headers or {}),
                    }.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(sent)
                except OSError:
                    pass  # the client has given up

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    servers: list[Server] = []

    def start(script: Callable[[int, Asked], Answer] = lambda number, asked: Answer()) -> Server:
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def _write(folder: Path, url: str, count: int = 5, on_failure: str = "drop", **parts: Any) -> Any:
    external = {
        "kind": "endpoint",
        "base_url": url,
        "model": "m",
        "style": "plain",
        "concurrency": 2,
        "max_retries": 2,
    } | parts
    settings = config(
        folder, {"external": external, "on_failure": on_failure}, settings=["harmonious"]
    )
    return stage(settings, [question(4 * n) for n in range(count)], Path("unused"))


def test_requests_to_the_server(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    server = serve()
    written, manifest = _write(tmp_path, server.url, api_key_variable="MY_KEY")
    assert [(t.author, t.text, t.failed) for t in written] == [
        ("external", "It is made of copper.", [])
    ] * 5
    asked = server.asked[0]
    assert asked.path == "/v1/completions" and asked.key == "Bearer secret"
    assert asked.body["prompt"].endswith("Answer:A. copper\nExplanation:") and asked.body[
        "stop"
    ] == ["\n"]
    sampling = {name: asked.body[name] for name in ("model", "temperature", "top_p", "max_tokens")}
    assert sampling == {"model": "m", "temperature": 0.7, "top_p": 0.8, "max_tokens": 256}
    assert len({a.body["seed"] for a in server.asked}) == 5 and server.most_at_once <= 2
    assert manifest.counts["written"] == 5
    assert "secret" not in (tmp_path / "write" / "manifest.json").read_text()


def test_equal_seeds_each_time_and_others_for_retries(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(lambda number, asked: Answer("It is old."))
    for folder in ("a", "b"):
        written, _ = _write(tmp_path / folder, server.url, count=1)
        assert written[0].attempts == 3
    seeds = [asked.body["seed"] for asked in server.asked]
    assert seeds[:3] == seeds[3:] and len(set(seeds)) == 3


def test_chat_goes_to_the_chat_endpoint(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve()
    written, _ = _write(tmp_path, server.url, count=1, style="chat")
    assert (
        written[0].text == "It is made of copper."
        and server.asked[0].path == "/v1/chat/completions"
    )
    assert (
        server.asked[0].body["messages"][0]["role"] == "user" and "stop" not in server.asked[0].body
    )


@pytest.mark.parametrize("status", [429, 500, 503])
def test_requests_to_a_busy_or_failing_server_are_retried(
    tmp_path: Path, serve: Callable[..., Server], status: int
) -> None:
    server = serve(
        lambda number, asked: (
            Answer() if number > 2 else Answer("busy", status, headers={"retry-after": "0.01"})
        )
    )
    written, _ = _write(tmp_path, server.url, count=1)
    assert written[0].text == "It is made of copper." and len(server.asked) == 3


def test_a_server_that_goes_down_is_reported_and_the_rest_written_later(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(lambda number, asked: Answer() if number <= 4 else Answer("out of memory", 500))
    with pytest.raises(EnvironmentProblem) as caught:
        _write(tmp_path, server.url, count=12)
    reported = str(caught.value)
    assert (
        server.url in reported
        and "refuses with status 500 ('out of memory')" in reported
        and "(asked 3 times)" in reported
    )
    assert "Finished texts are kept" in reported and caught.value.exit_code == 3
    (part,) = (tmp_path / "write" / "shards").glob("*.jsonl")
    assert len(part.read_text().splitlines()) == 4
    assert not (tmp_path / "write" / "texts.jsonl").exists()


def test_resuming_requests_only_missing_texts(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(lambda number, asked: Answer("", 500) if number in (7, 8, 9) else Answer())
    with pytest.raises(EnvironmentProblem):
        _write(tmp_path, server.url, count=12, concurrency=1)
    before = len(server.asked)
    written, manifest = _write(tmp_path, server.url, count=12, concurrency=4, timeout=99.0)
    assert (
        len(written) == 12
        and len(server.asked) - before == 6 == manifest.counts["written_in_this_run"]
    )


def test_no_server_at_all(tmp_path: Path, serve: Callable[..., Server]) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    started = time.monotonic()
    with pytest.raises(
        EnvironmentProblem,
        match=rf"{url}: the server of write.external cannot be reached \(asked 3 times\)",
    ):
        _write(tmp_path, url)
    assert time.monotonic() - started < 10


def test_a_slow_server_is_given_up(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(lambda number, asked: Answer(delay=5))
    started = time.monotonic()
    with pytest.raises(
        EnvironmentProblem,
        match=r"gave no answer within 0.2 s \(asked 2 times\).*write.external.timeout",
    ):
        _write(tmp_path, server.url, timeout=0.2, max_retries=1)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            Answer("bad key", 401),
            "Put the server's key into the environment variable OPENAI_API_KEY",
        ),
        (Answer("no model m", 404), "Set write.external.model to a name that the server knows"),
        (
            Answer("too long", 400),
            "refuses with status 400 \\('too long'\\), asked about question q",
        ),
        (
            Answer(body=b"<html>hello</html>", headers={"content-type": "text/html"}),
            "is not a completion.*OpenAI-compatible",
        ),
        (Answer(body=b"{}"), "is not a completion"),
    ],
)
def test_a_refusal_is_reported_at_once(
    tmp_path: Path, serve: Callable[..., Server], answer: Answer, told: str
) -> None:
    server = serve(lambda number, asked: answer)
    with pytest.raises(EnvironmentProblem, match=told):
        _write(tmp_path, server.url, count=1)
    assert len(server.asked) == 1


def test_a_server_without_seeds_gets_none(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(
        lambda number, asked: (
            Answer("unknown field: seed", 400) if "seed" in asked.body else Answer()
        )
    )
    written, _ = _write(tmp_path, server.url, concurrency=1)
    assert len(written) == 5 and len(server.asked) == 6


def test_half_of_a_surrogate_pair_is_replaced(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(lambda number, asked: Answer("It is made of copper \U0001f600\ud83d"))
    written, _ = _write(tmp_path, server.url, count=1)
    assert written[0].text == "It is made of copper \U0001f600\ufffd"


@pytest.mark.parametrize("text", ["", None, "\n"])
def test_a_server_that_returns_nothing(
    tmp_path: Path, serve: Callable[..., Server], text: str | None
) -> None:
    server = serve(lambda number, asked: Answer(text))
    with pytest.raises(DataError, match=r"write.external: returned nothing at all"):
        _write(tmp_path, server.url, style="chat" if text is None else "plain")


def test_some_empty_texts_are_rewritten_or_dropped(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    def script(number: int, asked: Asked) -> Answer:
        return Answer("" if "Q4" in asked.body["prompt"] else "It is made of copper.")

    written, manifest = _write(tmp_path, serve(script).url)
    assert [(t.attempts, t.failed) for t in written] == [
        (1, []),
        (3, ["empty"]),
        (1, []),
        (1, []),
        (1, []),
    ]
    assert manifest.counts["explanation/external/empty"] == 1 == manifest.counts["failed"]
