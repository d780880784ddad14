"""Frames to the video tensors of a model family, without torchvision.

Rules of the families, as their video processors in transformers 5.23 apply them:

| families | size of a frame | tensor |
|---|---|---|
| LLaVA-OneVision, InternVL | fixed height and width, or a fixed short edge | (t, 3, H, W) |
| Qwen2-VL, Qwen2.5-VL | edges multiples of patch * merge, pixels of a frame bounded | patches |
| Qwen3-VL | the same, with the pixels of the whole clip bounded | patches |
| SmolVLM | long edge fixed, then squeezed to a square | (t, 3, S, S) |

Patches are (tokens, dim): one row per patch, dim = 3 * temporal * patch * patch, rows in
merge-sized squares. Resizing is PyTorch's own antialiased uint8 kernel, the one torchvision calls,
so that the numbers agree to the last bit. Cost O(pixels).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from foveate.core.errors import InputError, MediaError, UnsupportedError

# Pillow's numbers for the filters, as preprocessor files store them.
FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
MAX_ASPECT = 200
SMOLVLM_MAX_EDGE = 4096


def channels_first(video: NDArray[Any] | Tensor, channels_last: bool) -> Tensor:
    """(t, H, W, C) or (t, C, H, W) uint8 with C = 1 or 3 to (t, 3, H, W) uint8."""
    frames = (
        torch.from_numpy(np.ascontiguousarray(video)) if isinstance(video, np.ndarray) else video
    )
    if frames.ndim != 4 or frames.numel() == 0:
        raise MediaError(f"a video must be (t, H, W, 3) with pixels, not {tuple(frames.shape)}")
    if frames.dtype != torch.uint8:
        raise MediaError(f"video frames must be uint8 in 0..255, not {frames.dtype}")
    if channels_last:
        frames = frames.permute(0, 3, 1, 2)
    if frames.shape[1] == 1:
        frames = frames.expand(-1, 3, -1, -1)
    if frames.shape[1] != 3:
        raise MediaError(f"video frames must have 1 or 3 channels, not {frames.shape[1]}")
    return frames.contiguous()


def resize(frames: Tensor, height: int, width: int, resample: int) -> Tensor:
    """(t, 3, H, W) uint8 to (t, 3, height, width) uint8, antialiased."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    mode = FILTERS.get(int(resample))
    if mode is None:
        raise UnsupportedError(
            f"resample={resample} is not supported for videos; use one of {FILTERS}"
        )
    try:
        return F.interpolate(
            frames, (height, width), mode=mode, align_corners=False, antialias=True
        )
    except (NotImplementedError, ValueError) as error:  # older PyTorch: no Lanczos
        raise UnsupportedError(f"this PyTorch cannot resize by {mode}: {error}") from error


def normalise(
    frames: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None, factor: float | None
) -> Tensor:
    """float32 (x * factor - mean) / std per channel; without mean and std only x * factor."""
    if mean is None or std is None:
        return frames if factor is None else frames.float() * factor
    # scale mean and std instead of every pixel, in this order: the last bit depends on it
    unit = 1.0 if factor is None else 1.0 / factor
    shift = (torch.tensor(mean) * unit).view(1, 3, 1, 1)
    scale = (torch.tensor(std) * unit).view(1, 3, 1, 1)
    return frames.float().sub_(shift).div_(scale)


def plain_size(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """Target (height, width): given outright, or by the short edge with the aspect kept."""
    if size.get("height") and size.get("width"):
        return int(size["height"]), int(size["width"])
    if size.get("shortest_edge") and not size.get("longest_edge"):
        short = int(size["shortest_edge"])
        long = int(short * max(height, width) / min(height, width))
        return (short, long) if height <= width else (long, short)
    raise UnsupportedError(f"video size {dict(size)} is not supported; give height and width")


def qwen2_size(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Qwen2-VL: multiples of `factor`, min_pixels <= height * width <= max_pixels, aspect kept."""
    return _bounded(height, width, factor, height * width, 1, min_pixels, max_pixels)


def qwen3_size(
    count: int,
    height: int,
    width: int,
    temporal: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """Qwen3-VL: as Qwen2-VL, with the bounds on the pixels of all `count` frames together."""
    if count < temporal:
        raise MediaError(f"a video needs at least {temporal} frames for this model, not {count}")
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    slices = round(count / temporal) * temporal
    return _bounded(height, width, factor, count * height * width, slices, min_pixels, max_pixels)


def _bounded(
    height: int, width: int, factor: int, pixels: int, slices: int, low: int, high: int
) -> tuple[int, int]:
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise MediaError(f"a frame of {width} x {height} is longer than {MAX_ASPECT} to 1")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    if slices * tall * wide > high:
        shrink = math.sqrt(pixels / high)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif slices * tall * wide < low:
        grow = math.sqrt(low / pixels)
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide


def qwen2_frame_cap(
    count: int, factor: int, temporal: int, size: Mapping[str, int], tokens: int
) -> int:
    """Pixels of a frame when those of the clip are bounded to 90 % of `tokens` (Qwen2-VL)."""
    share = int(tokens * factor * factor * 0.9) * temporal // count
    return max(min(int(size["longest_edge"]), share), int(size["shortest_edge"] * 1.05))


def qwen3_clip_cap(count: int, factor: int, size: Mapping[str, int], tokens: int) -> int:
    """Pixels a clip may have when each frame is bounded to `tokens` tokens (Qwen3-VL option)."""
    share = min(tokens * factor * factor, int(size["longest_edge"]) // count)
    return max(share, int(size["shortest_edge"] * 1.05)) * count


def smolvlm_size(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """SmolVLM: the long edge fixed, the short one kept in aspect and made even."""
    edge = min(SMOLVLM_MAX_EDGE, longest_edge)
    aspect = width / height
    if width >= height:
        short = int(edge / aspect)
        return max(short + short % 2, 1), edge
    short = int(edge * aspect)
    return edge, max(short + short % 2, 1)


def pack_patches(
    frames: Tensor, patch: int, temporal: int, merge: int
) -> tuple[Tensor, tuple[int, int, int]]:
    """(t, 3, H, W) to patch rows (tokens, dim) and their grid (t / temporal, H / patch, W / patch).

    A clip that does not fill the last group of `temporal` frames repeats its last frame.
    """
    if missing := -frames.shape[0] % temporal:
        frames = torch.cat((frames, frames[-1:].expand(missing, -1, -1, -1)))
    count, channels, height, width = frames.shape
    grid = (count // temporal, height // patch, width // patch)
    blocks = frames.reshape(
        grid[0], temporal, channels,
        grid[1] // merge, merge, patch,
        grid[2] // merge, merge, patch,
    )  # fmt: skip
    # rows: time, merge square (row, column), patch inside it; columns: channel, frame, row, column
    rows = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return rows.reshape(math.prod(grid), channels * temporal * patch * patch), grid


def sample_floor(total: int, count: int) -> list[int]:
    """LLaVA-OneVision: floor(i * total / count)."""
    _enough(total, count)
    return [i * total // count for i in range(count)]


def sample_qwen2(
    total: int, count: int | None, fps: float | None, rate: float | None, *,
    temporal: int, low: int, high: int,
) -> list[int]:  # fmt: skip
    """Qwen2-VL: equal steps; the count is rounded to whole temporal groups."""
    if count is not None:
        count = round(count / temporal) * temporal
    elif fps is not None:
        high = math.floor(min(high, total) / temporal) * temporal
        want = min(max(total / _known(rate) * fps, low), high, total)
        count = math.floor(want / temporal) * temporal
    else:
        return list(range(total))
    _enough(total, count)
    return [int(i) for i in torch.arange(0, total, total / count).int()]


def sample_qwen3(
    total: int, count: int | None, fps: float | None, rate: float, *, low: int, high: int
) -> list[int]:
    """Qwen3-VL: evenly from the first to the last frame, `fps` per second within [low, high]."""
    if count is None and fps is not None:
        count = min(max(int(total / rate * fps), low), high, total)
    if count is None:
        count = min(max(total, low), high)
    return [int(i) for i in np.linspace(0, total - 1, count).round()]


def sample_internvl(
    total: int, count: int | None, fps: float | None, rate: float | None, shift: bool | float
) -> list[int]:
    """InternVL: equal steps from half a step on (`shift` True), or from frame `shift`."""
    if count is None:
        count = int(total / _known(rate) * fps) if fps is not None else total
    _enough(total, count)
    first = total / count / 2 if shift is True else float(shift)
    return [int(i) for i in torch.arange(first, total, total / count).int()]


def sample_smolvlm(
    total: int, count: int, fps: float, rate: float | None, duration_s: float, skip_s: float = 1
) -> list[int]:
    """SmolVLM: at most `count` frames at `fps`, evenly; long ones lose their first and last 1 s."""
    want = max(1, min(round(fps * duration_s), count))
    first, last = 0, total - 1
    if skip_s > 0 and duration_s - 2 * skip_s > count * fps:
        margin = skip_s * _known(rate)
        first, last = max(0, int(margin)), min(int(total - margin), total - 1)
        if first >= last:
            first, last = 0, total - 1
    return sorted({int(i) for i in np.linspace(first, last, want, dtype=int)})


def _known(rate: float | None) -> float:
    if not rate:
        raise InputError("sampling by fps needs the frame rate of the video: pass video_metadata")
    return float(rate)


def _enough(total: int, count: int) -> None:
    if not 1 <= count <= total:
        raise InputError(f"cannot sample {count} frames from a video of {total}; ask for fewer")
