"""Time stamps of video segments: from the engine's own frames, and from what a processor says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate.core.errors import InputError
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.engine.times import row_times
from foveate.models.adapter import adapter_for
from foveate.models.processors import video_inputs
from foveate.models.video import Video, load_video
from tests.cli.cli_cases import call, last_json
from tests.cli.test_cli_pictures import clip
from tests.models.tiny_processors import save_folder
from tests.support import tiny

FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
FRAMES = ("internvl", "smolvlm")  # read a video as one picture a frame
NO_MARKS = {"suppress_tokens": [tiny.IMAGE, tiny.VIDEO]}
ASK = "what is in the picture ?"
FILM = [0.125, 0.625, 1.125]  # six frames, four a second, two a row


def folder_of(path: Path, frames: int, seed: int = 0) -> Path:
    """A folder of frames: a video with one frame a second."""
    path.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(frames):
        pixels = rng.integers(0, 255, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / f"frame{i}.png")
    return path


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    name = str(request.param)
    folder = save_folder(name, tiny.make_model(name), tmp_path_factory.mktemp(name))
    return Engine.from_pretrained(folder)


def stamps(engine: Engine, request: Request, plan: str = "none") -> list[list[float] | None]:
    (answer,) = engine.generate([request], plan, max_new_tokens=1, **NO_MARKS)
    assert answer.ok, answer.error
    return [None if s.time_s is None else list(s.time_s) for s in answer.report.segments]


def expected(engine: Engine, times: list[float]) -> list[list[float] | None]:
    name = engine.adapter.model_type
    if name in FRAMES:
        return [[t] for t in times]
    if "qwen" in name:
        times = [*times, *times[-1:]] if len(times) % 2 else times
        return [[(a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)]]
    return [list(times)]


def test_rows_carry_the_times_of_their_frames(engine: Engine, tmp_path: Path) -> None:
    video = folder_of(tmp_path / "clip", 6)
    got = stamps(engine, Request(ASK, videos=[video]))
    assert got == expected(engine, [0, 1, 2, 3, 4, 5])
    assert stamps(engine, Request(ASK, images=[video / "frame0.png"])) in (
        [[None] * n for n in (1, 2, 5)]
    )


def test_sampling_by_the_loader_and_by_methods_moves_them(engine: Engine, tmp_path: Path) -> None:
    video = folder_of(tmp_path / "clip", 12)
    request = Request(ASK, videos=[video])
    loaded = load_video(video, max_frames=6)
    before, engine.max_frames = engine.max_frames, 6
    try:
        assert stamps(engine, request) == expected(engine, loaded.time_s.tolist())
    finally:
        engine.max_frames = before
    assert loaded.time_s.tolist() != [0, 1, 2, 3, 4, 5]
    for plan in ("frames:frames=4", "keyframes:frames=4"):
        got = stamps(engine, request, plan)
        flat = [t for row in got for t in row or []]
        assert flat and flat != expected(engine, [0, 1, 2, 3])
        if plan.startswith("frames"):  # the middles of four parts of twelve
            assert got == expected(engine, [1, 4, 7, 10])


def test_a_batch_of_videos_beside_pictures(engine: Engine, tmp_path: Path) -> None:
    if engine.adapter.model_type == "smolvlm":
        pytest.skip("its processor gives pictures and videos of one prompt under one name")
    clips = [folder_of(tmp_path / f"clip{i}", 4, i) for i in range(3)]
    picture = clips[0] / "frame0.png"
    requests = [
        Request(ASK, images=[picture], videos=[clips[0]]),
        Request(ASK, images=[picture], videos=[clips[1]]),
        Request(ASK, videos=[clips[2]]),
    ]
    answers = engine.generate(requests, "divprune:keep=1/2", max_new_tokens=1, **NO_MARKS)
    assert all(a.ok for a in answers), [a.error for a in answers]
    want = expected(engine, [0, 1, 2, 3])
    for answer in answers:
        found = [None if s.time_s is None else list(s.time_s) for s in answer.report.segments]
        assert found[-len(want) :] == want
        assert all(t is None for t in found[: -len(want)])


@given(st.integers(1, 9), st.integers(1, 9))
def test_rows_are_the_middle_of_equal_runs(count: int, rows: int) -> None:
    times = np.cumsum(np.arange(1, count + 1)).astype(float)
    got = row_times(times, rows)
    each = next((k for k in range(1, count + 1) if -(-count // k) == rows), None)
    if each is None:
        assert got is None
        return
    runs = [times[i : i + each] for i in range(0, count, each)]
    runs[-1] = np.append(runs[-1], [times[-1]] * (each - len(runs[-1])))
    assert got is not None and got.tolist() == [(r[0] + r[-1]) / 2 for r in runs]


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_attach_reads_the_processors_metadata(name: str, tmp_path: Path) -> None:
    engine = Engine.from_pretrained(save_folder(name, tiny.make_model(name), tmp_path))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (6, 56, 56, 3), dtype=np.uint8)
    times = np.asarray([0.0, 0.5, 2.0, 2.5, 4.0, 6.5])
    clip = Video(frames, times, 2.0, 7.0)
    content = [{"type": "video"}, {"type": "text", "text": "is"}]
    text = engine.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    made = engine.processor(
        text=[text], return_tensors="pt", return_metadata=True, **video_inputs([clip])
    )
    assert "video_metadata" in made
    with foveate.attach(engine.model, "divprune:keep=1/2") as state:
        engine.model.generate(**made, max_new_tokens=1, **NO_MARKS)
        (segment,) = state.last.rows[0].segments
        want = expected(engine, times.tolist())[0]
        assert segment.time_s.tolist() == want
        bare: Any = dict(made)
        bare["video_metadata"] = [{"fps": None, "frames_indices": [0]}]
        engine.model.generate(**bare, max_new_tokens=1, **NO_MARKS)
        assert state.last.rows[0].segments[0].time_s is None
        bare["video_metadata"] = [{"rate": 2}]
        with pytest.raises(InputError, match="return_metadata"):
            engine.model.generate(**bare, max_new_tokens=1, **NO_MARKS)
        del bare["video_metadata"]
        engine.model.generate(**bare, max_new_tokens=1, **NO_MARKS)
        found = state.last.rows[0].segments[0].time_s
        if name == "qwen2_5_vl":  # it is told the mean seconds a row: frames are 7 / 6 s apart
            assert found.tolist() == pytest.approx([7 / 6 * (2 * i + 0.5) for i in range(3)])
        else:
            assert found is None


@pytest.mark.parametrize("name", tiny.VIDEO_FAMILIES)
@torch.no_grad()
def test_every_family_without_times_says_none_and_with_them_says_them(name: str) -> None:
    from foveate.core import Plan
    from foveate.engine.compress import compress
    from foveate.engine.times import stamp

    model = tiny.cached_model(name)
    adapter = adapter_for(model)
    mm: Any = tiny.video_inputs(name, 2)
    row = tiny.video_prompt(name, model, mm)
    plain = compress(adapter, Plan(), {**row, **mm}).rows[0]
    if "video_second_per_grid" in row:  # these two cannot run without: a second a row of two frames
        assert [s.time_s.tolist() for s in plain.segments] == [
            [0.25 + i for i in range(s.grid[0])] for s in plain.segments
        ]
    else:
        assert all(s.time_s is None for s in plain.segments)
    steps = tiny.family(name).videos.frames(mm)  # type: ignore[union-attr]
    alone = name.startswith("minicpm")  # each frame is a segment of its own
    videos = [np.arange(t) + 10.0 * i for i, t in enumerate([3, 4] if alone else steps)]
    short = compress(
        adapter, Plan(), {**row, **mm}, times=lambda rows: stamp(rows, clips=[videos], pictures=[0])
    )
    got = [s.time_s.tolist() for s in short.rows[0].segments]
    want = [[t] for v in videos for t in v] if alone else [v.tolist() for v in videos]
    assert got == want
    assert [list(r.time_s or ()) for r in short.rows[0].reports] == want


def test_explain_and_run_show_them(tmp_path: Path) -> None:
    folder = save_folder("qwen3_vl", tiny.make_model("qwen3_vl"), tmp_path)
    film = clip(tmp_path / "film.mp4")
    common = (film, "--question", ASK, "--model", folder, "--max-new-tokens", 1)
    done = call("run", *common, "--plan", "divprune:keep=1/2", "--json")
    assert done.exit_code == 0, done.stderr
    (segment,) = last_json(done.stdout)["results"][0]["plan"]["report"]["segments"]
    assert segment["time_s"] == pytest.approx(FILM)
    done = call("explain", *common, "--plan", "divprune:keep=1/2", "--out", tmp_path / "sheet.png")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("video at " + ", ".join(f"{t:g}" for t in FILM) + " s") == 2
