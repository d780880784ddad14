"""The process of a planted server: `python -m tests.support.planted_app OPTIONS_AS_JSON`.

Prints its port on one line, serves until its standard input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
import time
from collections import Counter
from typing import Any

from aiohttp import web

from tests.support.planted import Planted, planted_answer, share


class App:
    def __init__(self, planted: Planted) -> None:
        self.planted = planted
        self.requests = 0
        self.at_once = 0
        self.most_at_once = 0
        self.cancelled = 0
        self.asked: Counter[str] = Counter()
        self.authorization: str | None = None
        self.slots = asyncio.Semaphore(planted.slots) if planted.slots else None

    @property
    def model(self) -> str:
        after = self.planted.other_model_after
        changed = after is not None and self.requests > after
        return "another" if changed else self.planted.model

    def routes(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/seen", self.seen)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/chat/completions", self.chat)
        return app

    async def seen(self, request: web.Request) -> web.Response:
        found = {
            "requests": self.requests,
            "asked": dict(self.asked),
            "at_once": self.most_at_once,
            "cancelled": self.cancelled,
            "authorization": self.authorization,
        }
        return web.json_response(found)

    def refused(self, request: web.Request) -> web.Response | None:
        self.authorization = request.headers.get("Authorization")
        key = self.planted.api_key
        if key is None or self.authorization == f"Bearer {key}":
            return None
        error = {"message": f"wrong key: {self.authorization}"}
        return web.json_response({"error": error}, status=401)

    async def models(self, request: web.Request) -> web.Response:
        refused = self.refused(request)
        if refused is not None or self.planted.listed is None:
            return refused or web.Response(status=404)
        models = [{"id": name, "object": "model"} for name in self.planted.listed]
        return web.json_response({"object": "list", "data": models})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        refused = self.refused(request)
        if refused is not None:
            return refused
        body = await request.json()
        text = "".join(
            part["text"]
            for message in body["messages"]
            for part in message["content"]
            if part["type"] == "text"
        )
        pictures = sum(p["type"] == "image_url" for p in body["messages"][-1]["content"])
        self.asked[text] += 1
        self.requests += 1
        if self.requests == 1 and self.planted.stall_at_s is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(self.planted.stall_at_s, time.sleep, self.planted.stall_s)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async with self.slots or contextlib.nullcontext():
                return await self.answer(request, body, text, pictures)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1

    async def answer(
        self, request: web.Request, body: dict[str, Any], text: str, pictures: int
    ) -> web.StreamResponse:
        planted = self.planted
        turn = f"{text}|{self.asked[text]}"
        fault = planted.fault if share("fault", turn) < planted.fault_share else None
        if planted.latency_s:
            await asyncio.sleep(planted.latency_s)
        if fault == "http" or share("error", turn) < planted.errors:
            error = {"error": {"message": "out of memory on the planted device"}}
            return web.json_response(error, status=500)
        if fault == "hang":
            await asyncio.sleep(3600)
        if fault == "html":
            return web.Response(text="<html>it works</html>", content_type="text/html")
        answer = planted_answer(text, planted.wrong)
        usage = {
            "prompt_tokens": len(text.split()) + pictures * planted.visual_tokens,
            "completion_tokens": max(len(answer), planted.pieces),
            "prompt_tokens_details": {"image_tokens": pictures * planted.visual_tokens},
        }
        head = {"id": "c", "object": "chat.completion", "created": 0, "model": self.model}
        if not planted.stream or not body.get("stream"):
            message = {"role": "assistant", "content": answer}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            whole = {**head, "choices": [choice]} | ({"usage": usage} if planted.usage else {})
            return web.json_response(whole)
        head["object"] = "chat.completion.chunk"
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if fault == "garbage":
            await response.write(b"data: \xff\xfe{not json\n\n")
            return response
        pieces = [*answer, *[" "] * (planted.pieces - len(answer))] if fault != "empty" else []
        await self.event(response, {**head, "choices": [_delta({"role": "assistant"})]})
        for number, piece in enumerate(pieces):
            if number and planted.token_s:
                await asyncio.sleep(planted.token_s)
            await self.event(response, {**head, "choices": [_delta({"content": piece})]})
            if fault == "hang_midway":
                await asyncio.sleep(3600)
            if fault == "reset":
                assert request.transport is not None
                request.transport.abort()
                return response
            if fault == "error_event":
                await self.event(response, {"error": {"message": "the planted engine died"}})
                return response
        if fault == "no_done":
            return response
        await self.event(response, {**head, "choices": [_delta({}, "stop")]})
        if planted.usage and (body.get("stream_options") or {}).get("include_usage"):
            await self.event(response, {**head, "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def event(self, response: web.StreamResponse, data: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(data).encode() + b"\n\n")


def _delta(delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


async def serve(planted: Planted) -> None:
    runner = web.AppRunner(
        App(planted).routes(),
        access_log=None,
        keepalive_timeout=planted.keep_alive_s,
        handler_cancellation=True,
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    asyncio.run(serve(Planted(**json.loads(sys.argv[1]))))
