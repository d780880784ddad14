"""Time stamps: when the frames behind each temporal row of a video segment were taken, in seconds.

A row that holds several frames (Qwen-VL packs two) is stamped with the middle between its first and
last, as Qwen3-VL stamps its prompt. The engine knows each frame's own time, after sampling and pixel
methods too; inside `attach` the processor's `video_metadata` (return_metadata=True) or the seconds a
row that Qwen2.5-VL takes tell it. Where neither is there, or frames and rows cannot be matched, a
segment's `time_s` is None.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from foveate.core.errors import InputError
from foveate.engine.rows import Placed
from foveate.models.adapter import AutoAdapter

METADATA = "video_metadata"
_SECONDS = ("second_per_grid_ts", "video_second_per_grid")


def row_times(frames: np.ndarray, rows: int) -> np.ndarray | None:
    """(rows,) stamps of frames (T,) that fill `rows` rows evenly, the last frame repeated where they
    do not; None where they cannot.
    """
    count = int(frames.shape[0])
    if rows < 1 or count < 1:
        return None
    each = -(-count // rows)
    if -(-count // each) != rows:
        return None
    padded = np.concatenate([frames, np.repeat(frames[-1:], rows * each - count)])
    groups = padded.reshape(rows, each)
    return np.asarray((groups[:, 0] + groups[:, -1]) / 2, dtype=np.float64)


def stamp(
    rows: Sequence[Sequence[Placed]],
    *,
    clips: Sequence[Sequence[np.ndarray]],
    pictures: Sequence[int],
) -> None:
    """Sets `time_s` of pieces: clips[r] holds the frame times (T,) of each video of row r, whose first
    `pictures[r]` images are pictures.
    """
    for placed, videos, still in zip(rows, clips, pictures, strict=True):
        if not videos:
            continue
        own = [p for p in placed if p.modality == "video"]
        whole = bool(own)
        own = own or [
            p for p in placed if p.image >= still
        ]  # families that read frames as pictures
        numbers = list(dict.fromkeys(p.image for p in own))
        if whole and len(numbers) == len(videos):
            times = list(videos)
        else:
            times = list(np.concatenate(videos)[:, None])
            if len(numbers) != len(times):
                continue
        of = dict(zip(numbers, times, strict=True))
        for p in own:
            _set(p, row_times(of[p.image], p.piece.grid[0]))


def stamper(
    videos: Sequence[Sequence[Any]], pictures: Sequence[Sequence[Any]]
) -> Callable[[Sequence[Sequence[Placed]]], None]:
    """`stamp` for a batch of loaded videos (with time_s) and pictures, row by row."""
    clips = [[v.time_s for v in row] for row in videos]
    return functools.partial(stamp, clips=clips, pictures=[len(row) for row in pictures])


def stamp_from_call(
    adapter: AutoAdapter, rows: Sequence[Sequence[Placed]], kwargs: Mapping[str, Any]
) -> None:
    """Sets `time_s` from what a processor's output says of its videos; nothing where it says nothing."""
    own = [p for placed in rows for p in placed if p.modality == "video"]
    clips = _from_metadata(kwargs.get(METADATA))
    if clips is not None:
        if len(clips) != len(own):
            return
        for p in own:
            frames = clips[p.piece.picture]
            if frames is not None:
                _set(p, row_times(frames, p.piece.grid[0]))
        return
    seconds = next((kwargs[n] for n in _SECONDS if kwargs.get(n) is not None), None)
    if seconds is None:
        return
    each = torch.as_tensor(seconds, dtype=torch.float64).reshape(-1).cpu().numpy()
    if each.size != len(own):
        return
    depth = int(getattr(adapter.config.vision_config, "temporal_patch_size", 1))
    for p in own:
        step = float(each[p.piece.picture])
        _set(p, step * (np.arange(p.piece.grid[0]) + (depth - 1) / (2 * depth)))


def _from_metadata(given: Any) -> list[np.ndarray | None] | None:
    if given is None:
        return None
    try:
        pairs = [(m["fps"], m["frames_indices"]) for m in given]
    except (TypeError, KeyError) as error:
        raise InputError(
            "video_metadata must hold fps and frames_indices for each video, as a processor called "
            f"with return_metadata=True gives it: {error}"
        ) from None
    return [
        np.asarray(index, dtype=np.float64) / float(fps) if fps and index is not None else None
        for fps, index in pairs
    ]


def _set(placed: Placed, times: np.ndarray | None) -> None:
    if times is not None:
        placed.piece.time_s = torch.as_tensor(times)
