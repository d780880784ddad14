"""Part of compat: packed vision towers run on some of their patches.

Since 5.2 the packed towers of transformers take what follows from the grid alone (rotary positions,
borders of attention, rows of learned positions, window order) as keyword arguments, and compute
only what is missing (`transformers.vision_utils`). We hand them these facts of the full grid, cut to
the patches that are there.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def tower_facts(vision: Any, grids: Tensor, merge: int | Tensor, keep: Tensor) -> dict[str, Tensor]:
    """What a packed tower takes beside its patches, for those of keep (patches,) bool.

    grids (pictures, 3) in patches, whole; merge: edge of the square of patches that stand together,
    1 where they stand row by row. Kept patches come in whole squares.
    """
    from transformers import vision_utils as own

    facts = {
        "position_ids": own.get_vision_position_ids(grids, merge)[keep],
        "cu_seqlens": _borders(own.get_vision_cu_seqlens(grids), keep),
    }
    table = next((m for m in vision.modules() if hasattr(m, "interpolation_mode")), None)
    if table is not None:
        rows, weights = own.get_vision_interpolation_indices_and_weights(
            grids,
            num_grid_per_side=table.num_grid_per_side,
            mode=table.interpolation_mode,
            align_corners=table.interpolation_align_corners,
            spatial_merge_size=int(merge),
        )
        facts |= {"interp_indices": rows[keep], "interp_weights": weights[keep]}
    if hasattr(vision, "window_size"):
        order, borders = own.get_vision_window_index(
            grids,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        unit = vision.spatial_merge_size**2
        squares = keep.view(-1, unit)[:, 0]
        order = order.to(keep.device)
        facts["window_index"] = kept_order(order, squares)
        facts["cu_window_seqlens"] = _borders(borders, squares[order].repeat_interleave(unit))
    return facts


def kept_order(order: Tensor, keep: Tensor) -> Tensor:
    """A permutation (n,) without the entries that keep (n,) lacks, renumbered."""
    rank = keep.long().cumsum(0) - 1
    return rank[order[keep[order]]]


def _borders(borders: Tensor, keep: Tensor) -> Tensor:
    """Cumulative lengths of runs of patches, counting those of keep alone; empty runs vanish."""
    total = torch.nn.functional.pad(keep.long().cumsum(0), (1, 0))
    return torch.unique_consecutive(total[borders.long().to(keep.device)]).to(torch.int32)


@contextlib.contextmanager
def tower_hooks(
    vision: nn.Module,
    before: Callable[[dict[str, Any]], dict[str, Any]],
    after: Callable[[Any], Any],
) -> Iterator[None]:
    """While open, the tower's arguments (by name) go through `before`, its output through `after`."""
    names = [n for n in inspect.signature(type(vision).forward).parameters if n != "self"]

    def pre(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (), before({**dict(zip(names, args, strict=False)), **kwargs})

    def post(_: nn.Module, __: Any, out: Any) -> Any:
        return after(out)

    handles = [
        vision.register_forward_pre_hook(pre, with_kwargs=True),
        vision.register_forward_hook(post),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
