"""Carbon a request: from measured joules and a stated grid, missing otherwise, and recomputable."""

from __future__ import annotations

import json
from typing import Any

import pytest

from foveate.audit.footprint import NO_JOULES, NO_PLACE, footprint, recomputed
from foveate.core.errors import InputError
from foveate.measure.carbon import Grid

GERMANY = Grid(360.0, "a table of 2023", "DEU", 2023)


def figures(**joules: float | None) -> dict[str, Any]:
    return {
        "arms": {
            arm: {"loads": {"closed:1": {"joules_per_request": j}}} for arm, j in joules.items()
        }
    }


def test_a_request_of_a_hundred_joules() -> None:
    found = footprint(figures(baseline=100.0, half=50.0), GERMANY, 1.2)
    kg = found["kg_co2e_per_request"]
    assert kg["baseline"]["closed:1"] == pytest.approx(100 / 3.6e6 * 1.2 * 0.36)
    assert kg["half"]["closed:1"] == pytest.approx(kg["baseline"]["closed:1"] / 2)
    assert found["country"] == "DEU" and found["g_per_kwh"] == 360.0 and found["missing"] == []


def test_what_was_not_measured_or_stated_is_none_with_its_reason() -> None:
    found = footprint(figures(baseline=100.0, remote=None), GERMANY)
    assert found["kg_co2e_per_request"]["remote"]["closed:1"] is None
    assert found["missing"] == [NO_JOULES]
    nowhere = footprint(figures(baseline=100.0), None)
    assert nowhere["kg_co2e_per_request"]["baseline"]["closed:1"] is None
    assert nowhere["missing"] == [NO_PLACE] and nowhere["g_per_kwh"] is None


@pytest.mark.parametrize("where", [GERMANY, None])
def test_it_follows_from_what_the_receipt_stores(where: Grid | None) -> None:
    known = figures(baseline=3.5, half=None)
    stored = json.loads(json.dumps(footprint(known, where, 1.1)))
    assert recomputed(known, stored) == stored
    changed = {**stored, "pue": 1.3}
    assert (recomputed(known, changed) == changed) == (where is None)


def test_a_wrong_pue_is_refused() -> None:
    with pytest.raises(InputError, match="pue"):
        footprint(figures(baseline=1.0), GERMANY, 0.9)
