"""A family's own processor (text + pictures + videos to model inputs) from a folder or a hub id.

Where transformers can build it, its own AutoProcessor does. Without torchvision it cannot build
any processor that has a video part (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, LLaVA-OneVision, SmolVLM,
InternVL ...): then the same class is put together from the checkpoint's image processor (Pillow
backend), tokenizer, chat template and our frame processor. Code from a checkpoint is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import transformers
from transformers import AutoConfig, AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import VideoProcessorMixin

from foveate.core.errors import (
    CheckpointError,
    FoveateError,
    InputError,
    MissingExtraError,
    UnsupportedError,
)
from foveate.models.compat_processors import assemble
from foveate.models.frame_processors import FRAMES, frame_processor
from foveate.models.video import Video

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
PICTURE_FILES = ("processor_config.json", "preprocessor_config.json")
MEDIA_TOKENS = ("image_token", "video_token", "audio_token", "start_image_token")

T = TypeVar("T")


class Processor(Protocol):
    """What the rest of Foveate uses of a processor; transformers' own objects fit."""

    tokenizer: Any
    image_processor: Any
    chat_template: Any

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, **kwargs: Any
    ) -> Any: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...


def build_processor(
    folder_or_id: str | Path, config: Any = None, *, revision: str | None = None
) -> Processor:
    """The processor of a checkpoint: a local folder, or a hub id (in the cache, or online).

    `config` is the model's configuration if it is at hand; `revision` a branch, tag or commit.

    Raises CheckpointError: missing folder or files, unreadable files, no vision-language model;
    UnsupportedError: needs code from the checkpoint, or torchvision; MissingExtraError: a package.
    """
    source = _source(folder_or_id)
    pin = {"revision": revision} if revision is not None else {}
    settings = _load(source, "processor settings", lambda: _settings(source, pin))
    kind = _kind(source, settings, config, pin)
    if "video_processor" in kind.get_attributes() and not is_torchvision_available():
        return _put_together(kind, source, settings, pin)
    processor = _load(
        source, "processor", lambda: kind.from_pretrained(source, trust_remote_code=False, **pin)
    )
    return _complete(processor, source)


def check_question(processor: Processor, text: str) -> None:
    """Refuse text that would be read as a picture or video: it would shift every placeholder.

    Raises InputError naming the placeholder; text without media is fine.
    """
    for token in placeholders(processor):
        if token in text:
            raise InputError(
                f"the text contains {token!r}, this model's placeholder for a picture or video; "
                "remove it and pass pictures and videos as such"
            )


def placeholders(processor: Processor) -> tuple[str, ...]:
    """The strings that this processor replaces by pictures or videos."""
    found = (getattr(processor, name, None) for name in MEDIA_TOKENS)
    return tuple(dict.fromkeys(token for token in found if isinstance(token, str) and token))


def video_inputs(videos: Sequence[Video]) -> dict[str, Any]:
    """Keyword arguments for a processor call on loaded videos, which are not sampled again.

    The frame numbers handed on are times at the mean source rate, so that time marks in the
    prompt are right for sources of variable rate as well.
    """
    metadata = []
    for video in videos:
        count, height, width = video.frames.shape[:3]
        total = max(count, round(video.duration_s * video.fps_source))
        numbers = np.rint(video.time_s * video.fps_source).astype(int)
        metadata.append(
            {
                "total_num_frames": total,
                "fps": video.fps_source,
                "duration": video.duration_s,
                "frames_indices": [int(i) for i in numbers],
                "height": height,
                "width": width,
            }
        )
    frames = [video.frames for video in videos]
    return {"videos": frames, "video_metadata": metadata, "do_sample_frames": False}


def _source(folder_or_id: str | Path) -> str:
    """A folder that holds what is needed, or something that can be a hub id."""
    text = str(folder_or_id)
    path = Path(folder_or_id).expanduser()
    if text and path.is_dir():
        names = {p.name for p in path.iterdir()}
        if not names & set(TOKENIZER_FILES):
            raise CheckpointError(f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES[:3])} ...)")
        if not names & set(PICTURE_FILES):
            raise CheckpointError(
                f"{path} has no {' or '.join(PICTURE_FILES)}: it is no vision-language model, or "
                "its processor was not saved with it (processor.save_pretrained)"
            )
        return str(path)
    if text and path.exists():
        raise CheckpointError(f"{path} is a file; name the folder that holds the model")
    if isinstance(folder_or_id, Path) or not text or text[0] in "./~\\" or text.count("/") > 1:
        raise CheckpointError(f"model folder {text!r} does not exist")
    return text


def _settings(source: str, pin: dict[str, Any]) -> dict[str, Any]:
    settings, _ = ProcessorMixin.get_processor_dict(source, **pin)
    return dict(settings)


def _kind(
    source: str, settings: dict[str, Any], config: Any, pin: dict[str, Any]
) -> type[ProcessorMixin]:
    """The processor class: named in the files, else the one transformers has for the model."""
    name = settings.get("processor_class")
    if name is None and "image_processor" not in settings:
        picture, _ = _load(
            source,
            "picture settings",
            lambda: ImageProcessingMixin.get_image_processor_dict(source, **pin),
        )
        name = picture.get("processor_class")
    if name is not None:
        kind = getattr(transformers, str(name), None)
        if isinstance(kind, type) and issubclass(kind, ProcessorMixin):
            return kind
        if kind is not None and getattr(kind, "is_dummy", False):
            raise UnsupportedError(f"{source}: {name} needs a package: {_dummy_reason(kind)}")
    if config is None:
        config = _load(
            source,
            "configuration",
            lambda: AutoConfig.from_pretrained(source, trust_remote_code=False, **pin),
        )
    if type(config) in PROCESSOR_MAPPING:
        mapped: type[ProcessorMixin] = PROCESSOR_MAPPING[type(config)]
        return mapped
    if name is not None or "auto_map" in settings:
        raise UnsupportedError(
            f"{source}: processor {name or settings['auto_map']} is not part of transformers "
            f"{transformers.__version__}; code from a checkpoint is never run"
        )
    raise CheckpointError(
        f"{source}: transformers has no processor for {type(config).__name__}; "
        "it is no vision-language model"
    )


def _put_together(
    kind: type[ProcessorMixin], source: str, settings: dict[str, Any], pin: dict[str, Any]
) -> Processor:
    loaders: dict[str, Callable[[], Any]] = {
        "image_processor": lambda: AutoImageProcessor.from_pretrained(
            source, backend="pil", trust_remote_code=False, **pin
        ),
        "tokenizer": lambda: AutoTokenizer.from_pretrained(source, trust_remote_code=False, **pin),
        "video_processor": lambda: _frames(kind, source, pin),
        "feature_extractor": lambda: AutoFeatureExtractor.from_pretrained(source, **pin),
    }
    parts: dict[str, Any] = {}
    for name in kind.get_attributes():
        if name not in loaders:
            raise UnsupportedError(
                f"{source}: {kind.__name__} needs a {name}, which is only built with torchvision "
                "installed"
            )
        parts[name] = _load(source, name.replace("_", " "), loaders[name])
    return _complete(_load(source, "processor", lambda: assemble(kind, parts, settings)), source)


def _frames(kind: type[ProcessorMixin], source: str, pin: dict[str, Any]) -> Any:
    settings: dict[str, Any] = {}
    if kind.__name__ in FRAMES:
        settings, _ = VideoProcessorMixin.get_video_processor_dict(source, **pin)
    return frame_processor(kind.__name__, settings)


def _load(source: str, what: str, load: Callable[[], T]) -> T:
    """Run a transformers loader and give its many errors our names."""
    try:
        return load()
    except FoveateError:
        raise
    except ImportError as error:
        if "num2words" in str(error):
            raise MissingExtraError("num2words", "smolvlm", "the SmolVLM processor") from error
        raise UnsupportedError(f"{source}: the {what} needs a package: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{source}: the {what} cannot be loaded: {_short(error)}"
        if "trust_remote_code" in str(error):
            raise UnsupportedError(f"{text}; code from a checkpoint is never run") from error
        raise CheckpointError(text) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


def _dummy_reason(kind: Any) -> str:
    try:
        kind()
    except ImportError as error:
        return _short(error)
    return "unknown"


def _complete(processor: Any, source: str) -> Processor:
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise CheckpointError(
                f"{source}: {type(processor).__name__} has no {part.replace('_', ' ')}; "
                "it is no vision-language model"
            )
    done: Processor = processor
    return done
