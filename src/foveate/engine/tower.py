"""The tower stage: tokens merge or leave between the vision encoder's blocks.

The model's own blocks run, on fewer tokens: a hook before a block shortens the hidden states, a
hook after it gives every patch the state of the token that it went into, so that whatever the model
does with the full grid (pixel shuffle, newline packing, pooling, recorded hidden states) works
unchanged. A patch that was cut keeps the state it had. Merged tokens weigh log(size) more in
attention, which is what that many equal tokens would do (ToMe, arXiv 2210.09461, section 3).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.method import TowerMethod
from foveate.core.views import Attention, BlockView, Grid, Reduction
from foveate.engine.rows import Placed
from foveate.engine.tower_run import TowerRun, check, host, numbered
from foveate.models import compat
from foveate.models.adapter import AutoAdapter
from foveate.models.encoded import block_index
from foveate.models.grids import square

# A block that takes anything else carries rotary angles or packing borders for each of its tokens.
_PLAIN = {"self", "hidden_states", "attention_mask", "kwargs"}
_OTHERS = "drop it from the plan, or take fewer tokens after the tower (`foveate list`)"


def around_tower(adapter: AutoAdapter, method: TowerMethod) -> TowerPass:
    """What compress() opens around the encoder; UnsupportedError if this tower cannot be cut."""
    return TowerPass(adapter, method)


class TowerPass:
    """Calling it gives the context manager to encode in; afterwards it says where each patch went.

    `blocks_in[i]`: patches that entered block i, summed over passes (special tokens left out).
    """

    def __init__(self, adapter: AutoAdapter, method: TowerMethod) -> None:
        self.adapter, self.method = adapter, method
        self.blocks = compat.tower_blocks(adapter.vision)
        kind = f"{method.name} cannot act on {adapter.model_type}"
        if not self.blocks:
            raise UnsupportedError(f"{kind}: its vision tower has no attention blocks; {_OTHERS}")
        for block in self.blocks:
            extra = set(inspect.signature(type(block).forward).parameters) - _PLAIN
            if extra or hasattr(block, "window_size"):
                why = ", ".join(sorted(extra)) or "windows"
                raise UnsupportedError(
                    f"{kind}: its vision tower is packed, windowed or rotary ({why}), so a token "
                    f"cannot leave between its blocks; {_OTHERS}"
                )
        self.layers = block_index(adapter.feature_layer(), len(self.blocks)) + 1
        if self.layers < 2:
            raise UnsupportedError(f"{kind}: the projector reads its first block; {_OTHERS}")
        self.attention = [compat.attention_modules(b)[0] for b in self.blocks]
        self.encodes: list[list[TowerRun]] = []

    @contextlib.contextmanager
    def __call__(self) -> Iterator[TowerPass]:
        """Hooks and the attention tap are in place while open and gone afterwards, errors too."""
        runs: list[TowerRun] = []
        shortener = _Shortener(self, runs)
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                compat.tapped(self.attention, shortener.captures, shortener.bias, shortener.spread)
            )
            for i, block in enumerate(self.blocks):
                before = block.register_forward_pre_hook(shortener.before(i), with_kwargs=True)
                stack.callback(before.remove)
                # First in line, so that every other hook, recorders included, sees all tokens.
                after = block.register_forward_hook(shortener.after(i), prepend=True)
                stack.callback(after.remove)
            yield self
        self.encodes.append(runs)

    # --- what was done --------------------------------------------------------------------------
    @property
    def _runs(self) -> list[TowerRun]:
        return [run for runs in self.encodes for run in runs]

    @property
    def tokens_in(self) -> int:
        """Patches that entered the tower, over all passes."""
        return sum(r.passes * r.patches for r in self._runs)

    @property
    def tokens_out(self) -> int:
        """Tokens left at the block that the projector reads, over all passes."""
        return sum(r.passes * r.counts[self.layers - 1] for r in self._runs)

    @property
    def blocks_in(self) -> tuple[int, ...]:
        return tuple(sum(r.passes * r.counts[i] for r in self._runs) for i in range(self.layers))

    @property
    def identity(self) -> bool:
        return self.tokens_in == self.tokens_out

    def tokens_of(self, placed: Sequence[Placed]) -> tuple[int, int] | None:
        """(in, out) of one request's pictures; None where patches are not mapped to tokens."""
        pieces = [p.piece for p in placed if p.modality == "image"]
        if not self.encodes or not pieces or any(p.part is None for p in pieces):
            return None
        owner = np.concatenate([np.full(r.passes, i) for i, r in enumerate(self.encodes[0])])
        parts = {int(x) for p in pieces if p.part is not None for x in p.part.unique()}
        mine = [self.encodes[0][owner[part]] for part in parts]
        return sum(r.patches for r in mine), sum(r.counts[self.layers - 1] for r in mine)

    def collapse(self, placed: Sequence[Placed]) -> list[Reduction]:
        """One request's pick of a representative a merged group, the first in the order of tokens.

        For plans without a token method. Segments whose projector does not map each encoder token
        to one of its own (and videos) pass whole: the grid needs all of them.
        """
        out = []
        for p in placed:
            piece, n = p.piece, p.free.size
            whole = Reduction.pick(range(n), n)
            mapped = piece.source is not None and piece.group is not None
            if not (self.adapter.tokenwise and mapped and p.modality == "image" and self.encodes):
                out.append(whole)
                continue
            labels = np.concatenate([r.labels() for r in numbered(self.encodes[0])])
            source, group = host(piece.source), host(piece.group)
            there = group >= 0
            owner = np.full(n, -1)
            owner[group[there]] = labels[source[there]]
            present, first = np.unique(owner, return_index=True)
            out.append(Reduction.pick(first[present >= 0], n))
        return out


class _Shortener:
    """The hooks of one open TowerPass, and the state that they share while the tower runs."""

    def __init__(self, owner: TowerPass, runs: list[TowerRun]) -> None:
        self.method, self.layers, self.runs = owner.method, owner.layers, runs
        self.name = owner.adapter.model_type
        self.front, self.back = owner.adapter.specials()
        self.full: Tensor | None = None
        self.ids = {id(m) for m in owner.attention}
        self.at: list[compat.Capture] = []
        for i in range(1, self.layers):
            want = self.method.reads(i, self.layers)
            kinds = set(want & {"keys"})
            if "saliency" in want:
                kinds.add("cls" if self.front else "received")
            self.at.append(compat.Capture(frozenset(kinds), self.front))
        modules = [id(m) for m in owner.attention]
        self.captures = {i: c for i, c in zip(modules, self.at, strict=False) if c.want}

    @property
    def run(self) -> TowerRun:
        return self.runs[-1]

    def before(self, index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            values = dict(zip(("hidden_states", "attention_mask"), args, strict=False)) | kwargs
            full = values["hidden_states"]
            if index == 0:
                self._begin(full, values)
            if 0 < index < self.layers and self.at[index - 1].want:
                tokens = self._round(index, self.run.gather(full))
            else:
                tokens = full if self.run.identity else self.run.gather(full)
            if index < self.layers:
                self.run.counts.append(self.run.now - self.front - self.back)
            self.full = full
            if self.run.identity:
                return None
            values["hidden_states"] = tokens
            if "attention_mask" in values:
                values["attention_mask"] = None  # it hides nothing, or _begin would have refused
            return (), values

        return hook

    def after(self, index: int) -> Any:
        def hook(_: nn.Module, args: Any, out: Any) -> Any:
            full, self.full = self.full, None
            if self.run.identity or full is None:
                return None
            if isinstance(out, tuple):
                return (self.run.scatter(out[0], full), *out[1:])
            return self.run.scatter(out, full)

        return hook

    def bias(self, module: nn.Module, query: Tensor) -> Tensor | None:
        """log(size) (B, 1, 1, S) for the tower's own blocks once something was merged."""
        if not self.method.proportional or id(module) not in self.ids or not self.runs:
            return None
        size = self.run.size
        if self.run.identity or query.shape[2] != size.shape[1]:
            return None
        return size.log()[:, None, None, :].to(query.dtype)

    def spread(self, module: nn.Module, tokens: Tensor) -> Tensor:
        """Queries or keys (B, H, S, a) of every patch, for token methods that read attention."""
        if id(module) not in self.ids or not self.runs or self.run.identity:
            return tokens
        group = self.run.group
        if bool((group < 0).any()):
            raise UnsupportedError(
                f"{self.method.name} takes tokens out of the tower, so that later blocks have no "
                "attention for them: combine it with a token method that reads features alone, "
                "such as divprune"
            )
        index = group[:, None, :, None].expand(-1, tokens.shape[1], -1, tokens.shape[3])
        return tokens.gather(2, index)

    def _begin(self, hidden: Tensor, values: dict[str, Any]) -> None:
        strange = [k for k, v in values.items() if torch.is_tensor(v) and "hidden" not in k]
        mask = values.get("attention_mask")
        if torch.is_tensor(mask):
            seen = mask if mask.dtype == torch.bool else mask == 0
            hides = not bool(seen.all())
            strange = [k for k in strange if k != "attention_mask" or hides]
        if strange or hidden.ndim != 3:
            what = ", ".join(strange) or f"{hidden.ndim}-D states"
            raise UnsupportedError(
                f"{self.method.name} cannot act on {self.name}: its tower runs on padded or packed "
                f"pictures here ({what}); {_OTHERS}"
            )
        passes, length = int(hidden.shape[0]), int(hidden.shape[1])
        if length <= self.front + self.back:
            raise UnsupportedError(f"{self.name}: a tower pass of {length} tokens has no patches")
        self.runs.append(TowerRun(passes, length, self.front, self.back, hidden.device))
        for capture in self.at:
            _clear(capture)

    def _round(self, index: int, tokens: Tensor) -> Tensor:
        run, capture = self.run, self.at[index - 1]
        keys = capture.keys
        if not (keys or capture.cls or capture.received):
            raise UnsupportedError(
                f"{self.method.name}: attention in the tower of {self.name} cannot be observed; "
                f"{_OTHERS}"
            )
        answers = []
        for i in range(run.passes):
            facts = None
            if capture.cls:
                facts = Attention(cls=capture.cls[-1][i].mean(0))
            elif capture.received:
                facts = Attention(received=capture.received[-1][i].mean(0) / run.now)
            view = BlockView(
                layer=index,
                hidden=tokens[i],
                keys=keys[-1][i] if keys else None,
                size=run.size[i],
                protected=run.protected[i],
                grid=_grid(run.patches),
                attention=facts,
            )
            answers.append(self.method.block(index, self.layers, view))
        _clear(capture)
        if all(a is None for a in answers):
            return tokens
        checked = [a or Reduction.pick(range(run.now), run.now, "hidden") for a in answers]
        protected = run.protected.cpu().numpy()
        for answer, alone in zip(checked, protected, strict=True):
            check(self.method.name, answer, run.now, alone)
        if len({a.k for a in checked}) > 1:
            raise PlanError(
                f"{self.method.name} kept {sorted({a.k for a in checked})} tokens of passes that "
                "run together; counts of a tower method follow from the number of tokens alone"
            )
        return tokens if checked[0].is_identity else run.merge(tokens, checked)


def _grid(patches: int) -> Grid:
    h, w = square(patches)
    return (1, h, w) if h * w == patches else (1, 1, patches)


def _clear(capture: compat.Capture) -> None:
    for calls in (capture.keys, capture.cls, capture.received, capture.query):
        calls.clear()


__all__ = ["TowerPass", "around_tower"]
