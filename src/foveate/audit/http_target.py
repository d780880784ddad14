"""An endpoint as a target: anything that streams answers as OpenAI's chat completions do.

Connections are kept alive, as clients and gateways do it: one for every request would put its
handshakes into TTFT. A connection that was idle for `IDLE_S` is closed from here, before servers
close it at their end (five seconds are common): a request that leaves at that moment would fail,
and sending it twice could hide a real failure. Nothing is ever sent twice.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foveate.audit.http_request import Bodies, base_url, key_of
from foveate.audit.http_stream import (
    Answer,
    AnswerError,
    EventReader,
    check_size,
    message_of,
    one_line,
)
from foveate.audit.meters import endpoint_missing
from foveate.audit.process_gauges import ProcessGauges
from foveate.audit.records import ErrorKind, Gauges, Item, Observed
from foveate.core.errors import (
    InputError,
    MissingExtraError,
    SettingError,
    StateError,
    UnsupportedError,
)

if TYPE_CHECKING:
    import aiohttp

IDLE_S = 1.0
OPEN_TIMEOUT_S = 20.0
MAX_ERROR_BYTES = 8192


class HttpTarget:
    """One arm behind HTTP. `url` is the API's base, such as "http://host:8000/v1".

    model: None takes the one model that the server lists. api_key_env names the environment variable
    that holds the key; the key itself is written nowhere. extra_body is added to every request, and
    a value of None leaves a field out, such as {"max_tokens": None, "max_completion_tokens": 64}.
    timeout_s is a whole request's. pid: the server's process on this machine, for its CPU and
    memory. served: the name that answered earlier, where a run goes on; another one is an error.

    An answer that comes in one piece of JSON, though a stream was asked for, is taken: it has an end
    and no first token, so TTFT and ITL are missing. InputError, SettingError for bad arguments.
    """

    def __init__(
        self,
        arm: str,
        url: str,
        model: str | None = None,
        *,
        api_key_env: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        timeout_s: float = 300.0,
        pid: int | None = None,
        served: str | None = None,
    ) -> None:
        self.arm, self.url, self.model = arm, base_url(url), model
        if not timeout_s > 0:
            raise SettingError(f"timeout_s = {timeout_s} is out of range: above 0")
        self.timeout_s = timeout_s
        self.api_key_env, self._key = api_key_env, key_of(api_key_env)
        self._bodies = Bodies(extra_body or {})
        self._pid = pid
        self._process = ProcessGauges(pid) if pid is not None else None
        self.served = served
        self._server: str | None = None
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Connect and find the model. InputError if nothing answers, the key is refused, or the
        model is not to be found; MissingExtraError without aiohttp.
        """
        try:
            import aiohttp
        except ImportError:
            raise MissingExtraError("aiohttp", "audit", "asking an endpoint") from None
        from yarl import URL

        from foveate import __version__

        self._chat = URL(f"{self.url}/chat/completions")
        headers = {
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
            # A compressing proxy would hold back pieces of the stream.
            "Accept-Encoding": "identity",
            "User-Agent": f"foveate/{__version__}",
        }
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )
        try:
            await self._find_model()
        except BaseException:
            await self.close()
            raise
        if self._process is not None:
            self._process.open()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._process is not None:
            self._process.close()

    def describe(self) -> Mapping[str, Any]:
        """`server` is what it calls itself, `served` the model's name in its answers."""
        return {
            "kind": "endpoint",
            "url": self.url,
            "model": self.model,
            "served": self.served,
            "server": self._server,
            "api_key_env": self.api_key_env,
            "extra_body": self._bodies.extra,
            "timeout_s": self.timeout_s,
            "measured_process": self._pid is not None,
            "missing": endpoint_missing(self._pid is not None),
        }

    def reset(self) -> None:
        if self._process is not None:
            self._process.reset()

    def gauges(self) -> Gauges:
        return Gauges() if self._process is None else self._process.gauges()

    async def ask(self, item: Item) -> Observed:
        """Send one item. UnsupportedError only where this machine is out of file descriptors."""
        if self._session is None:
            raise StateError(f"the target {self.arm} is not open")
        import aiohttp

        loop = asyncio.get_running_loop()
        body = self.body(item)
        answer = Answer(loop.time())
        error: ErrorKind
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._exchange(self._session, body, answer, loop)
            self._same_model(answer)
            return answer.observed(loop.time())
        except AnswerError as found:
            error, detail = found.kind, str(found)
        except TimeoutError:
            error, detail = "timeout", f"no end within {self.timeout_s:g} s"
        except aiohttp.ClientResponseError as found:
            error, detail = "protocol", f"no HTTP: {found.message}"
        except (aiohttp.ClientError, OSError) as found:
            if _errno(found) in (errno.EMFILE, errno.ENFILE):
                raise UnsupportedError(
                    "this machine is out of file descriptors for connections: raise the limit "
                    "(ulimit -n) or lower the load"
                ) from None
            error, detail = "connection", f"{type(found).__name__}: {found}"
        return answer.observed(loop.time(), error, self._without_key(one_line(detail)))

    def body(self, item: Item) -> bytes:
        """The request for an item, as it is sent."""
        return self._bodies.body(self.model, item)

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        body: bytes,
        answer: Answer,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Send, and read until the end of the answer; what came is in `answer`, errors included."""
        async with session.post(self._chat, data=body, allow_redirects=False) as response:
            if response.status >= 400:
                text = await response.content.read(MAX_ERROR_BYTES)
                raise AnswerError("http", f"status {response.status}: {_message(text)}")
            if response.status != 200:
                where = response.headers.get("Location", "")
                raise AnswerError("protocol", f"status {response.status} {where}".strip())
            kind = response.content_type
            if kind == "application/json":
                whole = bytearray()
                async for chunk in response.content.iter_any():
                    whole += chunk
                    check_size(len(whole))
                answer.whole(bytes(whole))
                return
            if kind != "text/event-stream":
                text = await response.content.read(MAX_ERROR_BYTES)
                raise AnswerError("protocol", f"{kind} instead of a stream: {_message(text)}")
            events = EventReader()
            async for chunk in response.content.iter_any():
                now_s = loop.time()
                for data in events.feed(chunk):
                    answer.event(data, now_s)
            if not answer.done:
                raise AnswerError("protocol", "the stream ended without [DONE]")

    def _same_model(self, answer: Answer) -> None:
        """The first name that answers is the one; servers may expand what was asked for."""
        if answer.model is None:
            return
        if self.served is None:
            self.served = answer.model
        elif answer.model != self.served:
            raise AnswerError("model", f"{answer.model!r} answered, {self.served!r} did before")

    async def _find_model(self) -> None:
        import aiohttp

        assert self._session is not None
        where = f"{self.url}/models"
        try:
            async with asyncio.timeout(min(OPEN_TIMEOUT_S, self.timeout_s)):
                async with self._session.get(where, allow_redirects=False) as response:
                    self._server = response.headers.get("Server")
                    status, text = response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            detail = self._without_key(one_line(f"{type(error).__name__}: {error}"))
            raise InputError(f"nothing usable answers at {where}: {detail}") from None
        said = self._without_key(_message(text))
        if status in (401, 403):
            key = f"the key in {self.api_key_env}" if self._key else "asking without a key"
            raise InputError(f"{where} refuses {key} (status {status}): {said}")
        if status >= 500:
            raise InputError(f"{where} answers status {status}: {said}")
        names = _names(text) if status == 200 else []
        if self.model is not None:
            # A gateway may list nothing, or other names than it serves.
            return
        if len(names) != 1:
            found = ", ".join(names) if names else f"status {status}, no models"
            raise InputError(f"name the model to ask at {self.url}: it lists {found}")
        self.model = names[0]

    def _without_key(self, text: str) -> str:
        if not self._key:
            return text
        text = text.replace(self._key, "[key]")
        cut = text.removesuffix("…")
        for n in range(len(self._key) - 1, 3, -1):  # a text that was cut may end within the key
            if cut.endswith(self._key[:n]):
                return cut[:-n] + "[key]…"
        return text


def _message(text: bytes) -> str:
    """What a body says, be it JSON, text or nothing."""
    try:
        return message_of(json.loads(text)) or "an empty body"
    except (ValueError, RecursionError):
        return one_line(text.decode("utf-8", "replace")) or "an empty body"


def _names(text: bytes) -> list[str]:
    try:
        return [str(entry["id"]) for entry in json.loads(text)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _errno(error: BaseException) -> int | None:
    inner = getattr(error, "os_error", error)
    return getattr(inner, "errno", None)
