"""Kilograms of CO2e from joules: kg = J / 3.6e6 * PUE * g/kWh / 1000.

The grid's intensity is a figure that the user states, or the yearly mean of a country from the
data that codecarbon carries (extra "energy"); nothing of codecarbon is run and nothing is looked up
on the net. There is no default country: where the place is not known, emissions are not known.

What is not in it: the making of the machine, and the difference between a yearly mean and the hour
of the run. Units in names: `_g_per_kwh`, `_kg`.
"""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from foveate.core.errors import InputError, MissingExtraError, UnsupportedError, nearest

J_PER_KWH = 3.6e6
HIGHEST_G_PER_KWH = 3000.0
"""Above what burning lignite in an old plant gives; a larger figure is in another unit."""
_TABLE = Path("data") / "private_infra" / "global_energy_mix.json"


@dataclass(frozen=True)
class Grid:
    """Carbon intensity of electricity. source: who says so; country and year where it is a table's.

    InputError unless 0 < g_per_kwh <= 3000.
    """

    g_per_kwh: float
    source: str
    country: str | None = None
    year: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.g_per_kwh <= HIGHEST_G_PER_KWH:
            raise InputError(
                f"a grid intensity of {self.g_per_kwh} g/kWh is out of range: above 0 and at most "
                f"{HIGHEST_G_PER_KWH:.0f}, in grams of CO2e a kilowatt-hour"
            )

    def __str__(self) -> str:
        return f"{self.g_per_kwh:g} g/kWh ({self.source})"


@dataclass(frozen=True)
class Carbon:
    """Emissions of one window. kg follows from the other three; pue 1 counts the machine alone."""

    kg: float
    joules: float
    grid: Grid
    pue: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for receipts and JSON."""
        return {
            "kg_co2e": self.kg,
            "joules": self.joules,
            "g_per_kwh": self.grid.g_per_kwh,
            "grid_source": self.grid.source,
            "country": self.grid.country,
            "year": self.grid.year,
            "pue": self.pue,
        }


def carbon(joules: float, grid: Grid, pue: float = 1.0) -> Carbon:
    """Emissions of `joules` drawn from `grid`.

    pue: power usage effectiveness, what the whole site draws for one unit at the machine; 1 leaves
    cooling and losses out. InputError for joules that are not above 0 (energy that was not measured
    has no emissions of zero) or a pue below 1.
    """
    if not (joules > 0 and math.isfinite(joules)):
        raise InputError(
            f"{joules} J has no emissions: energy must be measured or stated, above 0 and finite"
        )
    if not (pue >= 1 and math.isfinite(pue)):
        raise InputError(
            f"pue = {pue} is out of range: 1 or more, as the site's operator states it"
        )
    return Carbon(joules / J_PER_KWH * pue * grid.g_per_kwh / 1000, joules, grid, pue)


def carbon_kg(joules: float | None, grid: Grid | None, pue: float = 1.0) -> float | None:
    """As `carbon`, for tables: None where the energy or the place is not known."""
    return None if joules is None or grid is None else carbon(joules, grid, pue).kg


def grid(text: str | None) -> Grid:
    """The grid that a user names: "DEU" (three-letter country code) or "380" (g/kWh).

    InputError without a text, for an unknown code (with the nearest ones) or a figure out of range;
    MissingExtraError for a country where codecarbon is not installed.
    """
    if text is None or not text.strip():
        raise InputError(
            "where the electricity comes from is not known, and no country is assumed: give a "
            'three-letter country code such as "FRA", or the intensity in g/kWh such as "56"'
        )
    text = text.strip()
    try:
        stated = float(text)
    except ValueError:
        return country_grid(text)
    return Grid(stated, "stated by the user")


def country_grid(code: str) -> Grid:
    """The yearly mean of a country, by its ISO 3166 code of three letters, from codecarbon's data.

    Errors: as `grid`; UnsupportedError where the data have no figure above 0 for the country.
    """
    table, version = _countries()
    wanted = code.strip().upper()
    row = table.get(wanted)
    if row is None:
        raise InputError(f"unknown country {code!r}: {_hint(code, table)}")
    figure = row.get("carbon_intensity")
    if not isinstance(figure, int | float) or not figure > 0:
        raise UnsupportedError(
            f"codecarbon {version} has no carbon intensity for {wanted} ({row['country_name']}): "
            "state the figure in g/kWh"
        )
    year = int(row["year"])
    return Grid(float(figure), f"codecarbon {version}, {row['country_name']} {year}", wanted, year)


def _hint(code: str, table: dict[str, Any]) -> str:
    """The codes of countries whose name is like `code`, else the nearest codes."""
    text = code.strip().casefold()
    named = [
        f"{key} ({row['country_name']})"
        for key, row in sorted(table.items())
        if len(text) > 2
        and text in row["country_name"].casefold()
        or len(text) == 2
        and key.casefold().startswith(text)
    ]
    if named:
        return "codes have three letters; did you mean " + " or ".join(named[:3]) + "?"
    return nearest(code.strip().upper(), table) if len(text) == 3 else "codes have three letters"


@lru_cache(maxsize=1)
def _countries() -> tuple[dict[str, Any], str]:
    """codecarbon's table and version. The package is found, not imported: importing it loads a
    tracker, pandas and network clients.
    """
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("codecarbon", "energy", "the carbon intensity of a country's grid")
    version = metadata.version("codecarbon")
    path = Path(next(iter(spec.submodule_search_locations))) / _TABLE
    try:
        table = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedError(
            f"codecarbon {version} keeps its country data elsewhere ({error}): install codecarbon "
            "3.x, or state the intensity in g/kWh"
        ) from None
    return table, version
