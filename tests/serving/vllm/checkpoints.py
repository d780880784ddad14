"""Tiny random checkpoints that vLLM on a CPU can serve, one folder a family.

They differ from tests.support.tiny where vLLM asks for more: heads of 32 (its CPU attention has no
smaller ones), enough visual tokens that a block of 32 KV entries ends inside a picture, and names of
weights as vLLM reads them. Pictures are resized by nearest neighbour in whole steps, so that Pillow
and torchvision, of which vLLM takes the second, give equal pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from foveate.lab.nano import nano_path
from tests.models.tiny_processors import make_processor
from tests.support.tiny_spec import (
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    config,
    mrope,
    text,
    tower,
)

HIDDEN, LAYERS, EDGE, PATCH = 128, 3, 168, 14
ENLARGE = 3.0  # default initialisation gives nearly the same logits to every prompt
NEAREST = 0


@dataclass(frozen=True)
class Family:
    """One family: its config, what its picture processor is set to, pictures that fit, its prompt.

    sizes: (width, height) of landscape, portrait and square pictures. mark: what the prompt writes
    for a picture. videos: settings of the video processor. rename: weights as vLLM names them. like: the
    family whose processor it has, where that is another. turned: ends of the names of weights that are
    published with their last two dimensions exchanged.
    """

    name: str
    build: Callable[[], Any]
    pictures: dict[str, Any]
    mark: str
    sizes: tuple[tuple[int, int], ...]
    processor: dict[str, Any] = field(default_factory=dict)
    rename: tuple[tuple[str, str], ...] = ()
    videos: dict[str, Any] = field(default_factory=dict)
    like: str | None = None
    turned: tuple[str, ...] = ()


def _mind(kind: str, **changes: Any) -> dict[str, Any]:
    return text(
        kind,
        **{
            "hidden_size": HIDDEN,
            "intermediate_size": 192,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            **changes,
        },
    )


def _eyes(kind: str, **changes: Any) -> dict[str, Any]:
    made = {"model_type": kind, "image_size": EDGE, "patch_size": PATCH, **changes}
    return tower(**made)


def _llava() -> Any:
    return config(
        "LlavaConfig",
        vision_config=_eyes("clip_vision_model", projection_dim=32),
        text_config=_mind("llama"),
        image_token_index=IMAGE,
        image_seq_length=(EDGE // PATCH) ** 2,
    )


_QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_SIZE = dict(size={"shortest_edge": 16 * 16, "longest_edge": 512 * 512}, resample=NEAREST)
_QWEN_SIZES = ((112, 80), (64, 128), (96, 96))
_QWEN3: dict[str, Any] = dict(
    # as published: vLLM 0.32 normalises videos on the device with the pictures' figures
    pictures=dict(_QWEN_SIZE, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    mark=_QWEN_MARK,
    sizes=_QWEN_SIZES,
    videos=dict(size={"shortest_edge": 64, "longest_edge": 512 * 512}),
)
_EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
_ROPE = {"rope_parameters": mrope(mrope_section=[4, 6, 6])}


def _packed(**changes: Any) -> dict[str, Any]:
    """A tower that packs patches of 4 x 4 pixels and merges 2 x 2 of them into a token."""
    return {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 4,
        "in_channels": 3,
        "in_chans": 3,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "intermediate_size": 48,
        "out_hidden_size": HIDDEN,
        **changes,
    }


def _qwen2_5_vl() -> Any:
    return config(
        "Qwen2_5_VLConfig",
        vision_config=_packed(fullatt_block_indexes=[1], window_size=32, tokens_per_second=2),
        text_config=_mind("qwen2_5_vl_text", **_ROPE),
        **_QWEN_IDS,
    )


def _qwen2_vl() -> Any:
    eyes = _packed(embed_dim=32, hidden_size=HIDDEN)  # hidden_size is the width of the output here
    mind = _mind("qwen2_vl_text", **_ROPE)
    return config("Qwen2VLConfig", vision_config=eyes, text_config=mind, **_QWEN_IDS)


def _qwen3_vl(name: str = "Qwen3VLConfig", kind: str = "qwen3_vl_text", **experts: Any) -> Any:
    eyes = _packed(depth=4, deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64)
    rope = {"rope_parameters": mrope(mrope_section=[4, 6, 6], mrope_interleaved=True)}
    mind = _mind(kind, head_dim=32, **rope, **experts)
    return config(name, vision_config=eyes, text_config=mind, **_QWEN_IDS)


def _qwen3_vl_moe() -> Any:
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=96)
    return _qwen3_vl("Qwen3VLMoeConfig", "qwen3_vl_moe_text", norm_topk_prob=True, **experts)


_TILE = 56  # edge of a tile; patches of 7, so 8 x 8 of them
_PINPOINTS = [[_TILE, 2 * _TILE], [2 * _TILE, _TILE], [2 * _TILE, 2 * _TILE]]


def _llava_next() -> Any:
    eyes = _eyes("clip_vision_model", projection_dim=32, image_size=_TILE, patch_size=7)
    return config(
        "LlavaNextConfig",
        vision_config=eyes,
        text_config=_mind("mistral", sliding_window=None),
        image_token_index=IMAGE,
        image_grid_pinpoints=_PINPOINTS,
        image_seq_length=64,
    )


def _onevision() -> Any:
    eyes = _eyes("siglip_vision_model", vision_use_head=False, image_size=_TILE, patch_size=7)
    return config(
        "LlavaOnevisionConfig",
        vision_config=eyes,
        text_config=_mind("qwen2"),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=_PINPOINTS,
    )


def _idefics(name: str, vision: str) -> Any:
    return config(
        name,
        vision_config=_eyes(vision, image_size=64, patch_size=4),
        text_config=_mind("llama"),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )


def _internvl() -> Any:
    eyes = tower(image_size=[2 * _TILE, 2 * _TILE], patch_size=[7, 7])
    return config(
        "InternVLConfig",
        vision_config=eyes,
        text_config=_mind("qwen3", head_dim=32),
        image_token_id=IMAGE,
        image_seq_length=64,
    )


_CROP = {"height": EDGE, "width": EDGE}
_TILED = dict(size={"longest_edge": 128}, max_image_size={"longest_edge": 64}, resample=NEAREST)
_CLIP_NAMES = (
    ("vision_tower.", "vision_tower.vision_model."),
    ("vision_tower.vision_model.vision_model.", "vision_tower.vision_model."),
)

FAMILIES = {
    f.name: f
    for f in (
        Family(
            "llava",
            _llava,
            dict(do_resize=False, crop_size=_CROP, resample=NEAREST),
            "<image>",
            ((240, 168), (168, 252), (168, 168)),
            dict(patch_size=PATCH),
            _CLIP_NAMES,
        ),
        Family(
            "llava_next",
            _llava_next,
            dict(
                size={"shortest_edge": _TILE},
                crop_size={"height": _TILE, "width": _TILE},
                image_grid_pinpoints=_PINPOINTS,
                resample=NEAREST,
            ),
            "<image>",
            ((112, 56), (56, 112), (112, 112)),
            dict(patch_size=7),
            _CLIP_NAMES,
        ),
        Family(
            "llava_onevision",
            _onevision,
            dict(
                size={"height": _TILE, "width": _TILE},
                image_grid_pinpoints=_PINPOINTS,
                resample=NEAREST,
            ),
            "<image>",
            ((112, 56), (56, 112), (112, 112)),
            dict(num_image_tokens=64),
            _CLIP_NAMES,
            dict(size={"height": _TILE, "width": _TILE}),
        ),
        Family("qwen2_vl", _qwen2_vl, _QWEN_SIZE, _QWEN_MARK, _QWEN_SIZES),
        Family("qwen2_5_vl", _qwen2_5_vl, _QWEN_SIZE, _QWEN_MARK, _QWEN_SIZES),
        Family("qwen3_vl", _qwen3_vl, **_QWEN3),
        Family("qwen3_vl_moe", _qwen3_vl_moe, **_QWEN3, like="qwen3_vl", turned=_EXPERTS),
        Family(
            "smolvlm",
            lambda: _idefics("SmolVLMConfig", "smolvlm_vision"),
            _TILED,
            "<image>",
            ((128, 64), (64, 128), (128, 128)),
            dict(image_seq_len=64),
        ),
        Family(
            "idefics3",
            lambda: _idefics("Idefics3Config", "idefics3_vision"),
            _TILED,
            "<image>",
            ((128, 64), (64, 128), (128, 128)),
            dict(image_seq_len=64),
        ),
        Family(
            "internvl",
            _internvl,
            dict(size={"height": 2 * _TILE, "width": 2 * _TILE}, resample=NEAREST),
            "<IMG_CONTEXT>",
            ((224, 112), (112, 224), (112, 112)),
            dict(image_seq_length=64),
            videos=dict(size={"height": 2 * _TILE, "width": 2 * _TILE}),
        ),
    )
}


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture of blocks of 4 x 4 pixels in random colours; size is (width, height)."""
    colours = np.random.default_rng(seed).integers(0, 255, (size[1] // 4, size[0] // 4, 3))
    return Image.fromarray(colours.astype(np.uint8).repeat(4, 0).repeat(4, 1))


def clip(seed: int, frames: int, size: tuple[int, int]) -> np.ndarray:
    """A video (frames, height, width, 3) uint8 in which a part of the picture changes."""
    whole = np.asarray(picture(seed, size))
    out = np.stack([whole] * frames)
    for t in range(1, frames):
        other = np.asarray(picture(seed + 100 + t, size))
        rows = slice(16 * (t % 3), 16 * (t % 3) + 24)
        out[t, rows] = other[rows]
    return out


def make(name: str, *, seed: int = 0) -> tuple[Any, Any]:
    """The model in eval mode, float32, and its processor."""
    family = FAMILIES[name]
    made = family.build()
    cls = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(made)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = cls._from_config(made, attn_implementation="sdpa")
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in key:
                parameter.mul_(ENLARGE)
    model.generation_config.eos_token_id = None  # vLLM is told to go on as well
    processor = make_processor(family.like or name)
    for key, value in family.pictures.items():
        setattr(processor.image_processor, key, value)
    for key, value in family.processor.items():
        setattr(processor, key, value)
    for key, value in family.videos.items():
        setattr(processor.video_processor, key, value)
    return model.float().eval(), processor


def save(name: str, model: Any, processor: Any, folder: Path) -> Path:
    """The checkpoint folder that vLLM reads."""
    folder = folder / name
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    rename(folder, FAMILIES[name].rename, FAMILIES[name].turned)
    return folder


def save_lab_nano(folder: Path) -> tuple[Any, Any, Path]:
    """The bundled model in float32 and its processor, and a folder of it that vLLM reads."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    source = nano_path()
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32)
    folder = folder / "lab-nano"
    shutil.copytree(source, folder)
    rename(folder, _CLIP_NAMES)
    model.generation_config.eos_token_id = None
    return model.eval(), AutoProcessor.from_pretrained(source), folder


def rename(folder: Path, names: tuple[tuple[str, str], ...], turned: tuple[str, ...] = ()) -> None:
    """Give the weights of a folder the names and shapes in which vLLM looks for them."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for old, new in names:
        weights = {k.replace(old, new): v for k, v in weights.items()}
    weights = {k: v.mT if k.endswith(turned) else v for k, v in weights.items()}
    save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={"format": "pt"})
