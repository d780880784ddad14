"""Patches that do not enter the tower: a pixel method chooses them on what preprocessing gave, so
that both doors choose alike. Sequence, positions and DeepStack rows of the rest stay as they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import InputError, PlanError, UnsupportedError
from foveate.core.method import PixelMethod
from foveate.core.plan import Plan
from foveate.core.rng import PlanRng
from foveate.core.views import PixelPlan, Pixels
from foveate.models.adapter import AutoAdapter
from foveate.models.packed import KeptPatches, Packing, check_packed

_PROCESSOR = {"image": "image_processor", "video": "video_processor"}


def acts_on_patches(plan: Plan) -> bool:
    """The plan's pixel method chooses among patches; other pixel methods change the picture."""
    method = plan.stage("pixels")
    return method is not None and method.acts == "patches"


def patches_of(adapter: AutoAdapter, plan: Plan, processor: Any = None) -> PatchChoice | None:
    """The plan's choice of patches, None without one; UnsupportedError where the tower is not packed
    or a tower method stands beside it.
    """
    if not acts_on_patches(plan):
        return None
    method: Any = plan.stage("pixels")
    check_packed(adapter, method.name)
    tower = plan.stage("tower")
    if tower is not None:
        raise UnsupportedError(
            f"{tower.name} cannot act on {adapter.model_type}, whose tower is packed; drop it from the "
            f"plan beside {method.name}"
        )
    return PatchChoice(adapter, method, processor, plan.seed)


class PatchChoice:
    """Asks a pixel method, request by request, which visual tokens' patches enter the tower."""

    def __init__(
        self, adapter: AutoAdapter, method: PixelMethod, processor: Any = None, seed: int = 0
    ) -> None:
        self.adapter, self.method, self.processor = adapter, method, processor
        self.rng = PlanRng(seed)

    def choose(
        self,
        ids: Tensor,
        mask: Tensor,
        types: Tensor | None,
        media: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, KeptPatches]:
        """The choice for each modality of a batch, none where all patches stay; InputError where ids
        and pictures disagree.
        """
        packings = {m: Packing(self.adapter, mm, m) for m, mm in media.items() if mm}
        requests: dict[int, list[tuple[str, int]]] = {}
        for m, packing in packings.items():
            here = self.adapter.spots(m, ids, types).cpu() & (mask.cpu() != 0)
            for i, row in enumerate(_rows(m, here, packing.sizes)):
                requests.setdefault(row, []).append((m, i))
        present = {m: [np.ones(n, dtype=bool) for n in p.sizes] for m, p in packings.items()}
        for members in requests.values():
            views = [self._view(k, packings[m], i) for k, (m, i) in enumerate(members)]
            plans = self.method.reduce(views, self.rng)
            if len(plans) != len(views):
                raise PlanError(
                    f"{self.method.name} answered {len(plans)} plans for {len(views)} pictures"
                )
            for (m, i), plan in zip(members, plans, strict=True):
                present[m][i] = self._mask(plan, present[m][i].size)
        whole = {m for m, masks in present.items() if all(x.all() for x in masks)}
        return {m: KeptPatches(p, present[m]) for m, p in packings.items() if m not in whole}

    def _view(self, number: int, packing: Packing, index: int) -> Pixels:
        array, grid = packing.picture(index), packing.grids[index]
        size = packing.sizes[index]

        def tokens(plan: PixelPlan) -> int:
            return size if plan.patches is None else len(plan.patches)

        return Pixels(
            image=number,
            array=array,
            size=(int(array.shape[1]), int(array.shape[2])),
            tokens=tokens,
            grid=grid,
            span=span_of(getattr(self.processor, _PROCESSOR[packing.modality], None)),
        )

    def _mask(self, plan: PixelPlan, n: int) -> np.ndarray:
        if any(x is not None for x in (plan.size, plan.tiles, plan.frames)):
            raise PlanError(f"{self.method.name} acts on patches, and its plan sets something else")
        if plan.patches is None:
            return np.ones(n, dtype=bool)
        picks = list(plan.patches)
        rising = all(a < b for a, b in zip(picks, picks[1:], strict=False))
        if not picks or not rising or picks[0] < 0 or picks[-1] >= n:
            raise PlanError(f"{self.method.name}: patches are no rising choice among {n} tokens")
        out = np.zeros(n, dtype=bool)
        out[np.asarray(picks)] = True
        return out


def unseen_note(tokens: int, unseen: int, cached: bool) -> list[str]:
    """What a report says of visual tokens whose patches did not enter the tower; nothing for none."""
    if not unseen:
        return []
    after = ", and their features are not cached" if cached else ""
    return [f"patches of {tokens - unseen} of {tokens} visual tokens entered the tower{after}"]


def span_of(part: Any) -> tuple[float, float, float] | None:
    """What lies between black and white after an image or video processor's normalisation."""
    if part is None or not hasattr(part, "image_std"):
        return None
    scale = float(part.rescale_factor) if getattr(part, "do_rescale", True) else 1.0
    std = part.image_std if getattr(part, "do_normalize", True) else 1.0
    r, g, b = np.broadcast_to(np.asarray(std, dtype=np.float64), (3,))
    return 255.0 * scale / float(r), 255.0 * scale / float(g), 255.0 * scale / float(b)


def _rows(modality: str, here: Tensor, sizes: Sequence[int]) -> list[int]:
    """The row of the batch in which each picture's placeholders stand."""
    each = here.sum(-1)
    if int(each.sum()) != sum(sizes):
        raise InputError(
            f"the text has {int(each.sum())} {modality} placeholders but the pictures give "
            f"{sum(sizes)} visual tokens; a placeholder typed into the question, or truncation of the "
            "prompt, does this: pass the processor's own output"
        )
    ends = each.cumsum(0)
    starts = torch.as_tensor([0, *np.cumsum(sizes)[:-1]])
    return [int(x) for x in torch.searchsorted(ends, starts, right=True)]
