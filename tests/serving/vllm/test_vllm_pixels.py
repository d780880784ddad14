"""Pixel methods inside vLLM's processor answer as `foveate.Engine`'s pixel stage before the same
model, and never share a cache entry between plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import foveate
from foveate.core.plan import Plan
from tests.serving.vllm.conftest import run_job
from tests.serving.vllm.test_vllm_parity import (
    TOKENS,
    Case,
    compared,
    job_of,
    requests_of,
    skip_where_stock_fails,
    videos_of,
)

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from PIL import Image  # noqa: E402

from foveate.engine.pixels import Look  # noqa: E402
from foveate.models.adapter import adapter_for  # noqa: E402
from foveate.models.processors import video_inputs  # noqa: E402
from foveate.models.video import Video  # noqa: E402
from tests.serving.vllm import checkpoints, reference  # noqa: E402

REGIMES = ("cold", "hit", "batch")
CASES = (
    Case("qwen2_5_vl", "downscale:keep=1/2", REGIMES),
    Case("qwen2_5_vl", "downscale:keep=3/4+visionzip:keep=1/2", REGIMES),
    Case("qwen2_vl", "resolution:error=60", ("cold", "batch")),
    Case("smolvlm", "downscale:keep=1/2", REGIMES),
    Case("smolvlm", "tiles:keep=1/2+visionzip:keep=1/2", REGIMES),
    Case("idefics3", "tiles:tiles=1", ("cold", "batch")),
    Case("internvl", "downscale:keep=1/2", ("cold", "batch")),
    Case("internvl", "tiles:keep=1/2+divprune:keep=1/2", ("cold", "batch")),
    Case("llava_next", "downscale:keep=1/2", ("cold", "batch")),
)
VIDEOS = (
    Case("qwen2_vl", "frames:keep=1/2", REGIMES),
    Case("qwen2_5_vl", "frames:keep=1/2", REGIMES),
    Case("qwen2_5_vl", "keyframes:frames=4+evs:keep=1/2", ("cold", "hit")),
    Case("llava_onevision", "keyframes:frames=3", ("cold", "batch")),
    Case("qwen3_vl", "frames:keep=1/2", ("cold", "batch")),
    Case("internvl", "frames:frames=3", ("cold", "batch")),
)


def reference_run(
    model: Any, processor: Any, plan: str, requests: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Greedy answers after the engine's pixel stage, the rest of the plan by `attach`."""
    parsed = Plan.parse(plan)
    method = parsed.stage("pixels")
    rest = str(replace(parsed, methods=tuple(m for m in parsed.methods if m is not method)))
    found = []
    for request in requests:
        look = Look(adapter_for(model), processor, method, parsed.seed)
        pictures = [Image.open(p).convert("RGB") for p in request.get("images", ())]
        clips = [clip_of(p, request["fps"]) for p in request.get("videos", ())]
        (shown,), (seen,) = look.before([pictures], [clips])
        media: dict[str, Any] = {"images": shown} if shown else {}
        media |= video_inputs(seen) if seen else {}
        made = processor(text=request["prompt"], return_tensors="pt", **media, **look.call)
        inputs = look.after(made)
        found += reference.answers(model, processor, rest, [inputs], TOKENS)
    return found


def clip_of(path: str, fps: float) -> Video:
    frames = np.load(path)
    return Video(frames, np.arange(len(frames)) / fps, fps, len(frames) / fps)


@pytest.mark.claim("V1")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.family}-{c.plan.split(':')[0]}")
def test_pictures_are_shown_as_the_engine_shows_them(
    case: Case, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Prompt lengths and tokens equal, log-probabilities within 1e-4, for three shapes and for two
    pictures.
    """
    skip_where_stock_fails(case, vllm)
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = requests_of(case.family, tmp_path)
    wanted = reference_run(model, processor, case.plan, asked)
    compared(run_job(job_of(case, folder, asked), tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
@pytest.mark.parametrize("case", VIDEOS, ids=lambda c: f"{c.family}-{c.plan.split(':')[0]}")
def test_videos_show_the_frames_that_the_engine_shows(
    case: Case, vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The same frames at the same times; pictures beside a video stay whole."""
    skip_where_stock_fails(case, vllm, videos=True)
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked = videos_of(case.family, tmp_path)
    wanted = reference_run(model, processor, case.plan, asked)
    limits = {"image": 1, "video": 2}
    job = job_of(case, folder, asked, limit_mm_per_prompt=limits, max_model_len=4096)
    compared(run_job(job, tmp_path), wanted, record_property)


@pytest.mark.claim("V1")
def test_requests_bring_pixel_plans_of_their_own_and_larger_pictures_than_the_servers(
    vllm: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """What vLLM profiled at its start is the server's plan; a request that keeps all, or leaves out
    tiles, of a picture that others see smaller is served all the same.
    """
    case = Case("smolvlm", "downscale:keep=1/4", REGIMES)
    model, processor = checkpoints.make(case.family)
    folder = checkpoints.save(case.family, model, processor, tmp_path)
    asked, wanted = [], []
    pictures = requests_of(case.family, tmp_path)[:6:2]
    for plan in (None, "none", "tiles:keep=1/2", "resolution:error=60+divprune:keep=1/2"):
        own = {} if plan is None else {"kwargs": {"foveate_plan": plan}}
        asked += [{**r, **own} for r in pictures]
        wanted += (
            reference.attach_run(model, processor, plan, pictures, TOKENS)
            if plan == "none"
            else reference_run(model, processor, plan or case.plan, pictures)
        )
    compared(run_job(job_of(case, folder, asked), tmp_path), wanted, record_property)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "smolvlm"])
def test_pictures_come_in_many_ways_and_caches_tell_plans_apart(
    family: str, vllm: str, tmp_path: Path
) -> None:
    """By the server's plan and by a request's: equal pixels however a picture is sent, a key of its own
    for each plan, and no look at what a cache holds or at a picture that was not sent again.
    """
    folder = checkpoints.save(family, *checkpoints.make(family), tmp_path)
    size, plan = (112, 80), "downscale:keep=1/2"
    path = tmp_path / "picture.png"
    checkpoints.picture(0, size).save(path)
    job = {"model": str(folder), "prompt": checkpoints.FAMILIES[family].mark, "picture": str(path)}
    cases = [[plan, None], ["none", plan]]
    answers = run_job({**job, "cases": cases}, tmp_path, "pixels_run.py")
    count = foveate.count_tokens(*size, plan, folder)
    for answer in answers:
        assert {(w["tokens"], w["pixels"]) for w in answer["ways"].values()} == {
            (count, answer["ways"]["pil"]["pixels"])
        }
        assert answer["tiny"]["tokens"] == foveate.count_tokens(1, 1, plan, folder)
        first, again, whole, named, alone = answer["cache"]["answers"]
        assert first == again and named == alone and whole["tokens"] > first["tokens"] == count
        assert len({x["key"] for x in (first, whole, named)}) == 3
        looked = answer["cache"]["looked"]
        assert looked[0] == looked[2] == looked[1] or vllm.startswith("0.28")
        assert looked[3] == looked[4] > looked[1] or vllm.startswith("0.28")
    assert answers[0]["ways"] == answers[1]["ways"]
