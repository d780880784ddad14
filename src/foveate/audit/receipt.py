"""The receipt: one JSON file that says what was compared, on what, and what came out of it.

Every figure and every verdict in it follows from rows.parquet and blocks.parquet beside it;
`foveate.audit.verify` computes them again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foveate import __version__
from foveate.audit.bounds import Bounds
from foveate.audit.figures import figures
from foveate.audit.footprint import footprint
from foveate.audit.records import Block, Row
from foveate.audit.spec import AuditSpec
from foveate.audit.tables import (
    BLOCKS,
    ROWS,
    digest,
    read_blocks,
    read_rows,
    write_blocks,
    write_rows,
)
from foveate.audit.verdict import judge_arms
from foveate.core.errors import InputError
from foveate.measure.carbon import Grid

FILE, FORMAT = "receipt.json", "foveate-receipt/1"
LIBRARIES = (
    "aiohttp", "datasets", "numpy", "pillow", "pyarrow", "pydantic", "scipy", "statsmodels",
    "torch", "transformers", "zeus",
)  # fmt: skip


def plain(value: Any) -> Any:
    """A value as JSON gives it back: dataclasses as objects, tuples as lists."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    return json.loads(json.dumps(value, allow_nan=False))


def evaluated(
    rows: Sequence[Row], blocks: Sequence[Block], seed: int, bounds: Bounds
) -> dict[str, Any]:
    """Figures and verdicts of raw rows, as the receipt holds them."""
    found = figures(rows, blocks, seed=seed, slo=bounds.slo or None)
    verdicts = {arm: plain(verdict) for arm, verdict in judge_arms(found, bounds).items()}
    return {"figures": plain(found), "verdicts": verdicts}


def write_receipt(
    folder: Path,
    *,
    spec: AuditSpec,
    bounds: Bounds,
    place: Grid | None = None,
    traces: Mapping[str, str] | None = None,
    workload: Mapping[str, Any],
    arms: Mapping[str, Mapping[str, Any]],
    rows: Sequence[Row],
    blocks: Sequence[Block],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Write rows, blocks and receipt into a folder; the receipt as JSON. An older one is replaced
    only when the new one is whole. place: whose electricity the carbon is counted with; traces: digests
    of the recorded arrivals, by load.
    """
    write_rows(folder / ROWS, rows)
    write_blocks(folder / BLOCKS, blocks)
    # Computed from what stands in the files, so that nothing but the files decides.
    found = evaluated(read_rows(folder / ROWS), read_blocks(folder / BLOCKS), spec.seed, bounds)
    receipt: dict[str, Any] = {
        "format": FORMAT,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "foveate": __version__,
        "python": platform.python_version(),
        "libraries": libraries(),
        "hardware": hardware(),
        "spec": spec.as_json(),
        "spec_hash": spec.hash,
        "seeds": {"audit": spec.seed},
        "traces": dict(traces or {}),
        "workload": plain(dict(workload)),
        "arms": {name: plain(dict(about)) for name, about in arms.items()},
        "bounds": plain(bounds.as_dict()),
        **found,
        "carbon": plain(footprint(found["figures"], place, spec.pue)),
        "notes": list(notes),
        "files": {name: digest(folder / name) for name in (ROWS, BLOCKS)},
    }
    receipt["digest"] = digest_of(receipt)
    text = json.dumps(receipt, indent=1, ensure_ascii=False) + "\n"
    unfinished = folder / (FILE + ".part")
    with unfinished.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    unfinished.replace(folder / FILE)
    return receipt


def read_receipt(path: Path) -> tuple[dict[str, Any], Path]:
    """A receipt and its folder, from the file or the folder. InputError where it is none."""
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no receipt at {file}")
    try:
        receipt = json.loads(file.read_text(encoding="utf-8"))
        known = receipt["format"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError):
        raise InputError(f"{file} is no receipt of an audit") from None
    if known != FORMAT:
        made = receipt.get("foveate", "another version")
        raise InputError(
            f"{file} has the format {known}, made by foveate {made}; this version reads {FORMAT}"
        )
    return receipt, file.parent


def digest_of(receipt: Mapping[str, Any]) -> str:
    """SHA-256 over the receipt without its own digest, whatever its layout."""
    body = {k: v for k, v in receipt.items() if k != "digest"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def libraries() -> dict[str, str]:
    """Versions of the installed libraries that a run may depend on."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """The auditing machine, without names: endpoints may run elsewhere, the engine runs here."""
    affinity = getattr(os, "sched_getaffinity", None)
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
    }
    # Only where the run loaded torch already: an audit of endpoints does not start it.
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        cuda = torch.cuda.is_available()
        found["devices"] = (
            [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            if cuda
            else []
        )
    return found


def _cpu() -> str | None:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
