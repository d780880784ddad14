"""An encoder server, a prefill and decode server and the example's proxy before them, asked through the
OpenAI client.

The decoder is started from a checkpoint whose vision encoder has other weights: an answer that equals
that of `attach` on the whole model is one for which the decoder encoded nothing.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serving.vllm.conftest import connector, run_job, vllm_python

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from safetensors.torch import load_file, save_file  # noqa: E402

from tests.serving.vllm import checkpoints, reference  # noqa: E402
from tests.serving.vllm.test_vllm_parity import LOGPROB, TOKENS, differences  # noqa: E402
from tests.serving.vllm.test_vllm_server import command, free_port, serving  # noqa: E402

FAMILY = "qwen2_5_vl"
PLAN = "visionzip:keep=1/2"
PROXY = Path(__file__).parents[3] / "examples" / "vllm" / "disaggregation_proxy.py"
QUESTION = "what is it?"


@dataclass(frozen=True)
class Setup:
    """Addresses, the store between the servers, and the whole model that attach runs."""

    proxy: str
    decoder: str
    store: Path
    model: Any
    processor: Any


def server_args(folder: Path, role: str, store: Path) -> list[str]:
    transfer = json.dumps(connector(role, store)["ec_transfer_config"])
    plan = json.dumps({"foveate": {"plan": PLAN}})
    more = ["--ec-transfer-config", transfer, "--additional-config", plan]
    if role == "producer":
        more += ["--mm-encoder-only", "--no-enable-prefix-caching"]
    return command(folder, *more)


@contextlib.contextmanager
def proxying(encoder: str, decoder: str, *more: str) -> Iterator[str]:
    """The example, before two servers."""
    python, _ = vllm_python()
    assert python is not None
    url = f"http://127.0.0.1:{free_port()}"
    args = [python, str(PROXY), "--encoder", encoder, "--decoder", decoder, *more]
    process = subprocess.Popen([*args, "--port", url.rpartition(":")[2]])
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, "the proxy ended"
            assert time.monotonic() < end, "the proxy is not ready"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=10).close()
                break
            except urllib.error.HTTPError:  # it answers; the decoder may be away
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def spoil_encoder(folder: Path) -> None:
    """Give the checkpoint's vision encoder other weights. A running server has its own copy."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    seeded = torch.Generator().manual_seed(7)
    changed = {
        k: torch.randn(w.shape, generator=seeded) * 0.3 if "visual" in k and w.ndim > 1 else w
        for k, w in weights.items()
    }
    assert any(not torch.equal(changed[k], w) for k, w in weights.items())
    save_file(changed, folder / "other.safetensors", metadata={"format": "pt"})
    os.replace(folder / "other.safetensors", path)


@pytest.fixture(scope="module")
def setup(vllm: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    base = tmp_path_factory.mktemp("apart")
    model, processor = checkpoints.make(FAMILY)
    folder = checkpoints.save(FAMILY, model, processor, base)
    store, ports = base / "store", (free_port(), free_port())
    with contextlib.ExitStack() as stack:
        args = server_args(folder, "producer", store)
        encoder = stack.enter_context(serving(args, ports[0], base / "encoder.txt"))
        spoil_encoder(folder)
        args = server_args(folder, "consumer", store)
        decoder = stack.enter_context(serving(args, ports[1], base / "decoder.txt"))
        proxy = stack.enter_context(proxying(encoder.url, decoder.url))
        yield Setup(proxy, decoder.url, store, model, processor)


def chat(paths: list[Path], **more: Any) -> dict[str, Any]:
    """A chat request about pictures."""
    encoded = [base64.b64encode(p.read_bytes()).decode() for p in paths]
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{e}"}} for e in encoded
    ]
    parts.append({"type": "text", "text": QUESTION})
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "extra_body": {"ignore_eos": True, "return_tokens_as_token_ids": True},
        **more,
    }


def ask(url: str, bodies: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    job = {"url": f"{url}/v1", "requests": bodies}
    found: list[dict[str, Any]] = run_job(job, folder, "openai_run.py")
    return found


def pictures(folder: Path, first: int = 0) -> list[Path]:
    """A landscape, a portrait and a square picture."""
    paths = []
    for i, size in enumerate(checkpoints.FAMILIES[FAMILY].sizes, first):
        paths.append(folder / f"{i}.png")
        checkpoints.picture(i, size).save(paths[-1])
    return paths


def wanted_of(setup: Setup, asked: list[list[Path]]) -> list[dict[str, Any]]:
    """What attach answers to the same chats."""
    requests = []
    for paths in asked:
        content = [{"type": "image"}] * len(paths) + [{"type": "text", "text": QUESTION}]
        prompt = setup.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        requests.append({"prompt": prompt, "images": [str(p) for p in paths]})
    return reference.attach_run(setup.model, setup.processor, PLAN, requests, TOKENS)


@pytest.mark.claim("V1")
def test_answers_through_two_servers_are_those_of_attach(
    setup: Setup, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """An encoder server, a decoder server that encodes nothing, and the proxy: tokens,
    log-probabilities and usage of attach, whole and streamed, for three shapes and two pictures.
    """
    wide, tall, square = pictures(tmp_path)
    asked = [[wide], [tall], [square], [wide, tall], [square, wide]]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    bodies = [chat(p, **(streamed if i % 2 else {})) for i, p in enumerate(asked)]
    found = ask(setup.proxy, bodies, tmp_path)
    worst = 0.0
    for f, w in zip(found, wanted_of(setup, asked), strict=True):
        assert f["prompt"] == w["prompt"], f
        same, apart = differences(f, w)
        assert same and apart <= LOGPROB, (f, w)
        worst = max(worst, apart)
    assert all(f["pieces"] > 2 for f in found[1::2])
    assert len([p for p in setup.store.rglob("*") if p.is_file()]) == 3
    record_property("figure", f"{worst:.1e}, 3 pictures encoded for 7 shown, vLLM {vllm}")
    record_property("bound", f"{LOGPROB:.0e}, none by the decoder")


def test_the_decoders_own_encoder_would_show(setup: Setup, tmp_path: Path) -> None:
    """Asked past the proxy about a picture that is not in the store, the decoder answers otherwise."""
    paths = pictures(tmp_path, first=50)
    found = ask(setup.decoder, [chat([p]) for p in paths], tmp_path)
    for f, w in zip(found, wanted_of(setup, [[p] for p in paths]), strict=True):
        assert f["prompt"] == w["prompt"]
        assert f["tokens"] != w["tokens"] or abs(f["logprob"] - w["logprob"]) > 100 * LOGPROB


def test_errors_are_passed_on(setup: Setup, tmp_path: Path) -> None:
    """What a server refuses reaches the client with its status and words; later requests are served."""
    (good, *_) = pictures(tmp_path)
    broken = tmp_path / "broken.png"
    broken.write_bytes(good.read_bytes()[:60])
    text = {**chat([]), "model": "no-such-model"}
    found = ask(setup.proxy, [chat([broken]), text, chat([good])], tmp_path)
    assert found[0]["status"] in (400, 422) and found[0]["message"]
    assert found[1]["status"] == 404 and "no-such-model" in found[1]["message"]
    assert len(found[2]["tokens"]) == TOKENS


@pytest.mark.parametrize("missing", ["encoder", "decoder"])
def test_a_server_that_is_away_is_said(setup: Setup, missing: str, tmp_path: Path) -> None:
    """Status 502 and a sentence with the server's address; what needs the other server only is
    answered.
    """
    away = f"http://127.0.0.1:{free_port()}"
    (good, *_) = pictures(tmp_path)
    sides = (away, setup.decoder) if missing == "encoder" else (setup.decoder, away)
    with proxying(*sides) as url:
        asked = chat([good]) if missing == "encoder" else chat([])
        found = ask(url, [asked, {**asked, "stream": True}, chat([])], tmp_path)
    for refused in found[:2]:
        assert refused["status"] == 502
        assert f"the {missing} server at {away} cannot be reached" in refused["message"]
    if missing == "encoder":
        assert len(found[2]["tokens"]) == TOKENS


@contextlib.contextmanager
def saying(said: bytes | None) -> Iterator[str]:
    """A server that answers every request with these bytes and hangs up, or with nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            held = []
            with contextlib.suppress(OSError):  # closed at the end of the test
                while True:
                    asked, _ = listening.accept()
                    held.append(asked)  # else the connection is closed with the object
                    if said is not None:
                        asked.recv(1 << 20)
                        asked.sendall(said)
                        asked.shutdown(socket.SHUT_WR)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_an_encoder_that_hangs_is_said(setup: Setup, tmp_path: Path) -> None:
    """Status 504 after the time that the proxy was given."""
    with saying(None) as silent, proxying(silent, setup.decoder, "--timeout-s", "1") as url:
        (refused,) = ask(url, [chat(pictures(tmp_path)[:1])], tmp_path)
    assert refused["status"] == 504 and "did not answer in time" in refused["message"]


HALF = (
    "HTTP/1.1 200 OK\r\nContent-Type: {}\r\nContent-Length: 1000\r\n\r\n"
    'data: {{"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "tiny", '
    '"choices": []}}\n\n'
)


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_half_an_answer_does_not_look_whole(vllm: str, kind: str, tmp_path: Path) -> None:
    """A decoder that ends inside its answer: an error in the stream, or a broken connection."""
    with saying(HALF.format(kind).encode()) as broken, proxying(broken, broken) as url:
        body = chat([], stream=True) if "stream" in kind else chat([])
        (refused,) = ask(url, [body], tmp_path)
    assert refused["status"] is None and refused["message"]
    if "stream" in kind:
        assert f"the decoder server at {broken}" in refused["message"]
