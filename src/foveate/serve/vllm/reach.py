"""How far the positions of a prompt reach, and how far vLLM's rotary tables do.

Text behind a picture stands where the whole picture would have put it, so a prompt that fits the context
may reach beyond what is in those tables: with many wide pictures of which little is kept, or with a video
whose frames are far apart in time. vLLM looks positions up unchecked, and one that is not there ends the
engine and the requests of everybody. So the processor asks here, before the engine sees a request.

How long an answer may be is not known there; but a prompt and its answer never have more tokens than the
context, and behind the last picture positions run ahead of numbers by the same distance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveate.core.errors import StateError
from foveate.serve.vllm.families import Family, Fields
from foveate.serve.vllm.layouts import Span
from foveate.serve.vllm.plan_source import RequestPlanError
from foveate.serve.vllm.positions import Frames

TABLE_FACTOR = 4  # vLLM's M-RoPE tables hold this many times the length a model was made for


def frames_of(family: Family, config: Any, span: Span, written: Tensor | None) -> Frames | None:
    """What stands between a video's frames; written: ids of its part of the prompt with one placeholder
    a frame, None for pictures and where nothing is.
    """
    if written is None:
        return None
    ids = torch.as_tensor(written).cpu().numpy()
    return Frames.of(ids, family.placeholder(config, "video"), span.grid)


def extent_of(
    family: Family, config: Any, span: Span, fields: Fields, frames: Frames | None
) -> int:
    """Positions that an unpruned picture or video takes."""
    if frames is not None:
        return frames.extent
    return int(family.cells(config, span, fields).max()) + 1


def table_length(config: Any) -> int:
    """Positions in vLLM's rotary tables for a model with M-RoPE under a plan."""
    text = config.get_text_config()
    length = float(text.max_position_embeddings)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "yarn":
        length = rope["original_max_position_embeddings"] * rope["factor"]
    return int(TABLE_FACTOR * length)


def check_tables(model: Any, config: Any) -> None:
    """StateError where a loaded model's tables are shorter than `table_length` says."""
    from vllm.model_executor.layers.rotary_embedding import MRotaryEmbedding

    wanted = table_length(config)
    for module in model.modules():
        if isinstance(module, MRotaryEmbedding) and len(module.cos_sin_cache) < wanted:
            raise StateError(
                f"this version of vLLM has {len(module.cos_sin_cache)} positions in its rotary tables "
                f"where the plug-in counts on {wanted}: requests could not be checked against them"
            )


def check_reach(ahead: int, context_tokens: int, table: int) -> None:
    """RequestPlanError where a prompt with an answer that fills a context of `context_tokens` has a
    position that is not among `table`. ahead: how many more positions than tokens the prompt's pictures
    and videos take.
    """
    if ahead <= 0 or ahead + context_tokens <= table:
        return
    raise RequestPlanError(
        "kept tokens stand where the whole pictures and videos have them, so these take "
        f"{ahead} more positions than tokens: with an answer that fills the context of {context_tokens} "
        f"tokens this request reaches position {ahead + context_tokens - 1}, and vLLM's rotary tables "
        f"end at {table - 1}. Send fewer or smaller pictures, videos that are shorter or have more "
        "frames a second, or say positions=renumber in the plan"
    )


__all__ = ["check_reach", "check_tables", "extent_of", "frames_of", "table_length"]
