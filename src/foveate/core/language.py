"""Contracts of the stages inside the language model: prefill routes, cache policies and codecs,
drafters and verifiers. The engine runs prefill and memory stages; decode stages are types so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

from foveate.core.errors import SettingError
from foveate.core.method import Method, Stage, setting
from foveate.core.views import Array, Question, Reduction, Segment


@dataclass(frozen=True)
class Route:
    """What a prefill method decides at a layer, over visual tokens only; keep None = all."""

    keep: Reduction | None = None
    park: Array | None = None
    recall: Array | None = None


class LayerView(Protocol):
    """One request at one decoder layer; S tokens are present, V of them visual.

    hidden (S, D) enters the layer. Host arrays: modality (S,) 0 text, 1 image, 2 video; segment (S,)
    the ordinal of a visual token's segment, -1 for text; origin (S,) the place in the prompt;
    question (S,) bool, words of the last turn; position (p, S). `entered` counts the visual tokens
    that entered the language model. Tensors are on the model's device, host arrays are numpy.
    """

    hidden: Array
    modality: Array
    segment: Array
    origin: Array
    question: Array
    position: Array
    entered: int
    layers: int
    guidance: Array | None

    @property
    def visual(self) -> Array:
        """Indices (V,) of the visual tokens among the S present."""

    def rows(self, query_index: Array, source: Literal["previous", "next"] = "previous") -> Array:
        """Attention rows (H, r, S) of these queries, float32: of the layer before ("previous"), or
        of this one ("next", from its own queries and keys over the tokens present).
        """

    def queries(self, source: Literal["previous", "next"] = "previous") -> Array:
        """Queries (H, S, a) as the attention uses them, rotated."""

    def keys(self, source: Literal["previous", "next"] = "previous") -> Array:
        """Keys (Hkv, S, a) as the attention uses them, rotated."""

    def left_multiply(self, s: Array, source: Literal["previous", "next"] = "previous") -> Array:
        """s (H, S) times the attention matrix (H, S, S), in blocks: (H, S) float32."""

    def normed(self) -> Array:
        """hidden (S, D) after the language model's final norm."""


@dataclass(frozen=True)
class PrefillMethod(Method):
    """Drops, merges or parks visual tokens between decoder layers.

    `reads`: whose attention decide() asks for; "previous" makes the engine keep the queries and keys
    of the layer before a decision, "next" lets it run the projections of the layer itself ahead.
    """

    stage: ClassVar[Stage] = "prefill"
    reads: ClassVar[frozenset[Literal["previous", "next"]]] = frozenset()

    def layers(self, count: int) -> tuple[int, ...]:
        """Layers, ascending, before which `decide` is called in a model with `count` layers.

        Errors: SettingError for a setting that names a layer outside the model.
        """
        raise NotImplementedError(f"{type(self).__name__} must define layers()")

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        """The route of one request at this layer, and the state handed to its next call."""
        raise NotImplementedError(f"{type(self).__name__} must define decide()")


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
    """One request's cache at one layer after prefill: per KV head keys (n_h, a), values (n_h, b) and
    origin (n_h,), the place in the prompt; modality, segment, question, position as in `LayerView`,
    over the whole prompt (indexed by origin).
    """

    keys: list[Array]
    values: list[Array]
    origin: list[Array]
    modality: Array
    segment: Array
    question: Array
    position: Array
    grids: Any
    layers: int

    def rows(self, query_index: Array) -> Array:
        """Attention (H, r, n) of prompt queries, by their index among the tokens present at this
        layer, over its entries; float32. Only before anything was evicted.
        """

    def column_sum(self) -> Array:
        """Attention received (H, n), summed over all queries in blocks; float32."""


@dataclass(frozen=True)
class CachePolicy(Method):
    """Evicts or merges cache entries at the end of prefill, or when a store overflows.

    when: "prefill_end" or "overflow"; scope: "layer" (a layer is decided as soon as it ran, so the
    peak never holds all layers in full) or "model" (allocate() needs the statistics of all layers).
    """

    stage: ClassVar[Stage] = "memory"
    when: ClassVar[Literal["prefill_end", "overflow"]] = "prefill_end"
    scope: ClassVar[Literal["layer", "model"]] = "layer"
    reads: ClassVar[frozenset[Literal["window", "all"]]] = frozenset()
    """Which queries of the prompt the engine keeps for rows(): a recent window, or all."""

    keep: Fraction | None = setting(None, "share of the KV entries that is kept, 0 < keep <= 1")
    entries: int | None = setting(None, "KV entries kept per head, on average", low=1)
    bytes: int | None = setting(None, "bytes of the KV cache kept per request", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            _ = self.budget
        except SettingError as error:
            raise SettingError(f"{self.name}: {error}") from None

    @property
    def budget(self) -> KVBudget:
        return KVBudget(self.keep, self.entries, self.bytes)

    def observe(self, layer: int, view: KVView) -> Any:
        """Statistics of one layer, None by default."""
        return None

    def allocate(self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int) -> Array:
        """Entries kept (L, Hkv) of `room`, the entries there are; `budget` is their sum for the
        model. Default: the same share of every head.
        """
        raise NotImplementedError(f"{type(self).__name__} must define allocate()")

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        """One reduction a KV head, k[h] entries each; the same W for keys and values."""
        raise NotImplementedError(f"{type(self).__name__} must define select()")


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
