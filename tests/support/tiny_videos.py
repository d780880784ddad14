"""How families take videos: one class a layout, which draws videos of 3 and 4 temporal steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from tests.support.tiny_pictures import Batch, coordinates, joined


class Videos(ABC):
    """A layout. `steps` are the temporal lengths that random videos take in turn."""

    @property
    def steps(self) -> tuple[int, ...]:
        return (3, 4)

    @abstractmethod
    def one(self, steps: int, generator: Generator) -> Batch:
        """One random video as a batch of its own."""

    @abstractmethod
    def frames(self, batch: Batch) -> list[int]:
        """Temporal steps of each entry of the features that get_video_features returns."""

    def join(self, parts: Sequence[Batch]) -> Batch:
        return joined(parts)

    def random(self, count: int, seed: int) -> Batch:
        generator = Generator().manual_seed(seed)
        steps = self.steps
        return self.join([self.one(steps[i % len(steps)], generator) for i in range(count)])


@dataclass(frozen=True)
class PackedVideo(Videos):
    """pixel_values_videos (all patches, dim), video_grid_thw (n, 3), `merge`: video_merge_sizes."""

    dim: int
    merge: int | None = None

    def one(self, steps: int, generator: Generator) -> Batch:
        height, width = 4, 6
        patches = steps * height * width
        out = {
            "pixel_values_videos": torch.randn(patches, self.dim, generator=generator),
            "video_grid_thw": torch.tensor([[steps, height, width]]),
        }
        if self.merge is not None:
            out["video_merge_sizes"] = torch.tensor([self.merge])
        return out

    def frames(self, batch: Batch) -> list[int]:
        return [int(t) for t in batch["video_grid_thw"][:, 0]]


@dataclass(frozen=True)
class StackedVideo(Videos):
    """pixel_values_videos (n, frames, 3, 28, 28): videos of one batch are equally long."""

    @property
    def steps(self) -> tuple[int, ...]:
        return (3,)

    def one(self, steps: int, generator: Generator) -> Batch:
        return {"pixel_values_videos": torch.randn(1, steps, 3, 28, 28, generator=generator)}

    def frames(self, batch: Batch) -> list[int]:
        videos, steps = batch["pixel_values_videos"].shape[:2]
        return [int(steps)] * int(videos)


@dataclass(frozen=True)
class PlacedVideo(Videos):
    """pixel_values_videos (all frames, 24, 48), video_position_ids, num_frames_per_video (n,)."""

    def one(self, steps: int, generator: Generator) -> Batch:
        return {
            "pixel_values_videos": torch.randn(steps, 24, 48, generator=generator),
            "video_position_ids": coordinates(4, 6).expand(steps, -1, -1),
            "num_frames_per_video": torch.tensor([steps]),
        }

    def frames(self, batch: Batch) -> list[int]:
        return [int(t) for t in batch["num_frames_per_video"]]


@dataclass(frozen=True)
class StripVideo(Videos):
    """pixel_values_videos (1, 3, 8, 8 * all patches), target_sizes_videos (all frames, 2).

    Each frame is an entry of the features of its own.
    """

    def one(self, steps: int, generator: Generator) -> Batch:
        height, width = 8, 4
        return {
            "pixel_values_videos": torch.randn(
                1, 3, 8, 8 * steps * height * width, generator=generator
            ),
            "target_sizes_videos": torch.tensor([[height, width]] * steps),
        }

    def join(self, parts: Sequence[Batch]) -> Batch:
        return {
            "pixel_values_videos": torch.cat([p["pixel_values_videos"] for p in parts], -1),
            "target_sizes_videos": torch.cat([p["target_sizes_videos"] for p in parts]),
        }

    def frames(self, batch: Batch) -> list[int]:
        return [1] * batch["target_sizes_videos"].shape[0]


@dataclass(frozen=True)
class CropVideo(Videos):
    """pixel_values_videos (frames, 16, 147), video_token_pooling (tokens, 4), video_grids (n, 3)"""

    patches: ClassVar[int] = 16

    def one(self, steps: int, generator: Generator) -> Batch:
        return {
            "pixel_values_videos": torch.randn(steps, self.patches, 7 * 7 * 3, generator=generator),
            "video_token_pooling": torch.arange(steps * self.patches).reshape(-1, 4),
            "video_grids": torch.tensor([[steps, 2, 2]]),
        }

    def join(self, parts: Sequence[Batch]) -> Batch:
        out = joined(parts)
        # Pooling numbers the patches of the batch, which consecutive videos fill without gaps.
        out["video_token_pooling"] = torch.arange(out["video_token_pooling"].numel()).reshape(-1, 4)
        return out

    def frames(self, batch: Batch) -> list[int]:
        return [int(t) for t in batch["video_grids"][:, 0]]
