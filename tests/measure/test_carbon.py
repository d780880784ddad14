"""Carbon: joules times grid times PUE; a place that is not known is an error, never a default."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import InputError, MissingExtraError, UnsupportedError
from foveate.measure import carbon as module
from foveate.measure.carbon import Grid, carbon, carbon_kg, country_grid, grid

ROWS = {
    "FRA": {"country_name": "France", "carbon_intensity": 56.039, "year": 2023},
    "DEU": {"country_name": "Germany", "carbon_intensity": 380.95, "year": 2023},
    "CAF": {"country_name": "Central African Republic", "carbon_intensity": 0.0, "year": 2022},
    "XAA": {"country_name": "Nowhere", "carbon_intensity": None, "year": 2022},
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A codecarbon of our own: its data and version, and code that must not run."""
    root = tmp_path / "codecarbon"
    (root / "data" / "private_infra").mkdir(parents=True)
    (root / "__init__.py").write_text("raise AssertionError('was imported')", "utf-8")
    table = root / "data" / "private_infra" / "global_energy_mix.json"
    table.write_text(json.dumps(ROWS), "utf-8")
    about = tmp_path / "codecarbon-3.9.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Name: codecarbon\nVersion: 3.9.0\n", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module._countries.cache_clear()
    yield table
    module._countries.cache_clear()


def test_a_kilowatt_hour_of_a_hundred_grams_is_a_tenth_of_a_kilogram() -> None:
    found = carbon(3.6e6, Grid(100.0, "here"))
    assert found.kg == pytest.approx(0.1) and found.pue == 1.0
    assert carbon(3.6e6, Grid(100.0, "here"), pue=1.5).kg == pytest.approx(0.15)
    assert found.as_dict() == {
        "kg_co2e": found.kg, "joules": 3.6e6, "g_per_kwh": 100.0, "grid_source": "here",
        "country": None, "year": None, "pue": 1.0,
    }  # fmt: skip


@given(st.floats(1e-3, 1e12), st.floats(1e-2, 3000), st.floats(1, 3), st.floats(1.01, 10))
def test_carbon_is_linear_in_all_three(j: float, g: float, pue: float, k: float) -> None:
    kg = carbon(j, Grid(g, "x"), pue).kg
    assert kg > 0
    assert carbon(k * j, Grid(g, "x"), pue).kg == pytest.approx(k * kg)
    assert carbon(j, Grid(g / k, "x"), pue).kg == pytest.approx(kg / k)
    assert carbon(j, Grid(g, "x"), k * pue).kg == pytest.approx(k * kg)


@pytest.mark.parametrize("joules", [0.0, -1.0, math.nan, math.inf])
def test_energy_that_was_not_measured_has_no_emissions_of_zero(joules: float) -> None:
    with pytest.raises(InputError, match="must be measured or stated"):
        carbon(joules, Grid(100.0, "x"))


def test_what_is_missing_stays_missing() -> None:
    assert carbon_kg(None, Grid(100.0, "x")) is None
    assert carbon_kg(5.0, None) is None
    assert carbon_kg(3.6e6, Grid(100.0, "x"), 2.0) == pytest.approx(0.2)


@pytest.mark.parametrize("pue", [0.99, 0.0, math.nan, math.inf])
def test_a_site_never_draws_less_than_its_machines(pue: float) -> None:
    with pytest.raises(InputError, match="pue"):
        carbon(1.0, Grid(100.0, "x"), pue)


@pytest.mark.parametrize("text", [None, "", "  "])
def test_there_is_no_default_country(text: str | None) -> None:
    with pytest.raises(InputError, match="no country is assumed"):
        grid(text)


@pytest.mark.parametrize("text", ["0", "-5", "nan", "inf", "3001", "5e5"])
def test_a_figure_in_another_unit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="g/kWh is out of range"):
        grid(text)


def test_a_stated_figure_needs_no_package() -> None:
    found = grid(" 380.5 ")
    assert found == Grid(380.5, "stated by the user") and str(found).startswith("380.5 g/kWh")


@pytest.mark.usefixtures("package")
def test_a_country_has_the_tables_figure_year_and_source() -> None:
    found = grid("fra")
    assert found == Grid(56.039, "codecarbon 3.9.0, France 2023", "FRA", 2023)
    assert country_grid("DEU").g_per_kwh == 380.95


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("code", "words"),
    [("DE", "DEU \\(Germany\\)"), ("germany", "DEU \\(Germany\\)"), ("FRE", "did you mean FRA"),
     ("?", "three letters")],
)  # fmt: skip
def test_an_unknown_country_names_the_near_ones(code: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        grid(code)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("code", ["CAF", "XAA"])
def test_a_country_without_a_figure_is_not_free_of_carbon(code: str) -> None:
    with pytest.raises(UnsupportedError, match=f"no carbon intensity for {code}"):
        grid(code)


def test_data_that_moved_are_missed_with_the_way_out(package: Path) -> None:
    package.unlink()
    with pytest.raises(UnsupportedError, match="state the intensity in g/kWh"):
        grid("FRA")


def test_a_country_without_the_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        return None

    module._countries.cache_clear()
    monkeypatch.setattr(module.importlib.util, "find_spec", absent)
    with pytest.raises(MissingExtraError, match=r"foveate\[energy\]"):
        grid("FRA")


@pytest.mark.skipif(
    importlib.util.find_spec("codecarbon") is None,
    reason='codecarbon is not installed: pip install "foveate[energy]"',
)
def test_the_real_data_where_they_are_installed() -> None:
    module._countries.cache_clear()
    table, _ = module._countries()
    figures = [row["carbon_intensity"] for row in table.values()]
    assert len(figures) > 150 and max(figures) <= module.HIGHEST_G_PER_KWH
    assert grid("FRA").g_per_kwh < grid("POL").g_per_kwh
