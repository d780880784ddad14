"""The CEGI experiment: both models see the same, the steps alone are metered, missing stays missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from bench import cegi as bench
from bench import common
from foveate.core.errors import CheckpointError, InputError
from foveate.lab import recipe
from foveate.measure import EnergyReading, NullMeter, ReplayMeter


def test_both_models_train_on_the_same_task_and_differ_in_size() -> None:
    pair, nano = (bench.recipe_of(file, 5, 8) for _, file in bench.MODELS.values())
    assert pair.seed == nano.seed and len(pair.stages) == len(nano.stages) == 1
    for name in ("name", "mix", "easy", "steps", "seconds", "batch", "dense", "dense_end"):
        assert getattr(pair.stages[0], name) == getattr(nano.stages[0], name), name
    assert pair.stages[0].steps == 5 and pair.stages[0].mix == {"bars": 1.0}
    assert pair.stages[0].answers > 0 and pair.stages[0].easy == 0.0
    assert pair.model.text_width < nano.model.text_width
    assert nano.stages[0].lr == recipe.load().stages[-1].lr


def tuned(tmp_path: Path, source: Any, watts: float | None) -> bench.Tuned:
    path, file = bench.MODELS["lab-pair"]
    return bench.fine_tune(path(), bench.recipe_of(file, 1, 2), tmp_path, source, watts)


def test_the_meters_joules_are_those_of_the_run_and_beat_an_assumption(tmp_path: Path) -> None:
    meter = ReplayMeter([EnergyReading(720.0, 5.0, {"cpu0": 720.0})])
    found = tuned(tmp_path, meter, watts=10.0)
    assert found.joules == 720.0 and found.energy == "measured: cpu0"
    assert found.cpu_s > 0 and found.wall_s > 0
    assert 1_200_000 < found.parameters < 1_300_000  # the helping heads do not learn here
    assert len(bench.verdicts(found.folder, 2)) == 2 * len(bench.LEVELS)


def test_without_a_meter_energy_is_missing_or_assumed_and_says_so(tmp_path: Path) -> None:
    none = tuned(tmp_path / "none", NullMeter("no counter here"), None)
    assert none.joules is None and none.energy == "missing: no counter here"
    assumed = tuned(tmp_path / "assumed", ReplayMeter([]), 10.0)  # a meter that fails at the end
    assert assumed.joules == pytest.approx(10 * assumed.cpu_s)
    assert assumed.energy.startswith("assumed: not measured")
    with pytest.raises(InputError, match="--watts 0"):
        bench.stated(1.0, 0.0, "")


def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Any, *more: str) -> Any:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    arguments = ["--steps", "1", "--batch", "2", "--n", "2", "--name", "try", *more]
    bench.run(bench.parse(arguments), source)
    return json.loads((tmp_path / "try.json").read_text("utf-8"))


def test_the_experiment_from_meter_to_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meter = ReplayMeter([EnergyReading(j, 5.0, {"cpu0": j}) for j in (7200.0, 36000.0)])
    data = results(monkeypatch, tmp_path, meter, "--grid", "500", "--pue", "1.2")
    kg = [data["models"][name]["carbon"]["kg_co2e"] for name in ("lab-pair", "lab-nano")]
    assert kg == [pytest.approx(0.0012), pytest.approx(0.006)]
    for row, more in zip(data["rows"], data["models"].values(), strict=True):
        assert row["energy"] == "measured" and row["kg CO2e"] == f"{more['cegi']['kg']:.3e}"
        assert more["questions"] == 4 and more["points_95"][0] <= more["points_95"][1]
        index = more["cegi"]
        if index["points"] > 0 and index["gain_percent"]:
            assert index["value"] == pytest.approx(
                index["kg"] / (index["gain_percent"] * index["millions"])
            )
        else:
            assert index["value"] is None and "undefined" in data["table"]


def test_without_meter_and_grid_the_index_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "MODELS", {"lab-pair": bench.MODELS["lab-pair"]})
    data = results(monkeypatch, tmp_path, NullMeter("no counter here"))
    for row, more in zip(data["rows"], data["models"].values(), strict=True):
        assert row["energy"] == row["kg CO2e"] == row["CEGI"] == "missing"
        assert more["joules"] is None and more["carbon"] is None and more["cegi"]["value"] is None
    assert any("no counter here" in note for note in data["notes"])
    assert any("grid: not stated" in note for note in data["notes"])


@pytest.mark.parametrize("option", ["--steps", "--batch", "--n"])
def test_counts_below_one_are_refused(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} 0"):
        bench.parse([option, "0"])


@pytest.mark.parametrize(
    "options", [["--watts", "-1"], ["--pue", "0.5"], ["--grid", "-3"], ["--grid", "9999"]]
)
def test_wrong_figures_are_refused_before_the_work(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(bench, "measured", never)
    with pytest.raises(InputError):
        bench.run(bench.parse(options), NullMeter("none"))


def test_a_folder_of_another_size_is_refused(tmp_path: Path) -> None:
    path, file = bench.MODELS["lab-pair"][0], bench.MODELS["lab-nano"][1]
    with pytest.raises(CheckpointError, match="another geometry"):
        bench.fine_tune(path(), bench.recipe_of(file, 1, 2), tmp_path, NullMeter("none"), None)
