"""A chat endpoint that does nothing, as fast as Python can: `python -m bench.null_server`.

Prints its port, serves until its standard input closes. The first piece of an answer and the rest are
writes of their own, ready made: from the last byte of a request to the first piece it takes about ten
microseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading

MODELS = b'{"object": "list", "data": [{"id": "null", "object": "model"}]}'


def _event(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"model": "null", "choices": [choice]}).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


FIRST = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + _chunk(_event({"role": "assistant"}))
    + _chunk(_event({"content": "nothing"}))
)
USAGE = {"prompt_tokens": 100, "completion_tokens": 2}
REST = (
    _chunk(_event({}, "stop"))
    + _chunk(
        b"data: " + json.dumps({"model": "null", "choices": [], "usage": USAGE}).encode() + b"\n\n"
    )
    + _chunk(b"data: [DONE]\n\n")
    + b"0\r\n\r\n"
)


class Null(asyncio.Protocol):
    """One connection; requests come one after the other and have a Content-Length."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.missing: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.missing is not None:
            self.missing -= len(data)
            if self.missing <= 0:
                self.answer()
            return
        self.parts.append(data)
        head = b"".join(self.parts)
        end = head.find(b"\r\n\r\n")
        if end < 0:
            self.parts = [head]
            return
        self.parts = []
        if head.startswith(b"GET"):
            answer = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            self.transport.write(answer % len(MODELS) + MODELS)
            return
        length = head[:end].lower().split(b"content-length:")[1].split(b"\r\n")[0]
        self.missing = int(length) - (len(head) - end - 4)
        if self.missing <= 0:
            self.answer()

    def answer(self) -> None:
        self.missing = None
        self.transport.write(FIRST)
        self.transport.write(REST)


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Null, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(serve())
