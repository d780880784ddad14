"""The grid as Markdown tables (bench/encode.md) and one JSON line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.claims import describe
from bench.encode_models import GEOMETRIES
from bench.encode_store import Store, key, version
from foveate.core import registry

PAGE = Path(__file__).parent / "encode.md"
P5, P6, P7 = 1.10, 0.05, 1.0
P5_CELL, P6_CELL, P7_CELL = (
    ("onevision", 576, "1/4"),
    ("onevision", 2880, "1/9"),
    ("onevision", 10240, "1/9"),
)
KEEPS = ("1/2", "1/4", "1/9", "1/16")
OLD, SLOW, ABSENT = "*", "not run", "-"

Figure = Callable[[Store, str, int, str, str], float | None]


def timed(column: str) -> Figure:
    """The median over rounds of one column of the time cells."""

    def figure(store: Store, g: str, n: int, keep: str, name: str) -> float | None:
        cell = store.get(key(g, n, keep, name), "time")
        return statistics.median(cell[column]) if cell and column in cell else None

    return figure


def memory(store: Store, g: str, n: int, keep: str, name: str) -> float | None:
    cell = store.get(key(g, n, keep, name), "memory")
    return cell.get("share") if cell else None


def shown(store: Store, kind: str, figure: Figure, at: tuple[str, int, str, str], form: str) -> str:
    """One cell in words; a star where the code has changed since."""
    cell = store.get(key(*at), kind)
    if cell is None:
        return ABSENT
    value = figure(store, *at)
    text = SLOW if value is None else format(value, form)
    return text + (OLD if cell["version"] != version(at[3]) else "")


def columns(store: Store, g: str) -> list[tuple[int, str]]:
    """(N, keep) of this geometry that have a cell."""
    found = {tuple(k.split()[1:3]) for k in store.cells if k.startswith(f"{g} ")}
    return sorted(((int(n), keep) for n, keep in found), key=lambda c: (c[0], KEEPS.index(c[1])))


def table(store: Store, g: str, kind: str, figure: Figure, form: str) -> list[str]:
    """Rows of one figure: methods down, N and keep ratio across."""
    across = columns(store, g)
    heads = ["method", *(f"{n} {keep}" for n, keep in across)]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in registry.methods("tokens"):
        cells = [shown(store, kind, figure, (g, n, keep, name), form) for n, keep in across]
        if any(c != ABSENT for c in cells):
            lines.append("| " + " | ".join([f"`{name}`", *cells]) + " |")
    return lines


def prefills(store: Store, g: str) -> list[str]:
    """Seconds of the dense prefill by N, medians over every round."""
    seconds: dict[int, list[float]] = {}
    for at, cell in store.cells.items():
        if at.startswith(f"{g} ") and "dense_s" in cell.get("time", {}):
            seconds.setdefault(int(at.split()[1]), []).extend(cell["time"]["dense_s"])
    return [f"{n}: {statistics.median(s):.3g} s" for n, s in sorted(seconds.items())]


def rounds(store: Store) -> str:
    """How often the cells of each N were measured."""
    seen: dict[int, set[int]] = {}
    for at, cell in store.cells.items():
        if "rounds" in cell.get("time", {}):
            seen.setdefault(int(at.split()[1]), set()).add(cell["time"]["rounds"])
    words = [f"{n} tokens: {min(x)}" + (f" to {max(x)}" if len(x) > 1 else "")
             for n, x in sorted(seen.items())]  # fmt: skip
    return ", ".join(words) or "none yet"


def summary(store: Store) -> dict[str, Any]:
    """Methods within the bounds at the cells that architecture.md names, and those outside."""
    out: dict[str, Any] = {}
    for id, at, figure, bound in (
        ("P5", P5_CELL, timed("p5"), P5),
        ("P6", P6_CELL, timed("p6_saved"), P6),
        ("P7", P7_CELL, memory, P7),
    ):
        values = {name: figure(store, *at, name) for name in registry.methods("tokens")}
        known = {n: v for n, v in values.items() if v is not None}
        kind = "memory" if id == "P7" else "time"
        cells = {n: store.get(key(*at, n), kind) or {} for n in known}
        repeats = [c.get("rounds", 1) for c in cells.values()]
        out[id] = {
            "cell": list(at),
            "bound": bound,
            "within": sorted(n for n, v in known.items() if v <= bound),
            "outside": {n: round(v, 4) for n, v in sorted(known.items()) if v > bound},
            "not_run": sorted(n for n, v in values.items() if v is None),
            "older_code": sorted(n for n, c in cells.items() if c["version"] != version(n)),
            "rounds": [min(repeats, default=0), max(repeats, default=0)],
        }
    return out


def conditions(part: dict[str, Any]) -> str:
    """How often, and how many of the cells on older code, in words."""
    low, high = part["rounds"]
    often = f"{low} to {high} rounds" if low != high else f"{low} round" + "s" * (low != 1)
    old = len(part["older_code"])
    return often + (f", {old} methods on code that has changed since" if old else "")


def claims(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Lines for bench/claims.md: P5 and P6, with the methods outside and those not measured."""
    titles = {"P5": "oracle ratio", "P6": "selection cost"}
    out = []
    for id in titles:
        part = found[id]
        g, n, keep = part["cell"]
        outside = ", ".join(f"{name} {value:.3f}" for name, value in part["outside"].items())
        figure = f"{len(part['within'])} of {len(registry.methods('tokens'))} methods within"
        figure += f"; outside: {outside}" if outside else ""
        figure += f"; not measured: {', '.join(part['not_run'])}" if part["not_run"] else ""
        figure += f"; {conditions(part)}"
        out.append(
            {
                "id": "C3",
                "what": f"{titles[id]} ({id}) of every token method, {g}, N = {n}, keep {keep}",
                "figure": figure,
                "bound": f"at most {part['bound']:g}, every method",
                "holds": False if part["outside"] else None if part["not_run"] else True,
            }
        )
    return out


def page(store: Store) -> str:
    """The whole page."""
    facts = store.data
    lines = [
        "# Token methods: what they cost",
        "",
        "Written by `python -m bench.encode`; do not edit. Random weights at published geometry and "
        "random encoder output: figures of speed and memory, never of quality. Process CPU time of "
        f"one thread on {describe(facts['machine'])}. Medians over rounds ({rounds(store)}); all "
        "values by round are in results/encode.json. A cell that took longer than "
        f"{facts.get('limit_s', 60):g} CPU seconds is `{SLOW}`; `{ABSENT}` was not "
        f"measured; `{OLD}` was measured on older code of that method.",
        "",
        "- Selection cost: scoring and selecting, as a share of the dense prefill at the same N. P6 "
        "of architecture.md divides by the prefill that is saved; the list below and "
        "results/encode.json (`p6_saved`) have that.",
        "- Oracle ratio (P5): the whole call from encoder output to first logits, over the same call "
        "natively fed as many tokens. The model's own part is the same call for all methods that "
        "keep k, and is timed once a round for each k.",
        f"- Above 4096 tokens the dense prefill is that of {facts.get('part_layers', 6)} layers, "
        "scaled to all.",
        "- Memory (P7): peak resident memory that scoring and selecting adds, over 3 x the float32 "
        "features + 64 MiB; one run.",
        "- SmolVLM's tokens come in tiles of 64 with 1024 patches each, so its attention scores "
        "are of 16 N patches, beside a prefill of a small language model.",
        "",
        "## Against the bounds",
        "",
    ]
    for id, found in summary(store).items():
        g, n, keep = found["cell"]
        names = ", ".join(f"`{k}` {v:.3f}" for k, v in found["outside"].items()) or "none"
        rest = f"; not measured: {', '.join(found['not_run'])}" if found["not_run"] else ""
        rest += f"; {conditions(found)}"
        lines.append(
            f"- {id}, {GEOMETRIES[g].title}, N = {n}, keep {keep}, at most {found['bound']:g}: "
            f"{len(found['within'])} within; outside: {names}{rest}"
        )
    for g, geometry in GEOMETRIES.items():
        if not columns(store, g):
            continue
        lines += ["", f"## {geometry.title}", "", "Dense prefill: " + ", ".join(prefills(store, g))]
        for title, kind, figure, form in (
            ("Selection cost, share of the dense prefill", "time", timed("p6"), ".3f"),
            ("Oracle ratio", "time", timed("p5"), ".2f"),
            ("Extra memory, share of the bound", "memory", memory, ".2f"),
        ):
            lines += ["", f"### {title}", "", *table(store, g, kind, figure, form)]
    return "\n".join(lines) + "\n"


def write(store: Store) -> None:
    """Write the page, the summary into the results, and print both; the last line is JSON."""
    if not store.cells:
        raise SystemExit("nothing was measured yet")
    store.data["summary"] = summary(store)
    store.data["claims"] = claims(store.data["summary"])
    store.save()
    text = page(store)
    PAGE.write_text(text, encoding="utf-8")
    print(text)
    print(json.dumps({k: v for k, v in store.data.items() if k != "cells"}))
