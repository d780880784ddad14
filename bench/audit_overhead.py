"""What the load generator itself costs: CPU a request, and time it adds to TTFT (claim A3).

An open loop of 100 requests a second, each with a picture, against a null server in a process of its
own, over the target, the load generator and the journal of an audit. In turn with it, a bare blocking
socket sends ready bytes at the same times and waits for the first piece. Added TTFT is the quantile
that an audit reports, from the intended arrival to the first piece, less the same quantile of the
bare socket: the kernel's timers and sockets and the null server are in both. CPU is that of the whole
process between the first arrival and the last answer, over its requests.

The claim is about two cores that are the audit's own. Where other work shares them, run it as
`chrt -f 10 python -m bench.audit_overhead`: the results file says which scheduler it ran under, and
the load of the machine.

    python -m bench.audit_overhead [--rounds 6] [--requests 1000] [--picture-bytes 100000]
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.common import median, publish
from foveate.audit.arrivals import Open, schedule
from foveate.audit.http_target import HttpTarget
from foveate.audit.journal import Journal
from foveate.audit.load import run_block
from foveate.audit.records import Item, Picture, Row
from foveate.audit.virtual import run_precise

RATE_PER_S = 100.0
CPU_MS, P50_MS, P99_MS = 2.0, 1.0, 10.0
PICTURES = 64


def items(count: int, picture_bytes: int) -> list[Item]:
    """Items over 64 pictures; their bytes are noise, which nobody decodes here."""
    draw = random.Random(1)
    pictures = [Picture(draw.randbytes(picture_bytes), "image/jpeg") for _ in range(PICTURES)]
    return [
        Item(f"i{i}", (pictures[i % PICTURES],), f"question {i} ?", ("x",), "exact", "all", 16)
        for i in range(count)
    ]


def rank(values: list[float], share: float) -> float:
    """The value below which `share` of them lie; no interpolation."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def generator(url: str, work: list[Item], number: int, folder: Path) -> dict[str, Any]:
    """One window of the load generator, in ms: TTFT, how late requests left, CPU a request."""

    async def window() -> tuple[list[Row], float]:
        rows: list[Row] = []
        target = HttpTarget("baseline", url, timeout_s=30.0)
        await target.open()
        with Journal(folder, {"window": number}) as journal:

            def finished(row: Row) -> None:
                journal.row(row)
                rows.append(row)

            try:
                block = await run_block(
                    target,
                    work,
                    Open(RATE_PER_S),
                    block=number,
                    place=0,
                    seed=7,
                    warmup_requests=20,
                    timeout_s=30.0,
                    time_limit_s=None,
                    on_row=finished,
                )
            finally:
                await target.close()
        assert block.client_cpu_s is not None
        return [r for r in rows if not r.warmup], block.client_cpu_s

    rows, cpu_s = run_precise(window())
    failed = [r.observed.error_detail for r in rows if r.observed.error]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
    first_s = [r.observed.first_s for r in rows if r.observed.first_s is not None]
    assert len(first_s) == len(rows)
    return {
        "ttft": [(t - r.intended_s) * 1e3 for t, r in zip(first_s, rows, strict=True)],
        "late": [(r.observed.sent_s - r.intended_s) * 1e3 for r in rows],
        "cpu_ms": cpu_s * 1e3 / len(rows),
    }


def bare(port: int, work: list[Item], number: int) -> list[float]:
    """TTFT in ms of a blocking socket that sends ready bytes at the times of the same schedule."""
    target = HttpTarget("baseline", f"http://127.0.0.1:{port}/v1", "null")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: null\r\nContent-Length: %d\r\n\r\n"
    ready = []
    for item in work:
        body = target.body(item)
        ready.append(head % len(body) + body)
    found = []
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start_s = time.monotonic()
        times = schedule(Open(RATE_PER_S), len(work), seed=7, block=number)
        for data, offset_s in zip(ready, times, strict=True):
            due_s = start_s + offset_s
            while (wait_s := due_s - time.monotonic()) > 0:
                time.sleep(wait_s)
            line.sendall(data)
            got, first_s = b"", 0.0
            while not got.endswith(b"0\r\n\r\n"):
                got += line.recv(1 << 16)
                if not first_s and b'"content"' in got:
                    first_s = time.monotonic()
            found.append((first_s - due_s) * 1e3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--picture-bytes", type=int, default=100_000)
    options = parser.parse_args()
    work = items(options.requests, options.picture_bytes)
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.null_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port = int(server.stdout.readline())
    rounds: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(options.rounds):
                place = Path(folder) / str(number)
                place.mkdir()
                found = generator(f"http://127.0.0.1:{port}/v1", work, number, place)
                rounds.append({**found, "bare": bare(port, work, number)})
                print(f"round {number}: {summary(rounds[-1:])}", file=sys.stderr)
    finally:
        server.kill()
        server.wait()
    report(options, rounds)


def summary(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """The three figures of the claim, in ms, over all requests of some rounds."""
    ttft = [x for r in rounds for x in r["ttft"]]
    probe = [x for r in rounds for x in r["bare"]]
    return {
        "cpu_ms": round(median([r["cpu_ms"] for r in rounds]), 4),
        "added_p50_ms": round(rank(ttft, 0.5) - rank(probe, 0.5), 4),
        "added_p99_ms": round(rank(ttft, 0.99) - rank(probe, 0.99), 4),
    }


def scheduler() -> str:
    """The policy this process runs under, and how much the machine had to do beside it."""
    names = {os.SCHED_OTHER: "shared", os.SCHED_FIFO: "first in, first out"}
    policy = os.sched_getscheduler(0)
    return f"{names.get(policy, policy)}, load average {os.getloadavg()[0]:.1f}"


def report(options: argparse.Namespace, rounds: list[dict[str, Any]]) -> None:
    """Table, results file and claims, over all rounds together."""
    rows: list[list[Any]] = []
    for name, what in (
        ("ttft", "TTFT as an audit reports it"),
        ("late", "of that: left after its intended time"),
        ("bare", "TTFT of a bare socket"),
    ):
        values = [x for r in rounds for x in r[name]]
        rows.append([what, *(rank(values, q) for q in (0.5, 0.95, 0.99)), max(values)])
    parts = {"cpu_ms": ""} | {
        name: f" ({rows[0][at]:.3f} less {rows[2][at]:.3f})"
        for name, at in (("added_p50_ms", 1), ("added_p99_ms", 3))
    }
    total, figures, ran = sum(len(r["ttft"]) for r in rounds), summary(rounds), scheduler()
    load = f"{RATE_PER_S:g} requests a second, {options.picture_bytes} bytes a picture"
    claims = [
        {
            "id": "A3",
            "what": f"auditor: {what}; {load}, null server, {os.cpu_count()} cores",
            "figure": f"{figures[name]:.3f} ms{parts[name]}, {total} requests ({ran})",
            "bound": f"at most {bound:g} ms",
            "holds": figures[name] <= bound,
        }
        for name, what, bound in (
            ("cpu_ms", "client CPU a request", CPU_MS),
            ("added_p50_ms", "added TTFT p50", P50_MS),
            ("added_p99_ms", "added TTFT p99", P99_MS),
        )
    ]
    publish(
        "audit-overhead",
        f"Overhead of the load generator, ms ({load}, {total} requests)",
        ["what", "p50", "p95", "p99", "max"],
        rows,
        {
            "rate_per_s": RATE_PER_S,
            "picture_bytes": options.picture_bytes,
            "requests": total,
            "cores": os.cpu_count(),
            "scheduler": ran,
            **figures,
            "rounds": [summary([r]) for r in rounds],
            "claims": claims,
        },
    )


if __name__ == "__main__":
    main()
