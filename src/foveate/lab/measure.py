"""Quick figures on the dev split while training: what the heads name right, and which questions are
answered right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from .batches import IGNORED, Batch, Packer, draw_scenes
from .canvas import Layer
from .losses import answer_logits, dense_loss
from .network import Heads, see
from .score import box_right
from .tasks import stream
from .words import DIGITS, KINDS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

ASKED_KINDS = tuple(kind for kind in KINDS if kind != "page")
CHUNK = 16


def dev_batches(packer: Packer, pictures: int, kinds: Iterable[str]) -> dict[str, list[Batch]]:
    """About `pictures` easy dev pictures of each of the kinds that has questions, always the same
    ones.
    """
    out: dict[str, list[Batch]] = {}
    for kind in sorted(set(kinds) & set(ASKED_KINDS)):
        rng = stream("dev", kind, 0, 0)
        sizes = [min(CHUNK, pictures - at) for at in range(0, pictures, CHUNK)]
        out[kind] = [
            packer.pack(rng, draw_scenes(rng, {kind: 1.0}, size, 1.0, "dev"), 8) for size in sizes
        ]
    return out


@torch.no_grad()
def dev_figures(
    model: LlavaForConditionalGeneration,
    heads: Heads,
    batches: dict[str, list[Batch]],
    answers: bool,
) -> dict[str, float]:
    """Shares right: planes by head, the row's key on the patches of its number, and families with
    `answers`.
    """
    right: dict[str, list[float]] = defaultdict(list)
    for kind, parts in batches.items():
        for batch in parts:
            seen = see(model, batch.pixels)
            for plane, share in dense_loss(heads, seen, batch)[1].items():
                right[f"{kind}.{plane}"].append(float(share))
            if kind == "form":
                right["form.key_on_value"].append(_key_on_value(heads, seen, batch))
            if answers:
                logits, targets = answer_logits(model, seen, batch)
                given = logits.argmax(-1)
                for family, hit in score(batch, given == targets, given):
                    right[family].append(float(hit))
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(right.items())}


def _key_on_value(heads: Heads, seen: torch.Tensor, batch: Batch) -> float:
    n, p = seen.shape[0], seen.shape[1] - 1
    logits = (
        heads.patch(seen[:, 1:])
        .view(n, p, 2, -1)
        .transpose(1, 2)
        .split(heads.sizes, -1)[Layer.WORD]
    )
    truth = batch.planes[:, Layer.WORD]
    value = (batch.planes[:, Layer.SLOT] > 0) & (truth > 0)
    return float((logits.argmax(-1) == truth)[value].float().mean())


def score(
    batch: Batch, token_right: torch.Tensor, given: torch.Tensor | None = None
) -> list[tuple[str, bool]]:
    """Family and verdict of each packed question: right when every token of its answer is.

    With `given`, the ids at the answer positions, a box is judged by its overlap, each digit given
    the true ones before it.
    """
    full = torch.ones_like(batch.targets, dtype=torch.bool)
    full[batch.targets != IGNORED] = token_right
    said = batch.targets.clone()
    if given is not None:
        said[batch.targets != IGNORED] = given
    digit = {int(entry): char for entry, char in zip(batch.digits, DIGITS, strict=True)}
    out: list[tuple[str, bool]] = []
    for i, asks in enumerate(batch.asks):
        for j, ask in enumerate(asks):
            mine = (batch.segment[i] == j) & (batch.targets[i] != IGNORED)
            right = bool(full[i][mine].all())
            if ask.metric == "iou" and given is not None:
                text = "".join(digit.get(int(entry), "") for entry in said[i][mine])
                right = box_right(text, ask.boxes[0])
            out.append((ask.family, right))
    return out
