"""The pixel stage inside vLLM's processor: pictures are made smaller and videos lose frames before
vLLM's own processing, tiles leave its output. Each item is asked for alone, for vLLM caches it alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from foveate.core.errors import InputError, StateError
from foveate.core.look import picture_view, plans_of, video_view
from foveate.core.method import PixelMethod
from foveate.core.rng import PlanRng
from foveate.core.views import PixelPlan
from foveate.serve.vllm.showing import Shown

TILES_FIELD = "foveate_tiles"  # from the processor's output to the fields; never reaches the model
_CUT = ("pixel_values", "pixel_attention_mask")  # one row a tile


class Looking:
    """One pixel method on one server's family and settings. filter: how the family's processor
    resamples.
    """

    def __init__(self, method: PixelMethod, shown: Shown, seed: int, filter: int | None) -> None:
        self.method, self.shown, self.rng = method, shown, PlanRng(seed)
        self.filter = Image.Resampling.BICUBIC if filter is None else Image.Resampling(filter)

    def items(self, items: Mapping[str, Any]) -> dict[str, Any]:
        """vLLM's items by modality, where each is changed when it is first asked for: what a cache
        holds is never looked at. Hashes stay those of what the client sent.
        """
        out = dict(items)
        if self.method.acts == "size" and "image" in out:
            out["image"] = changed(out["image"], self.picture)
        if self.method.acts == "frames" and "video" in out:
            out["video"] = changed(out["video"], self.video)
        return out

    def picture(self, item: Any) -> Image.Image:
        """A picture at the size that the method asks for."""
        picture = picture_of(item, self.method.name)
        size = (picture.height, picture.width)
        asked = self._plan(picture).size
        handed = self.shown.handed(size, asked)
        return picture if handed == size else picture.resize(handed[::-1], self.filter)

    def video(self, item: Any) -> Any:
        """The frames that the method chose, with metadata that say when each of them is."""
        frames, metadata = item if isinstance(item, tuple) else (item, None)
        view = video_view(0, frames_of(frames, self.method.name), times_of(frames, metadata),
                          self.method.name)  # fmt: skip
        (plan,) = plans_of(self.method, [view], self.shown, self.rng)
        if plan.frames is None:
            return item
        picks = list(plan.frames)
        kept = [frames[i] for i in picks] if isinstance(frames, list) else frames[picks]
        return (kept, chosen(metadata, picks)) if isinstance(item, tuple) else kept

    def tiles(self, pictures: Sequence[Any]) -> list[np.ndarray]:
        """Which tiles of each picture stay, (tiles,) bool."""
        out = []
        for item in pictures:
            picture = picture_of(item, self.method.name)
            tiling = self.shown.tiling((picture.height, picture.width))
            mask = np.ones(len(tiling[0]) if tiling is not None else 1, dtype=bool)
            plan = self._plan(picture)
            if plan.tiles is not None:
                mask[:] = False
                mask[list(plan.tiles)] = True
            out.append(mask)
        return out

    def _plan(self, picture: Image.Image) -> PixelPlan:
        view = picture_view(0, np.asarray(picture), self.shown)
        (plan,) = plans_of(self.method, [view], self.shown, self.rng)
        return plan


# --- items ------------------------------------------------------------------------------------------
class _Changed:
    """Stands before vLLM's class of items in the order of resolution. What `super()` gives is vLLM's,
    hence the ignore.
    """

    _change: Callable[[Any], Any]
    _made: dict[int, Any]

    def get(self, index: int) -> Any:
        if index not in self._made:
            item = super().get(index)  # type: ignore[misc]
            # None: the client named what is cached already and did not send it again.
            self._made[index] = None if item is None else self._change(item)
        return self._made[index]


def changed(items: Any, change: Callable[[Any], Any]) -> Any:
    """vLLM's items, each changed when it is asked for; those for hashes stay as they are."""
    own: Any = type(items)
    cls = _changed_class(own)
    out = cls.__new__(cls)
    vars(out).update(vars(items), _change=change, _made={})
    return out


@functools.cache
def _changed_class(own: Any) -> Any:
    return type(f"Changed{own.__name__}", (_Changed, own), {})


# --- pictures and frames ----------------------------------------------------------------------------
def picture_of(item: Any, name: str) -> Image.Image:
    """A client's picture, PIL or an array of 8 bits (H, W, 1, 3 or 4) or (1, 3 or 4, H, W), as RGB."""
    if isinstance(item, Image.Image):
        return item if item.mode == "RGB" else item.convert("RGB")
    return Image.fromarray(_colours(_eight_bits(item, name)))


def frames_of(frames: Any, name: str) -> np.ndarray:
    """A client's frames as (t, H, W, 3) uint8."""
    if isinstance(frames, list):
        return np.stack([np.asarray(picture_of(f, name)) for f in frames])
    array = _eight_bits(frames, name)
    if array.ndim != 4:
        raise InputError(f"{name}: frames of shape {array.shape} are no video (t, H, W, 3)")
    return array if array.shape[-1] == 3 else np.stack([_colours(f) for f in array])


def _eight_bits(item: Any, name: str) -> np.ndarray:
    array = item.cpu().numpy() if isinstance(item, torch.Tensor) else np.asarray(item)
    if array.dtype != np.uint8:
        raise InputError(
            f"{name} reads pictures of 8 bits a colour; got {array.dtype}: send uint8, or a file"
        )
    return array


def _colours(array: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a picture whose colours stand first or last, as vLLM tells them apart."""
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4):
        raise InputError(f"an array of shape {array.shape} is no picture")
    colours = array.repeat(3, axis=-1) if array.shape[-1] == 1 else array[..., :3]
    return np.ascontiguousarray(colours)


def times_of(frames: Any, metadata: Mapping[str, Any] | None) -> np.ndarray:
    """(t,) seconds from the start of the source, NaN where a client did not say."""
    count = len(frames)
    fps = metadata.get("fps") if metadata else None
    if not metadata or not fps:
        return np.full(count, np.nan)
    indices = metadata.get("frames_indices")
    return np.asarray(range(count) if indices is None else indices, dtype=np.float64) / float(fps)


def chosen(metadata: Mapping[str, Any] | None, picks: Sequence[int]) -> dict[str, Any] | None:
    """Metadata of the chosen frames: rate and length are those of the source, so the indices alone
    change, and nothing is sampled again.
    """
    if metadata is None:
        return None
    out = dict(metadata)
    indices = out.get("frames_indices")
    if indices is not None and len(indices) <= max(picks):
        raise InputError(f"frames_indices has {len(indices)} entries, fewer than the video frames")
    out["frames_indices"] = list(picks) if indices is None else [int(indices[i]) for i in picks]
    return {**out, "do_sample_frames": False}


# --- tiles ------------------------------------------------------------------------------------------
def without_tiles(data: Any, kept: Sequence[np.ndarray], field: str) -> None:
    """Takes tiles out of a processor's output (one row a tile, `field` counts them by picture)."""
    every = np.concatenate(kept)
    data[TILES_FIELD] = list(kept)
    if every.all():
        return
    picks = torch.as_tensor(np.flatnonzero(every))
    for name in _CUT:
        if name not in data:
            continue
        rows = data[name]
        if not isinstance(rows, torch.Tensor) or rows.shape[0] != every.size:
            raise StateError(
                f"{name} does not hold the {every.size} tiles that were planned for; this version of "
                "vLLM hands them on otherwise"
            )
        data[name] = rows[picks]
    data[field] = torch.tensor([int(k.sum()) for k in kept])


def without_places(
    tokens: Sequence[int], placeholder: int, mask: np.ndarray, each: int
) -> list[int]:
    """A picture's part of the prompt without the placeholders of tiles that were left out. The text
    around them stays. Some families write as many as there are tiles left.
    """
    have = sum(t == placeholder for t in tokens)
    if have == each * int(mask.sum()):
        return list(tokens)
    if have != each * mask.size:
        raise InputError(f"{have} placeholders for {mask.size} tiles of {each}")
    stays = iter(np.repeat(mask, each))
    return [t for t in tokens if t != placeholder or next(stays)]


__all__ = [
    "TILES_FIELD",
    "Looking",
    "changed",
    "without_places",
    "without_tiles",
]
