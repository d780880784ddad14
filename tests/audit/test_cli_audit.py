"""`foveate audit` from the outside: our engine, broken endpoints, wrong options, a repeated run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from foveate.audit.spec import load_spec
from foveate.cli.audit_options import Given
from foveate.core.errors import InputError
from tests.cli.cli_cases import call, last_json
from tests.support.planted import PlantedServer, workload_file

SHORT = ("--blocks", "3", "--requests", "6", "--warmup", "1", "--load", "closed:2")
NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return workload_file(tmp_path / "workload.jsonl", n=12)


def receipt_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "receipt.json").read_text(encoding="utf-8"))
    return found


def run(jsonl: Path, out: Path, *words: object) -> Any:
    return call("audit", "run", "--workload", jsonl, "--out", out, *SHORT, *words)


def test_plans_of_our_engine_on_the_bundled_model(tmp_path: Path) -> None:
    bounds = tmp_path / "bounds.toml"
    bounds.write_text("max_quality_drop = 0.9\n", encoding="utf-8")
    out = tmp_path / "out"
    done = call(
        "audit", "run", "--workload", "lab:shape,code", "--limit", 12, "--out", out, *SHORT,
        "--plan", "visionzip:keep=1/4", "--plan", "snapkv:keep=1/2,window=4",
        "--bounds", bounds, "--json",
    )  # fmt: skip
    assert done.exit_code in (0, 4), done.output
    found = last_json(done.stdout)
    receipt = receipt_of(out)
    assert found["verdicts"] == receipt["verdicts"]
    assert list(receipt["arms"]) == ["baseline", "visionzip:keep=1/4", "snapkv:keep=1/2,window=4"]
    full, picked, evicted = (
        receipt["figures"]["arms"][a]["loads"]["closed:2"] for a in receipt["arms"]
    )
    assert full["requests"] == picked["requests"] == 18 and not full["errors"]
    assert picked["visual_tokens"] == full["visual_tokens"] / 4
    assert evicted["kv_bytes"] < full["kv_bytes"] and full["cpu_s_per_request"] > 0
    assert receipt["arms"]["visionzip:keep=1/4"]["plan_hash"]
    assert call("audit", "verify", out).exit_code == 0


def test_options_of_the_workload_reach_it(
    jsonl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def heard(source: str, **options: object) -> None:
        seen.update(options, source=source)
        raise InputError("heard")

    monkeypatch.setattr("foveate.audit.run.load_workload", heard)
    words = ("--limit", 5, "--seed", 3, "--metric", "contains", "--max-new-tokens", 9)
    assert run(jsonl, tmp_path, "--plan", "random:keep=1/4", *words).exit_code == 2
    wanted = {"limit": 5, "seed": 3, "metric": "contains", "max_new_tokens": 9}
    assert seen == {**wanted, "source": str(jsonl)}


def test_the_table_shows_drop_speed_and_reasons(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer(latency_s=0.01) as one, PlantedServer(wrong=1.0) as two:
        done = run(jsonl, tmp_path / "out", "--baseline", one.url, "--candidate", f"two={two.url}")
        assert done.exit_code == 3, done.output
        assert "100.0 pt" in done.stdout and "refused" in done.stdout
        assert "two: quality" in done.stdout and "e2e closed:2" in done.stdout
        again = call("audit", "rerun", tmp_path / "out", "--out", tmp_path / "again")
    assert again.exit_code == 3, again.output
    assert "before" in again.stdout and again.stdout.count("refused") >= 2
    assert receipt_of(tmp_path / "again")["spec_hash"] == receipt_of(tmp_path / "out")["spec_hash"]
    assert receipt_of(tmp_path / "again")["workload"] == receipt_of(tmp_path / "out")["workload"]


def test_any_leaves_with_0_for_one_accepted(tmp_path: Path, jsonl: Path) -> None:
    bounds = tmp_path / "bounds.toml"
    bounds.write_text("max_quality_drop = 0.4\n", encoding="utf-8")
    workload_file(jsonl, n=18)
    with PlantedServer() as one, PlantedServer(wrong=1.0) as two:
        arms = ("--baseline", one.url, "--candidate", f"good={one.url}",
                "--candidate", f"bad={two.url}", "--bounds", bounds)  # fmt: skip
        assert run(jsonl, tmp_path / "out", *arms).exit_code == 3
    before = receipt_of(tmp_path / "out")
    # The run is over and the servers are gone: the same command gives the same receipt.
    assert run(jsonl, tmp_path / "out", *arms, "--any", "--resume").exit_code == 0
    after = receipt_of(tmp_path / "out")
    assert {k: v for k, v in after.items() if k not in ("made", "digest")} == {
        k: v for k, v in before.items() if k not in ("made", "digest")
    }


def test_another_audit_in_the_folder_is_refused(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer() as one:
        arms = ("--baseline", one.url, "--candidate", f"two={one.url}")
        assert run(jsonl, tmp_path / "out", *arms).exit_code in (0, 4)
        other = run(jsonl, tmp_path / "out", *arms, "--seed", 5)
        assert other.exit_code == 2 and "another audit" in other.stderr
        workload_file(jsonl, n=13)
        other = run(jsonl, tmp_path / "out", *arms)
        assert other.exit_code == 2 and "workload_hash differs" in other.stderr


@pytest.mark.parametrize(
    "options, text",
    [
        ({"errors": 1.0}, "500"),
        ({"fault": "garbage"}, "protocol"),
        ({"fault": "html"}, "protocol"),
        ({"fault": "hang"}, "timeout"),
        ({"api_key": "secret"}, "401"),
    ],
)
def test_an_endpoint_that_is_broken_from_the_start_costs_no_run(
    tmp_path: Path, jsonl: Path, options: dict[str, Any], text: str
) -> None:
    with PlantedServer() as good, PlantedServer(**options) as bad:
        arms = ("--baseline", good.url, "--candidate", f"bad={bad.url}")
        done = run(jsonl, tmp_path / "out", *arms, "--timeout", 1)
        assert done.exit_code == 2, done.output
        assert "arm bad" in done.stderr and good.seen()["requests"] <= 1
    assert text in done.stderr
    assert not (tmp_path / "out" / "receipt.json").exists()


def test_empty_answers_are_answers_and_wrong(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer() as good, PlantedServer(fault="empty") as bad:
        arms = ("--baseline", good.url, "--candidate", f"bad={bad.url}")
        done = run(jsonl, tmp_path / "out", *arms)
    assert done.exit_code == 3, done.output
    assert not receipt_of(tmp_path / "out")["figures"]["arms"]["bad"]["loads"]["closed:2"]["errors"]


def test_nobody_at_the_address_is_an_error_before_the_run(tmp_path: Path, jsonl: Path) -> None:
    done = run(jsonl, tmp_path / "out", "--baseline", NOBODY, "--candidate", f"two={NOBODY}")
    assert done.exit_code == 2 and "arm baseline" in done.stderr


@pytest.mark.parametrize(
    "options, kind",
    [
        ({"errors": 0.6}, "http"),
        ({"fault": "garbage", "fault_share": 0.6}, "protocol"),
        ({"fault": "reset", "fault_share": 0.6}, "connection"),
        ({"fault": "hang_midway", "fault_share": 0.6}, "timeout"),
        ({"other_model_after": 3}, "model"),
    ],
)
def test_faults_in_the_middle_are_counted_by_kind_and_refused(
    tmp_path: Path, jsonl: Path, options: dict[str, Any], kind: str
) -> None:
    bounds = tmp_path / "bounds.toml"
    bounds.write_text("max_quality_drop = 0.02\nmax_error_rate = 0.1\n", encoding="utf-8")
    with PlantedServer() as good, PlantedServer(**options) as bad:
        done = run(jsonl, tmp_path / "out", "--baseline", good.url, "--candidate", f"bad={bad.url}",
                   "--timeout", 0.3, "--bounds", bounds)  # fmt: skip
    assert done.exit_code in (3, 4), done.output
    found = receipt_of(tmp_path / "out")
    errors = found["figures"]["arms"]["bad"]["loads"]["closed:2"]["errors"]
    assert errors.get(kind, 0) > 0 and set(errors) == {kind}
    assert not found["figures"]["arms"]["baseline"]["loads"]["closed:2"]["errors"]
    assert found["verdicts"]["bad"]["decision"] == "refused"
    assert call("audit", "verify", tmp_path / "out").exit_code == 0


def test_an_arm_that_dies_is_given_up_and_said_so(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer() as good, PlantedServer(other_model_after=2) as bad:
        done = run(jsonl, tmp_path / "out", "--baseline", good.url, "--candidate", f"bad={bad.url}",
                   "--blocks", 8)  # fmt: skip
        asked = bad.seen()["requests"]
    assert done.exit_code == 3, done.output
    notes = " ".join(receipt_of(tmp_path / "out")["notes"])
    assert "bad was not asked any more" in notes and asked < 8 * 7
    assert call("audit", "verify", tmp_path / "out").exit_code == 0


def test_when_every_request_fails_it_is_said(tmp_path: Path, jsonl: Path) -> None:
    with PlantedServer() as good, PlantedServer(other_model_after=1) as bad:
        done = run(jsonl, tmp_path / "out", "--baseline", good.url, "--candidate", f"bad={bad.url}")
    assert done.exit_code == 3, done.output
    assert "arm bad: every one of its 18 requests failed (model: 18)" in done.stdout


def test_a_workload_of_one_row_is_undecided(tmp_path: Path) -> None:
    one_row = workload_file(tmp_path / "one.jsonl", n=1)
    with PlantedServer() as one:
        done = run(
            one_row, tmp_path / "out", "--baseline", one.url, "--candidate", f"two={one.url}"
        )
    assert done.exit_code == 4, done.output
    assert "a decision needs" in done.stdout


HERE = ("--workload", "W", "--baseline", NOBODY)
ENDS = (*HERE, "--candidate", f"a={NOBODY}")
OURS = ("--workload", "W", "--plan", "random:keep=1/4")
SECRET = ("--workload", "W", "--baseline", "http://u:p@host/v1", "--candidate", f"a={NOBODY}")

WRONG = {
    "no workload": ((), "--workload"),
    "no arms": (("--workload", "W"), "no baseline"),
    "no candidate": (HERE, "nothing to compare"),
    "baseline twice": ((*HERE, "--model", "m"), "leave out"),
    "plan on an endpoint": ((*HERE, "--plan", "random:keep=1/4"), "--plan"),
    "unknown plan": (("--workload", "W", "--plan", "visionzp:keep=1/4"), "visionzip"),
    "plan twice": ((*OURS, "--plan", "random:keep=1/4"), "two arms"),
    "a name without address": ((*HERE, "--candidate", "two"), "NAME=URL"),
    "another scheme": ((*HERE, "--candidate", "a=ftp://host/v1"), "http"),
    "a key in the address": (SECRET, "api_key_env"),
    "a load": ((*OURS, "--load", "closed:0"), "closed"),
    "a load twice": ((*OURS, "--load", "closed:2,2"), "twice"),
    "body that is no JSON": ((*ENDS, "--body", "a={x"), "JSON"),
    "body that is no object": ((*ENDS, "--body", "a=[1]"), "object"),
    "body of nobody": ((*ENDS, "--body", "b={}"), "no endpoint"),
    "body of what we set": ((*ENDS, "--body", 'a={"messages": []}'), "messages"),
    "a key that is not there": ((*ENDS, "--api-key-env", "a=NO_SUCH_KEY_HERE"), "NO_SUCH_KEY_HERE"),
    "pid of nobody": ((*ENDS, "--pid", "b=5"), "no arm"),
    "pid that is none": ((*ENDS, "--pid", "a=x"), "process id"),
    "pid of the engine": ((*OURS, "--pid", "baseline=5"), "this process"),
    "bounds that are missing": ((*OURS, "--bounds", "none.toml"), "none.toml"),
    "resume of nothing": ((*OURS, "--resume"), "--resume"),
    "a judge that is none": ((*OURS, "--judge", "no.such:judge"), "judge"),
    "a workload that is missing": (("--workload", "none.jsonl", *OURS[2:]), "none.jsonl"),
    "a spec that is missing": (("none.toml",), "none.toml"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_cost_nothing(
    tmp_path: Path, jsonl: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("a model was loaded for input that should have been refused before")

    monkeypatch.setattr("foveate.audit.engine_target.Host.load", refuse)
    words, text = WRONG[case]
    given = [str(jsonl) if w == "W" else w for w in words]
    done = call("audit", "run", *given, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert text in done.stderr and done.stderr.startswith("error:")


@pytest.mark.parametrize(
    "bounds, text",
    [
        ("max_quality_drop = 2\n", "points"),
        ("max_qualty_drop = 0.1\n", "max_quality_drop"),
        ("[[min_speedup]]\nmetric = 'e2e'\nat = 'closed:64'\nmin = 1\n", "not run"),
        ("max_quality_drop = 0.1\n[max_quality_drop_by_category]\nchart = 0.1\n", "category"),
    ],
)
def test_wrong_bounds_cost_nothing(tmp_path: Path, jsonl: Path, bounds: str, text: str) -> None:
    file = tmp_path / "bounds.toml"
    file.write_text(bounds, encoding="utf-8")
    done = run(jsonl, tmp_path / "out", "--baseline", NOBODY, "--candidate", f"a={NOBODY}",
               "--bounds", file)  # fmt: skip
    assert done.exit_code == 2 and text in done.stderr


SPEC = """
workload = "workload.jsonl"
loads = ["closed:1,2", "open:5"]
model = "lab-nano"

[baseline]

[[candidate]]
name = "quarter"
plan = "visionzip:keep=1/4"

[[candidate]]
name = "server"
url = "http://127.0.0.1:9/v1"
body = { mm_processor_kwargs = { max_pixels = 1000 } }

[bounds]
max_quality_drop = 0.05
"""


def test_a_spec_file_says_it_all(tmp_path: Path, jsonl: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(SPEC, encoding="utf-8")
    spec = load_spec(path)
    assert [a.name for a in spec.arms] == ["baseline", "quarter", "server"]
    assert spec.loads == ("closed:1", "closed:2", "open:5")
    assert spec.workload == str(jsonl) and spec.bounds == {"max_quality_drop": 0.05}
    assert spec.arms[1].model == "lab-nano" and spec.arms[2].model is None
    both = call("audit", "run", path, "--seed", 3, "--out", tmp_path / "out")
    assert both.exit_code == 2 and "--seed" in both.stderr


@pytest.mark.parametrize(
    "old, new, text",
    [
        ('model = "lab-nano"', 'modle = "lab-nano"', "modle|neither"),
        ("[baseline]", "[[baseline]]\n[[baseline]]", "one .baseline."),
        ('name = "server"', 'name = "quarter"', "two arms"),
        ('name = "server"', 'name = "server"\nplan = "random:keep=1/4"', "takes no plan"),
        ('name = "quarter"', 'name = "quarter"\npid = 3', "endpoints"),
        ("[bounds]", "[bound]", "bound"),
        ("loads =", "blocks = 0\nloads =", "blocks"),
        ("loads =", "loads = [", "TOML"),
    ],
)
def test_wrong_spec_files_say_what_is_wrong(
    tmp_path: Path, jsonl: Path, old: str, new: str, text: str
) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(SPEC.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=text):
        load_spec(path)


def test_the_hash_is_of_the_run_and_not_of_the_moment(tmp_path: Path, jsonl: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(SPEC, encoding="utf-8")
    spec = load_spec(path)
    with_pid = spec.model_copy(
        update={"arms": (*spec.arms[:2], spec.arms[2].model_copy(update={"pid": 7}))}
    )
    assert with_pid.hash == spec.hash
    assert spec.model_copy(update={"seed": 1}).hash != spec.hash


def test_the_options_that_say_nothing_are_those_of_the_command() -> None:
    """A spec file forbids other options; defaults of the command must not look like options."""
    import inspect

    from foveate.cli.audit import run as verb
    from foveate.cli.audit_options import UNSET

    names = {f: inspect.signature(verb).parameters[f].default for f in Given.__dataclass_fields__}
    for name, default in names.items():
        assert (default or getattr(UNSET, name)) == getattr(UNSET, name), name
