"""What a tiny family is made of, and the parts that the configs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import transformers
from torch import Tensor, nn
from transformers import PretrainedConfig

from tests.support.tiny_pictures import Batch, Pictures
from tests.support.tiny_videos import Videos

VOCAB = 300
IMAGE, VIDEO = 290, 291
VISION_START, VISION_END = 292, 293
AUDIO = 294
IMAGE_START, IMAGE_END = 295, 296
VIDEO_START, VIDEO_END = 297, 298
TEXT_IDS = (3, 281)  # text tokens are drawn from this half-open range, clear of every special id

HIDDEN = 64
LAYERS = 6
LONG_WINDOW = 128  # longer than any prompt here: sliding layers see everything
MIXED_WINDOWS = ["sliding_attention", "sliding_attention", "full_attention"] * 2

Settings = dict[str, Any]


@dataclass(frozen=True)
class Tiny:
    """One family.

    build: a fresh config. pictures, videos: how inputs look.
    attention: the kernel the family runs on.
    recurrent: some decoder layers keep a state that no mask can imitate.
    tower: stands in for an encoder whose package is not installed.
    run_tokens: tokens of one run of image placeholders, None = one run an entry of the features.
    around_run, around_video: special tokens before and after each run, and around a whole video.
    frame_runs: a video's placeholders stand in one run a frame.
    seconds_per_grid: passed with videos. video_id, video_type: their placeholder and modality id.
    marks_images: token types say where pictures are (PaliGemma's: where the answer begins).
    enlarge: (part of a parameter's name, factor) where the common enlargement is not enough.
    """

    name: str
    build: Callable[[], PretrainedConfig]
    pictures: Pictures
    videos: Videos | None = None
    attention: Literal["sdpa", "eager"] = "sdpa"
    recurrent: bool = False
    tower: Callable[[], nn.Module] | None = None
    run_tokens: int | None = None
    around_run: tuple[int, int] | None = None
    around_video: tuple[int, int] | None = None
    frame_runs: bool = False
    seconds_per_grid: float | None = None
    video_id: int = VIDEO
    video_type: int = 2
    marks_images: bool = True
    enlarge: tuple[tuple[str, float], ...] = ()

    def inputs(self) -> dict[str, Tensor]:
        """Two pictures, of unequal size where the family allows it."""
        batch: Batch = self.pictures.random(2, seed=0, unequal=True)
        return batch


def config(name: str, **settings: Any) -> PretrainedConfig:
    """A config class of transformers by name, filled."""
    made: PretrainedConfig = getattr(transformers, name)(**settings)
    return made


def text(model_type: str, **changes: Any) -> Settings:
    """A language model of six layers, width 64, four heads of 16 over two KV heads."""
    return {
        "model_type": model_type,
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **changes,
    }


def tower(**changes: Any) -> Settings:
    """A vision transformer of three layers and width 32."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        **changes,
    }


def square_tower(model_type: str | None = None, **changes: Any) -> Settings:
    """`tower` for pictures of 28 x 28 pixels in 4 x 4 patches."""
    kind = {} if model_type is None else {"model_type": model_type}
    return tower(**{**kind, "image_size": 28, "patch_size": 7, **changes})


def clip() -> Settings:
    return square_tower("clip_vision_model", projection_dim=32)


def siglip(**changes: Any) -> Settings:
    return square_tower("siglip_vision_model", vision_use_head=False, **changes)


def mrope(**changes: Any) -> Settings:
    """Rotary sections (t, h, w) of a head of 16."""
    base = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    return {**base, **changes}
