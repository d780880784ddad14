"""CEGI: the arithmetic of our reading, what is undefined, and the experiment around a meter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core.errors import InputError
from foveate.measure.cegi import READING, cegi, table


def test_the_reading_by_hand() -> None:
    found = cegi(0.4, 0.5, 0.02, 2_500_000)
    assert found.gain_percent == pytest.approx(25.0) and found.points == pytest.approx(10.0)
    assert found.millions == 2.5 and found.reason is None
    assert found.value == pytest.approx(0.02 / (25 * 2.5))
    assert found.value_points == pytest.approx(0.02 / (10 * 2.5))
    assert "undefined for G <= 0" in READING


@given(st.floats(0.01, 0.9), st.floats(0.001, 0.09), st.floats(1e-9, 10), st.integers(1, 10**10))
def test_lower_carbon_larger_gain_and_more_parameters_all_lower_it(
    base: float, step: float, kg: float, parameters: int
) -> None:
    value = cegi(base, base + step, kg, parameters).value
    assert value is not None and value > 0
    for better in (
        cegi(base, base + step, kg / 2, parameters),
        cegi(base, min(1.0, base + step + 0.001), kg, parameters),
        cegi(base, base + step, kg, 2 * parameters),
    ):
        assert better.value is not None and better.value < value


def test_the_two_readings_can_order_two_runs_differently() -> None:
    weak, strong = cegi(0.1, 0.2, 1.0, 10**6), cegi(0.6, 0.8, 1.0, 10**6)
    assert weak.value is not None and strong.value is not None
    assert weak.value_points is not None and strong.value_points is not None
    assert weak.value < strong.value and weak.value_points > strong.value_points


@pytest.mark.parametrize(
    ("base", "tuned", "kg", "words"),
    [
        (0.5, 0.5, 1.0, "no gain"),
        (0.5, 0.4, 1.0, "no gain"),
        (0.0, 0.3, 1.0, "base score is 0"),
        (0.5, 0.6, None, "carbon of the run is not known"),
    ],
)
def test_what_is_undefined_or_missing_has_a_reason_and_no_value(
    base: float, tuned: float, kg: float | None, words: str
) -> None:
    found = cegi(base, tuned, kg, 10**6)
    assert found.value is None and found.reason is not None and words in found.reason
    assert words in table([("run", found)])


def test_points_exist_where_a_percentage_of_the_base_does_not() -> None:
    found = cegi(0.0, 0.25, 2.0, 4_000_000)
    assert found.gain_percent is None and found.value is None
    assert found.value_points == pytest.approx(2.0 / (25 * 4))


@pytest.mark.parametrize(
    ("base", "tuned", "kg", "parameters", "words"),
    [
        (-0.1, 0.5, 1.0, 1, "base = -0.1"),
        (0.1, 50.0, 1.0, 1, "a share in 0 to 1"),
        (0.1, float("nan"), 1.0, 1, "tuned = nan"),
        (0.1, 0.5, 0.0, 1, "kg = 0.0"),
        (0.1, 0.5, float("inf"), 1, "kg = inf"),
        (0.1, 0.5, 1.0, 0, "trainable_parameters = 0"),
    ],
)
def test_wrong_figures_are_refused(
    base: float, tuned: float, kg: float, parameters: int, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        cegi(base, tuned, kg, parameters)


def test_the_table_shows_carbon_gain_and_parameters_beside_the_index() -> None:
    text = table([("small", cegi(0.4, 0.5, 0.02, 2_500_000)), ("large", cegi(0.4, 0.5, None, 10))])
    header, _, small, large = text.splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")][4:8] == [
        "G %", "P million", "C kg CO2e", "CEGI",
    ]  # fmt: skip
    assert [cell.strip() for cell in small.strip("|").split("|")] == [
        "small", "0.400", "0.500", "+10.0", "+25.0", "2.500", "2.000e-02", "3.200e-04", "8.000e-04",
    ]  # fmt: skip
    assert large.count("missing") == 3 and "0.000" not in large.split("|")[7]
