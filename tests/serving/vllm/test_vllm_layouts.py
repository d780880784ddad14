"""The plug-in's layouts are those of the adapters that `attach` uses, which see the real features."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from foveate.core.errors import InputError, StateError
from foveate.core.plan import Plan
from foveate.serve.vllm import layouts

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from foveate.models.adapter import adapter_for  # noqa: E402
from foveate.models.families.anyres import AnyresAdapter  # noqa: E402
from foveate.serve.vllm.families import FAMILIES  # noqa: E402
from tests.serving.vllm import checkpoints  # noqa: E402

ANYRES = (
    ("llava_next", "LlavaNextForConditionalGeneration"),
    ("llava_onevision", "LlavaOnevisionForConditionalGeneration"),
)


def same(span: layouts.Span, piece: Any) -> None:
    assert span.length == piece.n
    assert (span.kind, span.grid) == (piece.kind, piece.grid)
    for name in ("fixed", "source", "group", "part"):
        mine, theirs = getattr(span, name), getattr(piece, name)
        if theirs is None:
            assert mine is None, name
        else:
            assert np.array_equal(mine, theirs.numpy()), name


@pytest.mark.parametrize("name,architecture", ANYRES)
@pytest.mark.parametrize("size", [(112, 56), (56, 112), (100, 90), (30, 200), (57, 56), (9, 11)])
def test_anyres_layout_is_the_adapters(name: str, architecture: str, size: tuple[int, int]) -> None:
    model, processor = checkpoints.make(name)
    picture = checkpoints.picture(0, (4 * (size[0] // 4), 4 * (size[1] // 4))).resize(size)
    mm = processor(text=checkpoints.FAMILIES[name].mark, images=[picture], return_tensors="pt")
    adapter = adapter_for(model)
    assert isinstance(adapter, AnyresAdapter)
    with torch.no_grad():
        pieces = adapter.encode(adapter.media_kwargs(mm, "image")).pieces
    fields = {"pixel_values": mm["pixel_values"][0], "image_sizes": mm["image_sizes"][0]}
    n = sum(p.n for p in pieces)
    layout = FAMILIES[architecture].layout(model.config, fields, n, "image")
    assert len(layout.spans) == len(pieces) and layout.length == n
    for span, piece in zip(layout.spans, pieces, strict=True):
        same(span, piece)


def test_a_plane_that_is_shrunk_maps_to_no_patch() -> None:
    layout = layouts.anyres((384, 384 * 12), [(28, 28 * 12)], 28, 4, 13, 9)
    tiles = layout.spans[1]
    assert tiles.group is None and tiles.length == tiles.grid[1] * (tiles.grid[2] + 1)


@pytest.mark.parametrize("patches,tokens", [(64, 16), (144, 144), (49, 10)])
def test_passes_map_patches_by_square_blocks(patches: int, tokens: int) -> None:
    from foveate.models.pieces import tiled_pieces

    layout = layouts.passes(2, tokens, patches, ["tile", "tile"])
    pieces = tiled_pieces([torch.zeros(tokens, 3)] * 2, patches, "tile")
    for span, piece in zip(layout.spans, pieces, strict=True):
        same(span, piece)


def test_packed_layout_is_the_adapters() -> None:
    from foveate.models.pieces import packed_pieces

    piece = packed_pieces("x", [torch.zeros(12, 3)], torch.tensor([[1, 6, 8]]), "image")[0]
    same(layouts.packed((1, 6, 8), 2).spans[0], piece)


def test_shortening_keeps_markers_newlines_and_the_budget() -> None:
    fixed = np.array([False, False, True] * 2)
    layout = layouts.Layout(
        (layouts.Span("thumbnail", (1, 2, 2), 4), layouts.Span("tile", (1, 2, 2), 6, fixed=fixed))
    )
    plan = Plan.parse("uniform:keep=1/2")
    assert layout.kept(plan) == (2, 4)
    out = layouts.shorten([7, *[5] * 4, 8, *[5] * 6, 9], 5, layout, plan)
    assert out == [7, 5, 5, 8, 5, 5, 5, 5, 9]
    with pytest.raises(InputError, match="3 placeholders for a picture of 10 visual tokens"):
        layouts.shorten([5, 5, 5], 5, layout, plan)


QWEN3 = FAMILIES["Qwen3VLForConditionalGeneration"]


def stamped(frames: int) -> tuple[Any, list[int], list[int], Any]:
    """Qwen3-VL's config, its processor's ids of a video, the plug-in's with one placeholder a frame,
    and the video's layout.
    """
    model, processor = checkpoints.make("qwen3_vl")
    facts = {"total_num_frames": frames, "fps": 3.0, "frames_indices": list(range(frames))}
    mm = processor(
        text="<|video_pad|>",
        videos=[checkpoints.clip(0, frames, (64, 48))],
        video_metadata=[dict(facts)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    times = processor._calculate_timestamps(facts["frames_indices"], 3.0, 2)
    assert QWEN3.between is not None

    def encode(words: str) -> list[int]:
        ids: list[int] = processor.tokenizer.encode(words, add_special_tokens=False)
        return ids

    between = QWEN3.between(model.config, encode, {"timestamps": times})
    layout = QWEN3.layout(model.config, {"video_grid_thw": mm["video_grid_thw"][0]}, 0, "video")
    return model.config, mm["input_ids"][0].tolist(), between, layout


def test_words_between_frames_are_the_processors() -> None:
    config, ids, between, layout = stamped(6)
    place = config.video_token_id
    each = layout.spans[0].grid[1] * layout.spans[0].grid[2]
    assert ids == [x for i in between for x in [i] * (each if i == place else 1)]


def test_a_video_with_words_is_one_run_of_its_kept_tokens_and_all_its_words() -> None:
    config, ids, between, layout = stamped(6)
    place, plan = config.video_token_id, Plan.parse("vidcom2:keep=1/3")
    words = [i for i in ids if i != place]
    short = layouts.interleaved(ids, place, between, layout, plan)
    assert short == [place] * sum(layout.kept(plan)) + words
    whole = layouts.interleaved(ids, place, between, layout, Plan())
    assert whole == [place] * layout.length + words
    with pytest.raises(StateError, match="other words"):
        layouts.interleaved([words[0], *ids], place, between, layout, plan)


def test_a_video_that_is_read_as_pictures_has_a_budget_a_frame() -> None:
    model, _ = checkpoints.make("internvl")
    family = FAMILIES["InternVLForConditionalGeneration"]
    video = family.layout(model.config, {"video_num_patches": 3}, 3 * 64, "video")
    tiles = family.layout(model.config, {"image_num_patches": 3}, 3 * 64, "image")
    assert [s.image for s in video.spans] == [0, 1, 2] and {s.image for s in tiles.spans} == {0}
    assert video.kept(Plan.parse("divprune:per_image=10")) == (10, 10, 10)
    assert sum(tiles.kept(Plan.parse("divprune:per_image=10"))) == 10


def test_pictures_stay_whole_under_a_method_for_videos() -> None:
    plan = Plan.parse("evs:keep=1/4")
    assert layouts.packed((1, 8, 8), 2).kept(plan) == (16,)
    assert layouts.packed((4, 8, 8), 2).kept(plan) == (16,)  # one frame of 4 x 4 is its floor


def test_windows_are_undone() -> None:
    """The order of Qwen2.5's encoder tokens is that of the adapter."""
    from foveate.models import compat

    grid = (1, 12, 20)
    vision = SimpleNamespace(spatial_merge_size=2, window_size=32, patch_size=4)
    order = compat.window_order(vision, torch.tensor([grid]))

    def windows(t: int, h: int, w: int) -> tuple[Any, None]:
        assert (t, h, w) == grid
        return order, None

    visual = SimpleNamespace(spatial_merge_size=2, get_window_index_thw=windows)
    family = FAMILIES["Qwen2_5_VLForConditionalGeneration"]
    place = family.order(SimpleNamespace(visual=visual), layouts.packed(grid, 2))
    tokens = torch.arange(240).unflatten(0, (-1, 4))[order].flatten()  # as the tower has them
    assert place is not None and tokens[place].tolist() == list(range(240))
