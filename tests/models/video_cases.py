"""Inputs shared by the fixture script (which needs torchvision) and the tests (which do not)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FIXTURES = Path(__file__).parent / "fixtures"
PROBES = 300  # values compared one by one per case; the sums compare all of them


def clip(count: int, height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Frames (t, H, W, 3) uint8: moving gradients and noise, so that every filter has work."""
    rng = np.random.default_rng(seed)
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    base = np.stack([x * 3 + t * 11, y * 5 - t * 7, (x + y) * 2 + t * 3], -1) % 256
    noise = rng.integers(-40, 40, base.shape)
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def picture(height: int = 52, width: int = 40, seed: int = 5) -> Image.Image:
    return Image.fromarray(clip(1, height, width, seed)[0])


@dataclass(frozen=True)
class Case:
    """One call of a video processor: class name on the hub, its settings, clips, call options."""

    name: str
    hub_name: str
    clips: tuple[tuple[int, int, int], ...]
    settings: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)

    def videos(self) -> list[NDArray[np.uint8]]:
        return [clip(*shape, seed=i) for i, shape in enumerate(self.clips)]


_OV, _IVL = "LlavaOnevisionVideoProcessor", "InternVLVideoProcessor"
_Q2, _Q3, _SMOL = "Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor", "SmolVLMVideoProcessor"
_SMALL = {"patch_size": 4, "size": {"shortest_edge": 64, "longest_edge": 4096}}
CASES = (
    Case("onevision-default", _OV, ((2, 50, 90),)),
    Case("onevision-large", _OV, ((1, 500, 410),)),
    Case("onevision-small", _OV, ((3, 40, 52), (3, 31, 64)), {"size": {"height": 28, "width": 28}}),
    Case("onevision-bilinear", _OV, ((2, 40, 52),),
         {"size": {"shortest_edge": 30}, "resample": 2, "image_mean": [0.5, 0.4, 0.3]}),
    Case("internvl-default", _IVL, ((2, 50, 90),)),
    Case("internvl-448", _IVL, ((1, 300, 200),), {"size": {"height": 448, "width": 448}}),
    Case("internvl-raw", _IVL, ((2, 40, 52),),
         {"size": {"height": 28, "width": 28}, "do_normalize": False}),
    Case("qwen2-default", _Q2, ((4, 70, 90),)),
    Case("qwen2-odd", _Q2, ((3, 40, 52),), _SMALL),
    Case("qwen2-one", _Q2, ((1, 40, 52),), _SMALL),
    Case("qwen2-shrunk", _Q2, ((2, 150, 90),), _SMALL),
    Case("qwen2-batch", _Q2, ((2, 40, 52), (5, 64, 33)), _SMALL),
    Case("qwen2-minmax", _Q2, ((2, 100, 80),), {"min_pixels": 3136, "max_pixels": 12544}),
    Case("qwen2-capped", _Q2, ((8, 200, 180),),
         {"cap_pixels_per_frame": True, "max_video_tokens": 100}),
    Case("qwen2-unresized", _Q2, ((2, 56, 84),), {"do_resize": False}),
    Case("qwen3-default", _Q3, ((4, 70, 90),), call={"do_sample_frames": False}),
    Case("qwen3-odd", _Q3, ((5, 40, 52),), _SMALL, {"do_sample_frames": False}),
    Case("qwen3-tiny-frame", _Q3, ((2, 5, 90),), _SMALL, {"do_sample_frames": False}),
    Case("qwen3-shrunk", _Q3, ((6, 150, 90),), _SMALL, {"do_sample_frames": False}),
    Case("qwen3-capped", _Q3, ((8, 200, 180),),
         {**_SMALL, "cap_pixels_per_frame": True, "max_video_tokens": 20},
         {"do_sample_frames": False}),
    Case("qwen3-sampled", _Q3, ((40, 24, 32),), _SMALL,
         {"video_metadata": [{"total_num_frames": 40, "fps": 10.0, "duration": 4.0}]}),
    Case("smolvlm-default", _SMOL, ((2, 50, 90),)),
    Case("smolvlm-batch", _SMOL, ((2, 40, 53), (3, 64, 33)),
         {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}),
)  # fmt: skip

# (hub name, settings, total frames, source rate, what the call asks)
SAMPLING = (
    (_OV, {}, 37, 10.0, {"num_frames": 8}),
    (_OV, {}, 37, 10.0, {"fps": 2}),
    (_IVL, {}, 37, 10.0, {"num_frames": 8}),
    (_IVL, {}, 37, 10.0, {"fps": 2}),
    (_IVL, {}, 37, 10.0, {"num_frames": 5, "initial_shift": 3}),
    (_Q2, {}, 37, 10.0, {"num_frames": 7}),
    (_Q2, {}, 37, 10.0, {"fps": 2}),
    (_Q2, {}, 100, 25.0, {"fps": 1, "max_frames": 3}),
    (_Q3, {}, 37, 10.0, {"num_frames": 7, "fps": None}),
    (_Q3, {}, 37, 10.0, {}),
    (_Q3, {}, 9, 30.0, {}),
    (_SMOL, {"num_frames": 8, "fps": 1}, 300, 10.0, {}),
    (_SMOL, {"num_frames": 8, "fps": 1}, 50, 10.0, {}),
    (_SMOL, {"num_frames": 64, "fps": 1}, 3000, 10.0, {}),
)


def summary(array: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Shape, some values in full precision, and two sums over all (the second knows the order)."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    at = np.random.default_rng(0).integers(0, flat.size, PROBES)
    ramp = (np.arange(flat.size) % 1009) / 1009
    return {
        "shape": np.array(array.shape),
        "values": flat[at].astype(np.float32),
        "sums": np.array([flat.sum(), (flat * ramp).sum(), np.abs(flat).sum()]),
    }
