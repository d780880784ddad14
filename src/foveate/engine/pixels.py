"""The pixel stage: smaller pictures and fewer frames before preprocessing, fewer tiles after it.

A `Look` serves one batch: `before` changes the pictures, `call` goes to the processor, `after`
takes tiles out of its output. A tile's placeholders leave with it; the text around them stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from foveate.core.errors import InputError, UnsupportedError
from foveate.core.look import Size, picture_view, plans_of, refuse, tokens_of, video_view
from foveate.core.method import PixelMethod
from foveate.core.rng import PlanRng
from foveate.core.views import PixelPlan, Pixels
from foveate.engine import splice
from foveate.models.adapter import AutoAdapter
from foveate.models.resolution import resolution_of

_MARGIN = 1.2


@dataclass(frozen=True)
class _Seen:
    """One picture of a row: its own size, its plan, and what the plan makes of it."""

    size: Size
    plan: PixelPlan
    tiles: int
    tokens_in: int
    tokens_out: int


class Look:
    """Applies a pixel method to one batch. After `before`:

    changed: something was left out. notes: texts for each row. dropped[i]: placeholders that row i
    would have had beside those it has now (rows of a pattern such as newlines included).
    call: keyword arguments for the processor beside pictures and text.
    """

    def __init__(
        self, adapter: AutoAdapter, processor: Any, method: PixelMethod, seed: int = 0
    ) -> None:
        self.adapter, self.method = adapter, method
        self.resolution = resolution_of(adapter, processor)
        self.images = processor.image_processor
        self.pad = getattr(processor.tokenizer, "pad_token_id", None)
        self.rng = PlanRng(seed)
        self.changed = False
        self.notes: list[list[str]] = []
        self.dropped: list[int] = []
        self.call: dict[str, Any] = {}
        self._inputs: dict[str, Any] = {}
        self._rows: list[list[_Seen]] = []

    def before(
        self, pictures: Sequence[Sequence[Image.Image]], videos: Sequence[Sequence[Any]]
    ) -> tuple[list[list[Image.Image]], list[list[Any]]]:
        """Rows of pictures and videos as the method wants them. Raises UnsupportedError where this
        family cannot follow it, PlanError for a plan that does not fit its picture.
        """
        if any(pictures) or any(videos):
            self._check_family(any(videos))
        self.notes = [[] for _ in pictures]
        clips = [list(row) for row in videos]
        self._rows = []
        for r, (row, clip) in enumerate(zip(pictures, videos, strict=True)):
            views = [self._picture(i, p, len(row)) for i, p in enumerate(row)]
            views += [
                video_view(len(row) + i, v.frames, v.time_s, self.method.name)
                for i, v in enumerate(clip)
            ]
            plans = plans_of(self.method, views, self.resolution, self.rng)
            self._rows.append(
                [self._seen(p, plan, len(row)) for p, plan in zip(row, plans, strict=False)]
            )
            clips[r] = [self._clip(r, i, v, plans[len(row) + i]) for i, v in enumerate(clip)]
        self.dropped = [sum(s.tokens_in - s.tokens_out for s in row) for row in self._rows]
        return self._resized(pictures), clips

    def after(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The processor's output without the tiles that were left out, padded again on its side."""
        out = {**inputs, **self._inputs}
        if not any(s.plan.tiles is not None for row in self._rows for s in row):
            return out
        ids, mask = out["input_ids"], out.get("attention_mask")
        mask = mask if torch.is_tensor(mask) else torch.ones_like(ids)
        kept = [np.concatenate([_mask(s) for s in row]) if row else _NONE for row in self._rows]
        media = self.adapter.media_kwargs(out, "image")
        for name, value in media.items():
            out[name] = _without(value, kept, media["pixel_values"])
        token, each = self.adapter.token_id("image"), self._tile_tokens(ids, mask, kept)
        index = []
        for row, keep in enumerate(kept):
            real = (mask[row] != 0).cpu().numpy()
            spots = np.flatnonzero((ids[row] == token).cpu().numpy() & real)
            real[spots[~np.repeat(keep, each)]] = False
            index.append(np.flatnonzero(real))
        text = {k: v for k, v in out.items() if k not in media} | {"attention_mask": mask}
        pad = int(ids[mask == 0][0]) if bool((mask == 0).any()) else int(self.pad or 0)
        return {**out, **splice.shorten(text, index, splice.padding_side(mask), pad)}

    # --- before ---------------------------------------------------------------------------------
    def _check_family(self, videos: bool) -> None:
        if self.method.acts == "patches":
            raise UnsupportedError(
                f"{self.method.name} acts on preprocessed patches: compress() runs it"
            )
        refuse(self.method, self.adapter.model_type, self.resolution, videos)

    def _picture(self, index: int, picture: Image.Image, company: int) -> Pixels:
        array = np.asarray(picture.convert("RGB"))
        return picture_view(index, array, self.resolution, company)

    def _seen(self, picture: Image.Image, plan: PixelPlan, company: int) -> _Seen:
        size = (picture.height, picture.width)
        tiling = self.resolution.tiling(size, plan.size)
        tiles = len(tiling[0]) if tiling is not None else 1
        if plan.is_identity:
            return _Seen(size, plan, tiles, 0, 0)
        full = self.resolution.tokens(size, None, company)
        left = tokens_of(self.resolution, size, plan, company)
        return _Seen(size, plan, tiles, full, left)

    def _clip(self, row: int, index: int, video: Any, plan: PixelPlan) -> Any:
        if plan.frames is None:
            return video
        picks = np.asarray(plan.frames, dtype=np.int64)
        self.changed = True
        self.notes[row].append(f"video {index}: {picks.size} of {len(video.frames)} frames")
        return replace(video, frames=video.frames[picks], time_s=video.time_s[picks])

    def _resized(self, pictures: Sequence[Sequence[Image.Image]]) -> list[list[Image.Image]]:
        flat = [p for row in pictures for p in row]
        seen = [s for row in self._rows for s in row]
        self.changed = self.changed or any(not s.plan.is_identity for s in seen)
        if not any(s.plan.size is not None for s in seen):
            return [list(row) for row in pictures]
        handed = self.resolution.handed([s.size for s in seen], [s.plan.size for s in seen])
        self.call = {"images_kwargs": handed.images_kwargs} if handed.images_kwargs else {}
        self._inputs = handed.inputs
        sized = [
            p if size is None or size == (p.height, p.width) else p.resize(size[::-1], self._filter)
            for p, size in zip(flat, handed.sizes, strict=True)
        ]
        turn = iter(sized)
        self._note_bounds()
        return [[next(turn) for _ in row] for row in pictures]

    @property
    def _filter(self) -> Any:
        value = getattr(self.images, "resample", None)
        return Image.Resampling(int(value)) if value is not None else Image.Resampling.BICUBIC

    def _note_bounds(self) -> None:
        """Say where the processor's own bounds undo what was asked for."""
        for row, notes in zip(self._rows, self.notes, strict=True):
            for i, s in enumerate(row):
                if s.plan.size is None:
                    continue
                asked = s.plan.size[0] * s.plan.size[1]
                tall, wide = self.resolution.seen(s.plan.size)
                if s.tokens_out >= s.tokens_in:
                    notes.append(
                        f"picture {i}: asked for {s.plan.size[1]} x {s.plan.size[0]} pixels, which "
                        f"this model shows with {s.tokens_out} tokens as before: nothing was saved"
                    )
                elif self.resolution.bounded and tall * wide > _MARGIN * asked:
                    notes.append(
                        f"picture {i}: asked for {s.plan.size[1]} x {s.plan.size[0]} pixels, the "
                        f"model's own bounds make it {wide} x {tall} ({s.tokens_out} tokens)"
                    )

    # --- after ----------------------------------------------------------------------------------
    def _tile_tokens(self, ids: Tensor, mask: Tensor, kept: Sequence[np.ndarray]) -> int:
        found = int(((ids == self.adapter.token_id("image")) & (mask != 0)).sum())
        tiles = sum(k.size for k in kept)
        each, rest = divmod(found, tiles)
        if rest or each != self.resolution.tile_tokens:
            raise InputError(
                f"the text has {found} image placeholders for {tiles} tiles of "
                f"{self.resolution.tile_tokens}; a placeholder typed into the question, or "
                "truncation of the prompt, does this"
            )
        return each


_NONE = np.zeros(0, dtype=bool)


def _mask(seen: _Seen) -> np.ndarray:
    out = np.ones(seen.tiles, dtype=bool)
    if seen.plan.tiles is not None:
        out[:] = False
        out[list(seen.plan.tiles)] = True
    return out


def _without(value: Any, kept: Sequence[np.ndarray], pixels: Tensor) -> Any:
    """A tensor of all tiles (T, …), or of rows of them (rows, most, …) padded with zeros, cut."""
    every = np.concatenate(kept)
    if not torch.is_tensor(value):
        return value
    if pixels.ndim == 4 and pixels.shape[0] == every.size:
        if value.shape[0] != every.size:
            return value
        return value[torch.as_tensor(every, device=value.device)]
    most = max(k.size for k in kept)
    if pixels.ndim != 5 or pixels.shape[:2] != (len(kept), most):
        raise InputError(
            f"pixel_values of shape {tuple(pixels.shape)} do not hold the {every.size} tiles that "
            "were planned for; pass the processor's own output"
        )
    if value.ndim < 2 or value.shape[:2] != pixels.shape[:2]:
        return value
    out = value.new_zeros((len(kept), max(int(k.sum()) for k in kept), *value.shape[2:]))
    for row, keep in enumerate(kept):
        picks = torch.as_tensor(np.flatnonzero(keep), device=value.device)
        out[row, : picks.numel()] = value[row, picks]
    return out
