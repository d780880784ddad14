"""Where the rows of a workload come from: JSON lines, Parquet, a folder saved by `datasets`, the lab's
tasks, easy-VQA. Each is a `Source`, rows of plain fields that can be gone through again.

JSON lines are read here and not by `datasets`, whose reader turns an answer such as "2020-01-01" into
a time stamp and "1.10" into 1.1. Parquet and saved folders bring their own types and are read by it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foveate.core.errors import InputError, MissingExtraError

Rows = Iterator[tuple[int, Mapping[str, Any]]]
SHOWN = 10
"""Lines that an error text names, at most."""


@dataclass(frozen=True)
class Source:
    """Rows with their numbers, which error texts name; `rows` starts again at each call.

    unit: what a number counts, "line" or "row". folder: where relative paths start. notes: what a
    reader of the receipt has to know of this source.
    """

    name: str
    unit: Literal["line", "row"]
    rows: Callable[[], Rows]
    folder: Path | None = None
    notes: tuple[str, ...] = ()


def open_source(source: str, *, limit: int | None, seed: int) -> Source:
    """The source that a text names (docs/audit.md lists the forms). `limit` and `seed` bear on tasks
    that are drawn, not on files.

    Errors: InputError for a path that does not exist or cannot be told; SettingError for unknown
    families, levels or splits; MissingExtraError.
    """
    from foveate.audit.sources_lab import easyvqa, lab

    if not source.strip():
        raise InputError("no workload is named; give a file, a folder, lab:FAMILY or easyvqa")
    try:
        path = Path(source).expanduser()
    except RuntimeError:
        raise InputError(
            f"workload {source[:100]!r} names a home folder that is not known"
        ) from None
    try:
        exists = path.exists()
    except OSError as error:  # a name that is too long for a file
        raise InputError(f"workload {source[:100]!r} cannot be read: {error.strerror}") from None
    head, _, split = source.partition("#")
    if not exists and (head == "lab" or head.startswith("lab:")):
        return lab(head.removeprefix("lab").removeprefix(":"), split, limit, seed)
    if not exists and head == "easyvqa":
        return easyvqa(split)
    if exists:
        return _of_path(path, "")
    base, mark, split = source.rpartition("#")
    if mark and base and Path(base).expanduser().is_dir():
        return _of_path(Path(base).expanduser(), split)
    raise InputError(
        f"no workload at {source!r}: give a .jsonl or .parquet file, a folder saved by datasets "
        "(FOLDER#SPLIT for one of its splits), lab:FAMILY[@LEVEL],… or easyvqa"
    )


def _of_path(path: Path, split: str) -> Source:
    if path.is_dir():
        return _saved(path, split)
    if path.suffix.lower() == ".jsonl":
        return Source(path.name, "line", lambda: json_lines(path), path.parent)
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    raise InputError(f"workload {path} must end in .jsonl or .parquet, or be a folder")


# --- JSON lines ----------------------------------------------------------------------------------
def json_lines(path: Path) -> Rows:
    """One object a line, UTF-8 with or without a byte order mark, or UTF-16 with one. Numbers with a
    point stay as they are written. Empty lines are passed over.

    Errors: InputError that names the first lines that are not text or not an object.
    """
    wrong: list[str] = []
    for number, line in _lines(path):
        found = _object(path, number, line)
        if isinstance(found, str):
            wrong.append(f"line {number} {found}")
            if len(wrong) == SHOWN:
                break
        elif found is not None and not wrong:
            yield number, found
    if wrong:
        raise InputError(f"{path}: {'; '.join(wrong)}")


def _object(path: Path, number: int, line: str | _Unreadable) -> dict[str, Any] | str | None:
    """The object of a line, what is wrong with it, or None for an empty line."""
    if isinstance(line, _Unreadable):
        return line.reason
    text = line.strip()
    if not text:
        return None
    if number == 1 and text.startswith("["):
        raise InputError(f"{path} is one JSON list; write one object a line (JSON lines)")
    try:
        found = json.loads(text, parse_float=str)
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({error})"
    return found if isinstance(found, dict) else f"is no object but {type(found).__name__}"


@dataclass(frozen=True)
class _Unreadable:
    reason: str


def _lines(path: Path) -> Iterator[tuple[int, str | _Unreadable]]:
    """Lines with their numbers from 1. One that is not in the file's encoding is not guessed at: a
    wrong guess would change questions and references without a word.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                file.seek(0)
                yield from enumerate(file.read().decode("utf-16").split("\n"), 1)
                return
            file.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)
            for number, line in enumerate(file, 1):
                try:
                    yield number, line.decode("utf-8")
                except UnicodeDecodeError as error:
                    reason = (
                        f"is not UTF-8 (byte 0x{line[error.start]:02x} at place {error.start + 1}); "
                        "save the file as UTF-8"
                    )
                    yield number, _Unreadable(reason)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} begins as UTF-16 and is not: {error.reason}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


# --- datasets ------------------------------------------------------------------------------------
def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "audit", "a workload in Parquet or Arrow") from error
    return datasets


def _parquet(path: Path) -> Source:
    datasets = _datasets()

    def rows() -> Rows:
        from tempfile import TemporaryDirectory

        # Streamed: nothing is copied to a cache, and pictures stay encoded.
        with TemporaryDirectory(prefix="foveate-") as cache:
            try:
                read = datasets.Dataset.from_parquet(str(path), cache_dir=cache, streaming=True)
                yield from enumerate(read.decode(False), 1)
            except (OSError, ValueError, TypeError) as error:
                raise InputError(f"{path} is no Parquet file that can be read: {error}") from error

    return Source(path.name, "row", rows, path.parent)


def _saved(path: Path, split: str) -> Source:
    datasets = _datasets()
    try:
        found = datasets.load_from_disk(str(path))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"the folder {path} was not saved by datasets (Dataset.save_to_disk): {error}"
        ) from error
    name = path.name
    if isinstance(found, datasets.DatasetDict):
        names = list(found)
        if not split and len(names) == 1:
            split = names[0]
        if split not in found:
            raise InputError(
                f"{path} holds the splits {', '.join(names)}; name one as {path}#{names[0]}"
            )
        found, name = found[split], f"{name}#{split}"
    elif split:
        raise InputError(f"{path} has no splits; leave out #{split}")

    def rows() -> Rows:
        yield from enumerate(found.to_iterable_dataset().decode(False), 1)

    return Source(name, "row", rows, path)
