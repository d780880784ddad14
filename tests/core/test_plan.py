"""Plans: text, TOML and JSON say the same; hashes are stable; errors name field, value, range and
neighbours.
"""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.core import Plan
from foveate.core.errors import PlanError, SettingError, UnknownMethodError

TEXTS = [
    "none",
    "divprune:keep=1/4",
    "uniform:per_image=64;positions=retain",
    "random:per_request=100;seed=7",
    "visionzip:keep=2/9;positions=renumber;seed=3",
]


@pytest.mark.parametrize("text", TEXTS)
def test_every_form_round_trips_to_one_hash(text: str, tmp_path: Path) -> None:
    plan = Plan.parse(text)
    assert str(plan) == text
    forms = [Plan.parse(str(plan)), Plan.from_toml(plan.to_toml()), Plan.from_json(plan.to_json())]
    file = tmp_path / "plan.toml"
    file.write_text(plan.to_toml())
    forms.append(Plan.load(str(file)))
    for form in forms:
        assert form == plan and form.hash == plan.hash


def test_hashes_are_stable_over_processes_and_releases() -> None:
    plan = Plan.parse("divprune:keep=1/4")
    code = "from foveate.core import Plan; print(Plan.parse('divprune:keep=0.25').hash)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == plan.hash
    assert Plan().hash == "6aab9b20725bb1e0"  # a changed hash breaks every stored receipt


@given(st.fractions(min_value=Fraction(1, 1000), max_value=1), st.integers(0, 10**6))
def test_any_ratio_and_seed_survive_text(keep: Fraction, seed: int) -> None:
    plan = Plan.parse(f"uniform:keep={keep};seed={seed}")
    assert plan.stage("tokens").keep == keep and plan.seed == seed
    assert Plan.parse(str(plan)) == plan


def test_different_settings_have_different_hashes_and_auto_resolves_into_the_hash() -> None:
    hashes = {Plan.parse(t).hash for t in TEXTS}
    assert len(hashes) == len(TEXTS)
    plan = Plan.parse("uniform:keep=1/2")
    assert plan.resolved(mrope=True).positions == "retain"
    assert plan.resolved(mrope=False).positions == "renumber"
    assert plan.resolved(mrope=True).hash != plan.resolved(mrope=False).hash


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("divprun:keep=1/4", UnknownMethodError, "divprune"),
        ("divprune:kep=1/4", SettingError, "did you mean keep"),
        ("divprune:keep=0", SettingError, "0 < keep <= 1"),
        ("divprune:keep=2", SettingError, "0 < keep <= 1"),
        ("divprune:keep=-1/2", SettingError, "0 < keep <= 1"),
        ("divprune:keep=many", SettingError, "'many'"),
        ("divprune:keep=nan", SettingError, "nan"),
        ("divprune:keep=1/0", SettingError, "1/0"),
        ("divprune", SettingError, "exactly one of keep"),
        ("divprune:keep=1/2,per_image=3", SettingError, "exactly one of keep"),
        ("divprune:per_image=0", SettingError, "at least 1"),
        ("divprune:per_image=1.5", SettingError, "per_image"),
        ("divprune:keep=1/2+uniform:keep=1/2", PlanError, "one method a stage"),
        ("divprune:keep", PlanError, "setting=value"),
        ("divprune:keep=1/2,keep=1/4", PlanError, "twice"),
        ("divprune:keep=1/2+", PlanError, "empty part"),
        ("divprune:keep=1/2;positions=keep", SettingError, "positions"),
        ("divprune:keep=1/2;sead=3", SettingError, "did you mean seed"),
        ("divprune:keep=1/2;seed=-1", SettingError, "at least 0"),
        ("divprune:keep=1/2;seed=x", SettingError, "seed"),
    ],
)
def test_errors_say_what_is_wrong(text: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as error:
        Plan.parse(text)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        {"methods": "divprune"},
        {"methods": [{"keep": "1/4"}]},
        {"steps": []},
        {"methods": [3]},
    ],
)
def test_malformed_mappings_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        Plan.from_dict(data)


def test_malformed_files_are_refused(tmp_path: Path) -> None:
    for name, text in (("a.toml", "x = ["), ("b.json", "{"), ("c.json", "[]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(PlanError):
            Plan.load(str(tmp_path / name))
    with pytest.raises(PlanError, match="no plan file"):
        Plan.load(str(tmp_path / "absent.toml"))
