"""The three losses of the recipe: dense labels on the tower, word-aligned projections, answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import IGNORED, Batch
from .canvas import MAX_SLOT, Layer
from .network import Heads
from .tokenizer import BOS
from .words import COLOURS, DIGITS, GLYPHS, MAX_BAR, PLACES, SHAPES, WORDS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

PLANE_WEIGHTS = {
    Layer.GLYPH: 1.0,
    Layer.SLOT: 0.4,
    Layer.SHAPE: 0.5,
    Layer.COLOUR: 0.5,
    Layer.WORD: 1.0,
}
CLS_WEIGHT = 3.0
BACKGROUND_STRIDE = 4
"""Every fourth empty half patch enters the dense loss: there are many and they are easy."""


def dense_loss(heads: Heads, seen: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """What is drawn under each half patch, and the job of CLS. `seen` is (n, 1 + p, dim), CLS
    first.

    Returns the loss and the share of drawn half patches named right, by plane.
    """
    n, p = seen.shape[0], seen.shape[1] - 1
    logits = heads.patch(seen[:, 1:]).view(n, p, 2, -1).transpose(1, 2).split(heads.sizes, -1)
    loss = CLS_WEIGHT * F.binary_cross_entropy_with_logits(heads.cls(seen[:, 0]).float(), batch.cls)
    right: dict[str, Tensor] = {}
    for layer, scores in zip(Layer, logits, strict=True):
        truth, flat = batch.planes[:, layer].flatten(), scores.reshape(n * 2 * p, -1)
        drawn = torch.nonzero(truth > 0).squeeze(1)
        empty = torch.nonzero(truth == 0).squeeze(1)[::BACKGROUND_STRIDE]
        use = torch.cat([drawn, empty])
        loss = loss + PLANE_WEIGHTS[layer] * F.cross_entropy(flat[use].float(), truth[use])
        if len(drawn):
            right[layer.name.lower()] = (flat[drawn].argmax(-1) == truth[drawn]).float().mean()
    return loss, right


class WordTable:
    """Which vocabulary entry each dense label reads as; 0 stands for none."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        def first(text: str) -> int:
            return int(tokenizer.encode(text, add_special_tokens=False)[0])

        spare = [
            tokenizer.convert_tokens_to_ids(token)
            for token in tokenizer.convert_ids_to_tokens(list(range(4, 260)))
            if not token.isascii()
        ][-(MAX_SLOT + MAX_BAR + 1 - len(DIGITS)) :]  # byte entries that no text of the lab uses
        values = [
            first(str(v)) if v < len(DIGITS) else spare[MAX_SLOT + v - len(DIGITS)]
            for v in range(1, MAX_BAR + 1)
        ]
        rows = {
            Layer.GLYPH: [0, *(first(char) for char in GLYPHS)],
            Layer.SLOT: [0, *spare[:MAX_SLOT]],
            Layer.SHAPE: [0, *(first(" " + name) for name in SHAPES)],
            Layer.COLOUR: [0, *(first(" " + name) for name in COLOURS)],
            Layer.WORD: [0, *(first(" " + word) for word in WORDS), *values],
        }
        self.entries = {layer: torch.tensor(row) for layer, row in rows.items()}
        self.places = torch.tensor([first(" " + place) for place in PLACES])
        self.used = torch.cat([*self.entries.values(), self.places]).unique()
        self.slot_of = torch.zeros(len(tokenizer), dtype=torch.long)
        self.slot_of[self.used] = torch.arange(len(self.used))

    def to(self, device: torch.device) -> WordTable:
        """Move the tables to a device, in place."""
        self.entries = {layer: row.to(device) for layer, row in self.entries.items()}
        self.places, self.used, self.slot_of = (
            t.to(device) for t in (self.places, self.used, self.slot_of)
        )
        return self


def aligned_loss(
    model: LlavaForConditionalGeneration, seen: Tensor, batch: Batch, table: WordTable
) -> Tensor:
    """Each drawn patch, projected, should read through the tied embedding as the words that are
    drawn there.

    The softmax runs over label words only, so that unused entries are not pushed and the embedding
    keeps its rank.
    """
    side = int((seen.shape[1] - 1) ** 0.5)
    index = torch.arange(side * side, device=seen.device)
    up_down = torch.where(index // side < side / 2, table.places[0], table.places[1])
    left_right = torch.where(index % side < side / 2, table.places[2], table.places[3])
    words = torch.cat([table.entries[layer][batch.planes[:, layer]] for layer in Layer], 1)
    drawn = (words > 0).any(1, keepdim=True)
    words = (
        torch.cat([words, torch.stack([up_down, left_right]) * drawn], 1)
        .transpose(1, 2)
        .flatten(0, 1)
    )
    keep = (words > 0).any(-1)
    words = words[keep]
    rows = model.model.multi_modal_projector(seen[:, 1:]).flatten(0, 1)[keep]
    rows = F.rms_norm(rows.float(), rows.shape[-1:])
    logs = F.log_softmax(rows @ model.get_input_embeddings().weight[table.used].T, -1)
    weight = (words > 0).float()
    picked = logs.gather(1, table.slot_of[words]) * weight
    return -(picked.sum(1) / weight.sum(1)).mean()


def drawn_first(batch: Batch, count: int, noise: Tensor) -> Tensor:
    """`count` patches per picture, those with something drawn before random background, in order:
    (n, count).
    """
    drawn = (batch.planes > 0).any(2).any(1).float()
    return (drawn + noise).topk(count, -1).indices.sort(-1).values


def answer_logits(
    model: LlavaForConditionalGeneration, seen: Tensor, batch: Batch, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and targets at the answer positions. Every question sees the picture and itself, as if
    asked alone.

    `chosen` (n, k) names the patches shown, at their original positions; None shows all.
    """
    tokens = seen[:, 1:]
    n, p, width = tokens.shape
    if chosen is None:
        chosen = torch.arange(p, device=seen.device).expand(n, p)
    else:
        tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, width))
    embed = model.get_input_embeddings()
    parts = [
        embed.weight[BOS].expand(n, 1, -1),
        model.model.multi_modal_projector(tokens),
        embed(batch.ids),
    ]
    head = 1 + tokens.shape[1]
    position = torch.cat([torch.zeros_like(chosen[:, :1]), 1 + chosen, 1 + p + batch.position], 1)
    length = head + batch.ids.shape[1]
    allowed = (
        torch.ones(length, length, dtype=torch.bool, device=seen.device).tril().repeat(n, 1, 1, 1)
    )
    allowed[:, 0, head:, head:] &= batch.segment[:, :, None] == batch.segment[:, None, :]
    hidden = model.model.language_model(
        inputs_embeds=torch.cat([part.to(tokens.dtype) for part in parts], 1),
        attention_mask=allowed,
        position_ids=position,
        use_cache=False,
    ).last_hidden_state[:, head - 1 : -1]
    answer = batch.targets != IGNORED
    return model.lm_head(hidden[answer]).float(), batch.targets[answer]
