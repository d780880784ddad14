"""vLLM's own OpenAI server with a plan: counts, bad input, and servers that must not start."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.vllm.conftest import vllm_python

pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from PIL import Image  # noqa: E402

from foveate.cli.doctor_endpoint import check_endpoint  # noqa: E402
from tests.serving.vllm import checkpoints  # noqa: E402

PLAN = "visionzip:keep=1/2"
TOKENS = 144  # of a picture of this checkpoint, before the plan
READY_S = 600.0
VARIABLES = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}


def command(folder: Path, *more: str) -> list[str]:
    python, _ = vllm_python()
    assert python is not None
    return [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)),
        *("--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "2048"),
        *("--enforce-eager", "--max-num-seqs", "8", "--block-size", "32"),
        *("--limit-mm-per-prompt", '{"image": 4}', *more),
    ]


class Server:
    """A running server; `ask` posts a chat request and gives status and answer."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, pictures: list[bytes], **more: Any) -> tuple[int, Any]:
        parts: list[dict[str, Any]] = [
            {
                "type": "image_url",
                "image_url": {"url": "data:image/png;base64," + base64.b64encode(p).decode()},
            }
            for p in pictures
        ]
        body = {
            "model": "tiny",
            "messages": [
                {"role": "user", "content": [*parts, {"type": "text", "text": "what is it?"}]}
            ],
            "max_tokens": 2,
            **more,
        }
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as page:
            lines = page.read().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line.startswith("foveate_")]
        return {name: float(value) for name, value in pairs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, processor = checkpoints.make("llava")
    return checkpoints.save("llava", model, processor, tmp_path_factory.mktemp("served"))


@contextlib.contextmanager
def serving(args: list[str], port: int, log: Path) -> Iterator[Server]:
    with log.open("w") as out:
        process = subprocess.Popen(
            [*args, "--port", str(port)], stdout=out, stderr=out, env={**os.environ, **VARIABLES}
        )
        try:
            end = time.monotonic() + READY_S
            while True:
                assert process.poll() is None, f"the server stopped:\n{log.read_text()[-4000:]}"
                assert time.monotonic() < end, f"not ready:\n{log.read_text()[-4000:]}"
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                time.sleep(1)
            yield Server(port)
        finally:
            process.terminate()
            process.wait(60)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def server(vllm: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = json.dumps({"foveate": {"plan": PLAN}})
    args = command(folder, "--additional-config", config, "--trust-request-mm-kwargs")
    if vllm < "0.30":  # older servers take these settings from every request
        args.remove("--trust-request-mm-kwargs")
    with serving(args, free_port(), tmp_path_factory.mktemp("log") / "server.txt") as running:
        yield running


def png(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()


GOOD = png(checkpoints.picture(0, (168, 168)))


def prompt_tokens(server: Server, *pictures: bytes, **more: Any) -> int:
    status, answer = server.ask(list(pictures) or [GOOD], **more)
    assert status == 200, answer
    return int(answer["usage"]["prompt_tokens"])


def test_usage_and_metrics_show_what_was_kept(server: Server) -> None:
    """The plan's own count in `usage`, per picture; the same on the metrics page."""
    text = prompt_tokens(server) - TOKENS // 2
    assert 0 < text < 60
    before = server.metrics()
    assert prompt_tokens(server, GOOD, GOOD) == prompt_tokens(server) + TOKENS // 2
    after = server.metrics()
    name = 'foveate_visual_tokens_kept_total{modality="image"}'
    assert after[name] - before[name] == 3 * TOKENS // 2
    own = {"mm_processor_kwargs": {"foveate_plan": "divprune:per_image=32"}}
    assert prompt_tokens(server, **own) == text + 32
    assert prompt_tokens(server, mm_processor_kwargs={"foveate_plan": "none"}) == text + TOKENS
    assert prompt_tokens(server) == text + TOKENS // 2


@pytest.mark.claim("V5")
def test_doctor_counts_what_the_server_counts(server: Server, folder: Path) -> None:
    """A checkpoint's own count, and another plan than is served is said."""
    url = f"{server.url}/v1"
    found = check_endpoint(url, family=str(folder), plan=PLAN)
    assert (found.state, found.kept, found.whole) == ("compressed", TOKENS // 2, TOKENS)
    other = check_endpoint(url, family=str(folder), plan="visionzip:keep=1/9")
    assert other.state == "unexpected" and not other.good


@pytest.mark.parametrize(
    "plan,text",
    [
        ("visionzip:keep=0", "out of range"),
        ("visionzip:keep=1/2;positions=retain", "1-D positions"),
        ("zipvision:keep=1/2", "unknown method"),
        ("prumerge", "before encoding"),
        ("fastvid:keep=1/2", "vLLM runs the first 2"),
        ("hiprune:keep=1/2", "reads encoder block 8"),
        ("fastv:layer=2,keep=1/2", "stage 'prefill'"),
        (7, "text of a plan"),
        ("visionzip:keep", "setting=value"),
    ],
)
def test_a_bad_plan_is_the_clients_error(server: Server, plan: Any, text: str) -> None:
    status, answer = server.ask([GOOD], mm_processor_kwargs={"foveate_plan": plan})
    assert status == 400, answer
    assert text in answer["error"]["message"]
    assert server.ask([GOOD])[0] == 200


@pytest.mark.parametrize(
    "pictures,allowed",
    [
        ([GOOD] * 50, {400}),
        ([GOOD[: len(GOOD) // 2]], {400, 422}),
        ([b"no picture"], {400, 422}),
        ([png(Image.new("RGB", (1, 1)))], {200, 400}),
    ],
    ids=["fifty", "truncated", "text", "one-pixel"],
)
def test_bad_pictures_leave_the_server_alive(
    server: Server, pictures: list[bytes], allowed: set[int]
) -> None:
    status, answer = server.ask(pictures)
    assert status in allowed, answer
    if status != 200:
        assert answer["error"]["message"]
    assert server.ask([GOOD])[0] == 200


@pytest.mark.claim("V5")
def test_a_server_with_a_broken_plan_does_not_start(vllm: str, folder: Path) -> None:
    """The process ends with an error that names what is wrong; nothing is served."""
    config = json.dumps({"foveate": {"plan": "vizionzip:keep=1/2"}})
    args = command(folder, "--additional-config", config, "--port", str(free_port()))
    done = subprocess.run(
        args, capture_output=True, text=True, timeout=READY_S, env={**os.environ, **VARIABLES}
    )
    assert done.returncode != 0
    assert "did you mean visionzip" in done.stdout + done.stderr
