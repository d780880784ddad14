"""What is sent to a chat endpoint: the body of a request, its base URL and its key."""

from __future__ import annotations

import base64
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from foveate.audit.records import Item, Picture
from foveate.core.errors import InputError, SettingError

PICTURE_CACHE_BYTES = 256 << 20
"""Encoded pictures are kept up to this: encoding a megabyte takes about a millisecond."""

_OURS = ("messages", "stream", "stream_options")


class Bodies:
    """Makes request bodies. extra is added to every one; a value of None leaves a field out."""

    def __init__(self, extra: Mapping[str, Any]) -> None:
        for name in _OURS:
            if name in extra:
                raise SettingError(f"extra_body must not set {name}: the load generator does")
        try:
            json.dumps(dict(extra))
        except (TypeError, ValueError) as error:
            raise SettingError(f"extra_body cannot be sent as JSON: {error}") from None
        self.extra = dict(extra)
        self._heads: dict[tuple[str | None, int], bytes] = {}
        self._parts: OrderedDict[str, bytes] = OrderedDict()
        self.kept_bytes = 0

    def body(self, model: str | None, item: Item) -> bytes:
        """The request as JSON: pictures as data URIs before the question."""
        key = (model, item.max_new_tokens)
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = self._head(*key)
        parts = [self._part(picture) for picture in item.pictures]
        parts.append(json.dumps({"type": "text", "text": item.question}).encode())
        # Pictures need no escaping, and going over megabytes for it would take milliseconds.
        return b"".join(
            (head, b', "messages": [{"role": "user", "content": [', b", ".join(parts), b"]}]}")
        )

    def _head(self, model: str | None, max_new_tokens: int) -> bytes:
        """The fields that do not depend on the item, without the closing brace."""
        fields: dict[str, Any] = {
            "model": model,
            "max_tokens": max_new_tokens,
            "temperature": 0,
            **self.extra,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return json.dumps({k: v for k, v in fields.items() if v is not None})[:-1].encode()

    def _part(self, picture: Picture) -> bytes:
        found = self._parts.get(picture.digest)
        if found is not None:
            self._parts.move_to_end(picture.digest)
            return found
        start = json.dumps(
            {"type": "image_url", "image_url": {"url": f"data:{picture.mime};base64,"}}
        )
        # Before the closing quote and braces.
        part = b"".join((start[:-3].encode(), base64.b64encode(picture.data), start[-3:].encode()))
        self._parts[picture.digest] = part
        self.kept_bytes += len(part)
        while self.kept_bytes > PICTURE_CACHE_BYTES and self._parts:
            self.kept_bytes -= len(self._parts.popitem(last=False)[1])
        return part


def base_url(url: str) -> str:
    """The base URL; InputError if it is none or carries what a receipt must not show."""
    base = url.strip().rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(base)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        shown = "an endpoint's URL with @ or ?" if set(url) & set("@?") else repr(url)
        raise InputError(
            f"{shown} is no URL: write the API's base, such as http://localhost:8000/v1"
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(
            f"a URL with a user, a password or a query is not taken, for {parts.hostname}: a receipt "
            "shows it; put the key into an environment variable and name that"
        )
    return base


def key_of(name: str | None) -> str | None:
    """The key in the environment variable of that name; InputError if it holds none."""
    if name is None:
        return None
    value = os.environ.get(name, "").strip()
    if not value:
        raise InputError(f"the environment variable {name} holds no key")
    return value
