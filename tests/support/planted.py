"""Planted endpoints: a small OpenAI-compatible server whose answers, speed and faults are known.

    with PlantedServer(latency_s=0.02, wrong=0.1) as server:
        ...  # server.url is the base, such as "http://127.0.0.1:40001/v1"
        server.seen()

The server runs in a process of its own (planted_app.py), so that it never waits for the client's
event loop, and ends with the process that started it.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import urllib.request
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]

Fault = Literal[
    "http",  # a status of 500 with a body that says why
    "hang",  # never a byte
    "hang_midway",  # the first piece, then never another
    "garbage",  # 200, an event stream, and then bytes that are no JSON
    "html",  # 200 and a web page
    "no_done",  # a whole answer whose stream ends without finish_reason and without [DONE]
    "reset",  # the connection breaks after the first piece
    "error_event",  # an error object inside the stream
    "empty",  # a stream that ends at once, properly, without any text
]


@dataclass(frozen=True)
class Planted:
    """What a planted server does. Shares are of requests, and the same requests every time: which
    ones follows from the question (and, for faults, how often it was asked), never from chance.

    latency_s: until the first piece; token_s: between pieces. wrong: share of questions answered
    wrong. errors: share of status 500. fault: what else goes wrong, in `fault_share` of requests.
    other_model_after: the model's name changes after that many requests. stall_at_s: so long after
    the first request the whole server stands still for `stall_s`. slots: so many requests at a
    time, the others wait. usage: answers include_usage; stream: else one JSON answer, always.
    api_key: asked for (401 without). pieces: the least pieces of an answer (spaces fill up).
    listed: the models it lists, None for a server that lists none (404).
    """

    latency_s: float = 0.0
    token_s: float = 0.0
    wrong: float = 0.0
    errors: float = 0.0
    fault: Fault | None = None
    fault_share: float = 1.0
    model: str = "planted"
    other_model_after: int | None = None
    stall_at_s: float | None = None
    stall_s: float = 2.0
    slots: int | None = None
    usage: bool = True
    stream: bool = True
    api_key: str | None = None
    pieces: int = 2
    visual_tokens: int = 64
    keep_alive_s: float = 75.0
    listed: list[str] | None = field(default_factory=lambda: ["planted"])


def share(salt: str, text: str) -> float:
    """A number in [0, 1) that follows from the text alone."""
    return int.from_bytes(sha256(f"{salt}|{text}".encode()).digest()[:6], "big") / float(1 << 48)


def right_answer(question: str) -> str:
    """The answer to "what is A plus B ?"; "unknown" to everything else."""
    found = re.search(r"(\d+) plus (\d+)", question)
    return str(int(found[1]) + int(found[2])) if found else "unknown"


def planted_answer(question: str, wrong: float) -> str:
    """What a server with that share of wrong answers says; every time the same."""
    right = right_answer(question)
    if share("wrong", question) >= wrong:
        return right
    return str(int(right) + 1) if right.isdigit() else "wrong"


def picture_bytes(number: int) -> bytes:
    """A small PNG that differs for every number below 2 ** 24."""
    from PIL import Image

    colour = (number & 255, number >> 8 & 255, number >> 16 & 255)
    out = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(out, "PNG")
    return out.getvalue()


def question(number: int) -> tuple[str, str]:
    """The text of one distinct question and its category."""
    return f"what is {number} plus {number % 7 + 1} ?", ("even", "odd")[number % 2]


def workload_file(path: Path, n: int) -> Path:
    """Write n rows (JSONL) with a picture each, questions a planted server answers; gives `path`."""
    with path.open("w", encoding="utf-8") as out:
        for number in range(n):
            text, category = question(number)
            picture = base64.b64encode(picture_bytes(number)).decode()
            row = {
                "id": f"q{number}",
                "image": f"data:image/png;base64,{picture}",
                "question": text,
                "answer": right_answer(text),
                "metric": "exact",
                "category": category,
            }
            out.write(json.dumps(row) + "\n")
    return path


class PlantedServer:
    """Runs a planted server while the block lasts. Options are those of `Planted`."""

    def __init__(self, **options: Any) -> None:
        self.planted = Planted(**options)
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> PlantedServer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.planted_app", json.dumps(asdict(self.planted))],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the planted server ended with {self._process.wait()}")
        self.port = int(line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server; again does nothing."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def seen(self) -> dict[str, Any]:
        """requests, asked {question: times}, at_once (most at a time), cancelled, authorization."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/seen", timeout=10) as answer:
            found: dict[str, Any] = json.load(answer)
        return found
