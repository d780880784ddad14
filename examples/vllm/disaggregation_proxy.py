"""One address before an encoder server and a prefill and decode server of vLLM (docs/vllm.md).

    python disaggregation_proxy.py --decoder http://host:8001 --encoder http://host:8000 [--port 9000]

A chat request with pictures goes to an encoder first, which hands its tokens on to the decoder by
vLLM's EC connector and answers nothing; then to the decoder as it came, whose answer is passed on as it
comes. The encoder sees the same messages, so that methods which read the question find it there too.
All other requests go to the decoder. Errors of either server are passed on with their status; a server
that does not answer gives 502 with a sentence, and one that takes too long 504. Several --encoder take
turns. Needs aiohttp, which comes with vLLM. An example: it checks no keys and limits no one.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, web

MEDIA = ("image_url", "video_url")
ENCODED = ("model", "messages", "mm_processor_kwargs", "media_io_kwargs", "chat_template_kwargs")
PASSED_ON = ("Content-Type", "Retry-After")
LARGEST_BYTES = 1 << 30  # of a request; pictures travel inside it


def has_media(body: Mapping[str, Any]) -> bool:
    """Whether a chat request holds a picture or a video."""
    messages = body.get("messages")
    found = [m.get("content") for m in messages or () if isinstance(m, dict)]
    parts = [part for content in found if isinstance(content, list) for part in content]
    return any(name in part for part in parts if isinstance(part, dict) for name in MEDIA)


def refusal(status: int, message: str) -> web.Response:
    """An error in the form of the OpenAI API."""
    error = {"message": message, "type": "server_error", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


def failure(role: str, url: str, error: Exception) -> web.Response:
    """What a client is told when a server behind the proxy does not answer."""
    if isinstance(error, TimeoutError):
        return refusal(504, f"the {role} server at {url} did not answer in time")
    said = str(error) or type(error).__name__
    return refusal(502, f"the {role} server at {url} cannot be reached: {said}")


def headers(request: web.Request) -> dict[str, str]:
    """The client's headers that both servers see."""
    names = ("Authorization", "Content-Type", "X-Request-Id")
    return {n: request.headers[n] for n in names if n in request.headers}


class Proxy:
    """Sends requests on. timeout_s: of an encoding, and of each piece of an answer."""

    session: ClientSession

    def __init__(self, encoders: list[str], decoder: str, timeout_s: float) -> None:
        self._encoders = itertools.cycle([e.rstrip("/") for e in encoders])
        self._decoder = decoder.rstrip("/")
        self._wait = ClientTimeout(total=None, sock_connect=10.0, sock_read=timeout_s)

    async def running(self, _: web.Application) -> AsyncIterator[None]:
        async with ClientSession(timeout=self._wait) as self.session:
            yield

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A chat request: to an encoder if it holds media, then to the decoder."""
        raw = await request.read()
        try:
            body = json.loads(raw)
        except ValueError:
            return refusal(400, "the body of the request is not JSON")
        if isinstance(body, dict) and has_media(body):
            refused = await self._encode(request, body)
            if refused is not None:
                return refused
        return await self._pass_on(request, raw)

    async def other(self, request: web.Request) -> web.StreamResponse:
        return await self._pass_on(request, await request.read())

    async def _encode(self, request: web.Request, body: dict[str, Any]) -> web.Response | None:
        """None once the store holds all media of the request, else what the client is told."""
        url = next(self._encoders)
        asked = {k: body[k] for k in ENCODED if k in body} | {"max_tokens": 1}
        try:
            async with self.session.post(
                f"{url}{request.path}", json=asked, headers=headers(request)
            ) as answer:
                text = await answer.read()
                if answer.status == 200:
                    return None
                return web.Response(body=text, status=answer.status, headers=passed_on(answer))
        except (ClientError, TimeoutError) as error:
            return failure("encoder", url, error)

    async def _pass_on(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        """The decoder's answer, piece by piece as it comes."""
        out: web.StreamResponse | None = None
        try:
            async with self.session.request(
                request.method,
                f"{self._decoder}{request.path_qs}",
                data=raw,
                headers=headers(request),
            ) as answer:
                out = web.StreamResponse(status=answer.status, headers=passed_on(answer))
                await out.prepare(request)
                async for piece in answer.content.iter_any():
                    await out.write(piece)
        except (ClientError, TimeoutError) as error:
            told = failure("decoder", self._decoder, error)
            if out is None or request.transport is None:
                return out or told
            if out.content_type != "text/event-stream":
                request.transport.close()  # half an answer must not look whole
                return out
            await out.write(f"data: {told.text}\n\n".encode())  # the status was sent before
        await out.write_eof()
        return out


def passed_on(answer: ClientResponse) -> dict[str, str]:
    return {n: answer.headers[n] for n in PASSED_ON if n in answer.headers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--encoder", action="append", required=True, help="its address; may repeat")
    parser.add_argument("--decoder", required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--timeout-s", type=float, default=300.0)
    args = parser.parse_args()
    proxy = Proxy(args.encoder, args.decoder, args.timeout_s)
    app = web.Application(client_max_size=LARGEST_BYTES)
    app.cleanup_ctx.append(proxy.running)
    app.router.add_post("/v1/chat/completions", proxy.chat)
    app.router.add_route("*", "/{path:.*}", proxy.other)
    # A client that leaves ends its request at the servers too.
    web.run_app(app, host=args.host, port=args.port, handler_cancellation=True, print=None)


if __name__ == "__main__":
    main()
