"""Where things are, and what the tests of the house share."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "foveate"
_SKIPPED = {"__pycache__", "node_modules", "runs", "dist", "build", "demo"}
_TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".txt", ".cfg", ".sh", ""}


def modules(*rooms: str) -> list[Path]:
    """Python files of the package, or of some of its rooms; a room that is not built gives none."""
    folders = [SOURCE / room for room in rooms] if rooms else [SOURCE]
    return sorted(p for folder in folders for p in folder.rglob("*.py"))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def texts() -> Iterator[Path]:
    """Text files a reader of the repository sees; caches, environments and data are left out."""
    for folder, names, files in os.walk(ROOT):
        names[:] = [n for n in names if n not in _SKIPPED and (n == ".ci" or not n.startswith("."))]
        for file in files:
            path = Path(folder, file)
            if path.suffix in _TEXT and path.stat().st_size < 1 << 20:
                yield path


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python(code: str, *, path: str = "", timeout_s: float = 120) -> str:
    """What a fresh interpreter prints that sees the source tree (and `path`), and no more."""
    places = os.pathsep.join(p for p in (str(ROOT / "src"), path) if p)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": places},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Block:
    """A fenced block of a Markdown page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 1) for m in found]
