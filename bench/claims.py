"""Every "Must hold" line with its figure, bound, date and machine: runs the claim tests, reads the
benchmarks' results and writes bench/claims.md. The last line of output is one JSON object.

    python -m bench.claims [--tests-json FILE]... [--out bench/claims.md] [-- PYTEST ARGUMENTS]

Leaves with 0 if every claim was shown to hold, 1 if one does not, 4 if one has no evidence.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from bench import full
from bench.common import RESULTS, machine

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = {
    "A1": "the auditor's intervals cover planted truth; A against A; a planted drop is refused",
    "A2": "open loop counts latency from the intended arrival: a stall of 2 s shows",
    "A3": "the auditor's overhead: client CPU a request, added TTFT at 100 requests a second",
    "A4": "kill -9 at 20 moments: an audit goes on, nothing repeated, nothing lost",
    "A5": "the report in headless Chromium, light and dark, without network",
    "A6": "an edited receipt fails verify, which names the figure",
    "C1": "every method: golden vectors, references and edge cases",
    "C2": "every token method on every family at batch 2 with two images (P4)",
    "C3": "every token method within the bounds of cost (P5, P6)",
    "C4": "`foveate compare` on 20 pictures with 8 methods, and its page without network",
    "C5": "a second question about a picture runs no tower and gives equal tokens",
    "F1": "identity (P1) on every exact family; leaving attach restores everything",
    "F2": "engine matrix (P2, P3)",
    "F3": "methods (P4)",
    "F4": "oracle ratio (P5)",
    "F5": "selection cost (P6)",
    "F6": "extra memory (P7)",
    "F7": "attach and Engine give equal greedy tokens",
    "F8": "`make demo` under 60 s after installation",
    "F9": "`make test` in time (P8), `make bite` catches every planted fault",
    "F10": "golden vectors agree for every method that has them",
    "I1": "drop-only methods and policies against the masked reference; hybrids batch equals single",
    "I2": "prefill of FastV and PyramidDrop over (dense time x FLOP ratio), N = 2880",
    "I3": "KV bytes: allocated is what is kept within one block a head; resident memory agrees",
    "I4": "decode at 10 % of the KV entries and 4k context against dense",
    "I5": "throughput of continuous batching at 8 and 32 requests over sequential generate",
    "I6": "all methods at equal bytes with random beside, as a committed table",
    "V1": "vLLM: tokens and log-probabilities equal attach with the same plan, in five regimes",
    "V2": "vLLM under load: server CPU and requests a second against the uncompressed server",
    "V3": "the stock bugs do not occur under the plug-in",
    "V4": "engines with different plans on one store never serve each other's tokens",
    "V5": "a broken plan, plug-in or unknown family never serves uncompressed in silence",
}


@dataclass(frozen=True)
class TableClaim:
    """A claim about a column of a benchmark: each of `rows` is at most the file's bound."""

    id: str
    column: str
    rows: tuple[str, ...]


_FOUR = ("visionzip", "divprune", "trimtokenator-lc", "uniform")
TABLES = {
    "oracle": TableClaim("F4", "ratio", _FOUR),
    "selection": TableClaim("F5", "share", _FOUR),
    "memory": TableClaim("F6", "share", _FOUR),
}


@dataclass(frozen=True)
class Evidence:
    """One line of the table. holds None: there is no evidence either way."""

    id: str
    what: str
    figure: str
    bound: str
    holds: bool | None
    date: str
    machine: str
    source: str


def describe(facts: Mapping[str, Any]) -> str:
    """A machine in a few words."""
    parts = [facts.get("gpu") or facts.get("cpu") or "unknown processor"]
    if facts.get("threads"):
        parts.append(f"{facts['threads']} thread" + "s" * (facts["threads"] != 1))
    parts += [f"{k} {facts[k]}" for k in ("python", "torch", "transformers") if facts.get(k)]
    return ", ".join(parts)


def run_tests(path: Path, arguments: list[str]) -> None:
    """pytest -m claim with its record in `path`; RuntimeError if it could not run at all."""
    command = [sys.executable, "-m", "pytest", "-m", "claim", "--claims-json", str(path)]
    code = subprocess.run([*command, *arguments], cwd=ROOT, check=False).returncode
    if code not in (0, 1, 5) or not path.is_file():
        raise RuntimeError(f"pytest could not run the claims (exit code {code})")


def _range(values: Iterable[Any]) -> str:
    seen = [v for v in values if v is not None]
    if not seen:
        return ""
    try:
        numbers = sorted(float(v) for v in seen)
    except (TypeError, ValueError):
        return "; ".join(dict.fromkeys(str(v) for v in seen))
    low, high = f"{numbers[0]:.4g}", f"{numbers[-1]:.4g}"
    return low if low == high else f"{low} to {high}"


def from_tests(rows: list[dict[str, Any]], where: str, when: str) -> list[Evidence]:
    """One line a claim and test function; its cases together. A claim with a skipped case only
    holds where another case passed and none failed.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        for claim in row["claims"]:
            groups.setdefault((claim, row["test"].partition("[")[0]), []).append(row)
    out = []
    for (claim, test), cases in groups.items():
        passed = sum(c["outcome"] == "passed" for c in cases)
        failed = sum(c["outcome"] == "failed" for c in cases)
        cells = f"{passed} of {len(cases)} cases" if len(cases) > 1 else ""
        figure = _range(c.get("figure") for c in cases)
        reason = "" if passed or failed else _range(c.get("reason") for c in cases)
        shown = ", ".join(x for x in (figure, cells, reason) if x)
        out.append(
            Evidence(
                claim,
                cases[0]["what"],
                shown or ("passed" if passed else "failed"),
                _range(c.get("bound") for c in cases),
                False if failed else True if passed else None,
                when,
                where,
                test,
            )
        )
    return out


def from_bench(name: str, data: Mapping[str, Any]) -> list[Evidence]:
    """Lines of one results file: its own `claims` list, or the column that TABLES names."""
    facts = data.get("machine", {})
    where, when = describe(facts), str(facts.get("date", "unknown"))
    source = f"bench/results/{name}.json"
    out = [
        Evidence(
            c["id"], c["what"], str(c["figure"]), str(c["bound"]), c["holds"], when, where, source
        )
        for c in data.get("claims", ())
    ]
    table = TABLES.get(name)
    if table is None:
        return out
    found = {row["method"]: row.get(table.column) for row in data["rows"]}
    bound = float(data["bound"])
    for method in table.rows:
        value = found.get(method)
        known = isinstance(value, int | float)
        out.append(
            Evidence(
                table.id,
                f"{CLAIMS[table.id]}: {method}",
                f"{value:.3f}" if known else "not measured",
                f"at most {bound:g}",
                float(value) <= bound if known else None,  # type: ignore[arg-type]
                when,
                where,
                source,
            )
        )
    return out


def from_full(path: Path) -> list[Evidence]:
    """The line of the full product's log, if there is one."""
    if not path.is_file():
        return []
    found = full.read(path.read_text(encoding="utf-8"))
    facts = found["machine"]
    return [
        Evidence(
            found["id"],
            found["what"],
            found["figure"],
            found["bound"],
            found["holds"],
            str(facts.get("date") or full.dated(path)),
            describe(facts) if facts else "not recorded",
            "bench/test-full.log",
        )
    ]


def missing(lines: list[Evidence]) -> list[Evidence]:
    """A line for every known claim that nothing speaks for."""
    seen = {line.id for line in lines}
    return [
        Evidence(claim, what, "no evidence", "", None, "", "", "")
        for claim, what in CLAIMS.items()
        if claim not in seen
    ]


def order(line: Evidence) -> tuple[str, int, str]:
    letters = line.id.rstrip("0123456789")
    return letters, int(line.id[len(letters) :] or 0), line.what


def markdown(lines: list[Evidence]) -> str:
    """The page, with one row a line of evidence."""
    words = {True: "yes", False: "**no**", None: "not shown"}
    head = ["id", "what", "holds", "figure", "bound", "date", "machine", "source"]
    rows = [
        [x.id, x.what, words[x.holds], x.figure, x.bound, x.date, x.machine, x.source]
        for x in lines
    ]
    table = [head, ["---"] * len(head), *rows]
    text = "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
        for row in table
    )
    return (
        "# Claims\n\nWritten by `make claims`; do not edit. P1 to P8 are defined in "
        "[docs/architecture.md](../docs/architecture.md#figures).\n\n" + text + "\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tests-json",
        type=Path,
        action="append",
        help="use these records, each of its file's date",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "claims.md")
    parser.add_argument("--full-log", type=Path, default=full.LOG, help="log of `make test-full`")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        paths = options.tests_json or [Path(folder) / "claims.json"]
        if options.tests_json is None:
            run_tests(paths[0], options.pytest)
        lines = []
        for path in paths:
            tests = json.loads(path.read_text(encoding="utf-8"))
            when = date.fromtimestamp(path.stat().st_mtime)
            lines += from_tests(tests, describe(machine()), when.isoformat())
    for file in sorted(RESULTS.glob("*.json")):
        lines += from_bench(file.stem, json.loads(file.read_text(encoding="utf-8")))
    lines += from_full(options.full_log)
    lines = sorted(lines + missing(lines), key=order)
    options.out.write_text(markdown(lines), encoding="utf-8")
    for line in lines:
        mark = {True: "holds", False: "DOES NOT HOLD", None: "not shown"}[line.holds]
        print(f"{line.id:4} {mark:14} {line.what}: {line.figure}", file=sys.stderr)
    print(json.dumps({"claims": [asdict(line) for line in lines]}))
    if any(line.holds is False for line in lines):
        return 1
    return 4 if any(line.holds is None for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
