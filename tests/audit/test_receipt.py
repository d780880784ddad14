"""Receipts: rows come back from their files, an honest receipt verifies, an edited one does not and
the figure that no longer follows is named.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.audit import tables
from foveate.audit.bounds import Bounds
from foveate.audit.receipt import FILE, digest_of, read_receipt, write_receipt
from foveate.audit.records import Block, Gauges, Observed, Row
from foveate.audit.spec import hash_of
from foveate.audit.verify import verify
from foveate.core.errors import InputError
from foveate.measure.carbon import Grid
from tests.support.audit_rows import block, row, spec

Json = dict[str, Any]


def made(
    folder: Path, blocks: int = 4, place: Grid | None = None, joules: float | None = None
) -> Json:
    """The receipt of a small audit in which the candidate is twice as fast and errs a little."""
    rows, turns = [], []
    for number in range(blocks):
        for arm, seconds in (("baseline", 0.4), ("small", 0.2 + 0.01 * number)):
            turns.append(block(arm, number=number, gained=Gauges(cpu_s=seconds * 4, joules=joules)))
            for i in range(4):
                item = number * 4 + i
                seen: Json = {"done_s": 10.1 + i + seconds, "first_s": 10.05 + i, "chunk_s": ()}
                seen["text"] = "wrong" if arm == "small" and item == 5 else f"answer {item}"
                rows.append(
                    row(arm, block=number, sequence=i, item=f"q{item}", seen=seen,
                        references=(f"answer {item}",), category=("even", "odd")[i % 2])
                )  # fmt: skip
    rows.append(row("small", sequence=-1, warmup=True))
    folder.mkdir(exist_ok=True)
    return write_receipt(
        folder,
        spec=spec(bounds={"max_quality_drop": 0.1, "slo": {"e2e_ms": 450}}),
        bounds=Bounds.from_dict({"max_quality_drop": 0.1, "slo": {"e2e_ms": 450}}),
        place=place,
        workload={"name": "rows.jsonl", "hash": "c" * 64, "n": 16, "notes": ()},
        arms={"baseline": {"kind": "endpoint"}, "small": {"kind": "endpoint"}},
        rows=rows,
        blocks=turns,
        notes=["a remark"],
    )


def edit(folder: Path, change: Callable[[Json], object]) -> None:
    path = folder / FILE
    receipt = json.loads(path.read_text(encoding="utf-8"))
    change(receipt)
    path.write_text(json.dumps(receipt), encoding="utf-8")


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for x in value for k, v in leaves(value[x], f"{path}.{x}").items()}
    return {path[1:]: value}


def put(receipt: Json, path: str, value: Any, parts: list[str]) -> None:
    """Set the leaf at a dotted path, whose keys may themselves hold dots."""
    for key in receipt:
        rest = path.removeprefix(key)
        if rest == path or (rest and not rest.startswith(".")):
            continue
        if not rest:
            receipt[key] = value
            parts.append(key)
            return
        if isinstance(receipt[key], dict):
            put(receipt[key], rest[1:], value, parts)
            if parts:
                return


def test_the_columns_are_the_fields_of_the_records() -> None:
    for kind, nested in ((Row, Observed), (Block, Gauges)):
        own, prefix, _, inner = tables._PARTS[kind]
        assert set(own) == {f.name for f in fields(kind)} - {prefix}
        assert set(inner) == {f.name for f in fields(nested)}


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_come_back_from_their_file(data: st.DataObject, tmp_path_factory: Any) -> None:
    rows = [
        row(
            sequence=i,
            judged=data.draw(st.none() | st.floats(0, 1)),
            references=tuple(data.draw(st.lists(st.text(max_size=5), max_size=3))),
            pictures=(),
            seen={
                "text": data.draw(st.text(max_size=20)),
                "chunk_s": tuple(data.draw(st.lists(st.floats(0, 1e6), max_size=3))),
                "first_s": data.draw(st.none() | st.floats(0, 1e6)),
                "kv_bytes": data.draw(st.none() | st.integers(0, 2**62)),
                "error": data.draw(st.sampled_from([None, "http"])),
            },
        )
        for i in range(data.draw(st.integers(0, 4)))
    ]
    path = tmp_path_factory.mktemp("rows") / tables.ROWS
    tables.write_rows(path, reversed(rows))
    assert tables.read_rows(path) == rows


def test_text_that_is_no_unicode_does_not_stop_a_receipt(tmp_path: Path) -> None:
    tables.write_rows(tmp_path / tables.ROWS, [row(seen={"text": "half \ud800"})])
    assert tables.read_rows(tmp_path / tables.ROWS)[0].observed.text == "half ?"


@pytest.mark.parametrize(
    "name", ["spec", "workload", "hardware", "libraries", "bounds", "verdicts"]
)
def test_a_receipt_holds_what_a_stranger_needs(tmp_path: Path, name: str) -> None:
    receipt = made(tmp_path)
    assert receipt[name]
    assert json.loads((tmp_path / FILE).read_text(encoding="utf-8")) == receipt
    assert str(tmp_path) not in (tmp_path / FILE).read_text(encoding="utf-8")


def test_an_honest_receipt_verifies_from_folder_and_file(tmp_path: Path) -> None:
    receipt = made(tmp_path)
    for path in (tmp_path, tmp_path / FILE):
        found = verify(path)
        assert found.ok and found.compared > 100 and not found.notes
        assert found.decisions == {a: v["decision"] for a, v in receipt["verdicts"].items()}
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-elsewhere"))
    assert verify(moved).ok


@pytest.mark.claim("A6")
def test_every_edited_figure_is_named(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    receipt = made(tmp_path)
    original = (tmp_path / FILE).read_text(encoding="utf-8")
    numbers = {
        path: value
        for path, value in leaves({"figures": receipt["figures"]}).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    assert len(numbers) > 100
    named = 0
    for path, value in numbers.items():
        changed = json.loads(original)
        put(changed, path, value + max(1e-6, abs(value) * 1e-6), done := [])
        assert done, path
        changed["digest"] = digest_of(changed)  # an editor who knows of the digest
        (tmp_path / FILE).write_text(json.dumps(changed), encoding="utf-8")
        named += [f.path for f in verify(tmp_path).faults] == [path]
    assert named == len(numbers)
    record_property("figure", f"{named} of {len(numbers)} edited figures named, and nothing else")
    record_property("bound", "every one")


def test_an_edited_verdict_is_named(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path, lambda r: r["verdicts"]["small"].update(decision="accepted by me"))
    assert [f.path for f in verify(tmp_path).faults] == ["verdicts.small.decision"]


def test_laxer_bounds_do_not_follow(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path, lambda r: r["bounds"].update(max_quality_drop=0.5))
    found = verify(tmp_path)
    assert any(f.path.startswith("verdicts.small") for f in found.faults)


def test_a_figure_that_was_added_or_taken_away_is_named(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path, lambda r: r["figures"]["arms"]["small"].update(stars=5))
    assert [f.path for f in verify(tmp_path).faults] == ["figures.arms.small.stars"]
    made(tmp_path)
    edit(tmp_path, lambda r: r["figures"]["arms"].pop("baseline"))
    assert [f.path for f in verify(tmp_path).faults] == ["figures.arms.baseline"]


def test_what_is_no_figure_is_held_by_the_digest(tmp_path: Path) -> None:
    made(tmp_path)
    edit(tmp_path, lambda r: r["hardware"].update(cpu="a faster one"))
    assert [f.path for f in verify(tmp_path).faults] == ["digest"]
    made(tmp_path)
    edit(tmp_path, lambda r: r["spec"].update(seed=9))
    assert "spec_hash" in [f.path for f in verify(tmp_path).faults]


@pytest.mark.claim("A6")
def test_edited_rows_are_named_by_file_and_figure(tmp_path: Path) -> None:
    made(tmp_path)
    rows = tables.read_rows(tmp_path / tables.ROWS)
    better = [
        replace(r, observed=replace(r.observed, text=r.references[0])) for r in rows if not r.warmup
    ]
    tables.write_rows(tmp_path / tables.ROWS, better)
    paths = [f.path for f in verify(tmp_path).faults]
    assert "files.rows.parquet" in paths
    assert "figures.arms.small.quality.all.score" in paths


def test_a_receipt_of_a_later_version_verifies_by_its_format(tmp_path: Path) -> None:
    made(tmp_path)

    def later(receipt: Json) -> None:
        receipt["foveate"] = "99.0"
        receipt["spec"]["something_new"] = 3
        receipt["spec_hash"] = hash_of(receipt["spec"])
        del receipt["figures"]["arms"]["small"]["loads"]["closed:2"]["requests"]  # not known there
        receipt["digest"] = digest_of(receipt)

    edit(tmp_path, later)
    found = verify(tmp_path)
    assert found.ok and "99.0" in found.notes[0]
    edit(tmp_path, lambda r: r.update(format="foveate-receipt/9"))
    with pytest.raises(InputError, match="foveate-receipt/9"):
        verify(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[]", "nonsense", '{"format": null}'])
def test_what_is_no_receipt_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError):
        read_receipt(tmp_path)


def test_missing_rows_are_refused_and_damaged_ones_are_a_fault(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / tables.BLOCKS).unlink()
    with pytest.raises(InputError, match=tables.BLOCKS):
        verify(tmp_path)
    made(tmp_path)
    (tmp_path / tables.ROWS).write_bytes(b"PAR1 nothing")
    faults = verify(tmp_path).faults
    assert [f.path for f in faults] == [f"files.{tables.ROWS}", "receipt"]


def test_carbon_follows_from_joules_and_the_stated_place(tmp_path: Path) -> None:
    found = made(tmp_path)
    assert found["carbon"]["kg_co2e_per_request"]["small"] == {"closed:2": None}
    assert len(found["carbon"]["missing"]) == 2

    again = made(tmp_path, place=Grid(400.0, "stated"), joules=7.2)
    kg = again["carbon"]["kg_co2e_per_request"]["small"]["closed:2"]
    assert kg == pytest.approx(7.2 / 4 / 3.6e6 * 0.4)
    assert verify(tmp_path).ok

    edit(tmp_path, lambda r: r["carbon"]["kg_co2e_per_request"]["small"].update({"closed:2": 0.0}))
    assert [f.path for f in verify(tmp_path).faults] == [
        "carbon.kg_co2e_per_request.small.closed:2"
    ]


def test_the_committed_audit_still_follows_from_its_rows() -> None:
    found = verify(Path(__file__).parents[2] / "bench" / "audits" / "lab-nano")
    assert found.ok, [str(f) for f in found.faults]
    assert "refused" in found.decisions.values()
    assert len(found.decisions) == 8


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda r: r.update(foveate="0.0.1", figures={}), "figures.arms"),
        (lambda r: r.update(foveate="0.0.1", verdicts={}), "verdicts.small"),
        (lambda r: r.pop("carbon"), "carbon"),
        (lambda r: r["spec"]["bounds"].update(max_quality_drop=0.5), "spec_hash"),
        (lambda r: r["seeds"].update(audit=5), "seeds.audit"),
        (lambda r: r.update(files=["x"]), "files.rows.parquet"),
    ],
)
def test_a_forged_receipt_with_its_digest_made_anew_is_named(
    tmp_path: Path, change: Callable[[Json], object], path: str
) -> None:
    made(tmp_path)

    def forged(receipt: Json) -> None:
        change(receipt)
        receipt["digest"] = digest_of(receipt)

    edit(tmp_path, forged)
    assert path in [f.path for f in verify(tmp_path).faults]
