"""Pictures of choices: which pixels are lit, tiles, crops, frames, sheets; explain and demo."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from foveate.cli.asking import Task, pictures_of
from foveate.cli.sources import Item
from foveate.core import Plan
from foveate.core.errors import InputError, UnsupportedError
from foveate.core.views import Box
from foveate.engine.draw import (
    LARGE,
    SMALL,
    field_of_view,
    kept_frames,
    kept_picture,
    tile_layout,
)
from foveate.engine.request import Answer, KeptSegment
from foveate.engine.sheet import Panel, answer_pictures, sheet
from tests.cli.cli_cases import call, last_json, process
from tests.models.tiny_processors import save_folder
from tests.support import tiny

RED = (200, 40, 40)


def kept(
    grid: tuple[int, int, int], anchors: list[int], kind: str = "image", image: int = 0
) -> KeptSegment:
    return KeptSegment(image, kind, grid, int(np.prod(grid)), np.array(anchors, np.int64))


def lit(image: Image.Image) -> np.ndarray:
    """Pixels that kept the colour of a plain red picture."""
    return np.asarray((np.asarray(image) == RED).all(-1))


def cells(image: Image.Image, rows: int, columns: int) -> np.ndarray:
    """Which cells show red at their centre."""
    mask = lit(image)
    y = (np.arange(rows) * 2 + 1) * mask.shape[0] // (2 * rows)
    x = (np.arange(columns) * 2 + 1) * mask.shape[1] // (2 * columns)
    return mask[np.ix_(y, x)]


def red(width: int = 336, height: int = 336) -> Image.Image:
    return Image.new("RGB", (width, height), RED)


def test_kept_cells_keep_their_colour_and_dropped_ones_lose_it() -> None:
    image = kept_picture(red(672, 336), [kept((1, 4, 8), [0, 9, 31])])
    want = np.zeros(32, bool)
    want[[0, 9, 31]] = True
    assert (cells(image, 4, 8) == want.reshape(4, 8)).all()
    pixels = np.asarray(image, np.float32)
    dropped = pixels[336 // 2 + 20, 20]
    assert dropped.max() < 100 and np.ptp(dropped) < 40  # dark and nearly grey


def test_all_kept_is_the_picture_with_a_thin_grid() -> None:
    image = kept_picture(red(), [kept((1, 6, 6), list(range(36)))])
    assert cells(image, 6, 6).all() and 0.9 < lit(image).mean() < 1


@pytest.mark.parametrize(
    ("size", "shown"),
    [((28, 56), (168, 336)), ((336, 100), (336, 100)), ((3000, 1500), (LARGE, 512))],
)
def test_small_pictures_grow_and_large_ones_shrink(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    image = kept_picture(red(*size), [kept((1, 2, 2), [0])])
    assert image.size == shown and SMALL <= max(image.size) <= LARGE


def test_a_crop_leaves_the_rest_unseen() -> None:
    clip = SimpleNamespace(
        do_center_crop=True, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
    )
    field = field_of_view(clip, (672, 336))
    assert field == Box(168, 0, 504, 336)
    assert field_of_view(clip, (336, 672)) == Box(0, 168, 336, 504)
    assert field_of_view(clip, (500, 500)) is None
    assert field_of_view(SimpleNamespace(do_center_crop=False), (672, 336)) is None
    assert field_of_view(None, (672, 336)) is None
    wide = SimpleNamespace(
        do_center_crop=True, size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
    )
    assert field_of_view(wide, (512, 512)) == Box(32, 32, 480, 480)
    image = kept_picture(red(672, 336), [kept((1, 3, 3), list(range(9)))], field)
    seen = cells(image, 4, 8)
    assert seen[:, 2:6].all() and not seen[:, :2].any() and not seen[:, 6:].any()


@pytest.mark.parametrize(
    ("count", "aspect", "may_end", "layout"),
    [
        (4, 1.0, False, (2, 2, 0)), (4, 4.0, False, (1, 4, 0)), (6, 0.7, False, (3, 2, 0)),
        (13, 1.3, True, (3, 4, 1)), (7, 1.5, True, (2, 3, 1)), (3, 2.0, True, (1, 2, 1)),
        (5, 1.0, True, (2, 2, 1)), (2, 2.0, True, (1, 2, 0)),
    ],
)  # fmt: skip
def test_tiles_take_the_layout_nearest_to_the_picture(
    count: int, aspect: float, may_end: bool, layout: tuple[int, int, int]
) -> None:
    assert tile_layout(count, aspect, may_end) == layout


def test_tiles_are_laid_out_row_by_row_and_the_thumbnail_stands_beside() -> None:
    tiles = [kept((1, 2, 2), [i], "tile") for i in range(4)]
    for parts in (
        [*tiles, kept((1, 2, 2), [0, 1], "thumbnail")],
        [*tiles, kept((1, 2, 2), [0, 1], "tile")],  # InternVL: the last tile is the whole picture
    ):
        image = kept_picture(red(), parts)
        assert image.width > 336 and image.height == 336
        want = np.zeros((4, 4), bool)
        want[0, 0] = want[0, 3] = want[3, 0] = want[3, 3] = True
        assert (cells(image.crop((0, 0, 336, 336)), 4, 4) == want).all()
        small = cells(image.crop((image.width - 168, 0, image.width, 168)), 2, 2)
        assert small.tolist() == [[True, True], [False, False]]


def test_a_single_tile_segment_is_the_whole_high_resolution_grid() -> None:
    image = kept_picture(red(), [kept((1, 2, 2), [3], "thumbnail"), kept((1, 3, 3), [4], "tile")])
    assert cells(image.crop((0, 0, 336, 336)), 3, 3).sum() == 1


def test_frames_are_shown_in_order() -> None:
    frames = [red(64, 64) for _ in range(8)]
    image = kept_frames(frames, [kept((4, 2, 2), [0, 5, 10, 15], "video")])
    assert lit(image).any()
    stamped = kept_frames(frames, [kept((1, 2, 2), [i], "image") for i in range(4)])
    assert (np.asarray(stamped) == np.asarray(image)).all()


def test_tokens_without_a_place_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no place in the picture"):
        kept_picture(red(), [kept((1, 1, 40), [3])])
    with pytest.raises(UnsupportedError, match="do not fill a grid"):
        kept_picture(red(), [KeptSegment(0, "image", (1, 4, 4), 15, np.array([0]))])
    with pytest.raises(InputError):
        kept_picture(red(), [])
    with pytest.raises(InputError):
        kept_frames([], [])


def test_pictures_and_videos_of_an_answer_are_told_apart() -> None:
    answer = Answer(
        "x",
        kept=(kept((1, 2, 2), [0], image=0), kept((1, 2, 2), [3], image=1),
              kept((2, 2, 2), [1, 6], "video", image=2)),
        pictures=(red(), red()),
    )  # fmt: skip
    first, second, video = answer_pictures(answer, None, [[red(64, 64)] * 4])
    assert cells(first, 2, 2).tolist() == [[True, False], [False, False]]
    assert cells(second, 2, 2).tolist() == [[False, False], [False, True]]
    assert video.width != first.width


def test_a_sheet_holds_every_panel_and_wraps_its_labels() -> None:
    long = "an answer of many words " * 12 + "x" * 200
    short = sheet([[Panel(red(), "a", ("b",)), Panel(red(), "c")], [Panel(red(), "d")]], "heading")
    tall = sheet([[Panel(red(), "a", (long,)), Panel(red(), "c")], [Panel(red(), "d")]], "heading")
    assert tall.width == short.width and tall.height > short.height + 60
    mask = lit(short)
    assert mask.sum() == 3 * 336 * 336


# --- the verbs ----------------------------------------------------------------------------------
def test_explain_draws_every_plan_and_says_why_one_was_refused(
    llava: Path, picture: Path, tmp_path: Path
) -> None:
    target = tmp_path / "sheets" / "sheet.png"
    plans = ("divprune:keep=1/4", "cdpruner-clip:keep=1/4", "pool:keep=1/4")
    words = [x for p in plans for x in ("--plan", p)]
    done = call("explain", picture, "-q", "what ?", "--model", llava, *words, "--out", target, "--json",
                "--max-new-tokens", 2)  # fmt: skip
    assert done.exit_code == 5, done.stderr
    data = last_json(done.stdout)
    assert [r["plan"] for r in data["results"]] == ["none", *plans]
    assert [r["error"] is None for r in data["results"]] == [True, True, False, True]
    found = [r["report"]["visual_tokens_kept"] for r in data["results"] if r["report"]]
    assert found == [16, 4, 4]
    with Image.open(target) as image:
        assert image.width > 4 * SMALL
    done = call("explain", picture, "-q", "what ?", "--model", llava, *words[:2], "--out", target,
                "--max-new-tokens", 1)  # fmt: skip
    assert done.exit_code == 0 and f"wrote {target}" in done.stdout
    assert "4 of 16 visual tokens (25%)" in done.stdout


@pytest.mark.claim("F8")
def test_the_demo_ends_within_a_minute_and_tells_both_answers_and_the_truth(tmp_path: Path) -> None:
    start = time.monotonic()
    done = process("demo", "--out", tmp_path / "demo", "--json")
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert seconds < 60
    data = last_json(done.stdout)
    assert [r["source"] for r in data["results"]] == ["form", "bars", "shapes"]
    for result in data["results"]:
        assert result["truth"] and result["full"]["answer"] and result["plan"]["answer"]
        assert result["full"]["report"]["visual_tokens_kept"] == 196
        assert result["plan"]["report"]["visual_tokens_kept"] == 49
    with Image.open(tmp_path / "demo" / "kept.png") as image:
        assert image.width > 900 and image.height > 800


def test_the_demo_prints_its_tables(tmp_path: Path, llava: Path) -> None:
    done = call("demo", "--out", tmp_path, "--model", llava, "--plan", "divprune:keep=1/2")
    assert done.exit_code == 0, done.stderr
    for word in ("a form", "a chart", "truth", "visual tokens kept", "prefill", "0.50", "wrote"):
        assert word in done.stdout


# --- videos -------------------------------------------------------------------------------------
def test_frames_that_a_family_reads_as_pictures_belong_to_their_video() -> None:
    frames = [red(64, 64)] * 4
    parts = tuple(kept((1, 2, 2), [i % 4], image=i) for i in range(8))
    (one,) = answer_pictures(Answer("x", kept=parts), None, [frames * 2])
    assert (np.asarray(one) == np.asarray(kept_frames(frames * 2, parts))).all()
    first, second = answer_pictures(Answer("x", kept=parts), None, [frames, frames])
    assert (np.asarray(second) == np.asarray(kept_frames(frames, parts[4:]))).all()
    assert (np.asarray(first) == np.asarray(second)).all()
    with pytest.raises(UnsupportedError, match="one video at a time"):
        answer_pictures(Answer("x", kept=parts), None, [frames, frames[:2]])


def clip(path: Path, frames: int = 6) -> Path:
    """An mp4 whose frames get lighter."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(frames):
            pixels = np.full((48, 64, 3), 40 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_video_is_answered_and_drawn(tmp_path: Path) -> None:
    folder = save_folder("qwen2_5_vl", tiny.make_model("qwen2_5_vl"), tmp_path)
    film, target = clip(tmp_path / "film.mp4"), tmp_path / "kept.png"
    words = ("run", film, "-q", "what ?", "--model", folder, "--max-new-tokens", 1, "--json")
    done = call(*words, "--plan", "uniform:keep=1/4", "--picture", target)
    assert done.exit_code == 0, done.stderr
    report = last_json(done.stdout)["results"][0]["plan"]["report"]
    (segment,) = report["segments"]
    assert segment["kind"] == "video" and segment["grid"][0] == 3  # two frames a temporal row
    assert segment["tokens_kept"] * 4 == pytest.approx(segment["tokens_in"], abs=2)
    with Image.open(target) as image:
        assert image.width > 400
    fewer = call(*words, "--max-frames", 2)
    notes = last_json(fewer.stdout)["results"][0]["full"]["notes"]
    assert any("cap of 2" in n for n in notes)


@pytest.mark.parametrize(
    ("plan", "item"), [("tiles:keep=1/2", Item("a.png")), ("frames:frames=2", Item("a.mp4", True))]
)
def test_left_out_tiles_and_frames_are_not_guessed(plan: str, item: Item) -> None:
    tiles = tuple(kept((1, 2, 2), [0], "tile") for _ in range(2))
    with pytest.raises(UnsupportedError, match="leaves out"):
        pictures_of(
            SimpleNamespace(),  # type: ignore[arg-type]
            Task((item,)),
            Plan.parse(plan),
            Answer("x", kept=tiles, pictures=(red(),)),
        )


def test_a_playlist_is_refused(llava: Path, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_text("#EXTM3U\nhttp://example.org/a.ts\n")
    done = call("run", film, "-q", "what ?", "--model", llava, "--json")
    assert done.exit_code == 2
    assert "playlist" in last_json(done.stdout)["results"][0]["error"]["message"]
