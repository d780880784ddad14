"""What the benchmarks of the language model say, from small models: cells, ratios and claims."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
import torch

from bench import decode, inside_gpu, inside_table, prefill
from bench.encode_store import Store
from bench.inside import GEOMETRIES, Geometry, Inside
from foveate.core import Plan
from foveate.engine.language_run import LanguageRun


@pytest.fixture(scope="module")
def bench() -> Inside:
    from bench.encode_models import smolvlm

    return Inside(Geometry("smolvlm", "four layers of it", lambda: smolvlm(layers=4)))


@torch.no_grad()
def test_a_plan_is_timed_on_the_same_call_as_everything(bench: Inside) -> None:
    """Both give logits of every row; the FLOP ratio follows from the tokens of each layer."""
    dense = bench.dense(32, 2)()
    with LanguageRun(bench.adapter, Plan.parse("fastv:layer=2,keep=1/4")).attached() as run:
        kept = bench.planned(32, 2, run)()
        counts = run.counts
    assert dense.logits.shape == kept.logits.shape and counts == [[32, 32, 8, 8]] * 2
    assert bench.ratio(32, [32] * 4) == 1 and 0.5 < bench.ratio(32, counts[0]) < 1
    assert not torch.equal(dense.logits, kept.logits)


def test_cells_that_are_too_large_are_not_run(bench: Inside) -> None:
    assert prefill.why_not(bench, 32, 1, 1e12, 60) is None
    assert "s of CPU" in str(prefill.why_not(bench, 32, 1, 1e6, 60))
    assert "GB" in str(prefill.why_not(bench, 10**6, 16, 1e30, 60))
    assert decode.why_not(bench, 64, 1) is None and decode.why_not(bench, 10**6, 64)


@torch.no_grad()
def test_rounds_go_on_where_they_ended(bench: Inside, tmp_path: Path) -> None:
    """A method that cannot run says why; one that can has a round more; the table has both."""
    store = Store(tmp_path / "prefill.json")
    for _ in range(2):
        prefill.one_round(bench, store, 32, 1, ["fastv", "dyvte"])
    cell = store.cells["smolvlm 32 x1 fastv"]["time"]
    assert cell["rounds"] == len(cell["ratio"]) == 2
    assert "weights" in store.cells["smolvlm 32 x1 dyvte"]["time"]["not_run"]
    prefill.write(store)
    again = Store(tmp_path / "prefill.json")
    assert again.data["bench"] == "prefill"
    assert [c["holds"] for c in again.data["claims"]] == [None, None]


def _claims(tmp_path: Path, ratios: list[float]) -> Any:
    store = Store(tmp_path / "prefill.json")
    for r in ratios:
        store.append("smolvlm 2880 x1 fastv", "a", 9, {"ratio": r})
    return prefill.claims(store)[0]


def test_the_claim_is_about_the_median(tmp_path: Path) -> None:
    held = _claims(tmp_path, [1.0, 1.1, 1.3])
    assert held["holds"] is True and held["figure"] == "1.100" and "median of 3" in held["what"]
    assert _claims(tmp_path, [1.2, 1.2, 1.1])["holds"] is False


@torch.no_grad()
def test_the_three_caches_hold_what_they_say(bench: Inside) -> None:
    """dense and full hold everything, kept a share, each after its steps; all three decode."""
    held = {}
    for kind, keep in (("dense", "1"), ("kept", "1/4"), ("full", "1")):
        with LanguageRun(bench.adapter, Plan()).attached() as run:
            cache = (
                decode.dynamic(bench, 64, 2)
                if kind == "dense"
                else decode.ragged(bench, run, 64, 2, decode.Fraction(keep))
            )
            if kind != "dense":
                decode.generate(bench, cache, 64, 2, 3)
        if kind == "dense":
            decode.generate(bench, cache, 64, 2, 3)
        held[kind] = decode.held_bytes(cache)
    one = 2 * sum(x.kv_heads * x.head_dim * 2 * 4 for x in bench.shape.layers)
    assert held == {"dense": 67 * one, "kept": 32 * one, "full": 80 * one}


@pytest.mark.parametrize("build", [inside_gpu.llava15_7b, inside_gpu.qwen25vl_7b])
def test_the_benchmark_for_a_gpu_runs_its_whole_path(build: Any, tmp_path: Path) -> None:
    """Three layers of each 7B model, on whatever device there is: a row a method and one of decoding."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    geometry = Geometry("few", "three layers", lambda: build(layers=3, vocab=1200))
    bench = inside_gpu.OnDevice(geometry, device, torch.bfloat16)
    store = Store(tmp_path / "inside-gpu.json")
    args = argparse.Namespace(
        tokens=[32], batch=[2], rounds=1, methods=["fastv"], keep="1/4", new=3,
        scratch=tmp_path / "scratch.json",
    )  # fmt: skip
    inside_gpu.measure(bench, store, args)
    inside_gpu.table(store)
    cell = Store(tmp_path / "inside-gpu.json").cells["few 32 x2 fastv"]["time"]
    assert cell["rounds"] == 1 and cell["k"] == 16 and 0.5 < cell["flop_ratio"] < 1
    assert cell["dense_s"][0] > 0 and cell["plan_s"][0] > 0
    decoded = store.cells["few 92 1/4 +3 x2"]["time"]
    heads = sum(x.kv_heads * x.head_dim for x in bench.shape.layers)
    assert decoded["dense_held_bytes"] == [float(f"{2 * 92 * heads * 2 * 2:.4g}")]
    assert not (tmp_path / "scratch.json").exists()


def test_a_whole_geometry_is_cut_to_its_first_layers() -> None:
    cut = prefill.cut(GEOMETRIES["smolvlm"], 4)
    bench = Inside(cut)
    whole = [x.mlp.inner for x in bench.shape.layers]
    assert cut.name == "smolvlm-4" and len(whole) == 4 and set(whole) == {1536}
    assert bench.dense(32, 1)().past_key_values.get_seq_length() == 92


def test_the_page_is_written_from_the_results() -> None:
    """A row a cell, and the figures of the committed results."""
    first, second = Store(prefill.PATH), Store(decode.PATH)
    text = inside_table.page(first, second)
    assert inside_table.PAGE.read_text(encoding="utf-8") == text
    assert text.count("\n| ") == 2 + len(first.cells) + len(second.cells)


def test_geometries_have_names() -> None:
    assert list(GEOMETRIES) == ["smolvlm", "onevision", "llava15"]
