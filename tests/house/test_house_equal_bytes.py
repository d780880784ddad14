"""The table of methods at equal KV bytes: it follows from its rows, and README says what it says."""

from __future__ import annotations

import copy
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from foveate.lab.score import is_right
from foveate.lab.tasks import samples
from tests.house.repository import ROOT

pytest.importorskip("pyarrow")
pytest.importorskip("transformers")
from bench import equal_bytes, equal_bytes_table
from bench.equal_bytes_table import Row

ROWS = equal_bytes_table.rows_path()
HALF = Fraction(1, 2)


@pytest.fixture(scope="module")
def data() -> Any:
    return json.loads(ROWS.with_name("equal-bytes.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return equal_bytes_table.read_rows(ROWS)


# --- the committed receipt --------------------------------------------------------------------------
@pytest.mark.claim("I6")
def test_every_figure_of_the_table_follows_from_its_rows(
    data: Any, rows: list[Row], record_property: Any
) -> None:
    """Table, claim and digest, computed anew from the rows, are those of the results file."""
    assert not equal_bytes_table.differences(data, ROWS)
    record_property("figure", f"{len(data['rows'])} lines from {len(rows)} rows")


@pytest.mark.full
@pytest.mark.claim("I6")
def test_no_method_was_added_since(data: Any, record_property: Any) -> None:
    """The table has every method of its stages that is in the catalogue."""
    known = equal_bytes_table.methods()
    missing = sorted(set(known) - set(data["methods"]))
    assert not missing, f"python -m bench.equal_bytes --n {data['n']} --only {','.join(missing)}"
    record_property("figure", f"{len(known)} methods")


def test_answers_are_judged_by_the_task(data: Any, rows: list[Row]) -> None:
    few = {f: samples(f, data["split"], 2) for f in data["families"].split(",")}
    asked = [r for r in rows if r.question < 2]
    assert len(asked) == 2 * len(few) * len(data["rows"])
    assert all(r.right == is_right(few[r.family][r.question], r.answer) for r in asked)


def test_an_edited_figure_is_named(data: Any) -> None:
    edited = copy.deepcopy(data)
    edited["rows"][1]["bytes"] += 0.001
    name = edited["rows"][1]["method"]
    assert equal_bytes_table.differences(edited, ROWS) == [f"{name}: bytes"]
    edited = {**data, "claims": [{**data["claims"][0], "holds": not data["claims"][0]["holds"]}]}
    assert equal_bytes_table.differences(edited, ROWS) == ["claims"]


def test_an_edited_row_is_found(data: Any, rows: list[Row], tmp_path: Path) -> None:
    place = next(i for i, r in enumerate(rows) if r.name == "random")
    edited = list(rows)
    edited[place] = rows[place]._replace(right=not rows[place].right)
    path = tmp_path / "rows.parquet"
    equal_bytes_table.write_rows(edited, path)
    found = equal_bytes_table.differences(data, path)
    assert found[0] == "rows_sha256" and f"random: {rows[place].family}" in found


def test_readme_shows_figures_of_the_table(data: Any) -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| plan, half of the KV"))
    known = {r["method"]: r for r in data["rows"]}
    columns = [c.strip() for c in lines[start].strip("| ").split("|")][1:]
    shown = 0
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        plan, *cells = [c.strip() for c in line.strip("| ").split("|")]
        found = known["none" if plan.startswith("all") else plan.strip("`")]
        wanted = [found["all (95 %)"][:5] if c == "all" else f"{found[c]:.2f}" for c in columns]
        assert cells == wanted, plan
        shown += 1
    assert shown >= 3
    text = "\n".join(lines[start - 3 : start])
    assert re.search(rf"\b{data['n']} questions a column", text)


# --- how the claim is judged ------------------------------------------------------------------------
def line(name: str, kv_bytes: int, right: str = "11") -> list[Row]:
    return [Row(name, name, "shape", i, "", c == "1", kv_bytes, 0) for i, c in enumerate(right)]


@pytest.mark.parametrize(
    ("random", "fastv", "outside", "not_run", "holds"),
    [
        (50, 51, {}, {}, True),
        (50, 52, {}, {}, False),
        (50, 52, {"fastv": "its knob steps"}, {}, True),
        (50, None, {}, {}, False),
        (50, None, {}, {"fastv": "no such model"}, True),
        (50, None, {}, {"fastv": ""}, False),
        (50, None, {"fastv": "its knob steps"}, {}, False),
        (53, 50, {"random": "its knob steps"}, {}, False),
    ],
)
def test_the_claim_needs_a_line_near_the_share_or_a_reason(
    random: int, fastv: int | None, outside: Any, not_run: Any, holds: bool
) -> None:
    found = line("none", 100) + line("random", random)
    found += [] if fastv is None else line("fastv", fastv)
    (claim,) = equal_bytes_table.claims(found, HALF, outside, not_run, ["random", "fastv"])
    assert claim["id"] == "I6" and claim["holds"] is holds


def test_every_method_of_three_stages_is_asked_for(rows: list[Row]) -> None:
    known = equal_bytes_table.methods()
    assert [m for m in equal_bytes.lines() if " " not in m] == known
    (claim,) = equal_bytes_table.claims(rows, HALF, {}, {}, [*known, "a-new-one"])
    assert not claim["holds"] and "a-new-one" in claim["figure"]


def test_lines_of_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different questions"):
        equal_bytes_table.table(line("none", 100) + line("random", 50, "101"))


def test_a_line_of_the_table() -> None:
    found = line("none", 100, "1" * 8) + line("random", 50, "0" * 8) + line("fastv", 49, "1" * 8)
    _, random, fastv = equal_bytes_table.table(found)
    assert (random["bytes"], random["shape"], random["p against all tokens"]) == (0.5, 0, "0.0078")
    assert (fastv["stage"], fastv["p against all tokens"]) == ("prefill", "1")
    assert (random["p against control"], fastv["p against control"]) == ("", "0.0078")


# --- how a knob is found ----------------------------------------------------------------------------
@pytest.mark.parametrize("target", [3.0, 17.3, 50.0, 96.0])
@pytest.mark.parametrize("start", [Fraction(1, 512), HALF, Fraction(1)])
def test_bisection_ends_within_the_tolerance(target: float, start: Fraction) -> None:
    def cost(x: Fraction) -> float:
        return 100 * float(x)

    found = equal_bytes.search(cost, target, start)
    assert abs(cost(Fraction(found.knob)) - target) <= max(100 / 512, 0.005 * target)


def test_a_knob_in_steps_says_where_they_are() -> None:
    found = equal_bytes.search(lambda x: 40.0 if x <= HALF else 60.0, 52.0, HALF)
    assert (found.below, found.above) == (40, 60)
    assert "0.400 to 0.600" in equal_bytes.why_outside(found, 100)
    found = equal_bytes.scan({1: 9.0, 4: 20.0, 8: 30.0}.__getitem__, 50.0, (1, 4, 8))
    assert found.knob == 8 and "0.300 of the bytes at most" in equal_bytes.why_outside(found, 100)
