"""Part of compat: everything about processors that leans on how transformers 5.23 builds them.

A processor with a `video_processor` cannot be constructed there without torchvision. We keep the
family's own processor class (its prompt text and placeholder counts are what the model was trained
on) and give it a frame processor of ours in that place, which the class check is told to accept.
The class check (`check_argument_for_proper_class`) and the calling convention between a processor
and its parts (`valid_kwargs`, `model_input_names`, `return_metadata`) are the only joints used.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypedDict

from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import VideoProcessorMixin
from transformers.video_utils import VideoMetadata, make_batched_metadata, make_batched_videos

from foveate.core.errors import InputError, MediaError, UnsupportedError
from foveate.models import video_preprocess as vp

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def settings_type(name: str, **more: Any) -> Any:
    """A TypedDict of the settings every video processor knows and `more`, for call checking."""
    make: Any = TypedDict  # built at run time, which static checkers do not follow
    return make(name, {**VideosKwargs.__annotations__, **more}, total=False)


class FrameProcessor(VideoProcessorMixin):
    """Base of the frame processors: settings from a checkpoint's files over the family's defaults.

    Called as `frame_processor(videos, **settings)` with videos as uint8 arrays (t, H, W, 3) or
    (t, 3, H, W); returns a BatchFeature. Settings given in the call win over those of the object.
    """

    hub_name: ClassVar[str] = ""
    valid_kwargs: Any = VideosKwargs
    model_input_names: ClassVar[list[str]] = ["pixel_values_videos"]
    resample = 3
    size: ClassVar[Any] = None
    image_mean: Any = CLIP_MEAN
    image_std: Any = CLIP_STD
    rescale_factor = 1 / 255
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    do_sample_frames = False
    do_center_crop = None
    num_frames: int | None = None
    fps: float | None = None

    def __init__(self, **settings: Any) -> None:
        given = {k: v for k, v in settings.items() if v is not None}
        given.pop("video_processor_type", None)
        super().__init__(**given)

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        names = self.valid_kwargs.__annotations__
        if unknown := sorted(set(kwargs) - set(names)):
            raise InputError(f"unknown video settings {unknown}; known: {sorted(names)}")
        own = {name: getattr(self, name, None) for name in names}
        options = own | {k: v for k, v in kwargs.items() if v is not None or own[k] is None}
        batch = self._batch(videos)
        try:
            described = make_batched_metadata(batch, video_metadata=options["video_metadata"])
        except (ValueError, TypeError) as error:
            raise InputError(f"video_metadata cannot be used: {error}") from error
        metadata = [m if isinstance(m, VideoMetadata) else VideoMetadata(**m) for m in described]
        if kwargs.get("do_sample_frames", self.do_sample_frames):
            asked = {k: kwargs[k] for k in ("num_frames", "fps") if kwargs.get(k) is not None}
            for i, (video, facts) in enumerate(zip(batch, metadata, strict=True)):
                facts.frames_indices = self.sample(facts, asked, options)
                batch[i] = video[facts.frames_indices]
        if options["do_center_crop"]:
            raise UnsupportedError("do_center_crop is not supported for videos: set it to false")
        frames = [self._first(video, options["input_data_format"]) for video in batch]
        out = BatchFeature(self.tensors(frames, options), tensor_type=options["return_tensors"])
        if kwargs.get("return_metadata", self.return_metadata):
            out["video_metadata"] = metadata
        return out

    def sample(
        self, facts: VideoMetadata, asked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> list[int]:
        """Indices of the frames to use, (t,). What the call asked for overrules the files."""
        if len(asked) == 2:
            raise InputError("give num_frames or fps, not both")
        want = asked or {"num_frames": self.num_frames, "fps": self.fps}
        total = int(facts.total_num_frames)
        return self.choose(total, want.get("num_frames"), want.get("fps"), facts, options)

    def choose(
        self, total: int, count: int | None, fps: float | None, facts: VideoMetadata,
        options: Mapping[str, Any],
    ) -> list[int]:  # fmt: skip
        """The family's sampling rule; here LLaVA-OneVision's."""
        if count is None and fps is not None:
            if not facts.fps:
                raise InputError("sampling by fps needs the frame rate: pass video_metadata")
            count = max(1, int(total / facts.fps * fps))
        return vp.sample_floor(total, total if count is None else count)

    def tensors(self, videos: list[Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
        """Model inputs of frames (t, 3, H, W) uint8 per video; here one size for all frames."""
        done = [self.plain(video, options) for video in videos]
        if options["return_tensors"] is not None and len({len(v) for v in done}) > 1:
            counts = ", ".join(str(len(v)) for v in done)
            raise InputError(f"videos of one batch need equal frame counts, not {counts}")
        return {"pixel_values_videos": done}

    def to_dict(self) -> dict[str, Any]:
        """Settings as the checkpoint's files hold them, under the class name known on the hub."""
        return {**super().to_dict(), "video_processor_type": self.hub_name}

    def plain(self, video: Tensor, options: Mapping[str, Any]) -> Tensor:
        if options["do_resize"]:
            target = vp.plain_size(video.shape[-2], video.shape[-1], as_size(options["size"]))
            video = vp.resize(video, *target, options["resample"])
        return self.normalised(video, options)

    @staticmethod
    def normalised(video: Tensor, options: Mapping[str, Any]) -> Tensor:
        factor = options["rescale_factor"] if options["do_rescale"] else None
        if not options["do_normalize"]:
            return vp.normalise(video, None, None, factor)
        return vp.normalise(video, options["image_mean"], options["image_std"], factor)

    @staticmethod
    def _batch(videos: Any) -> list[Any]:
        try:
            batch = list(make_batched_videos(videos))
        except (ValueError, IndexError, TypeError) as error:
            raise MediaError(f"not a video or list of videos: {error}") from error
        for video in batch:
            if not hasattr(video, "ndim"):
                raise MediaError(
                    f"videos are passed as frames here, not as {type(video).__name__}: read the "
                    "file with foveate.models.video.load_video first"
                )
        if not batch:
            raise MediaError("the list of videos is empty")
        return batch

    @staticmethod
    def _first(video: Any, layout: Any) -> Tensor:
        try:
            layout = ChannelDimension(layout or infer_channel_dimension_format(video))
        except ValueError as error:
            raise MediaError(f"video {tuple(video.shape)} must be (t, H, W, 3): {error}") from error
        return vp.channels_first(video, layout == ChannelDimension.LAST)


class NoFrames(FrameProcessor):
    """Stands in where we know no video rules for the family: pictures work, videos are refused."""

    owner = "this model"

    def preprocess(self, videos: Any, **kwargs: Any) -> BatchFeature:
        raise UnsupportedError(
            f"videos for {self.owner} are not supported without torchvision: "
            "pass the frames as pictures, or install torchvision"
        )


@functools.cache
def accepting(kind: Any) -> Any:
    """The processor class, under its own name, with a check that takes our frame processors."""

    def check(self: Any, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor" and isinstance(argument, FrameProcessor):
            return FrameProcessor
        return kind.check_argument_for_proper_class(self, argument_name, argument)

    body = {"check_argument_for_proper_class": check, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), body)


def assemble(kind: Any, parts: Mapping[str, Any], settings: Any) -> Any:
    """A processor of that class from its parts (by attribute name) and its own settings."""
    order: Iterable[str] = kind.get_attributes()
    args = [parts[name] for name in order]
    return accepting(kind).from_args_and_dict(args, dict(settings))


def as_size(size: Any) -> dict[str, int]:
    """A size from a file or a call as a plain dict, without the entries that are not set."""
    return {k: int(v) for k, v in dict(size or {}).items() if v}
