"""Carbon of an audit: kg CO2e a request, from the joules in its figures and a stated grid.

For the receipt. Everything that the arithmetic needs stands in the result, the intensity as a
number with its source, so that `recomputed` follows from the receipt alone, without codecarbon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.measure.carbon import Grid, carbon_kg

NO_PLACE = "the grid's intensity was not stated, and no country is assumed"
NO_JOULES = "joules were not measured"


def footprint(figures: Mapping[str, Any], where: Grid | None, pue: float = 1.0) -> dict[str, Any]:
    """By arm and load, what a request emitted; None where its joules or the place are missing.

    figures: those of the receipt. missing: why any of them is None, at most once a reason.
    InputError for a pue below 1.
    """
    kg: dict[str, dict[str, float | None]] = {}
    without = False
    for arm, found in figures["arms"].items():
        kg[arm] = {}
        for load, counted in found["loads"].items():
            joules = counted.get("joules_per_request")
            without = without or joules is None
            kg[arm][load] = carbon_kg(joules, where, pue)
    missing = [NO_PLACE] if where is None else []
    if without:
        missing.append(NO_JOULES)
    return {
        "g_per_kwh": where.g_per_kwh if where else None,
        "grid_source": where.source if where else None,
        "country": where.country if where else None,
        "year": where.year if where else None,
        "pue": pue,
        "kg_co2e_per_request": kg,
        "missing": missing,
    }


def recomputed(figures: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The same from a receipt: what `verify` compares with what is stored."""
    where = None
    if stored["g_per_kwh"] is not None:
        where = Grid(stored["g_per_kwh"], stored["grid_source"], stored["country"], stored["year"])
    return footprint(figures, where, stored["pue"])
