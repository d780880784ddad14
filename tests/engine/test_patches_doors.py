"""PixelPrune through both doors and the command line, on pictures and videos with real processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveate
from foveate.core import Plan
from foveate.core.errors import InputError
from foveate.engine.cache import FeatureCache
from foveate.engine.engine import Engine
from foveate.engine.patches import patches_of
from foveate.engine.request import Request
from foveate.models.packed import Packing
from tests.cli.cli_cases import call, last_json
from tests.models.tiny_processors import save_folder
from tests.support import tiny

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
NO_MARKS = {"suppress_tokens": [tiny.IMAGE, tiny.VIDEO]}
BLOCK = 8  # pixels of one visual token of the tiny processors
ASK = "what is in the picture ?"


def page(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """A grey page of rows x cols visual tokens with a noisy patch of 2 x 2 tokens on it."""
    out = np.full((rows * BLOCK, cols * BLOCK, 3), 180, np.uint8)
    noise = np.random.default_rng(seed).integers(0, 256, (2 * BLOCK, 2 * BLOCK, 3), dtype=np.uint8)
    out[BLOCK : 3 * BLOCK, 2 * BLOCK : 4 * BLOCK] = noise
    return out


def of_page(cols: int) -> list[int]:
    """What the rule keeps of a page: the first token, the four noisy ones, the grey that begins again
    right of each, and the grey below the first (left of it an upright edge seems to go on).
    """
    return [0, *(cols + x for x in (2, 3, 4)), *(2 * cols + x for x in (2, 3, 4)), 3 * cols + 2]


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    name = str(request.param)
    folder = save_folder(name, tiny.make_model(name), tmp_path_factory.mktemp(name))
    return Engine.from_pretrained(folder)


def ask(engine: Engine, *pictures: np.ndarray, **more: Any) -> Request:
    return Request(ASK, images=[Image.fromarray(p) for p in pictures], **more)


def run(engine: Engine, requests: list[Request], plan: str) -> list[Any]:
    answers = engine.generate(requests, plan, max_new_tokens=4, **NO_MARKS)
    assert all(a.ok for a in answers), [a.error for a in answers]
    return answers


def test_a_page_keeps_what_its_neighbours_do_not_foretell(engine: Engine) -> None:
    sizes = [(8, 8), (6, 7), (4, 5)]
    requests = [ask(engine, page(8, 8)), ask(engine, page(6, 7, 1), page(4, 5, 2))]
    answers = run(engine, requests, "pixelprune")
    alone = [run(engine, [r], "pixelprune")[0] for r in requests]
    assert [a.token_ids for a in answers] == [a.token_ids for a in alone]
    kept = [s for a in answers for s in a.kept]
    assert [s.grid for s in kept] == [(1, h, w) for h, w in sizes]
    for segment, (h, w) in zip(kept, sizes, strict=True):
        assert segment.tokens == h * w
        assert segment.anchors.tolist() == of_page(w)
    report = answers[0].report
    assert report is not None and report.visual_tokens_in == 64
    assert report.visual_tokens_kept == len(kept[0].anchors)
    assert report.prompt_tokens_in - report.prompt_tokens == 64 - report.visual_tokens_kept
    assert f"patches of {report.visual_tokens_kept} of 64" in report.notes[-1]
    assert not report.identity and report.segments[0].tokens_in == 64


def test_constant_one_block_and_busy_pictures(engine: Engine) -> None:
    flat = np.full((64, 48, 3), 7, np.uint8)
    (answer,) = run(engine, [ask(engine, flat)], "pixelprune")
    assert [s.anchors.tolist() for s in answer.kept] == [[0]]
    small = np.random.default_rng(0).integers(0, 256, (BLOCK, BLOCK, 3), dtype=np.uint8)
    busy = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    for picture in (small, busy):
        (answer,) = run(engine, [ask(engine, picture)], "pixelprune")
        (dense,) = run(engine, [ask(engine, picture)], "none")
        assert answer.report.identity and answer.token_ids == dense.token_ids
        assert "nothing was dropped" in answer.report.notes[-1]
    single = engine.processor.image_processor
    assert small.shape[0] ** 2 >= single.size["shortest_edge"]  # shown as it is: one visual token
    assert run(engine, [ask(engine, small)], "pixelprune")[0].kept[0].grid == (1, 1, 1)


def test_both_doors_give_one_answer(engine: Engine) -> None:
    picture = page(8, 8)
    request = ask(engine, picture)
    (answer,) = run(engine, [request], "pixelprune")
    prepared = engine.prepare(request)
    inputs = engine.processor(text=[prepared.text], images=prepared.pictures, return_tensors="pt")
    for given in (engine.processor, None):
        with foveate.attach(engine.model, "pixelprune", processor=given) as state:
            out = engine.model.generate(**inputs, max_new_tokens=4, do_sample=False, **NO_MARKS)
        assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
        assert tuple(out[0, inputs["input_ids"].shape[1] :].tolist()) == answer.token_ids
        row = state.last.rows[0]
        assert np.array_equal(row.placed[0].cells(row.reductions[0].anchor), answer.kept[0].anchors)
    with foveate.attach(engine.model, "pixelprune", processor=engine.processor) as state:
        logits = engine.model(**inputs).logits
    assert logits.shape[1] == answer.report.prompt_tokens


def test_near_repetition_needs_a_threshold_and_its_unit(engine: Engine) -> None:
    picture = page(8, 8)
    picture[40:48, 40:48] += 5  # of 255
    kept = [
        len(run(engine, [ask(engine, picture)], f"pixelprune:threshold={t}")[0].kept[0].anchors)
        for t in (0, 0.019, 0.02)  # 5 / 255 = .0196
    ]
    assert kept[0] == kept[1] > kept[2]
    prepared = engine.prepare(ask(engine, picture))
    inputs = engine.processor(text=[prepared.text], images=prepared.pictures, return_tensors="pt")
    with (
        foveate.attach(engine.model, "pixelprune:threshold=0.02"),
        pytest.raises(InputError, match="processor="),
    ):
        engine.model.generate(**inputs, max_new_tokens=1)


def test_a_video_of_one_scene_costs_about_one_step(engine: Engine) -> None:
    frames = [page(8, 8)] * 6
    plan = "pixelprune"
    (answer,) = run(engine, [Request(ASK, videos=[frames])], plan)
    (segment,) = answer.kept
    t, h, w = segment.grid
    assert t > 1 and segment.anchors.max() < h * w and answer.report.visual_tokens_in == t * h * w
    moved = [*frames[:4], *[page(8, 8, 9)] * 2]
    (answer,) = run(engine, [Request(ASK, videos=[moved])], plan)
    late = [a for a in answer.kept[0].anchors if a >= (answer.kept[0].grid[0] - 1) * h * w]
    assert 4 <= len(late) < h * w  # some tiny processors shrink a frame to 4 x 4 tokens


def test_pictures_put_together_are_those_the_processor_cut(engine: Engine) -> None:
    picture = np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    part = engine.processor.image_processor
    made = part(images=[Image.fromarray(picture)], return_tensors="pt")
    packing = Packing(engine.adapter, dict(made), "image")
    seen = packing.picture(0)
    mean, std = np.asarray(part.image_mean), np.asarray(part.image_std)
    want = (picture / 255 - mean) / std
    assert seen.shape == (2, 40, 56, 3)
    assert np.abs(seen - want).max() < 1e-5
    chooser: Any = patches_of(engine.adapter, Plan.parse("pixelprune"), engine.processor)
    span = chooser._view(0, packing, 0).span
    assert span == pytest.approx(1 / std)


def test_a_cache_is_passed_by_where_patches_leave(engine: Engine) -> None:
    engine.cache = FeatureCache()
    try:
        first = run(engine, [ask(engine, page(8, 8))], "pixelprune")[0]
        assert engine.cache.stats.bypassed == 1 and engine.cache.stats.entries == 0
        assert "not cached" in first.report.notes[-1]
        again = run(engine, [ask(engine, page(8, 8))], "pixelprune")[0]
        dense = run(engine, [ask(engine, page(8, 8))], "none")[0]
        assert again.token_ids == first.token_ids
        assert dense.report.visual_tokens_kept == 64
        assert engine.cache.stats.entries == 1
    finally:
        engine.cache = None


@torch.no_grad()
def test_half_precision_finds_the_same_repetition(engine: Engine) -> None:
    prepared = engine.prepare(ask(engine, page(8, 8)))
    made = engine.processor(text=[prepared.text], images=prepared.pictures, return_tensors="pt")
    chooser: Any = patches_of(engine.adapter, Plan.parse("pixelprune"), engine.processor)
    picks = []
    for dtype in (torch.float32, torch.bfloat16):
        mm = {**made, "pixel_values": made["pixel_values"].to(dtype)}
        packing = Packing(engine.adapter, mm, "image")
        picks.append(chooser.method.reduce([chooser._view(0, packing, 0)], chooser.rng)[0].patches)
    assert picks[0] == picks[1] and picks[0]


def test_the_command_line(tmp_path: Path) -> None:
    folder = save_folder("qwen2_5_vl", tiny.make_model("qwen2_5_vl"), tmp_path)
    file = tmp_path / "page.png"
    Image.fromarray(page(8, 8)).save(file)
    common = (file, "--question", ASK, "--model", folder, "--max-new-tokens", 2)
    done = call("run", *common, "--plan", "pixelprune+divprune:keep=1/2", "--json")
    assert done.exit_code == 0, done.stderr
    report = last_json(done.stdout)["results"][0]["plan"]["report"]
    assert report["visual_tokens_in"] == 64 and 0 < report["visual_tokens_kept"] <= 4
    sheet = tmp_path / "sheet.png"
    done = call(
        "explain", *common, "--plan", "pixelprune", "--plan", "pixelprune+pool:keep=1/2",
        "--out", sheet,
    )  # fmt: skip
    assert done.exit_code == 5 and sheet.is_file()  # the second plan's panel says why
    assert "full grid" in done.stderr.replace("\n", " ") and "of 64" in done.stdout
    done = call("list")
    assert done.exit_code == 0 and "pixelprune" in done.stdout
