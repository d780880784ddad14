"""`make bite`: plant one fault at a time in a copy of the package; some test must catch each.

    python tests/bite/run.py [--only WORD] [--again] [--jobs 2]

--again runs those that the last whole run missed, after they or the tests were mended. A fault that
no test catches, or whose text is no longer in the code, fails the run. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "bench" / "results" / "bite.json"
sys.path.insert(0, str(ROOT))

# Run as a script, the repository is not on the path before the line above.
from tests.bite.faults import FAULTS, Fault  # noqa: E402
from tests.bite.faults_audit import AUDIT  # noqa: E402
from tests.bite.faults_encode import FAULTS as ENCODE  # noqa: E402
from tests.bite.faults_memory import MEMORY  # noqa: E402
from tests.bite.faults_prefill import PREFILL  # noqa: E402


def plant(fault: Fault, folder: Path) -> str | None:
    """Copy the package and change one place; the reason if the place is not there exactly once."""
    target = folder / "foveate"
    shutil.copytree(ROOT / "src" / "foveate", target, ignore=shutil.ignore_patterns("__pycache__"))
    file = target / fault.file
    text = file.read_text(encoding="utf-8")
    count = text.count(fault.old)
    if count != 1:
        return f"the text to change stands {count} times in {fault.file}"
    file.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    return None


def check(fault: Fault) -> tuple[Fault, str]:
    """ "caught", or what went wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        problem = plant(fault, folder)
        if problem is not None:
            return fault, problem
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["-o", "pythonpath=.", "-o", "addopts=--import-mode=importlib", *fault.tests]
        env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        if done.returncode == 1:
            return fault, "caught"
        tail = (done.stdout + done.stderr).strip().splitlines()[-1:]
        return fault, f"NOT caught (pytest exit {done.returncode}): {tail}"


def record(result: dict[str, Any]) -> None:
    """Leave the outcome where `make claims` finds it."""
    from bench.common import machine

    claim = {
        "id": "F9",
        "what": "`make bite` catches every planted fault",
        "figure": f"{result['caught']} of {result['faults']}",
        "bound": "all, at least 30",
        "holds": result["caught"] == result["faults"] >= 30,
    }
    data = {"bench": "bite", "machine": machine(), **result, "claims": [claim]}
    RECORD.write_text(json.dumps(data, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    known = (*FAULTS, *ENCODE, *MEMORY, *PREFILL, *AUDIT)
    faults = [f for f in known if args.only in f.name or args.only in f.file]
    before = 0
    if args.again:
        last = json.loads(RECORD.read_text(encoding="utf-8"))
        if last["faults"] != len(known):
            parser.error(
                f"the last run had {last['faults']} faults, now there are {len(known)}: run all"
            )
        faults, before = [f for f in faults if f.name in last["missed"]], last["caught"]
    missed = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for fault, outcome in pool.map(check, faults):
            print(f"{'ok ' if outcome == 'caught' else 'BAD'} {fault.name}: {outcome}", flush=True)
            if outcome != "caught":
                missed.append(fault.name)
    caught = before + len(faults) - len(missed)
    result = {"faults": before + len(faults), "caught": caught, "missed": missed}
    if not args.only:
        record(result)
    print(json.dumps(result))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
