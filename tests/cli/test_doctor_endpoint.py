"""`foveate doctor --endpoint` against real HTTP servers whose counts are planted."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.cli.cli_cases import call, last_json
from tests.support.planted import PlantedServer

KEEP = ("--family", "llava", "--plan", "divprune:keep=1/9")


@pytest.mark.parametrize(
    ("tokens", "code", "says"),
    [
        (64, 0, "compressed: 64 of 576 tokens\n"),
        (66, 0, "compressed: 64 of 576 tokens (and 2 around the picture)\n"),
        (576, 3, "NOT compressed: 576 where the plan gives 64\n"),
        (578, 3, "NOT compressed: 576 where the plan gives 64 (and 2 around the picture)\n"),
        (300, 3, "UNEXPECTED: 300 tokens where the plan gives 64 of 576\n"),
        (63, 3, "UNEXPECTED: 63 tokens where the plan gives 64 of 576\n"),
    ],
)
def test_the_verdict_follows_the_counts(tokens: int, code: int, says: str) -> None:
    with PlantedServer(visual_tokens=tokens) as server:
        done = call("doctor", "--endpoint", server.url, *KEEP)
    assert (done.exit_code, done.stdout) == (code, says)


def test_json_and_a_plan_that_keeps_all() -> None:
    with PlantedServer(visual_tokens=576) as server:
        done = call("doctor", "--endpoint", server.url, *KEEP, "--json")
        found = last_json(done.stdout)
        assert done.exit_code == 3
        assert (found["state"], found["kept"], found["whole"]) == ("not compressed", 64, 576)
        assert found["tokens"] == 576 and found["model"] == "planted"
        words = ("--family", "llava", "--plan", "none")
        whole = call("doctor", "--endpoint", server.url, *words)
        assert (whole.exit_code, whole.stdout) == (0, "whole, as the plan says: 576 tokens\n")
        bare = call("doctor", "--endpoint", server.url)
        assert bare.exit_code == 0 and "costs 576 prompt tokens; not compared" in bare.stdout
        assert server.seen()["requests"] == 6


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "sesame-123")
    monkeypatch.setenv("WRONG_KEY", "wrong-456")
    with PlantedServer(api_key="sesame-123") as server:
        words = ("doctor", "--endpoint", server.url, *KEEP, "--api-key-env")
        assert call(*words, "SERVER_KEY").exit_code == 0
        refused = call(*words, "WRONG_KEY")
        assert refused.exit_code == 2 and "status 401" in refused.stderr
        assert "wrong-456" not in refused.output


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server that says the same to everything."""

    class Same(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Same)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body", "code", "says"),
    [
        (200, b'{"choices": []}', 5, "without usage.prompt_tokens"),
        (200, b'{"usage": {"prompt_tokens": "9"}}', 5, "without usage.prompt_tokens"),
        (200, b"<html>", 2, "no JSON object"),
        (200, b"[1]", 2, "no JSON object"),
        (500, b'{"error": {"message": "out of memory"}}', 2, "out of memory"),
        (404, b"", 2, "status 404"),
    ],
)
def test_servers_that_say_something_else(status: int, body: bytes, code: int, says: str) -> None:
    with answering(status, body) as url:
        done = call("doctor", "--endpoint", url, "--model", "m", *KEEP)
    assert done.exit_code == code and says in done.stderr


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        done = call("doctor", "--endpoint", url, *KEEP, "--json")
    error = last_json(done.stdout)["error"]
    assert done.exit_code == 2 and error["type"] == "InputError"
    assert "nothing usable answers" in error["message"]


def test_a_server_that_hangs_is_given_up() -> None:
    with PlantedServer(fault="hang") as server:
        done = call("doctor", "--endpoint", server.url, *KEEP, "--timeout", "0.5")
    assert done.exit_code == 2 and "nothing usable answers" in done.stderr


def test_a_model_must_be_named_where_several_are_listed() -> None:
    with PlantedServer(listed=["a", "b"]) as server:
        done = call("doctor", "--endpoint", server.url, *KEEP)
    assert done.exit_code == 2 and "--model" in done.stderr and "a, b" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--plan", "none"), 2, "--endpoint"),
        (("--endpoint", "localhost", *KEEP), 2, "no URL"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--plan", "none"), 2, "go together"),
        (("--endpoint", "http://127.0.0.1:9/v1", *KEEP, "--timeout", "0"), 2, "above 0"),
        (("--endpoint", "http://127.0.0.1:9/v1", *KEEP, "--processor", "{"), 2, "JSON"),
        (("--endpoint", "http://127.0.0.1:9/v1", *KEEP[:3], "divprune:per_image=575"), 5, "too near"),
        (("--endpoint", "http://127.0.0.1:9/v1", "--family", "gpt2", *KEEP[2:]), 5, "gpt2"),
    ],
)  # fmt: skip
def test_bad_words_are_refused_before_anything_is_sent(
    words: tuple[str, ...], code: int, says: str
) -> None:
    done = call("doctor", *words)
    assert done.exit_code == code and says in done.stderr
