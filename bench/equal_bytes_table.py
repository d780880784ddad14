"""The table of methods at equal KV bytes, as a receipt: every figure and the claim I6 follow from the
rows, one a plan and question, in bench/results/equal-bytes-rows.parquet.

    python -m bench.equal_bytes_table      compares bench/results/equal-bytes.json with its rows

Leaves with 0 if table, claim and digest are those of the rows, with 3 if not.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from bench.common import RESULTS
from foveate.core import registry
from foveate.measure.stats import holm, mcnemar_exact, wilson

NAME = "equal-bytes"
STAGES = ("tokens", "prefill", "memory")
WITHIN = 0.03
FULL = "none"
CONTROL = {"tokens": "random", "prefill": "random", "memory": "random-kv"}
"""What a method of a stage is tested against."""


class Row(NamedTuple):
    """One question under one plan. kv_bytes: held on the device after the prompt and first token;
    host_bytes: held in host memory beside these, by policies that do. `question` is the sample's
    number in its family's test split.
    """

    name: str
    plan: str
    family: str
    question: int
    answer: str
    right: bool
    kv_bytes: int
    host_bytes: int


_TYPES = ("string", "string", "string", "int64", "string", "bool_", "int64", "int64")


def rows_path(name: str = NAME) -> Path:
    return RESULTS / f"{name}-rows.parquet"


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write rows as Parquet, in their order."""
    import pyarrow
    import pyarrow.parquet

    columns = list(zip(*rows, strict=True)) or [()] * len(_TYPES)
    arrays = [
        pyarrow.array(list(values), getattr(pyarrow, kind)())
        for values, kind in zip(columns, _TYPES, strict=True)
    ]
    table = pyarrow.Table.from_arrays(arrays, names=list(Row._fields))
    pyarrow.parquet.write_table(table, path, compression="zstd", compression_level=19)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in its order."""
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(path).select(list(Row._fields)).to_pydict()
    return [Row(*values) for values in zip(*columns.values(), strict=True)]


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def methods() -> list[str]:
    """All methods of the stages that the table compares."""
    return [m for s in STAGES for m in registry.methods(s)]


def method_of(name: str) -> str:
    """The registry's name of the method that a line is of: its first word."""
    return name.partition(" ")[0]


def by_name(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each line of the table, lines in the order in which they come first."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row.name, []).append(row)
    return out


def _paired(one: Sequence[Row], other: Sequence[Row]) -> float:
    """p of McNemar's exact test; both lines must have answered the same questions."""
    if [r[2:4] for r in one] != [r[2:4] for r in other]:
        raise ValueError(f"{one[0].name} and {other[0].name} answered different questions")
    pairs = [(a.right, b.right) for a, b in zip(one, other, strict=True)]
    return mcnemar_exact(sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))


def shares(rows: Iterable[Row]) -> dict[str, float]:
    """KV bytes of each line over those of all tokens, on the same questions."""
    lines = by_name(rows)
    full = sum(r.kv_bytes for r in lines[FULL])
    return {name: sum(r.kv_bytes for r in found) / full for name, found in lines.items()}


def table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record a line: share of the bytes, accuracy by family and of all, and two tests: against
    all tokens, and against the stage's control, the latter adjusted over all lines (Holm).
    """
    lines, share = by_name(rows), shares(rows)
    full = lines[FULL]
    total = sum(r.kv_bytes for r in full)
    against: dict[str, float] = {}
    for name, found in lines.items():
        if name != FULL:
            control = CONTROL[registry.get(method_of(name)).stage]
            if control in lines and control != name:
                against[name] = _paired(found, lines[control])
    adjusted = dict(zip(against, holm(list(against.values())), strict=True))
    out = []
    for name, found in lines.items():
        right = sum(r.right for r in found)
        interval = wilson(right, len(found))
        host = sum(r.host_bytes for r in found)
        families: dict[str, list[bool]] = {}
        for r in found:
            families.setdefault(r.family, []).append(r.right)
        out.append(
            {
                "method": name,
                "stage": "" if name == FULL else registry.get(method_of(name)).stage,
                "plan": found[0].plan,
                "bytes": round(share[name], 3),
                "host": round(host / total, 3) if host else "",
                **{f: round(sum(v) / len(v), 3) for f, v in families.items()},
                "all (95 %)": f"{right / len(found):.3f} "
                f"({interval.low:.3f} to {interval.high:.3f})",
                "p against all tokens": "" if name == FULL else f"{_paired(full, found):.2g}",
                "p against control": f"{adjusted[name]:.2g}" if name in adjusted else "",
            }
        )
    return out


def claims(
    rows: Sequence[Row],
    share: Fraction,
    outside: Mapping[str, str],
    not_run: Mapping[str, str],
    among: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The line of claim I6. It holds if `random` is within 3 % of the share, and each of `among`
    (by default all of the stages tokens, prefill and memory) has a line within it, a line with the
    reason why its knob comes no nearer, or a reason why it was not run.
    """
    known = methods() if among is None else among
    near: set[str] = set()
    lined: set[str] = set()
    for name, found in shares(rows).items():
        lined.add(method_of(name))
        if abs(found / float(share) - 1) <= WITHIN:
            near.add(method_of(name))
    told = {m for m in known if m not in near and m in lined and outside.get(m)}
    away = {m for m in known if m not in lined and not_run.get(m)}
    left = [m for m in known if m not in near and m not in told and m not in away]
    random = "random" in near
    figure = (
        f"{len(known)} methods: {len(near & set(known))} within 3 %, {len(told)} no nearer and "
        f"{len(away)} not run, with reasons; random {'' if random else 'not '}within"
    )
    if left:
        figure += "; without reason: " + ", ".join(left)
    return [
        {
            "id": "I6",
            "what": f"methods of the stages {', '.join(STAGES)} at {share} of the KV bytes on "
            f"lab-nano, {len(by_name(rows)[FULL])} questions each",
            "figure": figure,
            "bound": "each within 3 % of the share or with a reason, random within",
            "holds": random and not left,
        }
    ]


def differences(data: Mapping[str, Any], path: Path) -> list[str]:
    """What a results file says that does not follow from its rows; none if it is whole."""
    rows = read_rows(path)
    out = [] if data["rows_sha256"] == digest(path) else ["rows_sha256"]
    made = table(rows)
    if [r["method"] for r in made] != [r["method"] for r in data["rows"]]:
        return [*out, "the methods of the table"]
    for said, found in zip(data["rows"], made, strict=True):
        out += [f"{found['method']}: {k}" for k in found | said if said.get(k) != found.get(k)]
    about = (data["outside"], data["not_run"], data["methods"])
    again = claims(rows, Fraction(data["share"]), *about)
    return out + (["claims"] if again != data["claims"] else [])


def main() -> int:
    data = json.loads((RESULTS / f"{NAME}.json").read_text(encoding="utf-8"))
    found = differences(data, rows_path())
    print("\n".join(found) or "table and claim follow from the rows")
    return 3 if found else 0


if __name__ == "__main__":
    sys.exit(main())
