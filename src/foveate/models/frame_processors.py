"""The frame processors of the families whose video rules we know (see video_preprocess).

Defaults are those of transformers 5.23 for a checkpoint whose files leave a setting out. Each
class names the video processor it stands for (`hub_name`) and is saved under that name, so that a
folder written here loads anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from foveate.core.errors import InputError
from foveate.models import video_preprocess as vp
from foveate.models.compat_processors import FrameProcessor, NoFrames, as_size, settings_type

HALF = (0.5, 0.5, 0.5)
_QWEN = {
    "patch_size": int,
    "temporal_patch_size": int,
    "merge_size": int,
    "min_frames": int,
    "max_frames": int,
    "cap_pixels_per_frame": bool,
    "max_video_tokens": int,
}
Qwen2Kwargs = settings_type("Qwen2Kwargs", min_pixels=int, max_pixels=int, **_QWEN)
Qwen3Kwargs = settings_type("Qwen3Kwargs", **_QWEN)
InternVLKwargs = settings_type("InternVLKwargs", initial_shift=bool | float | int)
SmolVLMKwargs = settings_type("SmolVLMKwargs", max_image_size=dict[str, int])


class LlavaOnevisionFrames(FrameProcessor):
    hub_name = "LlavaOnevisionVideoProcessor"
    size: ClassVar[Any] = {"height": 384, "width": 384}


class InternVLFrames(FrameProcessor):
    hub_name = "InternVLVideoProcessor"
    valid_kwargs = InternVLKwargs
    size: ClassVar[Any] = {"height": 384, "width": 384}
    initial_shift: bool | float = True

    def choose(
        self, total: int, count: int | None, fps: float | None, facts: VideoMetadata,
        options: Mapping[str, Any],
    ) -> list[int]:  # fmt: skip
        return vp.sample_internvl(total, count, fps, facts.fps, options["initial_shift"])


class SmolVLMFrames(FrameProcessor):
    hub_name = "SmolVLMVideoProcessor"
    valid_kwargs = SmolVLMKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values", "pixel_attention_mask"]
    resample = 1
    size: ClassVar[Any] = {"longest_edge": 4 * 364}
    max_image_size: ClassVar[Any] = {"longest_edge": 364}
    image_mean = image_std = HALF
    do_pad = True

    def __init__(self, **settings: Any) -> None:
        # SmolVLM2 keeps its sampling apart, in `video_sampling`
        if sampling := settings.get("video_sampling"):
            settings |= {"num_frames": sampling["max_frames"], "fps": sampling["fps"]}
            settings["size"] = settings.get("size") or sampling["video_size"]
        super().__init__(**settings)

    def sample(
        self, facts: VideoMetadata, asked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[int]:
        count, fps = options["num_frames"], options["fps"]
        if count is None or fps is None or not facts.fps or facts.duration is None:
            raise InputError("SmolVLM samples with num_frames, fps and video_metadata together")
        return vp.sample_smolvlm(facts.total_num_frames, count, fps, facts.fps, facts.duration)

    def tensors(self, videos: list[Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
        done = []
        for video in videos:
            if options["do_resize"]:
                size = as_size(options["size"])
                height, width = video.shape[-2:]
                if "longest_edge" in size:
                    edges = vp.smolvlm_size(height, width, size["longest_edge"])
                else:
                    edges = vp.plain_size(height, width, size)
                square = as_size(options["max_image_size"])["longest_edge"]
                video = vp.resize(video, *edges, options["resample"])
                video = vp.resize(video, square, square, options["resample"])
            done.append(self.normalised(video, options))
        if not options["do_pad"]:
            return {"pixel_values": done}
        shape = [max(v.shape[i] for v in done) for i in (0, 2, 3)]
        pixels = torch.zeros(len(done), shape[0], 3, shape[1], shape[2])
        mask = torch.zeros(len(done), *shape, dtype=torch.int64)
        for i, video in enumerate(done):
            count, _, height, width = video.shape
            pixels[i, :count, :, :height, :width] = video
            mask[i, :, :height, :width] = 1  # padded frames count as seen, as in training
        return {"pixel_values": pixels, "pixel_attention_mask": mask}


class Qwen2Frames(FrameProcessor):
    hub_name = "Qwen2VLVideoProcessor"
    valid_kwargs = Qwen2Kwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values_videos", "video_grid_thw"]
    size: ClassVar[Any] = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}
    patch_size = 14
    temporal_patch_size = 2
    merge_size = 2
    min_frames = 4
    max_frames = 768
    cap_pixels_per_frame: bool | None = None
    max_video_tokens = 128000

    def __init__(self, **settings: Any) -> None:
        super().__init__(**_pixel_bounds(settings, dict(self.size)))

    def choose(
        self, total: int, count: int | None, fps: float | None, facts: VideoMetadata,
        options: Mapping[str, Any],
    ) -> list[int]:  # fmt: skip
        return vp.sample_qwen2(
            total, count, fps, facts.fps, temporal=options["temporal_patch_size"],
            low=options["min_frames"], high=options["max_frames"],
        )  # fmt: skip

    def frame_size(
        self, count: int, height: int, width: int, options: Mapping[str, Any]
    ) -> tuple[int, int]:
        """(height, width) of a frame for the tower, of `count` frames (height, width)."""
        size, factor = _edges(options["size"]), options["patch_size"] * options["merge_size"]
        high = size["longest_edge"]
        if options["cap_pixels_per_frame"]:
            temporal, tokens = options["temporal_patch_size"], options["max_video_tokens"]
            high = vp.qwen2_frame_cap(count, factor, temporal, size, tokens)
        return vp.qwen2_size(height, width, factor, size["shortest_edge"], high)

    def tensors(self, videos: list[Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
        options = _pixel_bounds(dict(options), as_size(options["size"]))
        rows, grids = [], []
        for video in videos:
            if options["do_resize"]:
                count, _, height, width = video.shape
                target = self.frame_size(count, height, width, options)
                video = vp.resize(video, *target, options["resample"])
            row, grid = vp.pack_patches(
                self.normalised(video, options), options["patch_size"],
                options["temporal_patch_size"], options["merge_size"],
            )  # fmt: skip
            rows.append(row)
            grids.append(grid)
        return {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.tensor(grids)}

    def get_num_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: dict[str, Any] | None = None
    ) -> int:
        """Patch rows that a clip will give; called by the family's processor."""
        names = self.valid_kwargs.__annotations__
        options = {n: getattr(self, n, None) for n in names} | (videos_kwargs or {})
        tall, wide = self.frame_size(num_frames, height, width, options)
        patch, temporal = options["patch_size"], options["temporal_patch_size"]
        return -(-num_frames // temporal) * (tall // patch) * (wide // patch)


class Qwen3Frames(Qwen2Frames):
    hub_name = "Qwen3VLVideoProcessor"
    valid_kwargs = Qwen3Kwargs
    size: ClassVar[Any] = {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768}
    image_mean = image_std = HALF
    patch_size = 16
    max_video_tokens = 768
    do_sample_frames = True
    fps = 2

    def choose(
        self, total: int, count: int | None, fps: float | None, facts: VideoMetadata,
        options: Mapping[str, Any],
    ) -> list[int]:  # fmt: skip
        facts.fps = facts.fps or 24
        return vp.sample_qwen3(
            total, count, fps, facts.fps, low=options["min_frames"], high=options["max_frames"]
        )

    def frame_size(
        self, count: int, height: int, width: int, options: Mapping[str, Any]
    ) -> tuple[int, int]:
        size, factor = _edges(options["size"]), options["patch_size"] * options["merge_size"]
        high = size["longest_edge"]
        if options["cap_pixels_per_frame"]:
            high = vp.qwen3_clip_cap(count, factor, size, options["max_video_tokens"])
        temporal = options["temporal_patch_size"]
        return vp.qwen3_size(count, height, width, temporal, factor, size["shortest_edge"], high)


FRAMES: dict[str, type[FrameProcessor]] = {
    "LlavaOnevisionProcessor": LlavaOnevisionFrames,
    "InternVLProcessor": InternVLFrames,
    "SmolVLMProcessor": SmolVLMFrames,
    "Qwen2VLProcessor": Qwen2Frames,
    "Qwen2_5_VLProcessor": Qwen2Frames,
    "Qwen3VLProcessor": Qwen3Frames,
}


def frame_processor(owner: str, settings: Mapping[str, Any]) -> FrameProcessor:
    """The frame processor for a processor class, with the settings of the checkpoint's files."""
    kind = FRAMES.get(owner)
    if kind is not None:
        return kind(**settings)
    stand_in = NoFrames()
    stand_in.owner = owner
    return stand_in


def _edges(size: Any) -> dict[str, int]:
    edges = as_size(size)
    if not {"shortest_edge", "longest_edge"} <= set(edges):
        raise InputError(f"video size {edges} must name shortest_edge and longest_edge in pixels")
    return edges


def _pixel_bounds(settings: dict[str, Any], size: dict[str, int]) -> dict[str, Any]:
    """Older files say min_pixels and max_pixels for what is now the two edges of `size`."""
    size = {**size, **as_size(settings.get("size"))}
    low, high = settings.pop("min_pixels", None), settings.pop("max_pixels", None)
    if low is not None:
        size["shortest_edge"] = int(low)
    if high is not None:
        size["longest_edge"] = int(high)
    return {**settings, "size": size}
