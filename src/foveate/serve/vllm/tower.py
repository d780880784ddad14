"""Reads what methods ask of a vision tower while vLLM runs it: hidden states, and attention rows of
single layers, computed from that layer's queries and keys whatever kernel the server uses.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import UnsupportedError
from foveate.core.views import Attention, EncoderView, Need
from foveate.serve.vllm.layouts import Span

ATTENTION = ("cls", "received", "saliency", "keys", "query")
ENCODER = (*ATTENTION, "features")
_ATTENTION_CLASS = "MMEncoderAttention"
_BLOCK = 2**21  # logits held at a time


@dataclass
class Reading:
    """What one call of the tower showed. hidden[block]: (M, c); special[block]: (passes, s, c);
    cls, received[block]: (H, M); keys[block]: (M, H, a); query[block]: (passes, s, H, a). M counts
    patches over all passes; queries: tokens that attend in one pass, None for packed towers.
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    special: dict[int, Tensor] = field(default_factory=dict)
    cls: dict[int, Tensor] = field(default_factory=dict)
    received: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    query: dict[int, Tensor] = field(default_factory=dict)
    queries: int | None = None


class Tower:
    """The blocks of a vision tower that vLLM built. depth: blocks of the checkpoint, of which vLLM
    may leave out the last ones; front: special tokens before the patches of each pass; feature_layer:
    the hidden state that the projector reads, counted as configs do.
    """

    def __init__(self, module: nn.Module, depth: int, front: int, feature_layer: int) -> None:
        self.blocks = tower_blocks(module)
        self.depth, self.front = depth, front
        # Hidden state 0 is what enters the first block, so state n is what block n - 1 puts out.
        self.feature_block = feature_layer - 1 if feature_layer >= 0 else depth + feature_layer

    def index(self, layer: int) -> int:
        """A Need's layer as a block; UnsupportedError if vLLM did not build it."""
        index = layer if layer >= 0 else self.depth + layer
        if not 0 <= index < len(self.blocks):
            raise UnsupportedError(
                f"the method reads encoder block {layer} of {self.depth}; vLLM builds the first "
                f"{len(self.blocks)}, because the projector reads no further: choose a method that "
                "reads another block, or features alone such as divprune"
            )
        return index

    def check(self, needs: frozenset[Need]) -> None:
        """UnsupportedError unless all that is asked can be read."""
        for need in needs:
            if need.what not in ENCODER:
                continue
            block = self.blocks[self.index(need.layer)]
            if need.what == "cls" and not self.front:
                raise UnsupportedError(
                    "the method reads the CLS token's attention, and this tower has no CLS token; "
                    "choose one that takes received attention, such as fastervlm or visionzip"
                )
            if need.what in ATTENTION:
                attention_of(block)

    @contextlib.contextmanager
    def reading(self, needs: frozenset[Need]) -> Iterator[Reading]:
        """Watch for the time of one call; nothing is touched where nothing of the encoder is asked."""
        found = Reading()
        states = {self.index(n.layer) for n in needs if n.what == "features"}
        if states:
            states.add(self.feature_block)
        kinds: dict[int, set[str]] = {}
        for need in needs:
            if need.what in ATTENTION:
                what = need.what
                if what == "saliency":
                    what = "cls" if self.front else "received"
                kinds.setdefault(self.index(need.layer), set()).add(what)
        with contextlib.ExitStack() as stack:
            for i in states:
                stack.enter_context(_watched(self.blocks[i], self._keep_state(found, i)))
            for i, wanted in kinds.items():
                module = attention_of(self.blocks[i])
                hook = self._attention_hook(found, i, frozenset(wanted))
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            yield found

    def _keep_state(self, found: Reading, block: int) -> Callable[[Any], None]:
        def keep(out: Any) -> None:
            state = _three(out[0] if isinstance(out, tuple) else out)
            patches, special = state[:, self.front :], state[:, : self.front]
            found.hidden[block] = _joined(found.hidden.get(block), patches.flatten(0, 1))
            if self.front:
                found.special[block] = _joined(found.special.get(block), special)

        return keep

    def _attention_hook(
        self, found: Reading, block: int, want: frozenset[str]
    ) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            query = kwargs["query"] if "query" in kwargs else args[0]
            key = kwargs["key"] if "key" in kwargs else args[1]
            bounds = kwargs.get("cu_seqlens", args[3] if len(args) > 3 else None)
            q, k = _heads(query, module.num_heads), _heads(key, module.num_kv_heads)
            if k.shape[1] != q.shape[1]:
                k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            if bounds is None:
                found.queries = int(q.shape[2])
                parts = [(q, k)]
            else:
                ends = bounds.tolist()
                pairs = list(zip(ends[:-1], ends[1:], strict=True))
                parts = [(q[:, :, a:b], k[:, :, a:b]) for a, b in pairs if b > a]
            for one_q, one_k in parts:
                self._observe(found, block, want, one_q, one_k, float(module.scale))

        return hook

    @torch.no_grad()
    def _observe(
        self, found: Reading, block: int, want: frozenset[str], q: Tensor, k: Tensor, scale: float
    ) -> None:
        """Rows of one layer from q and k (B, H, S, a), float32, a full matrix never held."""
        with torch.autocast(q.device.type, enabled=False):
            q, k = q.float(), k.float()
            if "keys" in want:
                keys = k.transpose(1, 2)[:, self.front :].flatten(0, 1)
                found.keys[block] = _joined(found.keys.get(block), keys)
            if "query" in want and self.front:
                query = q[:, :, : self.front].transpose(1, 2)
                found.query[block] = _joined(found.query.get(block), query)
            if "cls" in want and self.front:
                rows = torch.softmax((q[:, :, :1] @ k.transpose(-1, -2)) * scale, -1)[:, :, 0]
                flat = rows[:, :, self.front :].transpose(0, 1).flatten(1)
                found.cls[block] = _joined(found.cls.get(block), flat, 1)
            if "received" in want:
                total = _received(q, k, scale)[:, :, self.front :].transpose(0, 1).flatten(1)
                found.received[block] = _joined(found.received.get(block), total, 1)

    # --- views ----------------------------------------------------------------------------------
    def view(
        self,
        found: Reading,
        span: Span,
        needs: frozenset[Need],
        start: tuple[int, int],
        order: np.ndarray | None,
        tokenwise: bool,
    ) -> EncoderView | None:
        """The encoder's side of one span of a picture before which the tower saw `start` tokens and
        passes, in the order of the pixels (`order`: place in the tower of each). None where nothing
        was asked or encoder tokens do not map to projected ones.
        """
        if span.source is None or span.group is None or span.part is None:
            return None
        if not any(n.what in ENCODER for n in needs):
            return None
        device = next(iter([*found.hidden.values(), *found.keys.values(), *found.received.values(),
                            *found.cls.values(), *found.query.values()])).device  # fmt: skip
        place = span.source if order is None else order[span.source]
        index = torch.as_tensor(place + start[0], device=device)
        parts = np.unique(span.part)
        these = torch.as_tensor(parts + start[1], device=device)
        hidden = {i: h.index_select(0, index) for i, h in found.hidden.items()}
        special = found.special.get(self.feature_block)
        queries = found.queries or int(span.source.size)
        at = {}
        for layer in {n.layer for n in needs if n.what in ATTENTION}:
            per_head = any(n.per_head for n in needs if n.layer == layer and n.what in ATTENTION)
            at[layer] = self._at(found, self.index(layer), index, these, per_head, queries)
        return EncoderView(
            features=hidden.get(self.feature_block),
            special=None if special is None else special[these].flatten(0, 1),
            group=torch.as_tensor(span.group, device=device),
            part=torch.as_tensor(np.searchsorted(parts, span.part), device=device),
            at=at,
            tokenwise=tokenwise,
            hidden={n.layer: hidden[self.index(n.layer)] for n in needs if n.what == "features"},
        )

    def _at(
        self,
        found: Reading,
        block: int,
        index: Tensor,
        parts: Tensor,
        per_head: bool,
        queries: int,
    ) -> Attention:
        def heads(x: Tensor | None, scale: float = 1.0) -> Tensor | None:
            if x is None:
                return None
            x = x.index_select(1, index)
            return (x if per_head else x.mean(0)) * scale

        keys, query = found.keys.get(block), found.query.get(block)
        return Attention(
            cls=heads(found.cls.get(block)),
            received=heads(found.received.get(block), 1.0 / queries),
            keys=None if keys is None else keys.index_select(0, index),
            query=None if query is None else query[parts].flatten(0, 1),
        )


@contextlib.contextmanager
def _watched(block: Any, keep: Callable[[Any], None]) -> Iterator[None]:
    """Show what a block puts out. Blocks that vLLM may compile are called past torch's hooks, but all
    go through `forward`.
    """
    own = block.forward

    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        keep(out)
        return out

    block.__dict__["forward"] = forward
    try:
        yield
    finally:
        del block.__dict__["forward"]


def _joined(before: Tensor | None, now: Tensor, dim: int = 0) -> Tensor:
    return now if before is None else torch.cat([before, now], dim)


def _three(state: Tensor) -> Tensor:
    """(B, S, c) of (B, S, c), or of a packed (S, c) or (S, 1, c)."""
    if state.ndim == 2:
        return state[None]
    return state.transpose(0, 1) if state.shape[1] == 1 and state.shape[0] > 1 else state


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B, H, S, a) of what the attention module is called with."""
    if x.ndim == 3:
        x = x.unflatten(-1, (heads, -1)) if x.shape[-2] != heads else x[None]
    return x.transpose(1, 2)


def _received(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """(B, H, S): attention that each key receives, summed over queries, a block of rows at a time."""
    total = torch.zeros_like(q[:, :, :, 0])
    passes, heads, length = total.shape
    rows = max(1, _BLOCK // max(1, heads * length))
    for i in range(passes):
        keys = k[i].transpose(-1, -2)
        for start in range(0, length, rows):
            part = torch.softmax((q[i, :, start : start + rows] @ keys) * scale, -1)
            total[i] += part.sum(-2)
    return total


def attention_of(block: nn.Module) -> nn.Module:
    """The attention module of a block; UnsupportedError if it has not exactly one."""
    found = [m for m in block.modules() if type(m).__name__ == _ATTENTION_CLASS]
    if len(found) != 1:
        raise UnsupportedError(
            f"{type(block).__name__} holds {len(found)} modules of vLLM's {_ATTENTION_CLASS}; methods "
            "that read encoder attention cannot run on this tower: choose divprune or uniform"
        )
    return found[0]


def tower_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks in depth order: the longest list of modules that hold one attention module each."""
    best: list[nn.Module] = []
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) > len(best):
            counts = [
                sum(type(m).__name__ == _ATTENTION_CLASS for m in block.modules())
                for block in child
            ]
            if all(c == 1 for c in counts):
                best = list(child)
    return best
