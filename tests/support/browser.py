"""A real headless Chromium for tests, without network, spoken to by its DevTools protocol.

Nothing is added to the page under test: scripts are asked from outside, so the page's own content
policy stays as it is. https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
NO_BROWSER = "no headless browser on this machine: put chromium or chrome on the path"
ALONE = ("--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND")


def find_browser() -> str:
    """The path of a Chromium; skips the test where there is none."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(NO_BROWSER)
    return browser


class Tab:
    """One page: what it asked the network for, what went wrong in it, and the answers of scripts."""

    def __init__(self, runner: asyncio.Runner, socket: Any, timeout_s: float) -> None:
        self._runner, self._socket, self._timeout_s = runner, socket, timeout_s
        self._ids = itertools.count(1)
        self.requests: list[str] = []
        self.errors: list[str] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; events that come meanwhile are noted."""
        return self._runner.run(self._call(method, parameters))

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives, promises awaited, as plain data."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise AssertionError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script: str, timeout_s: float = 60) -> Any:
        """Ask until the expression is true."""
        end = time.monotonic() + timeout_s
        while not (found := self.value(script)):
            assert time.monotonic() < end, f"{script} did not come true; page errors: {self.errors}"
            time.sleep(0.05)
        return found

    def show(self, page: Path, *, dark: bool, width: int = 1280, height: int = 900) -> None:
        """Open a file with a colour scheme and a size."""
        self.requests, self.errors = [], []
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.resize(width, height)
        self.call("Page.navigate", url=page.as_uri())
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def picture(self, out: Path, *, whole: bool = True) -> None:
        """A PNG of the page, all of it or what a screen shows."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        out.write_bytes(base64.b64decode(found["data"]))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._ids)
        await self._socket.send_str(
            json.dumps({"id": number, "method": method, "params": parameters})
        )
        while True:
            heard = json.loads((await self._socket.receive(self._timeout_s)).data)
            if heard.get("id") == number:
                assert "error" not in heard, f"{method}: {heard['error']}"
                return heard["result"]
            self._note(heard.get("method", ""), heard.get("params", {}))

    def _note(self, event: str, what: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requests.append(what["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(what["exceptionDetails"])[:500])
        elif event == "Runtime.consoleAPICalled" and what["type"] in ("error", "warning", "assert"):
            self.errors.append(str([a.get("value", a.get("description")) for a in what["args"]]))
        elif event == "Log.entryAdded" and what["entry"]["level"] in ("error", "warning"):
            self.errors.append(what["entry"]["text"])


@contextmanager
def browser(folder: Path, timeout_s: float = 120) -> Iterator[Tab]:
    """A tab of a fresh browser whose profile lies in `folder`; skips without one."""
    words = [find_browser(), *ALONE, "--remote-debugging-port=0", "--no-first-run"]
    words += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    words += [f"--user-data-dir={folder}", "about:blank"]
    aiohttp = pytest.importorskip("aiohttp", reason="the way to speak with the browser")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            port = _port(folder / "DevToolsActivePort", child, timeout_s)
            with asyncio.Runner() as runner:
                session, tab = runner.run(_connect(aiohttp, port, runner, timeout_s))
                try:
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        tab.call(f"{domain}.enable")
                    yield tab
                finally:
                    runner.run(session.close())
        finally:
            child.terminate()


async def _connect(
    aiohttp: Any, port: int, runner: asyncio.Runner, timeout_s: float
) -> tuple[Any, Tab]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        tabs = await answer.json(content_type=None)
    address = next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page")
    socket = await session.ws_connect(address, max_msg_size=0)
    return session, Tab(runner, socket, timeout_s)


def _port(file: Path, child: subprocess.Popen[bytes], timeout_s: float) -> int:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and child.poll() is None:
        if file.is_file() and (lines := file.read_text().split()):
            return int(lines[0])
        time.sleep(0.05)
    raise AssertionError("the browser opened no DevTools port")
