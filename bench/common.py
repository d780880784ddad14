"""How benchmarks measure and print: process CPU time, things compared interleaved, a table and one
JSON line.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures; no host names."""
    import torch
    import transformers

    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    except OSError:
        pass
    return {
        "cpu": model or platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def words(text: str) -> list[str]:
    """An option's value, parts between commas."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """An option's value, whole numbers between commas."""
    return [int(x) for x in words(text)]


def cpu_s(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def interleaved(
    runs: Mapping[str, Callable[[], Any]], repeats: int, warm: int = 1
) -> dict[str, list[float]]:
    """CPU seconds of each, taken in turn so that drift hits all alike."""
    for _ in range(warm):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {k: [] for k in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(cpu_s(run))
    return times


def median(values: list[float]) -> float:
    return statistics.median(values)


def spread(values: list[float]) -> tuple[float, float]:
    return min(values), max(values)


def publish(
    name: str, title: str, columns: list[str], rows: list[list[Any]], extra: dict[str, Any]
) -> None:
    """Print a table, write results/<name>.json, and end with one JSON line."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row])
    Console(width=140).print(table)
    data = {
        "bench": name,
        "machine": machine(),
        **extra,
        "rows": [dict(zip(columns, row, strict=True)) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    print(json.dumps(data))
