"""P8: how long `make test` takes, by the clock, on this machine.

python -m bench.suite
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

from bench.common import RESULTS, machine

BOUND_S = 15 * 60


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    start = time.monotonic()
    done = subprocess.run(["make", "test"], cwd=root, capture_output=True, text=True)
    seconds = time.monotonic() - start
    closing = re.sub(r"=+", "", (done.stdout.strip().splitlines() or [""])[-1]).strip()
    claim = {
        "id": "F9",
        "what": "`make test` on two cores",
        "figure": f"{seconds:.0f} s, {os.cpu_count()} cores: {closing}",
        "bound": f"<= {BOUND_S} s, all pass",
        "holds": done.returncode == 0 and seconds <= BOUND_S,
    }
    data = {"bench": "suite", "machine": machine(), "seconds": round(seconds), "claims": [claim]}
    (RESULTS / "suite.json").write_text(json.dumps(data, indent=1) + "\n")
    print(json.dumps(data))
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
