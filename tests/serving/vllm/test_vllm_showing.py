"""The pixel stage's rules in the plug-in are those of the engine, and what clients may send as pictures
and videos is read as they meant it.
"""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core.errors import InputError, UnsupportedError
from foveate.core.plan import Plan
from foveate.core.views import PixelPlan

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# What needs these packages is imported behind the question whether they are here.
from PIL import Image  # noqa: E402

import foveate  # noqa: E402
from foveate.models.adapter import adapter_for  # noqa: E402
from foveate.models.resolution import resolution_of  # noqa: E402
from foveate.serve.vllm import pixels  # noqa: E402
from foveate.serve.vllm.families import FAMILIES  # noqa: E402
from foveate.serve.vllm.picture_sizes import SIZES  # noqa: E402
from foveate.serve.vllm.showing import Shown, refuse, settings_of  # noqa: E402
from tests.serving.vllm import checkpoints  # noqa: E402

PICTURES = ((80, 112), (128, 64), (96, 96), (40, 300), (57, 56), (168, 240), (1, 1), (9, 200))
ASKED = (None, (1, 1), (20, 30), (60, 90), (64, 64), (100, 41), (130, 128))


@pytest.mark.parametrize("name", [n for n in checkpoints.FAMILIES if n != "llava"])
def test_rules_are_those_of_the_engine(name: str) -> None:
    """Tokens, sizes seen and handed over, and tiles, for pictures of many shapes."""
    model, processor = checkpoints.make(name)
    theirs = resolution_of(adapter_for(model), processor)
    family = FAMILIES[SIZES[name].architecture]
    ours = Shown(family, model.config, settings_of(processor, {}))
    assert (ours.resizes, ours.droppable) == (theirs.resizes, theirs.droppable)
    if ours.droppable:
        assert ours.tile_tokens == theirs.tile_tokens
    for size in PICTURES:
        assert ours.seen(size) == theirs.seen(size), size
        for asked in ASKED:
            assert ours.tokens(size, asked) == theirs.tokens(size, asked), (size, asked)
            assert ours.tiling(size, asked) == theirs.tiling(size, asked), (size, asked)
            if asked is not None:
                (handed,) = theirs.handed([size], [asked]).sizes
                assert ours.handed(size, asked) == (handed or size)


def test_a_family_of_one_size_is_refused_and_says_what_instead() -> None:
    (method,) = Plan.parse("downscale:side=100").methods
    with pytest.raises(UnsupportedError, match="pool or uniform"):
        refuse(method, FAMILIES["LlavaForConditionalGeneration"], None, videos=False)
    with pytest.raises(UnsupportedError, match="limit-mm-per-prompt"):
        refuse(method, FAMILIES["Qwen2VLForConditionalGeneration"], None, videos=True)


@pytest.mark.parametrize(
    "plan,family,text",
    [
        ("resolution", "qwen2_5_vl", "looks at the picture"),
        ("downscale:side=300", "llava", "one size"),
        ("tiles:keep=1/2", "qwen2_5_vl", "every part"),
        ("frames:frames=4", "smolvlm", "frames of videos"),
        ("pixelprune", "qwen2_5_vl", "whole pictures"),
    ],
)
def test_counts_that_a_size_does_not_tell_are_refused(plan: str, family: str, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        foveate.count_tokens(640, 480, plan, family)


def test_counts_follow_the_picture_and_the_rest_of_the_plan() -> None:
    whole = foveate.count_tokens(1280, 960, "none", "qwen2_5_vl")
    half = foveate.count_tokens(1280, 960, "downscale:keep=1/2", "qwen2_5_vl")
    both = foveate.count_tokens(1280, 960, "downscale:keep=1/2+divprune:keep=1/2", "qwen2_5_vl")
    assert half <= whole / 2 and both == round(half / 2)
    # frames are of videos: a picture stays as it is
    assert foveate.count_tokens(1280, 960, "frames:frames=4", "qwen2_5_vl") == whole


# --- what clients send --------------------------------------------------------------------------------
def test_pictures_of_every_kind_are_one_picture() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    same = [Image.fromarray(rgb), rgb, torch.from_numpy(rgb), rgb.transpose(2, 0, 1),
            np.concatenate([rgb, rgb[..., :1]], axis=-1)]  # fmt: skip
    for item in same:
        assert (np.asarray(pixels.picture_of(item, "downscale")) == rgb).all()
    grey = pixels.picture_of(rgb[..., :1], "downscale")
    assert (np.asarray(grey) == rgb[..., :1]).all() and grey.mode == "RGB"


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8)])
def test_what_is_no_picture_of_8_bits_is_refused(array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"8 bits|no picture"):
        pixels.picture_of(array, "downscale")


def test_videos_of_every_kind_are_one_video() -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    planes = torch.from_numpy(clip.transpose(0, 3, 1, 2).copy())
    for frames in (clip, planes, [Image.fromarray(f) for f in clip], list(clip)):
        assert (pixels.frames_of(frames, "frames") == clip).all()
    with pytest.raises(InputError, match="no video"):
        pixels.frames_of(clip[0], "frames")


def test_times_are_the_sources_and_unknown_where_nobody_said() -> None:
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    known = {"fps": 10.0, "frames_indices": [0, 20, 50], "total_num_frames": 60}
    assert pixels.times_of(frames, known).tolist() == [0.0, 2.0, 5.0]
    assert np.isnan(pixels.times_of(frames, None)).all()
    less = pixels.chosen(known, [0, 2])
    assert less == {**known, "frames_indices": [0, 50], "do_sample_frames": False}
    assert known["frames_indices"] == [0, 20, 50]
    bare = pixels.chosen({"fps": 2.0}, [1])
    assert bare is not None and bare["frames_indices"] == [1]
    with pytest.raises(InputError, match="fewer"):
        pixels.chosen({**known, "frames_indices": [0]}, [0, 2])


# --- tiles ----------------------------------------------------------------------------------------------
def test_a_tile_leaves_with_its_placeholders_and_not_its_words() -> None:
    mask = np.array([True, False, True])
    text = [7, 1, 1, 8, 1, 1, 9, 1, 1, 6]
    assert pixels.without_places(text, 1, mask, 2) == [7, 1, 1, 8, 9, 1, 1, 6]
    written_already = [7, 1, 1, 8, 9, 1, 1, 6]
    assert pixels.without_places(written_already, 1, mask, 2) == written_already
    with pytest.raises(InputError, match="placeholders"):
        pixels.without_places(text[:-2], 1, mask, 2)


def test_tiles_of_several_pictures_are_cut_by_picture() -> None:
    data = {"pixel_values": torch.arange(5)[:, None], "num_patches": torch.tensor([3, 2])}
    kept = [np.array([True, False, True]), np.array([False, True])]
    pixels.without_tiles(data, kept, "num_patches")
    assert data["pixel_values"].flatten().tolist() == [0, 2, 4]
    assert data["num_patches"].tolist() == [2, 1]


def test_a_plan_of_tiles_has_fewer_tokens_and_says_so_in_the_fields() -> None:
    model, processor = checkpoints.make("smolvlm")
    family = FAMILIES[SIZES["smolvlm"].architecture]
    shown = Shown(family, model.config, settings_of(processor, {}))
    fields, n = shown.made((128, 128), PixelPlan(tiles=(0, 4)))
    assert fields["num_patches"] == 2 and n == 2 * shown.tile_tokens
