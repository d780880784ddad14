"""The full product of methods and families (P4) with its log, and what the log says of it.

    python -m bench.full [PYTEST ARGUMENTS]

Writes bench/test-full.log: a line with date and machine, then pytest's own output.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOG = Path(__file__).parent / "test-full.log"
CLAIM = "C2"
WHAT = "methods (P4): every token method on every family at batch 2, one row with two images"


def read(text: str) -> dict[str, Any]:
    """The log's claim; `holds` is None where pytest did not come to an end.

    `counts` maps pytest's words (passed, failed, error, skipped) to numbers.
    """
    facts: dict[str, Any] = {}
    first = text.partition("\n")[0]
    if first.startswith("# {"):
        facts = json.loads(first[2:])
    last = text.strip().rpartition("\n")[2]
    found = re.findall(r"(\d+) (passed|failed|errors?|skipped|xfailed)", last)
    counts = {word.removesuffix("s"): int(number) for number, word in found}
    holds: bool | None = None
    if counts and " in " in last:
        holds = counts.get("passed", 0) > 0 and not counts.get("failed") and not counts.get("error")
    shown = ", ".join(f"{n} {word}" for word, n in counts.items()) or "the log has no last line"
    return {
        "id": CLAIM,
        "what": WHAT,
        "figure": shown,
        "bound": "all pass",
        "holds": holds,
        "machine": facts,
    }


def dated(path: Path = LOG) -> str:
    """The day of the log's last commit, for logs that do not say it themselves."""
    call = ["git", "log", "-1", "--format=%as", "--", str(path)]
    try:
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
        found = done.stdout.strip()
    except OSError:
        found = ""
    return found or datetime.date.fromtimestamp(path.stat().st_mtime).isoformat()


def main(arguments: list[str]) -> int:
    """Run the product; returns pytest's exit code."""
    from bench.common import machine

    command = [sys.executable, "-m", "pytest", "-m", "full", *arguments]
    with LOG.open("w", encoding="utf-8") as log:
        log.write(f"# {json.dumps(machine())}\n")
        log.flush()
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    text = LOG.read_text(encoding="utf-8")
    print(text.strip().rpartition("\n")[2])
    print(json.dumps(read(text)))
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
