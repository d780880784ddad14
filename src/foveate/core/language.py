"""Contracts of the stages inside the language model: prefill routes, cache policies and codecs,
drafters and verifiers.

No built-in method of these stages is shipped yet; the types are fixed here so that plans, registry
and
third parties can speak of them. The engine refuses a plan with such a stage with a typed error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from foveate.core.errors import SettingError
from foveate.core.views import Array, Question, Reduction, Segment


@dataclass(frozen=True)
class Route:
    """What a prefill method decides at a layer, over visual tokens only; keep None = all."""

    keep: Reduction | None = None
    park: Array | None = None
    recall: Array | None = None


class LayerView(Protocol):
    """The sequence at one layer: hidden (S, D); modality, segment, origin (S,); position (p, S)."""

    hidden: Array
    modality: Array
    segment: Array
    origin: Array
    question: Array
    position: Array
    entered: int
    parked: Array | None
    guidance: Array | None

    def rows(self, query_index: Array, source: str) -> Array:
        """Attention rows (H, r, S) of this layer's ("next") or the previous layer's queries,
        float32.
        """

    def left_multiply(self, s: Array) -> Array:
        """s (H, S) times the attention matrix, in blocks."""

    def keys(self) -> Array:
        """Keys (Hkv, S, a)."""


class PrefillMethod(Protocol):
    """Drops or parks visual tokens between layers."""

    def layers(self, count: int) -> tuple[int, ...]:
        """Layers at which `decide` is called, of a model with `count` layers."""

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        """The route at this layer and the state carried to the next call."""


@dataclass(frozen=True)
class Guidance:
    """What a small sibling says of a request: scores (N,), draft ids, confidence."""

    scores: Array
    draft: tuple[int, ...] | None = None
    confidence: float | None = None


class Guide(Protocol):
    """A small model that scores the visual tokens for a large one (SGL)."""

    def guide(self, request: Any) -> Guidance:
        """Scores of one request's visual tokens."""


@dataclass(frozen=True)
class KVBudget:
    """KV entries kept: a ratio, a count or bytes; exactly one. The recent window counts."""

    keep: Fraction | None = None
    entries: int | None = None
    bytes: int | None = None

    def __post_init__(self) -> None:
        given = [f for f in ("keep", "entries", "bytes") if getattr(self, f) is not None]
        if len(given) != 1:
            raise SettingError(
                f"a KV budget sets exactly one of keep, entries, bytes; got {given or 'none'}"
            )
        if self.keep is not None and not 0 < self.keep <= 1:
            raise SettingError(f"keep = {self.keep} is out of range: 0 < keep <= 1")
        for name in ("entries", "bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingError(f"{name} = {value} is out of range: at least 1")


class KVView(Protocol):
    """One layer's cache: per KV head keys and values (n_h, d), position, modality, segment (n_h,)."""

    keys: list[Array]
    values: list[Array]
    position: list[Array]
    modality: list[Array]
    segment: list[Array]

    def rows(self, w: int) -> Array:
        """Attention (H, w, S) of the last w queries."""

    def column_sum(self) -> Array:
        """Attention received (H, S)."""


class CachePolicy(Protocol):
    """Evicts or merges cache entries. when: prefill_end, overflow or step; scope: layer or model."""

    when: str
    scope: str

    def observe(self, layer: int, view: KVView) -> Any:
        """Statistics of one layer."""

    def allocate(self, stats: Sequence[Any], budget: KVBudget) -> Array:
        """Entries kept (L, Hkv)."""

    def select(self, layer: int, view: KVView, k: Array, stats: Any) -> list[Reduction]:
        """One reduction a KV head; the same W for keys and values."""


class KVCodec(Protocol):
    """Stores keys and values as codes and attends over them."""

    def encode(self, k: Array, v: Array, modality: Array) -> Any:
        """Codes of a prefix."""

    def append(self, codes: Any, k: Array, v: Array, modality: Array) -> Any:
        """Codes with new entries."""

    def nbytes(self, codes: Any) -> int:
        """Bytes held."""

    def attend(self, q: Array, codes: Any, mask: Array | None, scale: float) -> tuple[Array, Array]:
        """Output (H, q, d) and log-sum-exp (H, q)."""


class Drafter(Protocol):
    """Proposes tokens; sees the pictures."""

    def propose(self, session: Any, n: int) -> Any:
        """A draft of up to n tokens."""


class Verifier(Protocol):
    """Says how many drafted tokens stand."""

    def accept(self, draft: Any, logits: Array, hidden: Array) -> int:
        """Accepted tokens."""


class Policy(Protocol):
    """Chooses among a plan's variants per input. at: pixels or tokens."""

    at: str

    def choose(self, view: Sequence[Segment], question: Question | None) -> int:
        """Index into the variants."""
