"""What the plug-in knows of each model family that vLLM serves; a further one is a few lines.

A family says how the placeholders of a picture are made up (`layout`) and, for methods that read the
encoder, where its tower is. Everything else is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.core.errors import UnsupportedError
from foveate.core.plan import Plan
from foveate.core.views import Kind
from foveate.serve.vllm.layouts import Layout, Span, anyres, packed, passes, pictured

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One architecture of vLLM.

    layout(config, fields, n, modality): the spans of an item of n visual tokens; fields are its
    processed inputs. tower, projector: attribute paths on vLLM's model; a projector is named where it
    maps each encoder token alone. depth: blocks of the checkpoint's tower. front: special tokens of
    each encoder pass. built: blocks of it that vLLM builds, None = all. videos: it can hold back
    tokens of videos. pictures_only: vLLM takes no videos of it, in any version the plug-in runs
    with. pictured: a video is read as one picture a frame. newlines: some placeholders carry layout
    and all stay. ordered: see `order`. seconds: positions between two time steps of a video.
    between(config, encode, fields): where words stand between a video's frames, the ids of its part of
    the prompt with one placeholder a frame; `encode` makes ids of words.
    """

    architecture: str
    layout: Callable[[Any, Fields, int, str], Layout]
    tower: str
    depth: Callable[[Any], int]
    mrope: bool = False
    videos: bool = False
    pictures_only: bool = False
    pictured: bool = False
    newlines: bool = False
    front: Callable[[Any], int] = lambda config: 0
    built: Callable[[Any], int] | None = None
    projector: str | None = None
    ordered: Callable[[Any, Layout], np.ndarray | None] | None = None
    seconds: Callable[[Any, Fields], float] | None = None
    between: Callable[[Any, Callable[[str], list[int]], Fields], list[int]] | None = None

    @property
    def tokenwise(self) -> bool:
        return self.projector is not None

    @property
    def modalities(self) -> tuple[str, ...]:
        return ("image", "video") if self.videos else ("image",)

    def placeholder(self, config: Any, modality: str, processor: Any = None) -> int:
        """Id of the token in whose place a visual token is put: from the config, or from the processor
        where the config names none.
        """
        for name in (f"{modality}_token_id", f"{modality}_token_index"):
            value = getattr(config, name, None)
            if value is not None:
                return int(value)
        token = getattr(processor, f"{modality}_token", None)
        if token is not None:
            return int(processor.tokenizer.convert_tokens_to_ids(token))
        raise UnsupportedError(f"{self.architecture} has no placeholder for {modality}")

    def width(self, config: Any) -> int:
        """Width of a visual token in the language model."""
        return int(config.get_text_config().hidden_size)

    def check(self, config: Any, plan: Plan) -> None:
        """UnsupportedError where the plan's method reads what this family's tower does not have, known
        from its config alone: a request must not find out while the pictures of others are encoded.
        """
        method = plan.stage("tokens")
        if method is None:
            return
        if method.video_only and self.pictured:
            raise UnsupportedError(
                f"{method.name} compares the frames of a video, and {self.architecture} reads a video as "
                "one picture a frame; choose a method that chooses in each frame: vidcom2, divprune"
            )
        read = getattr(config, "vision_feature_layer", -1)
        if not isinstance(read, int) and any(n.what != "question" for n in method.needs):
            raise UnsupportedError(
                f"{method.name} reads the vision encoder, whose layers {read} this model's projector "
                "takes side by side; choose a method that reads projected features alone: divprune"
            )
        depth = self.depth(config)
        there = depth if self.built is None else self.built(config)
        for need in method.needs:
            if need.what == "question":
                continue
            if not 0 <= (need.layer if need.layer >= 0 else depth + need.layer) < there:
                raise UnsupportedError(
                    f"{method.name} reads encoder block {need.layer}; of this tower's {depth} vLLM "
                    f"runs the first {there}: choose a method that reads another block, or projected "
                    "features alone, such as divprune"
                )
            if need.what == "cls" and not self.front(config):
                raise UnsupportedError(
                    f"{method.name} reads the attention of a CLS token, which this tower has not; "
                    "choose one that takes received attention too, such as fastervlm"
                )

    def tower_of(self, model: Any, config: Any) -> Any:
        """The vision tower of a model that vLLM built."""
        from foveate.serve.vllm.tower import Tower

        layer = getattr(config, "vision_feature_layer", -1)
        layer = layer if isinstance(layer, int) else -1
        depth = self.depth(config)
        return Tower(attribute(model, self.tower), depth, self.front(config), layer)

    def project(self, model: Any, tokens: Any) -> Any:
        """Projected tokens of encoder tokens (k, c), where each is mapped alone."""
        return attribute(model, str(self.projector))(tokens)

    def cells(self, config: Any, span: Span, fields: Fields) -> np.ndarray:
        """(length, 3): position (t, h, w) of each of a span's tokens from the base of its picture."""
        t, h, w = span.grid
        own = np.stack([x.reshape(-1) for x in np.indices((t, h, w))], axis=1)
        if self.seconds is not None and t > 1:
            own[:, 0] = (own[:, 0] * self.seconds(config, fields)).astype(np.int64)
        return own

    def order(self, model: Any, layout: Layout) -> np.ndarray | None:
        """Place in the tower of each of a picture's encoder tokens; None where it is their own."""
        return None if self.ordered is None else self.ordered(model, layout)


def attribute(owner: Any, path: str) -> Any:
    for name in path.split("."):
        owner = getattr(owner, name)
    return owner


def _vision_layers(config: Any) -> int:
    return int(config.vision_config.num_hidden_layers)


def _built(config: Any) -> int:
    """vLLM builds a tower up to the layer that LLaVA's projector reads."""
    layer = config.vision_feature_layer
    depth = _vision_layers(config)
    layers = [layer] if isinstance(layer, int) else list(layer)
    return max(x if x >= 0 else depth + x + 1 for x in layers)


def _cls(config: Any) -> int:
    return int(config.vision_config.model_type == "clip_vision_model")


def _side(config: Any) -> int:
    """Patches along an edge of an encoder pass."""
    vision = config.vision_config
    edge, patch = vision.image_size, vision.patch_size
    edge, patch = (x if isinstance(x, int) else x[0] for x in (edge, patch))
    return int(edge) // int(patch)


def _llava(config: Any, fields: Fields, n: int, modality: str) -> Layout:
    if config.vision_config.model_type == "pixtral":
        raise UnsupportedError(
            "LLaVA with a Pixtral tower is not served by Foveate's plug-in; start vLLM without a plan"
        )
    return passes(1, n, _side(config) ** 2, ["image"])


def _anyres(config: Any, fields: Fields, most: int | None) -> Layout:
    height, width = (int(x) for x in fields["image_sizes"])
    candidates = [(int(h), int(w)) for h, w in config.image_grid_pinpoints]
    count = int(fields["pixel_values"].shape[0])
    edge = int(config.vision_config.image_size)
    return anyres((height, width), candidates, edge, _side(config), count, most)


def _llava_next(config: Any, fields: Fields, n: int, modality: str) -> Layout:
    return _anyres(config, fields, None)


def _onevision(config: Any, fields: Fields, n: int, modality: str) -> Layout:
    if modality == "image":
        return _anyres(config, fields, 9)
    frames = int(fields["pixel_values_videos"].shape[0])
    side = -(-_side(config) // 2)  # frames are pooled to half their side
    fixed = np.zeros(n, dtype=bool)
    fixed[frames * side * side :] = True  # one newline ends the video
    span = Span("video", (frames, side, side), n, fixed=fixed)
    return Layout((span,), frames * _side(config) ** 2, frames)


def _tiles(config: Any, fields: Fields, n: int, modality: str) -> Layout:
    """Idefics3 and SmolVLM: tiles, and the whole picture last."""
    count = int(fields["num_patches"])
    tiles: list[Kind] = ["tile"] * (count - 1)
    return passes(count, n // count, _side(config) ** 2, [*tiles, "thumbnail"])


def _internvl(config: Any, fields: Fields, n: int, modality: str) -> Layout:
    count = int(fields[f"{modality}_num_patches"])
    layout = passes(count, n // count, _side(config) ** 2, ["tile"] * count)
    return layout if modality == "image" else pictured(layout)


def _qwen(config: Any, fields: Fields, n: int, modality: str) -> Layout:
    t, h, w = (int(x) for x in fields[f"{modality}_grid_thw"])
    return packed((t, h, w), int(config.vision_config.spatial_merge_size))


def _vision_depth(config: Any) -> int:
    return int(config.vision_config.depth)


def _windows(model: Any, layout: Layout) -> np.ndarray:
    """Qwen2.5 towers work in window order, which moves whole groups of merge² patches."""
    (span,) = layout.spans
    merge = int(model.visual.spatial_merge_size)
    t, h, w = span.grid
    groups, _ = model.visual.get_window_index_thw(t, h * merge, w * merge)
    place = np.empty(span.length, dtype=np.int64)
    place[groups.cpu().numpy()] = np.arange(span.length)
    inside = np.arange(merge * merge)
    return (place[:, None] * merge * merge + inside[None, :]).reshape(-1)


def _stamped(config: Any, encode: Callable[[str], list[int]], fields: Fields) -> list[int]:
    """Each frame between marks of its own, behind its time."""
    ids = (config.vision_start_token_id, config.video_token_id, config.vision_end_token_id)
    return [
        i for time_s in fields["timestamps"] for i in (*encode(f"<{time_s:.1f} seconds>"), *ids)
    ]


def _tokens_per_step(config: Any, fields: Fields) -> float:
    """vLLM's rule, which is that of the family: seconds a time step spans, times positions a second."""
    per_step = fields.get("second_per_grid_ts")
    rate = float(getattr(config.vision_config, "tokens_per_second", 1.0))
    return rate * (1.0 if per_step is None else float(per_step))


_LLAVA: dict[str, Any] = {
    "tower": "vision_tower",
    "depth": _vision_layers,
    "front": _cls,
    "built": _built,
    "projector": "multi_modal_projector",
}
_PACKED: dict[str, Any] = {"tower": "visual", "depth": _vision_depth, "mrope": True}
_STAMPED: dict[str, Any] = {**_PACKED, "videos": True, "between": _stamped}
_IDEFICS: dict[str, Any] = {
    "tower": "model.vision_model",
    "depth": _vision_layers,
    "pictures_only": True,
}

FAMILIES = {
    f.architecture: f
    for f in (
        Family("LlavaForConditionalGeneration", _llava, pictures_only=True, **_LLAVA),
        Family(
            "LlavaNextForConditionalGeneration",
            _llava_next,
            newlines=True,
            pictures_only=True,
            **_LLAVA,
        ),
        Family(
            "LlavaOnevisionForConditionalGeneration",
            _onevision,
            newlines=True,
            videos=True,
            **_LLAVA,
        ),
        Family("Qwen2VLForConditionalGeneration", _qwen, videos=True, **_PACKED),
        Family(
            "Qwen2_5_VLForConditionalGeneration",
            _qwen,
            videos=True,
            ordered=_windows,
            seconds=_tokens_per_step,
            **_PACKED,
        ),
        Family("Qwen3VLForConditionalGeneration", _qwen, **_STAMPED),
        Family("Qwen3VLMoeForConditionalGeneration", _qwen, **_STAMPED),
        Family(
            "InternVLForConditionalGeneration",
            _internvl,
            tower="vision_tower",
            depth=_vision_layers,
            front=lambda config: 1,
            videos=True,
            pictured=True,
        ),
        Family("Idefics3ForConditionalGeneration", _tiles, **_IDEFICS),
        Family("SmolVLMForConditionalGeneration", _tiles, **_IDEFICS),
    )
}


def family_of(architecture: str) -> Family:
    """The family of an architecture; UnsupportedError with the list of those that are known."""
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise UnsupportedError(
            f"Foveate's plug-in does not know {architecture}, so it cannot hold back visual tokens "
            f"there; it knows {known}. Start vLLM without a Foveate plan, or serve one of those"
        )
    return FAMILIES[architecture]
