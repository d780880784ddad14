"""Prefill and decode of the language model as Markdown (bench/inside.md), from the committed results.

python -m bench.inside_table
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from bench import decode, prefill
from bench.claims import describe
from bench.encode_store import Store

PAGE = Path(__file__).parent / "inside.md"
MIB = 2**20
Row = tuple[str, ...]


def med(cell: dict[str, Any], name: str) -> float:
    return float(statistics.median(cell[name]))


def lines(header: Row, rows: list[Row]) -> list[str]:
    """A Markdown table."""
    rule = "|".join("---" for _ in header)
    return [f"| {' | '.join(header)} |", f"|{rule}|", *(f"| {' | '.join(r)} |" for r in rows), ""]


def where(geometry: str, n: str, batch: str) -> tuple[Any, ...]:
    """A cell's place in the order of the page: whole models first, then sizes as numbers."""
    names = list(prefill.GEOMETRIES)
    return names.index(geometry), int(n), int(batch.lstrip("x"))


def prefill_rows(store: Store) -> list[Row]:
    places = sorted((k.split() for k in store.cells), key=lambda w: (*where(*w[:3]), w[3]))
    out = []
    for g, n, batch, method in places:
        cell = store.cells[f"{g} {n} {batch} {method}"]["time"]
        name = (prefill.GEOMETRIES[g].title, n, batch.lstrip("x"), f"`{method}`")
        if "not_run" in cell:
            out.append((*name, f"not run: {cell['not_run']}", "", "", "", ""))
            continue
        figures = (f"{med(cell, k):.3g}" for k in ("dense_s", "plan_s"))
        ratio = f"{med(cell, 'ratio'):.2f} ({min(cell['ratio']):.2f} to {max(cell['ratio']):.2f})"
        out.append((*name, *figures, f"{cell['flop_ratio']:.3f}", ratio, str(cell["rounds"])))
    return out


def decode_rows(store: Store) -> list[Row]:
    places = sorted((k.split() for k in store.cells), key=lambda w: where(w[0], w[1], w[4]))
    out = []
    for g, context, keep, new, batch in places:
        cell = store.cells[f"{g} {context} {keep} {new} {batch}"]["time"]
        name = (prefill.GEOMETRIES[g].title, context, batch.lstrip("x"), keep)
        if "not_run" in cell:
            out.append((*name, f"not run: {cell['not_run']}", *[""] * 6))
            continue
        speed = (f"{med(cell, f'{k}_tokens_per_s'):.3g}" for k in ("dense", "kept"))
        over = (f"{med(cell, f'{k}_over_dense'):.2f}" for k in ("kept", "full"))
        held = (f"{med(cell, f'{k}_peak_bytes') / MIB:.0f}" for k in ("dense", "kept"))
        out.append((*name, *speed, *over, *held, str(cell["rounds"])))
    return out


def page(first: Store, second: Store) -> str:
    """The page, from the prefill and the decode results."""
    head = ("model", "visual tokens", "batch", "method", "dense s", "with it s", "FLOP ratio")
    body = ("model", "context", "batch", "kept", "dense tokens/s", "kept tokens/s", "kept / dense")
    return "\n".join(
        [
            "# Inside the language model: what prefill and decode cost",
            "",
            "Written by `python -m bench.inside_table` from results/prefill.json and "
            "results/decode.json; do not edit. Random weights at published geometry: figures of speed "
            f"and memory, never of quality. Process CPU time, {describe(first.data['machine'])}; things "
            "compared were run in turn on a machine that had other work. Medians; a few rounds each, "
            "as the last column says. A model cut to four of its layers keeps all sizes of a layer; "
            "there methods drop in other proportions (the FLOP ratio says which), and fixed costs weigh "
            "more. Cells that are not listed were not measured.",
            "",
            "## Time to the first token",
            "",
            "Dense is transformers' own forward. The FLOP ratio counts the tokens that each layer had; "
            "the last ratio is time over (dense time x FLOP ratio), 1 for a choice that costs nothing, "
            f"and at most {prefill.BOUND:g} for whole models at 2880 tokens (I2).",
            "",
            *lines((*head, "over the ideal (range)", "rounds"), prefill_rows(first)),
            "## Decode",
            "",
            "Tokens a second of generate(): over transformers' cache with the whole context, over ours "
            "with a share of the entries, and over ours with all of them (what attending row by row "
            "costs by itself). Peak: growth of resident memory in MiB, cache included.",
            "",
            *lines(
                (*body, "full / dense", "dense peak", "kept peak", "rounds"), decode_rows(second)
            ),
        ]
    )


def main() -> None:
    PAGE.write_text(page(Store(prefill.PATH), Store(decode.PATH)), encoding="utf-8")


if __name__ == "__main__":
    main()
