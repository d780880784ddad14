"""The three losses of the recipe: dense labels on the tower, word-aligned projections, answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .batches import IGNORED, Batch
from .canvas import EDGES, MAX_SLOT, Layer
from .network import Heads
from .tokenizer import BOS
from .words import COLOUR_LABELS, DIGITS, GLYPHS, MAX_BAR, NOTES, PLACES, SHAPE_LABELS, WORDS

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

PLANE_WEIGHTS = {
    Layer.GLYPH: 1.0,
    Layer.SLOT: 0.4,
    Layer.SHAPE: 0.5,
    Layer.COLOUR: 0.5,
    Layer.WORD: 1.0,
    Layer.HEAD: 0.5,
    **dict.fromkeys(EDGES, 0.15),
}
TENS = 3
"""Values of the first digit of a box edge: 0 to 28."""

BLANK = "\u0120"
"""The byte-level entry of a blank."""

CLS_WEIGHT = 3.0
BACKGROUND_STRIDE = 4
"""Every fourth empty half patch enters the dense loss: there are many and they are easy."""

LEAST_SHOWN = 32
BACKGROUND_SHOWN = 12
"""Of a picture the language model sees this many patches, and this many of background, at least."""


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
        # Where nothing stands, the plane of shapes says so: an edge is learnt on things alone.
        use = drawn if layer in EDGES else torch.cat([drawn, empty])
        if not len(use):
            continue
        loss = loss + PLANE_WEIGHTS[layer] * F.cross_entropy(flat[use].float(), truth[use])
        if len(drawn):
            right[layer.name.lower()] = (flat[drawn].argmax(-1) == truth[drawn]).float().mean()
    return loss, right


class WordTable:
    """Which vocabulary entry each dense label reads as; 0 stands for none."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        def first(text: str) -> int:
            return int(tokenizer.encode(text, add_special_tokens=False)[0])

        unused = [
            tokenizer.convert_tokens_to_ids(token)
            for token in tokenizer.convert_ids_to_tokens(list(range(4, 260)))
            if not token.isascii() and token != BLANK
        ]  # byte entries that no text of the lab uses
        count = MAX_SLOT + MAX_BAR + 1 - len(DIGITS)
        spare, rest = unused[-count:], unused[:-count]
        values = [
            first(str(v)) if v < len(DIGITS) else spare[MAX_SLOT + v - len(DIGITS)]
            for v in range(1, MAX_BAR + 1)
        ]
        rows = {
            Layer.GLYPH: [0, *(first(char) for char in GLYPHS)],
            Layer.SLOT: [0, *spare[:MAX_SLOT]],
            Layer.SHAPE: [0, *(first(" " + name) for name in SHAPE_LABELS)],
            Layer.COLOUR: [0, *(first(" " + name) for name in COLOUR_LABELS)],
            Layer.WORD: [
                0,
                *(first(" " + word) for word in WORDS),
                *values,
                *(first(" " + note) for note in NOTES),
            ],
            Layer.HEAD: [0, *(first(" " + word) for word in WORDS)],
        }
        self.entries = {layer: torch.tensor(row) for layer, row in rows.items()}
        self.places = torch.tensor([first(" " + place) for place in PLACES])
        self.used = torch.cat([*self.entries.values(), self.places]).unique()
        self.slot_of = torch.zeros(len(tokenizer), dtype=torch.long)
        self.slot_of[self.used] = torch.arange(len(self.used))
        # Each digit of a box has entries of its own, so that an answer copies it from any patch of
        # the thing: first digits of the four edges, then second digits.
        each = TENS + len(DIGITS)
        self.edges = torch.tensor(rest[-each * len(EDGES) :]).view(len(EDGES), each)

    def to(self, device: torch.device) -> WordTable:
        """Move the tables to a device, in place."""
        self.entries = {layer: row.to(device) for layer, row in self.entries.items()}
        self.places, self.used, self.slot_of, self.edges = (
            t.to(device) for t in (self.places, self.used, self.slot_of, self.edges)
        )
        return self


def aligned_loss(
    model: LlavaForConditionalGeneration, seen: Tensor, batch: Batch, table: WordTable
) -> Tensor:
    """Each drawn patch, projected, should read through the tied embedding as the words that are
    drawn there.

    The softmax runs over label words only, so that unused entries are not pushed and the embedding
    keeps its rank. Patches of a thing must also tell each digit of its box.
    """
    side = int((seen.shape[1] - 1) ** 0.5)
    index = torch.arange(side * side, device=seen.device)
    up_down = torch.where(index // side < side / 2, table.places[0], table.places[1])
    left_right = torch.where(index % side < side / 2, table.places[2], table.places[3])
    words = torch.cat([table.entries[layer][batch.planes[:, layer]] for layer in table.entries], 1)
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
    embedding = model.get_input_embeddings().weight
    logs = F.log_softmax(rows @ embedding[table.used].T, -1)
    weight = (words > 0).float()
    picked = logs.gather(1, table.slot_of[words]) * weight
    loss = -(picked.sum(1) / weight.sum(1)).mean()
    halves = batch.planes[:, list(EDGES)].transpose(2, 3).transpose(1, 2).flatten(0, 1)[keep]
    ends = torch.where(halves[..., 0] > 0, halves[..., 0], halves[..., 1]) - 1  # (rows, edges)
    inside = ends[:, 0] >= 0
    if not inside.any():
        return loss
    return loss + _edge_loss(rows[inside], embedding[table.edges], ends[inside])


def _edge_loss(rows: Tensor, entries: Tensor, ends: Tensor) -> Tensor:
    """Cross-entropy of both digits of each edge. `rows` (m, dim), `entries` (edges, 13, dim),
    `ends` (m, edges).
    """
    first, second = torch.einsum("md,eld->mel", rows, entries).split([TENS, len(DIGITS)], -1)
    tens, ones = ends // len(DIGITS), ends % len(DIGITS)
    return 0.5 * (
        F.cross_entropy(first.float().flatten(0, 1), tens.flatten())
        + F.cross_entropy(second.float().flatten(0, 1), ones.flatten())
    )


def drawn_first(batch: Batch, count: int, noise: Tensor) -> Tensor:
    """At most `count` patches per picture, those with something drawn before random background, in
    order: (n, k). Where no picture of the batch has so much drawn, fewer are enough.
    """
    drawn = (batch.planes > 0).any(2).any(1).float()
    enough = max(LEAST_SHOWN, int(drawn.sum(-1).max()) + BACKGROUND_SHOWN)
    shown = min(count, enough, drawn.shape[-1])
    return (drawn + noise).topk(shown, -1).indices.sort(-1).values


def answer_logits(
    model: LlavaForConditionalGeneration, seen: Tensor, batch: Batch, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits and targets at the answer positions. Every question sees the pictures of its row and
    itself, as if asked alone.

    `chosen` (n, k) names the patches shown of each picture, at their original positions; None shows
    all.
    """
    tokens = seen[:, 1:]
    n, p, width = tokens.shape
    rows, each = n // batch.pictures_per_row, batch.pictures_per_row
    if chosen is None:
        chosen = torch.arange(p, device=seen.device).expand(n, p)
    else:
        tokens = tokens.gather(1, chosen[..., None].expand(-1, -1, width))
    embed = model.get_input_embeddings()
    shown = model.model.multi_modal_projector(tokens).unflatten(0, (rows, each))
    place = chosen.unflatten(0, (rows, each))
    if len(batch.markers):  # several pictures: each stands behind its marker
        marks = embed(batch.markers).to(shown.dtype)
        shown = torch.cat([marks[None, :, None].expand(rows, -1, -1, -1), shown], 2)
        place = torch.cat([torch.zeros_like(place[..., :1]), 1 + place], 2)
    span = p + (len(batch.markers) > 0)
    place = 1 + place + span * torch.arange(each, device=seen.device)[:, None]
    parts = [embed.weight[BOS].expand(rows, 1, -1), shown.flatten(1, 2), embed(batch.ids)]
    head = 1 + parts[1].shape[1]
    start = torch.zeros_like(batch.position[:, :1])
    position = torch.cat([start, place.flatten(1), 1 + each * span + batch.position], 1)
    length = head + batch.ids.shape[1]
    allowed = (
        torch.ones(length, length, dtype=torch.bool, device=seen.device)
        .tril()
        .repeat(rows, 1, 1, 1)
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
