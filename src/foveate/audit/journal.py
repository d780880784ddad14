"""The journal of a running audit: one JSON line a finished request, appended, never rewritten.

A line has left this process before its request counts as finished, so that `kill -9` loses none;
it is forced to the disk at the end of every turn and at least once a second, so that a power cut
loses at most the last second. A last line that was cut short is dropped when the journal is opened
again; a damaged line in the middle is refused.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from foveate.audit.records import Block, Gauges, Observed, Row
from foveate.core.errors import InputError, StateError

FILE, FORMAT = "journal.jsonl", "foveate-journal/1"
SYNC_S = 1.0

Key = tuple[str, str, int]
"""(arm, load, block): one turn."""


@dataclass
class Kept:
    """What a journal holds: rows in the order of their ends, with the number of their session; the
    blocks of turns that ended, several where a turn was interrupted; what the arms said of
    themselves when all had ended; and how many bytes of a torn last line were dropped.
    """

    header: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    session: list[int] = field(default_factory=list)
    blocks: dict[Key, list[Block]] = field(default_factory=dict)
    sessions: int = 0
    torn_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    arms: dict[str, dict[str, Any]] | None = None


def row_as_json(row: Row) -> dict[str, Any]:
    """A row of plain values. Not dataclasses.asdict: that copies deeply, once a request."""
    return {**row.__dict__, "observed": row.observed.__dict__}


def row_from_json(given: Mapping[str, Any]) -> Row:
    seen = dict(given["observed"])
    seen["chunk_s"] = tuple(seen.get("chunk_s") or ())
    values = {**given, "observed": Observed(**seen)}
    for name in ("references", "pictures"):
        values[name] = tuple(values[name])
    return Row(**values)


def block_as_json(block: Block) -> dict[str, Any]:
    return {**block.__dict__, "gained": block.gained.__dict__}


def block_from_json(given: Mapping[str, Any]) -> Block:
    return Block(**{**given, "gained": Gauges(**given["gained"])})


def read(path: Path) -> Kept:
    """Everything in a journal. InputError for a file that is none or is damaged in the middle."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    if not lines:
        return Kept({}, torn_bytes=len(data))
    found = Kept(_header(lines[0], path), torn_bytes=len(data) - len(whole))
    for number, line in enumerate(lines[1:], 2):
        try:
            _take(found, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}, line {number} is damaged ({error}): restore the file, or start anew in "
                "another folder"
            ) from None
    return found


def _header(line: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(line)
        known = header["format"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is no journal of an audit: choose another folder") from None
    if known != FORMAT:
        raise InputError(f"{path} has the format {known}; this version reads {FORMAT}")
    return dict(header)


def _take(found: Kept, entry: Mapping[str, Any]) -> None:
    kind = entry["kind"]
    if kind == "row":
        found.rows.append(row_from_json(entry["row"]))
        found.session.append(found.sessions)
    elif kind == "turn":
        blocks = [block_from_json(b) for b in entry["blocks"]]
        found.blocks[_key(blocks)] = blocks
    elif kind == "session":
        found.sessions += 1
    elif kind == "arms":
        found.arms = dict(entry["arms"])
    elif kind == "note":
        found.notes.append(str(entry["text"]))
    else:
        raise KeyError(f"unknown kind {kind!r}")


def _key(blocks: Sequence[Block]) -> Key:
    first = blocks[0]
    return (first.arm, first.load, first.block)


class Journal:
    """The journal in a folder, opened for one audit: new, or going on where it ended.

    header: what makes the audit one and the same; each value must equal that of a journal that is
    there. InputError if it is another audit's, or if another process writes to it.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}") from None
        try:
            self._lock()
            self.kept = read(self.path)
            if self.kept.header:
                self._same(header)
            if self.kept.torn_bytes:
                os.truncate(self.path, self.path.stat().st_size - self.kept.torn_bytes)
        except BaseException:
            os.close(self._file)
            raise
        self._dirty, self._closed = False, threading.Event()
        if not self.kept.header:
            self.kept.header = {"format": FORMAT, **header}
            self._write(self.kept.header)
        self.kept.sessions += 1
        self._write({"kind": "session"})
        self.sync()
        self._syncer = threading.Thread(target=self._sync_often, name="journal", daemon=True)
        self._syncer.start()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def row(self, row: Row) -> None:
        """A request has ended."""
        self._write({"kind": "row", "row": row_as_json(row)})
        self.kept.rows.append(row)
        self.kept.session.append(self.kept.sessions)

    def turn(self, blocks: Sequence[Block]) -> None:
        """A turn has ended, in one part or several; on the disk when this returns."""
        self._write({"kind": "turn", "blocks": [block_as_json(b) for b in blocks]})
        self.kept.blocks[_key(blocks)] = list(blocks)
        self.sync()

    def arms(self, described: Mapping[str, Mapping[str, Any]]) -> None:
        """Every turn has ended; what the arms are, so that they need not be there any more."""
        self.kept.arms = {name: dict(about) for name, about in described.items()}
        self._write({"kind": "arms", "arms": self.kept.arms})
        self.sync()

    def note(self, text: str) -> None:
        """Something a reader of the receipt must know, such as a turn that was interrupted."""
        self._write({"kind": "note", "text": text})
        self.kept.notes.append(text)

    def sync(self) -> None:
        """Force what was written to the disk."""
        self._dirty = False
        os.fsync(self._file)

    def close(self) -> None:
        """Sync and close; more than once does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._syncer.join()
        self.sync()
        os.close(self._file)

    def _write(self, entry: Mapping[str, Any]) -> None:
        """One write call a line: what it took is the kernel's, whatever happens to this process."""
        data = json.dumps(entry, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            done = os.write(self._file, data)
        except OSError as error:
            raise StateError(f"{self.path} cannot be written: {error.strerror}") from None
        if done != len(data):
            raise StateError(f"{self.path}: the disk took {done} of {len(data)} bytes; is it full?")
        self._dirty = True

    def _sync_often(self) -> None:
        while not self._closed.wait(SYNC_S):
            if self._dirty:
                self.sync()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two audits in one folder are the user's to avoid
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another audit is writing to {self.path}") from None

    def _same(self, header: Mapping[str, Any]) -> None:
        for name, value in header.items():
            old = self.kept.header.get(name)
            if old != value:
                raise InputError(
                    f"{self.path.parent} holds another audit ({name} differs: "
                    f"{_short(old)} there, {_short(value)} now): choose another --out"
                )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
