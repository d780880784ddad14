"""`foveate.count_tokens` against transformers' own processors, folders and bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import foveate
from foveate.core.errors import CheckpointError, FoveateError, InputError, UnsupportedError
from foveate.serve.vllm.count import count_picture
from foveate.serve.vllm.families import FAMILIES
from foveate.serve.vllm.picture_sizes import SIZES, canvas, pixel_bounds, split
from tests.models.tiny_processors import FAMILIES as TINY
from tests.models.tiny_processors import IMAGE, make_processor
from tests.support import tiny

EDGES = st.integers(1, 400)
ONE = "LlavaOnevisionProcessor"
SIDES = st.integers(1, 3000)
SHAPES = st.one_of(st.tuples(SIDES, SIDES), SIDES.map(lambda n: (n, n)))  # (height, width)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Config and processor of each family, as a model folder holds them."""
    root = tmp_path_factory.mktemp("folders")
    made = {}
    for name in TINY:
        folder = root / name
        processor = make_processor(name)
        config = tiny.cached_model(name).config
        if hasattr(config, "image_grid_pinpoints"):
            processor.image_processor.image_grid_pinpoints = config.image_grid_pinpoints
        config.save_pretrained(folder)
        processor.save_pretrained(folder)
        made[name] = (folder, processor)
    return made


def placeholders(processor: Any, width: int, height: int) -> int:
    text = processor.tokenizer.decode([IMAGE])
    out = processor(text=[text], images=[[Image.new("RGB", (width, height))]], return_tensors="pt")
    return int((out["input_ids"] == IMAGE).sum())


@pytest.mark.parametrize("name", TINY)
@given(width=EDGES, height=EDGES)
@example(width=5, height=3)
@example(width=36, height=36)
@settings(max_examples=40, deadline=None)
def test_whole_pictures_have_the_processors_placeholders(
    folders: dict[str, tuple[Path, Any]], name: str, width: int, height: int
) -> None:
    folder, processor = folders[name]
    try:
        want = placeholders(processor, width, height)
    except (ValueError, ZeroDivisionError):
        return  # what a processor itself refuses has no count
    assert foveate.count_tokens(width, height, "none", folder) == want


# --- the rules at the settings of published checkpoints, where running a processor would take long ----
@given(size=SHAPES)
@example(size=(27, 27))
@example(size=(3000, 20))
@settings(max_examples=200, deadline=None)
def test_pixel_bounds_are_qwens(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for factor, least, most in ((28, 3136, 12845056), (28, 3136, 1003520), (32, 65536, 2**24)):
        if max(size) > 200 * min(size):
            with pytest.raises(InputError):
                pixel_bounds(size, factor, least, most)
            continue
        want = smart_resize(*size, factor=factor, min_pixels=least, max_pixels=most)
        assert pixel_bounds(size, factor, least, most) == want


@given(size=SHAPES, most=st.integers(1, 12), edge=st.sampled_from((28, 384, 448)))
@example(size=(600, 600), most=12, edge=448)
@example(size=(660, 660), most=12, edge=448)
@settings(max_examples=200, deadline=None)
def test_canvases_are_internvls(size: tuple[int, int], most: int, edge: int) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    cols, rows = get_optimal_tiled_canvas(size, (edge, edge), 1, most)
    assert canvas(size, (edge, edge), 1, most) == (rows, cols)


@given(size=SHAPES, edges=st.sampled_from(((1456, 364), (2048, 512), (64, 32), (6000, 500))))
@example(size=(582, 573), edges=(64, 32))
@example(size=(197, 443), edges=(6000, 500))
@settings(max_examples=200, deadline=None)
def test_splits_are_idefics(size: tuple[int, int], edges: tuple[int, int]) -> None:
    """The processor's own steps on sizes: the longest edge, whole tiles, and the cut."""
    from transformers.models.idefics3 import image_processing_pil_idefics3 as own

    longest, tile = edges
    tall, wide = own._resize_output_size_rescale_to_max_len(*size, max_len=longest)
    tall, wide = own._resize_output_size_scale_below_upper_bound(tall, wide, max_len=4096)
    seen: list[Any] = []
    processor = own.Idefics3ImageProcessorPil()
    processor.resize = lambda image, size, resample=None: seen.append((size.height, size.width))
    processor.resize_for_vision_encoder(np.empty((3, tall, wide), np.uint8), tile)
    ((high, long),) = seen
    assert split(size, longest, tile) == (high // tile, long // tile)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
@given(size=SHAPES)
@settings(max_examples=100, deadline=None)
def test_anyres_is_that_of_the_processors(name: str, size: tuple[int, int]) -> None:
    import transformers

    known = SIZES[name]
    cls = getattr(transformers, {"llava_next": "LlavaNextProcessor"}.get(name, ONE))
    side = known.config["vision_config"]["image_size"]
    pictures = SimpleNamespace(image_grid_pinpoints=known.config["image_grid_pinpoints"])
    processor = cls.__new__(cls)
    vars(processor).update(
        image_processor=pictures,
        patch_size=14,
        num_image_tokens=729,
        num_additional_image_tokens=0,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
    )
    want = cls._get_number_of_features(processor, *size, side, side)
    assert foveate.count_tokens(size[1], size[0], "none", name) == want


@pytest.mark.parametrize("name", sorted(SIZES))
@given(width=EDGES, height=EDGES, per_image=st.integers(1, 900))
@settings(max_examples=60, deadline=None)
def test_counts_are_bounded_and_follow_the_budget(
    name: str, width: int, height: int, per_image: int
) -> None:
    try:
        found = count_picture(width, height, f"divprune:per_image={per_image}", name)
    except InputError:
        assert max(width, height) > 200 * min(width, height)
        return
    assert 1 <= found.kept <= found.whole
    if not FAMILIES[SIZES[name].architecture].newlines:
        assert found.kept == min(per_image, found.whole)
    more = count_picture(width, height, f"divprune:per_image={per_image + 1}", name)
    assert found.kept <= more.kept <= found.kept + 1


@pytest.mark.parametrize(
    ("name", "size", "plan", "want"),
    [
        ("llava", (640, 480), "none", 576),
        ("llava", (640, 480), "visionzip:keep=1/9", 64),
        ("qwen2_vl", (640, 480), "none", 391),  # 23 x 17 tokens of 28 x 28 pixels
        ("internvl", (448, 448), "none", 256),
        ("smolvlm", (512, 512), "none", 64 * 17),  # blown up to 2048: 4 x 4 tiles and the whole
        ("llava_onevision", (384, 384), "none", 2 * 729 + 27),
    ],
)
def test_published_checkpoints(name: str, size: tuple[int, int], plan: str, want: int) -> None:
    assert foveate.count_tokens(*size, plan, name) == want
    assert foveate.count_tokens(*size, plan, SIZES[name].architecture) == want


def test_every_family_of_the_plugin_has_a_rule() -> None:
    assert {s.architecture for s in SIZES.values()} == set(FAMILIES)


def test_defaults_are_those_of_transformers() -> None:
    import transformers

    for name, sizes in SIZES.items():
        config = transformers.CONFIG_MAPPING[name]()
        for key, value in sizes.config.items():
            own = config.vision_config if key == "vision_config" else config
            wanted = value if key == "vision_config" else {key: value}
            for entry, number in wanted.items():
                if entry in ("model_type", "image_size", "patch_size"):
                    continue
                assert getattr(own, entry) == number, (name, entry)


def test_processor_settings_of_a_server_change_the_count(
    folders: dict[str, tuple[Path, Any]],
) -> None:
    folder, _ = folders["qwen2_5_vl"]
    whole = foveate.count_tokens(64, 64, "none", folder)
    less = foveate.count_tokens(64, 64, "none", folder, processor={"max_pixels": 1024})
    assert (whole, less) == (64, 16)
    bounds = {"shortest_edge": 64, "longest_edge": 1024}
    assert foveate.count_tokens(64, 64, "none", folder, processor={"size": bounds}) == 16


def test_folders_of_old_transformers(folders: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    """preprocessor_config.json with pixel bounds at its top, as the hub's checkpoints have it."""
    new, _ = folders["qwen2_vl"]
    (tmp_path / "config.json").write_bytes((new / "config.json").read_bytes())
    old = {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 4096}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    for size in ((64, 64), (300, 40), (8, 8)):
        want = foveate.count_tokens(*size, "divprune:keep=1/4", new)
        assert foveate.count_tokens(*size, "divprune:keep=1/4", tmp_path) == want


@pytest.mark.parametrize(
    ("size", "plan", "family", "error", "says"),
    [
        ((0, 10), "none", "llava", InputError, "width = 0"),
        ((10, -1), "none", "llava", InputError, "height = -1"),
        ((10.5, 10), "none", "llava", InputError, "whole pixels"),
        ((4000, 10), "none", "qwen2_vl", InputError, "200 to 1"),
        ((10, 10), "none", "llavva", UnsupportedError, "llava"),
        ((10, 10), "fastv:layer=2,keep=1/2", "llava", UnsupportedError, "stage"),
        ((10, 10), "divprune:per_request=9", "llava", UnsupportedError, "per_request"),
        ((10, 10), "none;positions=retain", "llava", UnsupportedError, "1-D"),
        ((10, 10), "divprunee:keep=1/2", "llava", FoveateError, "divprune"),
    ],
)
def test_bad_input_is_typed(
    size: Any, plan: str, family: str, error: type[FoveateError], says: str
) -> None:
    with pytest.raises(error, match=says):
        foveate.count_tokens(*size, plan, family)


def test_bad_folders_are_typed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.json"):
        foveate.count_tokens(10, 10, "none", tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        foveate.count_tokens(10, 10, "none", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UnsupportedError, match="gpt2"):
        foveate.count_tokens(10, 10, "none", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(CheckpointError, match="preprocessor_config"):
        foveate.count_tokens(10, 10, "none", tmp_path)


def test_counting_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, foveate; foveate.count_tokens(64, 64, 'divprune:keep=1/4', 'qwen2_vl'); "
        "print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
