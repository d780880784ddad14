"""What a family's processor makes of a picture of a size: the fields that its layout reads, and how
many visual tokens stand in the prompt. Needs neither vLLM nor transformers; tests hold it to both.

The rules are those of the processors of transformers, which vLLM runs: Qwen2-VL's pixel bounds,
Idefics 3's longest edge, InternVL's nearest canvas, LLaVA's one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from foveate.core.errors import InputError, UnsupportedError
from foveate.serve.vllm.layouts import Size

Settings = Mapping[str, Any]  # of a processor and its picture processor, in one
Made = tuple[dict[str, Any], int]  # processed fields of one picture, its visual tokens
# One size for all, packed patches of any size, tiles of a plane of given shapes, tiles of the canvas
# nearest in aspect ratio, tiles after one edge was brought to a length.
Kind = Literal["one", "packed", "anyres", "canvas", "longest"]
_LARGEST_EDGE = 4096  # pixels; Idefics 3 makes no picture larger
_STEEPEST = 200  # aspect ratio that Qwen's processor still takes


@dataclass(frozen=True)
class Sizes:
    """A family by the `model_type` of its config. config, processor: what its published checkpoints
    say, for use where there is no folder. missing: what transformers takes for a setting that a
    folder leaves out. made(config, settings, size): one picture, size (height, width) in pixels.
    kind: how the picture's size counts. tiles: the field with its number of tiles, where they can be
    left out.
    """

    model_type: str
    architecture: str
    made: Callable[[Any, Settings, Size], Made]
    config: dict[str, Any]
    processor: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, Any] = field(default_factory=dict)
    kind: Kind = "one"
    tiles: str | None = None


def pixel_bounds(size: Size, factor: int, least: int, most: int) -> Size:
    """(height, width) in multiples of `factor` with `least` to `most` pixels, aspect about kept."""
    height, width = size
    if max(size) > _STEEPEST * min(size):
        raise InputError(
            f"a picture of {width} x {height} pixels is steeper than {_STEEPEST} to 1, which this "
            "family's processor refuses; cut it"
        )
    tall, wide = (round(x / factor) * factor for x in size)
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (max(factor, math.floor(x / shrink / factor) * factor) for x in size)
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(x * grow / factor) * factor for x in size)
    return tall, wide


def blown_up(size: Size, longest: int) -> Size:
    """(height, width) after Idefics 3 brought the longer edge to `longest`."""
    tall, wide = size
    ratio = wide / tall
    if wide >= tall:
        wide, tall = longest, int(longest / ratio)
        tall += tall % 2
    else:
        tall, wide = longest, int(longest * ratio)
        wide += wide % 2
    tall, wide = max(tall, 1), max(wide, 1)
    if max(tall, wide) > _LARGEST_EDGE:
        ratio = wide / tall
        if wide >= tall:
            wide, tall = _LARGEST_EDGE, int(_LARGEST_EDGE / ratio)
        else:
            tall, wide = _LARGEST_EDGE, int(_LARGEST_EDGE * ratio)
    return max(tall, 1), max(wide, 1)


def cut(size: Size, tile: int) -> Size:
    """(rows, columns) of tiles of a picture as it stands; (1, 1): not split."""
    tall, wide = size
    ratio = wide / tall
    # The longer edge becomes whole tiles first, and the shorter follows it.
    if wide >= tall:
        cols = -(-wide // tile)
        return max(1, -(-int(cols * tile / ratio) // tile)), cols
    rows = -(-tall // tile)
    return rows, max(1, -(-int(rows * tile * ratio) // tile))


def split(size: Size, longest: int, tile: int) -> Size:
    """(rows, columns) of tiles after the longer edge was brought to `longest`; (1, 1): not split."""
    return cut(blown_up(size, longest), tile)


def canvas(size: Size, tile: Size, least: int, most: int) -> Size:
    """(rows, columns) of the canvas of `least` to `most` tiles nearest in aspect ratio (columns over
    rows); of several, the larger while it has less than twice the picture's area.
    """
    height, width = size
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most]
    best, near = (1, 1), math.inf
    for cols, rows in sorted((g for g in grids if g[0] * g[1] >= least), key=lambda g: g[0] * g[1]):
        away = abs(width / height - cols / rows)
        if away < near:
            best, near = (cols, rows), away
        elif away == near and width * height > 0.5 * tile[0] * tile[1] * cols * rows:
            best = (cols, rows)
    return best[1], best[0]


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes; `images_kwargs` holds some of them one level down."""
    flat = {k: v for k, v in changes.items() if k != "images_kwargs"}
    nested = changes.get("images_kwargs")
    if isinstance(nested, Mapping):
        flat.update(nested)
    out = {**settings, **flat}
    if "size" in flat:
        # A size that is set replaces pixel bounds that came with the folder.
        for key in ("min_pixels", "max_pixels"):
            if key not in flat:
                out.pop(key, None)
        if isinstance(settings.get("size"), Mapping) and isinstance(flat["size"], Mapping):
            out["size"] = {**settings["size"], **flat["size"]}
    return out


def pixel_limits(settings: Settings) -> tuple[int, int]:
    """Least and most pixels of a picture for packed towers."""
    bounds = settings["size"]
    least = settings.get("min_pixels") or bounds["shortest_edge"]
    most = settings.get("max_pixels") or bounds["longest_edge"]
    return int(least), int(most)


def _edges(value: Any) -> Size:
    return (int(value), int(value)) if not isinstance(value, list | tuple) else tuple(value)


def _patches(config: Any) -> int:
    """Patches of one encoder pass."""
    vision = config.vision_config
    (tall, wide), (a, b) = _edges(vision.image_size), _edges(vision.patch_size)
    return (tall // a) * (wide // b)


def _selected(config: Any) -> int:
    """Patches that LLaVA hands on of one pass: "default" leaves out the first token."""
    cls = int(config.vision_config.model_type == "clip_vision_model")
    return _patches(config) + cls - int(config.vision_feature_select_strategy == "default")


def _llava(config: Any, settings: Settings, size: Size) -> Made:
    return {}, _selected(config)


def _anyres(config: Any, settings: Settings, size: Size) -> Made:
    if _selected(config) != _patches(config):
        raise UnsupportedError(
            f"{config.model_type} with vision_feature_select_strategy="
            f"{config.vision_feature_select_strategy!r} is not served by Foveate's plug-in"
        )
    ratio = getattr(config, "vision_aspect_ratio", "anyres_max_9")
    if ratio != "anyres_max_9":
        raise UnsupportedError(
            f"vision_aspect_ratio {ratio!r} is not served by Foveate's plug-in, which knows anyres_max_9"
        )
    return {"image_sizes": size, "pixel_values": np.empty((0, 0))}, -1


def _qwen(config: Any, settings: Settings, size: Size) -> Made:
    patch, merge = int(settings["patch_size"]), int(settings["merge_size"])
    tall, wide = pixel_bounds(size, patch * merge, *pixel_limits(settings))
    grid = (1, tall // patch, wide // patch)
    return {"image_grid_thw": grid}, grid[1] * grid[2] // merge**2


def _idefics(config: Any, settings: Settings, size: Size) -> Made:
    count = 1
    if settings["do_image_splitting"]:
        tile, longest = settings["max_image_size"]["longest_edge"], settings["size"]["longest_edge"]
        resized = settings.get("do_resize", True)
        rows, cols = split(size, int(longest), int(tile)) if resized else cut(size, int(tile))
        count = rows * cols + int(rows * cols > 1)
    return {"num_patches": count}, count * int(settings["image_seq_len"])


def _internvl(config: Any, settings: Settings, size: Size) -> Made:
    count = 1
    if settings["crop_to_patches"]:
        tile = (int(settings["size"]["height"]), int(settings["size"]["width"]))
        least, most = int(settings["min_patches"]), int(settings["max_patches"])
        rows, cols = canvas(size, tile, least, most)
        count = rows * cols + int(rows * cols > 1)
    return {"image_num_patches": count}, count * int(settings["image_seq_length"])


def _vision(kind: str, edge: int, patch: int) -> dict[str, Any]:
    return {"model_type": kind, "image_size": edge, "patch_size": patch}


_CLIP = {
    "vision_config": _vision("clip_vision_model", 336, 14),
    "vision_feature_select_strategy": "default",
}
_NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_ONE = {
    "vision_config": _vision("siglip_vision_model", 384, 14),
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[384 * r, 384 * c] for r in range(1, 7) for c in range(1, 7)],
}
_MERGE = {"vision_config": {"model_type": "qwen_vision", "spatial_merge_size": 2}}
_PIXELS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
_QWEN = {"patch_size": 14, "merge_size": 2, "size": _PIXELS}
_QWEN_WIDE = {**_QWEN, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384}}
_QWEN3 = {
    "patch_size": 16,
    "merge_size": 2,
    "size": {"shortest_edge": 2**16, "longest_edge": 2**24},
}
_SPLIT = {
    "do_image_splitting": True,
    "size": {"longest_edge": 4 * 364},
    "max_image_size": {"longest_edge": 364},
    "image_seq_len": 169,
}
_SMOL = {
    **_SPLIT,
    "size": {"longest_edge": 2048},
    "max_image_size": {"longest_edge": 512},
    "image_seq_len": 64,
}
_CANVAS = {
    "crop_to_patches": True,
    "size": {"height": 448, "width": 448},
    "min_patches": 1,
    "max_patches": 12,
    "image_seq_length": 256,
}
_CANVAS_MISSING = {**_CANVAS, "size": {"height": 384, "width": 384}}


def _packed(model_type: str, architecture: str, processor: dict[str, Any]) -> Sizes:
    return Sizes(model_type, architecture, _qwen, _MERGE, processor, _QWEN, "packed")


SIZES = {
    s.model_type: s
    for s in (
        Sizes("llava", "LlavaForConditionalGeneration", _llava, _CLIP),
        Sizes(
            "llava_next",
            "LlavaNextForConditionalGeneration",
            _anyres,
            {**_CLIP, "image_grid_pinpoints": _NEXT},
            kind="anyres",
        ),
        Sizes(
            "llava_onevision",
            "LlavaOnevisionForConditionalGeneration",
            _anyres,
            _ONE,
            kind="anyres",
        ),
        _packed("qwen2_vl", "Qwen2VLForConditionalGeneration", _QWEN_WIDE),
        _packed("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", _QWEN_WIDE),
        _packed("qwen3_vl", "Qwen3VLForConditionalGeneration", _QWEN3),
        _packed("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", _QWEN3),
        Sizes(
            "internvl",
            "InternVLForConditionalGeneration",
            _internvl,
            {"vision_config": _vision("internvl_vision", 448, 14)},
            _CANVAS,
            _CANVAS_MISSING,
            "canvas",
            "image_num_patches",
        ),
        Sizes(
            "idefics3",
            "Idefics3ForConditionalGeneration",
            _idefics,
            {"vision_config": _vision("idefics3_vision", 364, 14)},
            _SPLIT,
            _SPLIT,
            "longest",
            "num_patches",
        ),
        Sizes(
            "smolvlm",
            "SmolVLMForConditionalGeneration",
            _idefics,
            {"vision_config": _vision("smolvlm_vision", 512, 16)},
            _SMOL,
            _SPLIT,
            "longest",
            "num_patches",
        ),
    )
}
