"""What the user named on the command line, as pictures and videos: files, folders, web addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from foveate.core.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts")
_SCHEME = re.compile(r"^([a-z][a-z0-9+.\-]*):(?://|(?=.*;base64,))", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One picture or video: `source` goes to the engine, `label` to the screen."""

    source: str
    video: bool = False

    @property
    def label(self) -> str:
        return self.source if len(self.source) <= 200 else self.source[:60] + "..."


def collect(sources: Sequence[str], allow_url: bool) -> list[Item]:
    """The pictures and videos of the arguments, folders opened and sorted.

    InputError before anything is read: a missing file, a folder without pictures, an address that is not
    allowed.
    """
    items: list[Item] = []
    for source in sources:
        items += _one(source, allow_url)
    return items


def _one(source: str, allow_url: bool) -> list[Item]:
    scheme = _SCHEME.match(source)
    if scheme:
        return [_address(source, scheme[1].lower(), allow_url)]
    if not source.strip():
        raise InputError("a source is empty; give a file, a folder or an address")
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _folder(path)
        exists = path.exists()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from None
    if not exists:
        raise InputError(f"no file or folder at {source}")
    return [Item(str(path), path.suffix.lower() in VIDEO_SUFFIXES)]


def _address(source: str, scheme: str, allow_url: bool) -> Item:
    if scheme == "data":
        return Item(source)
    if scheme not in ("http", "https"):
        raise InputError(f"{scheme}: addresses are refused; give a path or an http(s) address")
    if not allow_url:
        raise InputError(f"{source} is a web address; --allow-url permits fetching it")
    if Path(urlsplit(source).path).suffix.lower() in VIDEO_SUFFIXES:
        raise InputError(f"{source}: videos are read from files only; download it first")
    return Item(source)


def _folder(path: Path) -> list[Item]:
    from foveate.models.media import IMAGE_SUFFIXES

    found = [
        p
        for p in path.iterdir()
        if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")
    ]
    if not found:
        raise InputError(f"folder {path} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
    return [Item(str(p)) for p in sorted(found, key=_natural)]


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """page2 before page10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in parts if p]
