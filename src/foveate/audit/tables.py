"""Raw rows and blocks as Parquet files: a column a field, those of nested records by a dot.

    observed.first_s, observed.chunk_s, gained.cpu_s, …

What was not measured is null. Read back, every row equals the one that was written, except for text
that is no Unicode (lone surrogates), which becomes "?".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.audit.records import Block, Gauges, Observed, Row
from foveate.core.errors import InputError, MissingExtraError

ROWS, BLOCKS = "rows.parquet", "blocks.parquet"

_ROW = {
    "arm": "string", "load": "string", "block": "int64", "place": "int64", "sequence": "int64",
    "warmup": "bool", "item": "string", "category": "string", "metric": "string",
    "references": "strings", "pictures": "strings", "intended_s": "double", "judged": "double",
}  # fmt: skip
_OBSERVED = {
    "sent_s": "double", "done_s": "double", "first_s": "double", "chunk_s": "doubles",
    "text": "string", "model": "string", "finish": "string", "prompt_tokens": "int64",
    "completion_tokens": "int64", "visual_tokens": "int64", "kv_bytes": "int64",
    "error": "string", "error_detail": "string",
}  # fmt: skip
_BLOCK = {
    "arm": "string", "load": "string", "block": "int64", "place": "int64", "start_s": "double",
    "end_s": "double", "requests": "int64", "client_cpu_s": "double",
}  # fmt: skip
_GAUGES = {
    "cpu_s": "double", "rss_peak_bytes": "int64", "device_peak_bytes": "int64",
    "kv_peak_bytes": "int64", "device_s": "double", "joules": "double",
}  # fmt: skip
_PARTS: dict[type, tuple[dict[str, str], str, type, dict[str, str]]] = {
    Row: (_ROW, "observed", Observed, _OBSERVED),
    Block: (_BLOCK, "gained", Gauges, _GAUGES),
}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows in the order of arm, load, block and sequence."""
    _write(path, Row, sorted(rows, key=lambda r: (*r.key, r.warmup)))


def write_blocks(path: Path, blocks: Iterable[Block]) -> None:
    """Write blocks in the order of arm, load, number and time."""
    _write(path, Block, sorted(blocks, key=lambda b: (b.arm, b.load, b.block, b.start_s)))


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in its order. InputError where it is missing or not of this kind."""
    found: list[Row] = _read(path, Row)
    return found


def read_blocks(path: Path) -> list[Block]:
    """The blocks of a file, in its order. InputError where it is missing or not of this kind."""
    found: list[Block] = _read(path, Block)
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "audit", "reading and writing the rows") from None
    return pyarrow, pyarrow.parquet


def _columns(kind: type) -> dict[str, str]:
    own, prefix, _, nested = _PARTS[kind]
    return {**own, **{f"{prefix}.{name}": t for name, t in nested.items()}}


def _write(path: Path, kind: type, entries: Sequence[Any]) -> None:
    arrow, parquet = _arrow()
    types = {
        "string": arrow.string(), "strings": arrow.list_(arrow.string()),
        "int64": arrow.int64(), "double": arrow.float64(), "doubles": arrow.list_(arrow.float64()),
        "bool": arrow.bool_(),
    }  # fmt: skip
    prefix = _PARTS[kind][1]
    columns, schema = [], []
    for name, type_name in _columns(kind).items():
        outer, _, inner = name.rpartition(".")
        holders = [getattr(e, prefix) for e in entries] if outer else entries
        values = [_plain(getattr(h, inner)) for h in holders]
        columns.append(arrow.array(values, types[type_name]))
        schema.append((name, types[type_name]))
    table = arrow.table(columns, schema=arrow.schema(schema))
    unfinished = path.with_name(path.name + ".part")
    parquet.write_table(table, unfinished, compression="zstd")
    unfinished.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _read(path: Path, kind: type) -> list[Any]:
    arrow, parquet = _arrow()
    if not path.is_file():
        raise InputError(f"there is no {path.name} in {path.parent}: the raw rows are needed")
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {_line(error)}") from None
    wanted = _columns(kind)
    lacking = [name for name in wanted if name not in table.column_names]
    if lacking:
        raise InputError(f"{path} lacks the columns {', '.join(lacking)}")
    return [_entry(kind, record) for record in table.select(list(wanted)).to_pylist()]


def _entry(kind: type, record: Mapping[str, Any]) -> Any:
    own, prefix, nested, inner = _PARTS[kind]
    values = {name: _tuple(record[name]) for name in own}
    values[prefix] = nested(**{name: _tuple(record[f"{prefix}.{name}"]) for name in inner})
    return kind(**values)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
