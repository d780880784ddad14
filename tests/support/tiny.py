"""Tiny random-weight vision-language models of 40 families, in 45 configs, and inputs for them.

Built from configs alone: no download, no tokenizer. Text ids are 3 … 280, the vocabulary has 300.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.gemma3n import modeling_gemma3n

from tests.support import tiny_gemma, tiny_llava, tiny_other, tiny_prompt, tiny_qwen
from tests.support.tiny_prompt import pad_batch
from tests.support.tiny_spec import IMAGE, VIDEO, VOCAB, Tiny

__all__ = [
    "FAMILIES",
    "IMAGE",
    "RECURRENT",
    "REPRESENTATIVE",
    "VIDEO",
    "VIDEO_FAMILIES",
    "VOCAB",
    "cached_model",
    "family",
    "image_inputs",
    "join_images",
    "make_model",
    "pad_batch",
    "prompt",
    "random_images",
    "split_images",
    "video_inputs",
    "video_prompt",
]

ENLARGE = 3.0  # default initialisation is so small that every prompt gives nearly the same logits

FAMILIES: tuple[str, ...] = (
    "llava", "vipllava", "llava_next", "llava_onevision",
    "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni",
    "qwen3_vl", "qwen3_vl_moe", "qwen3_omni_moe", "qwen3_5",
    "internvl", "idefics2", "idefics3", "smolvlm", "paligemma", "paligemma2",
    "gemma3", "gemma4", "gemma4_bidir", "gemma4_kvshare",
    "glm4v", "glm46v", "glm_ocr", "aya_vision", "cohere2_vision", "mistral3", "pixtral", "ovis2",
    "llama4", "lfm2_vl", "minicpmv4_6", "molmo2", "deepseek_vl", "janus", "paddleocr_vl",
    "video_llama_3", "got_ocr2", "minicpmv4_7", "glm4v_moe", "aria", "gemma3n",
    "gemma3_w16", "gemma4_w16", "aya_vision_w16",
)  # fmt: skip
REPRESENTATIVE = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl")

_MODULES = (tiny_llava, tiny_qwen, tiny_gemma, tiny_other)
_TINY: dict[str, Tiny] = {t.name: t for module in _MODULES for t in module.FAMILIES}
RECURRENT = tuple(n for n in FAMILIES if _TINY[n].recurrent)
VIDEO_FAMILIES = tuple(n for n in FAMILIES if _TINY[n].videos is not None)


def family(name: str) -> Tiny:
    """What is known of a family; KeyError for a name that is not in FAMILIES."""
    return _TINY[name]


def make_model(
    name: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
) -> Any:
    """A new model in eval mode, the same for the same seed. attention: None = the family's own."""
    tiny = _TINY[name]
    made = tiny.build()
    cls = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(made)]
    with torch.random.fork_rng(devices=[]), _stand_in(tiny.tower):
        torch.manual_seed(seed)
        model = cls._from_config(made, attn_implementation=attention or tiny.attention)
        _enliven(model, tiny)
    return model.to(dtype).eval()


@torch.no_grad()
def _enliven(model: nn.Module, tiny: Tiny) -> None:
    """Make weights differ enough for pictures and positions to show in the logits."""
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if bool((parameter == parameter.flatten()[0]).all()):
            # Meant to be trained from zeros or ones, such as Gemma 3's projection of the pictures.
            parameter.normal_(std=ENLARGE * 0.02)
        elif "embed" not in name:
            parameter.mul_(ENLARGE)
        for part, factor in tiny.enlarge:
            if part in name:
                parameter.mul_(factor)


@cache
def cached_model(name: str) -> Any:
    """`make_model(name)`, shared between callers: only for tests that leave it as it was."""
    return make_model(name)


@contextmanager
def _stand_in(tower: Callable[[], nn.Module] | None) -> Iterator[None]:
    """While open, Gemma 3n builds `tower` where it would build an encoder; None changes nothing."""
    if tower is None:
        yield
        return
    auto = modeling_gemma3n.AutoModel

    def from_config(config: Any, **settings: Any) -> Any:
        if "text" in config.model_type:
            return auto.from_config(config, **settings)
        return tower()

    with mock.patch.object(modeling_gemma3n, "AutoModel", SimpleNamespace(from_config=from_config)):
        yield


def image_inputs(name: str) -> dict[str, Tensor]:
    """Arguments of get_image_features for two pictures, of unequal size where that is possible."""
    return _TINY[name].inputs()


def random_images(name: str, n: int, seed: int, unequal: bool = True) -> dict[str, Tensor]:
    """The same for n pictures; `unequal` varies the size from one to the next where possible."""
    return _TINY[name].pictures.random(n, seed, unequal)


def split_images(name: str, mm: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """One dict a picture, as if each had been prepared alone."""
    return _TINY[name].pictures.split(mm)


def join_images(name: str, parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The inverse of `split_images`; what is unequal is padded as the family's processor would."""
    return _TINY[name].pictures.join(parts)


def video_inputs(name: str, n: int = 1, seed: int = 0) -> dict[str, Tensor] | None:
    """Arguments of get_video_features for n videos, of 3 and 4 temporal steps where possible.

    None if the family takes no videos.
    """
    videos = _TINY[name].videos
    return None if videos is None else videos.random(n, seed)


def prompt(
    name: str, model: Any, mm: dict[str, Tensor], *, lead: int = 5, tail: int = 6, seed: int = 1
) -> dict[str, Tensor]:
    """One row with all pictures of `mm`: input_ids, attention_mask, token types if they are taken.

    `lead` and `tail` text tokens stand before the first and after the last run of placeholders.
    """
    return tiny_prompt.image_prompt(_TINY[name], model, mm, lead, tail, seed)


def video_prompt(
    name: str, model: Any, mm: dict[str, Tensor], *, lead: int = 5, tail: int = 6, seed: int = 1
) -> dict[str, Tensor]:
    """One row with all videos of `mm`; one run a temporal step where frames are stamped."""
    return tiny_prompt.video_prompt(_TINY[name], model, mm, lead, tail, seed)
