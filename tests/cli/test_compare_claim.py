"""The comparison of the claim: 20 pictures, 8 methods, one command in a terminal, one page that
opens without network.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from foveate.cli.compare import METHODS
from foveate.cli.compare_run import CONTROLS
from tests.support.browser import ALONE, find_browser

pty = pytest.importorskip("pty", reason="a terminal to draw a progress bar in")
pytestmark = [pytest.mark.claim("C4"), pytest.mark.full]

ROOT = Path(__file__).parents[2]
PICTURES = 20


def in_terminal(words: list[str]) -> tuple[int, str]:
    """Exit code and all that a command wrote to a terminal of 120 columns."""
    shown = bytearray()
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "120", "TERM": "xterm"}
    main, side = pty.openpty()
    child = subprocess.Popen(words, stdin=side, stdout=side, stderr=side, env=env)
    os.close(side)
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the terminal closes with its last process
            break
        if not part:
            break
        shown += part
    os.close(main)
    return child.wait(), shown.decode(errors="replace")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page of the command, and what its terminal showed."""
    out = tmp_path_factory.mktemp("compare") / "page.html"
    words = [sys.executable, "-m", "foveate.cli", "compare", "--rendered", str(PICTURES)]
    code, shown = in_terminal([*words, "--max-new-tokens", "8", "--out", str(out)])
    assert code == 0, shown
    return out, shown


def test_one_command_compares_20_pictures_and_8_methods_under_a_progress_bar(
    compared: tuple[Path, str], record_property: Callable[[str, object], None]
) -> None:
    """One command puts 8 methods and the controls on 20 pictures, with a progress bar."""
    out, shown = compared
    names = METHODS.split(",")
    assert len(names) == 8
    total = (1 + len(names) + len(CONTROLS)) * (PICTURES + 1)
    steps = {int(x) for x in re.findall(rf"(\d+)/{total}", shown)}
    assert "comparing" in shown and len(steps) > 5 and max(steps) <= total
    assert all(name in shown for name in (*names, *CONTROLS)) and f"{PICTURES} questions" in shown
    # A terminal breaks a long file name over lines.
    assert out.name in "".join(shown.split()) and out.is_file()
    record_property(
        "figure", f"{PICTURES} pictures, {len(names)} methods, {len(steps)} steps shown"
    )


class References(HTMLParser):
    """Every address that a page could fetch, its tags and its policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        fetching = ("src", "href", "srcset", "action", "data", "poster", "background", "formaction")
        self.addresses += [value or "" for name, value in attrs if name in fetching]


def test_the_page_refers_to_nothing_outside_itself(
    compared: tuple[Path, str], record_property: Callable[[str, object], None]
) -> None:
    """The page needs no network: every picture is inside, and its policy forbids the rest."""
    text = compared[0].read_text(encoding="utf-8")
    page = References(text)
    assert page.tags.count("img") >= PICTURES
    assert all(a.startswith("data:image/") for a in page.addresses)
    assert {"script", "link", "iframe", "object", "embed", "video", "audio", "base"}.isdisjoint(
        page.tags
    )
    assert (
        re.search(r"https?:|url\((?!data:)|@import|//[a-z]", re.sub(r"data:[^\"]*", "", text))
        is None
    )
    assert "default-src 'none'" in text
    record_property("figure", f"{page.tags.count('img')} pictures inside, no address outside")


def test_a_browser_without_network_shows_every_picture(
    compared: tuple[Path, str], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """A headless browser that can reach no host lays the page out with all its pictures."""
    browser = find_browser()
    page, text = tmp_path / "probe.html", compared[0].read_text(encoding="utf-8")
    # A copy that may run one script of ours, to ask the browser what it decoded.
    probe = (
        "<script>addEventListener('load',()=>{const i=[...document.images];document.title=JSON."
        "stringify([i.length,i.filter(x=>x.complete&&x.naturalWidth>0).length])})</script>"
    )
    open_text = re.sub(r"<meta[^>]*Content-Security-Policy[^>]*>", "", text, flags=re.IGNORECASE)
    page.write_text(open_text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    words = [browser, *ALONE, "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*words, "--virtual-time-budget=10000", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    found = re.search(r"<title>(\[.*?\])</title>", done.stdout)
    assert found is not None, done.stderr[-500:]
    images, decoded = json.loads(found[1])
    assert images == decoded == References(text).tags.count("img") >= PICTURES
    record_property("figure", f"{decoded} of {images} pictures shown")
