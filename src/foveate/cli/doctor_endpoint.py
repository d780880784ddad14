"""`foveate doctor --endpoint`: does a server really hold back visual tokens? A plug-in that vLLM did
not load serves everything, and only the count of prompt tokens shows it.

Two requests, one with a picture and one without; what `usage.prompt_tokens` gained is compared with
`foveate.count_tokens`. A template may write a few marks around a picture, so a surplus of that size
is allowed, and the picture is chosen so that the two counts lie further apart.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from typing import Any, Literal

from foveate.audit.http_request import base_url, key_of
from foveate.core.errors import InputError, UnsupportedError
from foveate.core.plan import Plan
from foveate.serve.vllm.count import PictureCount, count_picture

QUESTION = "what is in the picture?"
SIZES = ((336, 336), (672, 448), (896, 896), (1344, 896))  # (width, height), the first that tells
MARKS = 8  # tokens a template may write around a picture
MARKS_A_PASS = 4  # and around each tile
MAX_ANSWER_BYTES = 1 << 20

State = Literal["compressed", "whole", "not compressed", "unexpected", "not compared"]


@dataclass(frozen=True)
class Found:
    """What one picture costs at an endpoint. tokens: prompt tokens gained by it, marks included;
    kept, whole: visual tokens the plan gives and all of them, None where no plan was named.
    """

    endpoint: str
    model: str
    width: int
    height: int
    tokens: int
    kept: int | None
    whole: int | None
    state: State

    @property
    def good(self) -> bool:
        return self.state in ("compressed", "whole", "not compared")

    def data(self) -> dict[str, Any]:
        """The record as JSON."""
        return asdict(self)

    def text(self) -> str:
        """One line that a person reads."""
        if self.kept is None or self.whole is None:
            cost = f"a picture of {self.width} x {self.height} costs {self.tokens} prompt tokens"
            return f"{cost}; not compared: name --family and --plan"
        if self.state == "unexpected":
            return (
                f"UNEXPECTED: {self.tokens} tokens where the plan gives {self.kept} of {self.whole}"
            )
        base = self.whole if self.state == "not compressed" else self.kept
        marks = self.tokens - base
        beside = f" (and {marks} around the picture)" if marks else ""
        if self.state == "not compressed":
            return f"NOT compressed: {self.whole} where the plan gives {self.kept}{beside}"
        if self.state == "whole":
            return f"whole, as the plan says: {self.whole} tokens{beside}"
        return f"compressed: {self.kept} of {self.whole} tokens{beside}"


def check_endpoint(
    url: str,
    *,
    model: str | None = None,
    family: str | None = None,
    plan: str | None = None,
    processor: str | None = None,
    api_key_env: str | None = None,
    timeout_s: float = 60.0,
) -> Found:
    """Ask the OpenAI API at `url` twice, see the module. family, processor: as count_tokens takes
    them, processor as JSON.

    InputError if nothing usable answers, UnsupportedError if the server reports no usage or the plan
    keeps so much that the difference would not show.
    """
    if (family is None) != (plan is None):
        raise InputError("--family and --plan go together: the count is computed from both")
    base = base_url(url)
    if not timeout_s > 0:
        raise InputError(f"--timeout {timeout_s}: above 0 is needed")
    size, expected, marks = SIZES[0], None, 0
    if family is not None and plan is not None:
        size, expected, marks = _telling(plan, family, _settings(processor))
    client = _Client(base, key_of(api_key_env), timeout_s)
    name = model or client.model()
    without = client.prompt_tokens(name, None)
    tokens = client.prompt_tokens(name, _picture(size)) - without
    kept, whole = (None, None) if expected is None else (expected.kept, expected.whole)
    state = _state(tokens, expected, marks)
    return Found(base, name, *size, tokens, kept, whole, state)


def _telling(
    plan: str, family: str, settings: dict[str, Any]
) -> tuple[tuple[int, int], PictureCount, int]:
    """A picture whose counts with and without the plan cannot be taken for each other."""
    for size in SIZES:
        counted = count_picture(*size, Plan.load(plan), family, processor=settings)
        marks = MARKS + MARKS_A_PASS * counted.passes
        if counted.whole - counted.kept > marks or Plan.load(plan).is_identity:
            return size, counted, marks
    raise UnsupportedError(
        f"plan {plan!r} keeps {counted.kept} of {counted.whole} tokens of a picture: too near to tell "
        "from what a template writes around it, or a plan for videos, which one picture cannot show; "
        "check a plan that keeps less"
    )


def _state(tokens: int, expected: PictureCount | None, marks: int) -> State:
    if expected is None:
        return "not compared"
    if 0 <= tokens - expected.kept <= marks:
        return "whole" if expected.kept == expected.whole else "compressed"
    if 0 <= tokens - expected.whole <= marks:
        return "not compressed"
    return "unexpected"


def _settings(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--processor is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError("--processor must be a JSON object such as '{\"max_pixels\": 200704}'")
    return found


def _picture(size: tuple[int, int]) -> str:
    """A data URI of a picture with some content."""
    from PIL import Image

    shades = Image.linear_gradient("L").resize(size)
    picture = Image.merge("RGB", (shades, shades.rotate(180), shades))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


class _Client:
    """The few calls of the OpenAI API that are needed, by the standard library."""

    def __init__(self, base: str, key: str | None, timeout_s: float) -> None:
        self.base, self._key, self._timeout_s = base, key, timeout_s
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        # No proxy from the environment: endpoints on this machine are the usual case.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def model(self) -> str:
        """The one model that the server lists."""
        try:
            names = [str(m["id"]) for m in self._ask("/models", None)["data"]]
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            said = ", ".join(names) or "none"
            raise InputError(f"name the model with --model: {self.base} lists {said}")
        return names[0]

    def prompt_tokens(self, model: str, picture: str | None) -> int:
        """usage.prompt_tokens of the question, with a picture (a data URI) or without."""
        content: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
        if picture is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": picture}})
        body = {
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 1,
            "temperature": 0,
        }
        answer = self._ask("/chat/completions", body)
        usage = answer.get("usage")
        count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if not isinstance(count, int) or isinstance(count, bool):
            raise UnsupportedError(
                f"{self.base} answers without usage.prompt_tokens, which is what doctor compares"
            )
        return count

    def _ask(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        where = self.base + path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(where, data, self._headers)
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                text = answer.read(MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(2000).decode("utf-8", "replace").split())
            if self._key:
                said = said.replace(self._key, "[key]")  # some servers send it back
            raise InputError(f"{where} answers status {error.code}: {said}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
            raise InputError(f"nothing usable answers at {where}: {reason}") from None
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError(f"{where} answers no JSON object; is it the base of an OpenAI API?")
        return found
