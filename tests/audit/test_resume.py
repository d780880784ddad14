"""A4: an audit that is killed goes on; no finished request is repeated, none is lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.audit import journal
from foveate.audit.spec import AuditSpec, checked
from foveate.audit.tables import BLOCKS, ROWS, read_blocks, read_rows
from foveate.audit.turns import turns
from foveate.audit.workload import load_workload
from tests.support.planted import PlantedServer, question, workload_file
from tests.support.terminal import foveate

ITEMS, KILLS, AT_ONCE = 30, 20, 4


def written(folder: Path, urls: dict[str, str], **other: object) -> tuple[Path, AuditSpec]:
    """A spec file over planted endpoints, and the spec."""
    values = {
        "workload": str(workload_file(folder / "workload.jsonl", ITEMS)),
        "arms": [{"name": name, "url": url} for name, url in urls.items()],
        "loads": (f"closed:{AT_ONCE}", "open:60"),
        "blocks": 6,
        "requests": 25,
        "warmup": 1,
        "bounds": {"max_quality_drop": 0.1},
    } | other
    spec = checked(values, "a test")
    given = spec.as_json()
    first, *others = (json.dumps(a) for a in given.pop("arms"))
    lines = [f"{k} = {json.dumps(v)}" for k, v in given.items() if v is not None and k != "bounds"]
    tables = [_table("[baseline]", first), *(_table("[[candidate]]", a) for a in others)]
    path = folder / "spec.toml"
    text = "\n".join([*lines, *tables, "[bounds]", "max_quality_drop = 0.1", ""])
    path.write_text(text, encoding="utf-8")
    return path, spec


def _table(head: str, arm: str) -> str:
    return "\n".join([head, *(f"{k} = {json.dumps(v)}" for k, v in json.loads(arm).items())])


def start(spec: Path, out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "foveate.cli", "audit", "run", str(spec), "--out", str(out)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.claim("A4")
def test_killed_at_twenty_moments_nothing_is_repeated_and_nothing_lost(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rng = random.Random(4)
    out = tmp_path / "out"
    with PlantedServer(latency_s=0.01) as base, PlantedServer(latency_s=0.004) as fast:
        servers = {"baseline": base, "small": fast}
        path, spec = written(tmp_path, {name: s.url for name, s in servers.items()})
        before = {name: Counter[str]() for name in servers}
        rows: list[str] = []
        surplus = kills = 0
        while True:
            process = start(path, out)
            if kills < KILLS:
                _wait_for_rows(out / journal.FILE, len(rows) + rng.randrange(1, 30), process)
                process.kill()
                kills += 1
            text = process.communicate(timeout=300)[0]
            seen = {name: Counter(s.seen()["asked"]) for name, s in servers.items()}
            lines = _rows(out / journal.FILE)
            assert lines[: len(rows)] == rows  # what was finished stays as it was
            for name in servers:
                asked = seen[name] - before[name]
                new = _questions(lines[len(rows) :], name)
                # Every new row was asked for now: none of them came from an earlier request.
                assert not new - asked, (name, new - asked)
                # What was asked and has no row was under way when the process died, or the probe.
                assert (asked - new).total() <= 2 * AT_ONCE + 1, (name, asked - new)
                surplus += (asked - new).total() - 1
            rows, before = lines, seen
            if process.returncode >= 0:
                break
    assert process.returncode in (0, 3, 4), text
    assert kills == KILLS and surplus <= KILLS * AT_ONCE

    workload = load_workload(spec.workload)
    wanted = {
        (*t.key, i): item.id
        for t in turns(spec, workload.items, spec.loads)
        for i, item in enumerate(t.items)
    }
    measured = [r for r in read_rows(out / ROWS) if not r.warmup]
    assert {r.key: r.item for r in measured} == wanted
    keys = Counter(r.key for r in read_rows(out / ROWS))
    assert set(keys.values()) == {1}
    blocks = read_blocks(out / BLOCKS)
    assert sum(b.requests for b in blocks) == len(wanted)
    assert len(blocks) > len({(b.arm, b.load, b.block) for b in blocks})  # some have two parts
    assert foveate("audit", "verify", str(out)).code == 0
    record_property(
        "figure",
        f"{kills} kills, {len(wanted)} requests: each has one row; {surplus} were under way when the "
        "process died and were asked again",
    )
    record_property("bound", "no finished request repeated, none lost")


def _wait_for_rows(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until the journal holds so many rows; the audit must not end before."""
    for _ in range(6000):
        if process.poll() is not None:
            pytest.fail(f"the audit ended before it was killed: {process.communicate()[0]}")
        if path.exists() and path.read_bytes().count(b'\n{"kind":"row"') >= count:
            return
        time.sleep(0.005)
    pytest.fail("the audit did not go on")


def _rows(path: Path) -> list[str]:
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [x for x in whole.split("\n") if x.startswith('{"kind":"row"')]


def _questions(lines: list[str], arm: str) -> Counter[str]:
    rows = [json.loads(x)["row"] for x in lines]
    return Counter(question(int(r["item"][1:]))[0] for r in rows if r["arm"] == arm)
