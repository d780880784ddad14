"""An endpoint as a target: what is sent, what is read, and what each fault of a server is called."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import pytest

pytest.importorskip("aiohttp")

from foveate.audit.http_target import IDLE_S, HttpTarget
from foveate.audit.load import Closed, run_block
from foveate.audit.records import Observed, Row
from foveate.audit.virtual import run_precise
from foveate.core.errors import StateError, UnsupportedError
from tests.support.planted import PlantedServer, right_answer
from tests.support.planted_http import asked
from tests.support.planted_target import planted_items

ITEMS = planted_items(40)


def one(options: dict[str, Any], **target: Any) -> Observed:
    with PlantedServer(**options) as server:
        return asked(HttpTarget("a", server.url, **target), ITEMS[:1])[0]


def test_an_answer_with_its_times_and_counts() -> None:
    with PlantedServer(latency_s=0.05, token_s=0.02, pieces=4) as server:
        target = HttpTarget("a", server.url)
        seen = asked(target, ITEMS[:3])
        assert server.seen()["asked"] == {i.question: 1 for i in ITEMS[:3]}
    for item, found in zip(ITEMS, seen, strict=False):
        assert found.error is None, found.error_detail
        assert found.text.strip() == right_answer(item.question) and found.finish == "stop"
        assert found.model == target.served == target.model == "planted"
        assert (found.prompt_tokens, found.completion_tokens) == (6 + 64, 4)
        assert found.visual_tokens == 64 and found.kv_bytes is None
        assert found.first_s is not None and found.first_s - found.sent_s >= 0.05
        assert found.chunk_s[0] == found.first_s and len(found.chunk_s) == 4
        assert found.chunk_s[-1] - found.first_s >= 0.05
        assert found.chunk_s[-1] <= found.done_s


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("http", "http", "status 500: out of memory on the planted device"),
        ("garbage", "protocol", "no JSON"),
        ("html", "protocol", "text/html instead of a stream: <html>it works</html>"),
        ("no_done", "protocol", "without [DONE]"),
        ("reset", "connection", ""),
        ("error_event", "http", "the planted engine died"),
    ],
)
def test_faults_by_kind(fault: str, kind: str, says: str) -> None:
    found = one({"fault": fault})
    assert found.error == kind and says in found.error_detail and found.error_detail
    assert "\n" not in found.error_detail and found.done_s >= found.sent_s


@pytest.mark.parametrize(("fault", "pieces"), [("hang", 0), ("hang_midway", 1)])
def test_a_hanging_server_is_a_timeout_that_keeps_what_came(fault: str, pieces: int) -> None:
    found = one({"fault": fault}, timeout_s=0.4)
    assert found.error == "timeout" and found.error_detail == "no end within 0.4 s"
    assert len(found.chunk_s) == pieces and (found.first_s is None) == (not pieces)
    assert found.done_s - found.sent_s >= 0.4


def test_a_server_that_goes_away_refuses_connections() -> None:
    with PlantedServer() as server:

        async def main() -> list[Observed]:
            target = HttpTarget("a", server.url)
            await target.open()
            try:
                first = await target.ask(ITEMS[0])
                server.stop()
                return [first, *[await target.ask(i) for i in ITEMS[1:3]]]
            finally:
                await target.close()

        seen = run_precise(main())
    assert [s.error for s in seen] == [None, "connection", "connection"]
    assert seen[2].error_detail


def test_an_empty_answer_is_an_answer_without_a_first_token() -> None:
    found = one({"fault": "empty"})
    assert (found.error, found.text, found.first_s, found.chunk_s) == (None, "", None, ())


def test_another_model_in_the_middle_fails_from_then_on() -> None:
    with PlantedServer(other_model_after=3) as server:
        target = HttpTarget("a", server.url)
        seen = asked(target, ITEMS[:6])
        again = HttpTarget("a", server.url, "planted", served="planted")
        (resumed,) = asked(again, ITEMS[:1])
    assert [s.error for s in seen] == [None] * 3 + ["model"] * 3
    assert "'another' answered, 'planted' did before" in seen[3].error_detail
    assert target.describe()["served"] == "planted"
    # A run that goes on holds the server to the name that it had.
    assert resumed.error == "model"


def test_a_server_without_usage_leaves_it_open() -> None:
    found = one({"usage": False})
    assert found.error is None and found.text.strip() == "1"
    assert (found.prompt_tokens, found.completion_tokens, found.visual_tokens) == (None, None, None)


def test_a_server_that_does_not_stream_has_no_first_token() -> None:
    found = one({"stream": False, "latency_s": 0.05})
    assert found.error is None and (found.text, found.finish) == ("1", "stop")
    assert found.first_s is None and found.chunk_s == ()
    assert found.done_s - found.sent_s >= 0.05 and found.prompt_tokens == 70


MODELS = (
    b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 25\r\n\r\n{"data": [{"id": "raw"}]}'
)


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (b"hello, this is no web server\r\n\r\n", "protocol", "no HTTP"),
        (b"", "connection", "ServerDisconnected"),
        (
            b"HTTP/1.1 307 Moved\r\nLocation: /v2\r\nContent-Length: 0\r\n\r\n",
            "protocol",
            "307 /v2",
        ),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", "protocol", "status 204"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "http", "503: an empty body"),
        (b"HTTP/1.1 429 Slow\r\nContent-Length: 9\r\n\r\nslow\ndown", "http", "429: slow down"),
        (
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"ch',
            "connection",
            "",
        ),
        (
            b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n{"ch',
            "protocol",
            "no JSON",
        ),
    ],
)
def test_answers_that_are_hardly_http(answer: bytes, kind: str, says: str) -> None:
    async def raw(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            await reader.read(65536)
        writer.write(MODELS if head.startswith(b"GET") else answer)
        writer.close()

    async def main() -> Observed:
        server = await asyncio.start_server(raw, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            target = HttpTarget("a", f"http://127.0.0.1:{port}/v1", timeout_s=20)
            await target.open()
            try:
                return await target.ask(ITEMS[0])
            finally:
                await target.close()

    found = run_precise(main())
    assert found.error == kind and says in found.error_detail, found


def test_running_out_of_file_descriptors_is_no_fault_of_the_server() -> None:
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main(url: str) -> None:
        target = HttpTarget("a", url)
        await target.open()
        with open(os.devnull) as probe:
            free = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, old[1]))
        try:
            await run_block(
                target, ITEMS, Closed(30), block=0, place=0, seed=0, warmup_requests=0,
                timeout_s=30.0, time_limit_s=None, on_row=lambda _: None,
            )  # fmt: skip
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, old)
            await target.close()

    with PlantedServer(latency_s=0.5) as server:
        with pytest.raises(UnsupportedError, match="ulimit -n"):
            run_precise(main(server.url))


def test_a_target_that_is_not_open() -> None:
    with pytest.raises(StateError, match="not open"):
        run_precise(HttpTarget("a", "http://host/v1").ask(ITEMS[0]))


def test_errors_of_a_share_of_requests_are_rows() -> None:
    rows: list[Row] = []
    with PlantedServer(errors=0.3, latency_s=0.05, slots=3) as server:

        async def main() -> None:
            target = HttpTarget("a", server.url)
            await target.open()
            try:
                await run_block(
                    target, ITEMS, Closed(8), block=0, place=0, seed=0, warmup_requests=0,
                    timeout_s=30.0, time_limit_s=None, on_row=rows.append,
                )  # fmt: skip
            finally:
                await target.close()

        run_precise(main())
        assert server.seen()["requests"] == 40 and server.seen()["at_once"] == 8
    failed = [r for r in rows if r.observed.error]
    assert {r.observed.error for r in failed} == {"http"} and 3 <= len(failed) <= 25


def test_cancelling_closes_the_connection_and_the_server_sees_it() -> None:
    with PlantedServer(fault="hang") as server:

        async def main() -> None:
            target = HttpTarget("a", server.url)
            await target.open()
            try:
                work = asyncio.create_task(target.ask(ITEMS[0]))
                while server.seen()["requests"] == 0:
                    await asyncio.sleep(0.02)
                work.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await work
            finally:
                await target.close()

        run_precise(main())
        end_s = time.monotonic() + 30
        while server.seen()["cancelled"] == 0 and time.monotonic() < end_s:
            time.sleep(0.02)
        assert server.seen() | {"asked": 0} == {
            "requests": 1, "asked": 0, "at_once": 1, "cancelled": 1, "authorization": None,
        }  # fmt: skip


@pytest.mark.parametrize("server_idle_s", [0.2, 1.1 * IDLE_S])
def test_idle_connections_that_a_server_closes_cost_no_request(server_idle_s: float) -> None:
    """Pauses around the server's own limit: nothing is sent on a connection it has closed."""
    with PlantedServer(keep_alive_s=server_idle_s) as server:
        seen = asked(HttpTarget("a", server.url), ITEMS[:3], pause_s=server_idle_s + 0.05)
    assert [s.error for s in seen] == [None] * 3


@pytest.mark.parametrize("shown", [4, 9, 20])
def test_a_key_at_the_end_of_a_cut_text_is_masked_too(
    shown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-" + "A" * 40
    monkeypatch.setenv("A_TEST_KEY", key)
    target = HttpTarget("x", "http://127.0.0.1:9/v1", api_key_env="A_TEST_KEY", timeout_s=1)
    text = target._without_key(f"bad key {key[:shown]}…")
    assert text == "bad key [key]…"
    assert target._without_key(f"bad {key} here") == "bad [key] here"
