"""How families take pictures: one class a layout, which draws, cuts and joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional

Batch = dict[str, Tensor]
Size = tuple[int, int]


def padded(parts: Sequence[Tensor], value: float = 0) -> Tensor:
    """Join along the first dimension, the others padded at their end to the largest."""
    largest = [max(p.shape[d] for p in parts) for d in range(1, parts[0].ndim)]
    out = []
    for p in parts:
        missing = [most - have for most, have in zip(largest, p.shape[1:], strict=True)]
        # functional.pad counts dimensions from the last one.
        pads = [x for amount in reversed(missing) for x in (0, amount)]
        out.append(functional.pad(p, pads, value=value))
    return torch.cat(out)


def joined(parts: Sequence[Batch], values: dict[str, float] | None = None) -> Batch:
    """`padded` for every key; `values`: what to pad a key with, where that is not 0."""
    fill = values or {}
    return {key: padded([p[key] for p in parts], fill.get(key, 0)) for key in parts[0]}


def rows(batch: Batch) -> list[Batch]:
    """Cut every tensor along the first dimension, which stays with length 1."""
    count = next(iter(batch.values())).shape[0]
    return [{key: value[i : i + 1] for key, value in batch.items()} for i in range(count)]


def without_zero_tiles(pixels: Tensor) -> Tensor:
    """(1, tiles, …) without the all-zero tiles at its end, which are padding."""
    real = pixels[0].flatten(1).any(1).nonzero()
    return pixels[:, : int(real.max()) + 1]


def coordinates(height: int, width: int) -> Tensor:
    """(height * width, 2) as (x, y), row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


class Pictures(ABC):
    """A layout. Random pictures take `sizes` in turn: (rows, columns) or as the class says."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((1, 1),)

    @abstractmethod
    def one(self, size: Size, generator: Generator) -> Batch:
        """One random picture as a batch of its own."""

    @abstractmethod
    def split(self, batch: Batch) -> list[Batch]:
        """One batch a picture, without the padding that joining added."""

    def join(self, parts: Sequence[Batch]) -> Batch:
        return joined(parts)

    def random(self, count: int, seed: int, unequal: bool) -> Batch:
        generator = Generator().manual_seed(seed)
        sizes = self.sizes if unequal else self.sizes[:1]
        return self.join([self.one(sizes[i % len(sizes)], generator) for i in range(count)])


@dataclass(frozen=True)
class Square(Pictures):
    """pixel_values (n, 3, side, side), all alike; `mask` adds pixel_mask (n, side, side)."""

    side: int = 28
    mask: bool = False

    def one(self, size: Size, generator: Generator) -> Batch:
        out = {"pixel_values": torch.randn(1, 3, self.side, self.side, generator=generator)}
        if self.mask:
            out["pixel_mask"] = torch.ones(1, self.side, self.side, dtype=torch.bool)
        return out

    def split(self, batch: Batch) -> list[Batch]:
        return rows(batch)


@dataclass(frozen=True)
class Sized(Pictures):
    """pixel_values (n, 3, H, W) padded at the right and bottom, image_sizes (n, 2) in pixels."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((28, 56), (28, 28), (42, 28))

    def one(self, size: Size, generator: Generator) -> Batch:
        return {
            "pixel_values": torch.randn(1, 3, *size, generator=generator),
            "image_sizes": torch.tensor([size]),
        }

    def split(self, batch: Batch) -> list[Batch]:
        out = rows(batch)
        for part in out:
            height, width = part["image_sizes"][0].tolist()
            part["pixel_values"] = part["pixel_values"][..., :height, :width]
        return out


@dataclass(frozen=True)
class Anyres(Pictures):
    """pixel_values (n, tiles, 3, 28, 28), thumbnail first; image_sizes (n, 2) tell real ones."""

    # The tiles that `PINPOINTS` give a picture of each size, the thumbnail included.
    tiles: ClassVar[dict[Size, int]] = {(56, 28): 3, (42, 56): 5, (26, 56): 3}

    @property
    def sizes(self) -> tuple[Size, ...]:
        return tuple(self.tiles)

    def one(self, size: Size, generator: Generator) -> Batch:
        return {
            "pixel_values": torch.randn(1, self.tiles[size], 3, 28, 28, generator=generator),
            "image_sizes": torch.tensor([size]),
        }

    def split(self, batch: Batch) -> list[Batch]:
        out = rows(batch)
        for part in out:
            part["pixel_values"] = without_zero_tiles(part["pixel_values"])
        return out


PINPOINTS = [[28, 56], [56, 28], [56, 56]]


@dataclass(frozen=True)
class TiledRows(Pictures):
    """pixel_values (rows, tiles, 3, 32, 32), one row a picture; zero tiles are padding.

    A size is (1, tiles).
    """

    tiles: tuple[int, ...]

    @property
    def sizes(self) -> tuple[Size, ...]:
        return tuple((1, n) for n in self.tiles)

    def one(self, size: Size, generator: Generator) -> Batch:
        return {"pixel_values": torch.randn(1, size[1], 3, 32, 32, generator=generator)}

    def split(self, batch: Batch) -> list[Batch]:
        return [{"pixel_values": without_zero_tiles(p["pixel_values"])} for p in rows(batch)]


@dataclass(frozen=True)
class Packed(Pictures):
    """pixel_values (all patches, *patch), image_grid_thw (n, 3), with `merge` image_merge_sizes."""

    patch: tuple[int, ...]
    merge: int | None = None

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((8, 6), (4, 8), (6, 4))

    def one(self, size: Size, generator: Generator) -> Batch:
        height, width = size
        out = {
            "pixel_values": torch.randn(height * width, *self.patch, generator=generator),
            "image_grid_thw": torch.tensor([[1, height, width]]),
        }
        if self.merge is not None:
            out["image_merge_sizes"] = torch.tensor([self.merge])
        return out

    def split(self, batch: Batch) -> list[Batch]:
        counts = batch["image_grid_thw"].prod(-1).tolist()
        rest = {key: value for key, value in batch.items() if key != "pixel_values"}
        patches = torch.split(batch["pixel_values"], counts)
        return [{"pixel_values": p, **r} for p, r in zip(patches, rows(rest), strict=True)]


@dataclass(frozen=True)
class Placed(Pictures):
    """pixel_values (n, patches, 48), image_position_ids (n, patches, 2): x, y; -1 is padding."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((4, 6), (4, 4), (2, 6))

    def one(self, size: Size, generator: Generator) -> Batch:
        return {
            "pixel_values": torch.randn(1, size[0] * size[1], 48, generator=generator),
            "image_position_ids": coordinates(*size)[None],
        }

    def join(self, parts: Sequence[Batch]) -> Batch:
        return joined(parts, {"image_position_ids": -1})

    def split(self, batch: Batch) -> list[Batch]:
        out = rows(batch)
        for part in out:
            real = int((part["image_position_ids"] >= 0).all(-1).sum())
            for key in part:
                part[key] = part[key][:, :real]
        return out


@dataclass(frozen=True)
class Shaped(Pictures):
    """pixel_values (n, patches, 48), spatial_shapes (n, 2), pixel_attention_mask (n, patches)."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((4, 6), (4, 4), (2, 6))

    def one(self, size: Size, generator: Generator) -> Batch:
        patches = size[0] * size[1]
        return {
            "pixel_values": torch.randn(1, patches, 48, generator=generator),
            "spatial_shapes": torch.tensor([size]),
            "pixel_attention_mask": torch.ones(1, patches, dtype=torch.long),
        }

    def split(self, batch: Batch) -> list[Batch]:
        out = rows(batch)
        for part in out:
            real = int(part["pixel_attention_mask"].sum())
            for key in ("pixel_values", "pixel_attention_mask"):
                part[key] = part[key][:, :real]
        return out


@dataclass(frozen=True)
class Strip(Pictures):
    """pixel_values (1, 3, 8, 8 * all patches), patches in line; target_sizes (n, 2) in patches."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((8, 8), (8, 4), (4, 12))

    def one(self, size: Size, generator: Generator) -> Batch:
        return {
            "pixel_values": torch.randn(1, 3, 8, 8 * size[0] * size[1], generator=generator),
            "target_sizes": torch.tensor([size]),
        }

    def join(self, parts: Sequence[Batch]) -> Batch:
        return {
            "pixel_values": torch.cat([p["pixel_values"] for p in parts], -1),
            "target_sizes": torch.cat([p["target_sizes"] for p in parts]),
        }

    def split(self, batch: Batch) -> list[Batch]:
        sizes = batch["target_sizes"]
        pixels = torch.split(batch["pixel_values"], (8 * sizes.prod(-1)).tolist(), -1)
        parts = zip(pixels, torch.split(sizes, 1), strict=True)
        return [{"pixel_values": p, "target_sizes": s} for p, s in parts]


@dataclass(frozen=True)
class Crops(Pictures):
    """pixel_values (crops, 16, 147), image_token_pooling (tokens, 4), image_grids (n, 4).

    Pooling numbers the patches of the whole batch. A size is (1, crops): the low-resolution crop,
    and perhaps one of high resolution. Each crop gives 2 x 2 tokens.
    """

    patches: ClassVar[int] = 16

    @property
    def sizes(self) -> tuple[Size, ...]:
        return ((1, 2), (1, 1))

    def one(self, size: Size, generator: Generator) -> Batch:
        crops = size[1]
        return {
            "pixel_values": torch.randn(crops, self.patches, 7 * 7 * 3, generator=generator),
            "image_token_pooling": torch.arange(crops * self.patches).reshape(-1, 4),
            "image_grids": torch.tensor([[2, 2, 2, 2] if crops > 1 else [2, 2, 0, 0]]),
        }

    def join(self, parts: Sequence[Batch]) -> Batch:
        out = joined(parts)
        first, shifted = 0, []
        for p in parts:
            shifted.append(p["image_token_pooling"] + first)
            first += p["pixel_values"].shape[0] * self.patches
        out["image_token_pooling"] = torch.cat(shifted)
        return out

    def split(self, batch: Batch) -> list[Batch]:
        out, crop, token = [], 0, 0
        for grid in torch.split(batch["image_grids"], 1):
            a, b, c, d = grid[0].tolist()
            tokens = a * b + c * d
            crops = tokens // 4
            pooling = batch["image_token_pooling"][token : token + tokens] - crop * self.patches
            pixels = batch["pixel_values"][crop : crop + crops]
            part = {"pixel_values": pixels, "image_token_pooling": pooling, "image_grids": grid}
            out.append(part)
            crop, token = crop + crops, token + tokens
        return out
