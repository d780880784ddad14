"""Contracts of the stages inside the language model: prefill routes, cache policies and codecs,
drafters and verifiers. The engine runs prefill and memory stages; decode stages are types so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

from foveate.core.budget import KVBudget
from foveate.core.errors import SettingError, UnsupportedError, naming
from foveate.core.method import Method, Stage, setting
from foveate.core.views import Array, Question, Reduction, Segment


@dataclass(frozen=True)
class LanguageFacts:
    """Sizes of a language model that trained modules must fit: layers, hidden, its width, and query
    heads a layer, 0 where the config does not say.
    """

    layers: int
    hidden: int
    heads: int = 0


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
    question (S,) bool, words of the last turn; position (p, S); cell (S,) the place of a visual token
    in its segment's grid, row by row, -1 for layout tokens and text; grids by segment. `entered`
    counts the visual tokens that entered the language model. guidance (V,) are the guide's scores of
    the visual tokens present, None without a guide. Tensors are on the model's device, host arrays
    are numpy.
    """

    hidden: Array
    modality: Array
    segment: Array
    origin: Array
    question: Array
    position: Array
    cell: Array
    grids: Sequence[tuple[int, int, int]]
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

    def position_rows(
        self, query_index: Array, source: Literal["previous", "next"] = "previous"
    ) -> Array:
        """What `rows` would give if all queries and keys were ones, (r, S) float32: what positions
        alone make of attention, the same in all heads. In a layer without rotary positions all
        tokens that a query sees get the same.

        Errors: UnsupportedError where the layer does not show it.
        """

    def queries(self, source: Literal["previous", "next"] = "previous") -> Array:
        """Queries (H, S, a) as the attention uses them, rotated."""

    def keys(self, source: Literal["previous", "next"] = "previous") -> Array:
        """Keys (Hkv, S, a) as the attention uses them, rotated."""

    def left_multiply(
        self,
        s: Array,
        source: Literal["previous", "next"] = "previous",
        temperature: float = 1.0,
    ) -> Array:
        """s (H, S) times the attention matrix (H, S, S), in blocks: (H, S) float32. The matrix is the
        softmax of logits / temperature.
        """

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
        """Layers, ascending, before which `decide` is called in a model with `count` layers. Before
        layer 0 there are the embeddings and no attention of a layer before.

        Errors: SettingError for a setting that names a layer outside the model.
        """
        raise NotImplementedError(f"{type(self).__name__} must define layers()")

    def check(self, facts: LanguageFacts) -> None:
        """Raise if this model is none that the method can serve, such as CheckpointError for trained
        weights of other sizes. Called before anything is computed; nothing by default.
        """

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        """The route of one request at this layer, and the state handed to its next call."""
        raise NotImplementedError(f"{type(self).__name__} must define decide()")


@dataclass(frozen=True)
class Guidance:
    """What a small sibling says of a request: scores (N,), draft ids, confidence.

    scores: of all N visual tokens, layout tokens included, in the order of the prompt. draft: its
    answer. confidence: how sure the pair may be of the draft, None if nobody asked.
    """

    scores: Array
    draft: tuple[int, ...] | None = None
    confidence: float | None = None


class Guide(Protocol):
    """A small model that scores the visual tokens for a large one (SGL)."""

    def guide(self, request: Any) -> Guidance:
        """Scores of one request's visual tokens."""


@dataclass(frozen=True)
class GuidedMethod(PrefillMethod):
    """A prefill method that follows a guide: decide() finds its scores in `view.guidance`.

    The guide answers first. Where `exit` is set and confidence() reaches it, its answer stands and
    the large model does not run.
    """

    exit: float | None = setting(
        None, "confidence from which the guide's own answer stands; none = never", low=0.0
    )

    def probe(self) -> GuidedMethod:
        """What the guide runs under while it goes over its own answer once more, by its own scores."""
        raise NotImplementedError(f"{type(self).__name__} must define probe()")

    def confidence(self, first: Sequence[float], again: Sequence[float]) -> float:
        """Of an answer's tokens, from their log-probabilities as it was given and under probe()."""
        raise NotImplementedError(f"{type(self).__name__} must define confidence()")


class KVView(Protocol):
    """One request's cache at one layer after prefill: per KV head keys (n_h, a), values (n_h, b) and
    origin (n_h,), the place in the prompt; modality, segment, question, position, cell as in
    `LayerView`, over the whole prompt (indexed by origin).
    """

    keys: list[Array]
    values: list[Array]
    origin: list[Array]
    modality: Array
    segment: Array
    question: Array
    position: Array
    cell: Array
    grids: Any
    layers: int

    def modality_of(self, head: int) -> Array:
        """Modality (n_h,) of a head's entries; generated tokens are text."""

    def segment_of(self, head: int) -> Array:
        """Segment (n_h,) of a head's entries, -1 for text."""

    def cell_of(self, head: int) -> Array:
        """Cell (n_h,) of a head's entries, -1 for layout tokens and text."""

    def rows(self, query_index: Array) -> Array:
        """Attention (H, r, n) of prompt queries, by their index among the tokens present at this
        layer, over its entries; float32. Only before anything was evicted.
        """

    def column_sum(self) -> Array:
        """Attention received (H, n), summed over all queries in blocks; float32."""


@dataclass(frozen=True)
class Pages:
    """What `CachePolicy.select` answers for a head whose prompt is not to be lost: its entries go to
    host memory in pages of `size`, and every step attends to `wanted` of them and to the rest.
    """

    size: int
    wanted: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.wanted < 1:
            raise SettingError(
                f"pages of {self.size} entries, {self.wanted} a step: at least 1 each"
            )

    def count(self, n: int) -> int:
        """Whole pages that n entries fill; the newest entry is in none of them."""
        return max(0, n - 1) // self.size

    def resident(self, n: int) -> int:
        """Entries of n that a step holds: the wanted pages, and those after the last page."""
        return n + (min(self.wanted, self.count(n)) - self.count(n)) * self.size


class PageView(Protocol):
    """The offloaded pages of some KV heads of one layer: mean (h, p, a), each page's mean key; heads
    (h,) which KV heads they are; spec, how they were cut.
    """

    heads: tuple[int, ...]
    mean: Array
    spec: Pages


@dataclass(frozen=True)
class CachePolicy(Method):
    """Evicts or merges cache entries at the end of prefill, or whenever a store overflows.

    when: "prefill_end" or "overflow"; scope: "layer" (a layer is decided as soon as it ran, so the
    peak never holds all layers in full) or "model" (allocate() needs the statistics of all layers).
    `reads`: which queries of the prompt rows() may ask for in observe(), "window" (the last ones,
    see `window_tokens`) or "all". `pages`: select() may send heads to host memory, and retrieve()
    brings pages back. Tokens that are generated later come on top of the budget.
    """

    stage: ClassVar[Stage] = "memory"
    when: ClassVar[Literal["prefill_end", "overflow"]] = "prefill_end"
    scope: ClassVar[Literal["layer", "model"]] = "layer"
    reads: ClassVar[frozenset[Literal["window", "all"]]] = frozenset()
    pages: ClassVar[bool] = False

    keep: Fraction | None = setting(None, "share of the KV entries that is kept, 0 < keep <= 1")
    entries: int | None = setting(None, "KV entries kept a head, on average", low=1)
    bytes: int | None = setting(
        None, "bytes of a request's KV cache, at least an entry a head", low=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        with naming(self.name):
            _ = self.budget

    @property
    def budget(self) -> KVBudget:
        return KVBudget(self.keep, self.entries, self.bytes)

    @property
    def window_tokens(self) -> int:
        """Queries at the end of the prompt that rows() may ask for."""
        return int(getattr(self, "window", 0))

    def check(self, facts: LanguageFacts) -> None:
        """Raise if this model is none that the policy can serve, before anything is computed; `layers`
        counts those that keep entries. Nothing by default.
        """

    def overflows(self, entries: int, target: int) -> bool:
        """With when = "overflow": whether a head of so many entries is to be brought to `target`, its
        share of the budget, while tokens are added. After a prompt that came whole it always is.
        """
        return False

    def observe(self, layer: int, view: KVView) -> Any:
        """Statistics of one layer, taken right after it ran; None by default."""
        return None

    def layer_entries(self, layer: int, layers: int, n: int, mean: int) -> int:
        """Entries a head of this layer keeps on average, where the model's average is `mean` and n
        are there. scope = "layer" only.
        """
        return mean

    def allocate(
        self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int
    ) -> Sequence[Sequence[int]]:
        """Entries to keep of each layer's KV heads; `room` are the entries there are, `budget` the
        sum to keep. One layer is given with scope = "layer". Default: equal shares.
        """
        heads = sum(len(layer) for layer in room)
        return [[min(n, max(1, budget // heads)) for n in layer] for layer in room]

    def select(
        self, layer: int, view: KVView, k: Sequence[int], stats: Any
    ) -> Sequence[Reduction | Pages]:
        """One answer a KV head, k[h] entries each: a reduction, the same W for keys and values; or,
        where `pages` is set, Pages of which k[h] entries are resident.
        """
        raise NotImplementedError(f"{type(self).__name__} must define select()")

    def retrieve(self, layer: int, query: Array, pages: PageView) -> Array:
        """Indices (h, wanted) of the pages that one query (h, g, a), g query heads a KV head, is to
        see in this layer: distinct ones in each row.
        """
        raise NotImplementedError(f"{type(self).__name__} must define retrieve()")


@dataclass(frozen=True)
class KVCodec(Method):
    """Stores the keys and values of one sequence at one layer as codes, and attends over them.

    Prefill attention runs on the values before coding; codes count from the first decode step on.
    """

    stage: ClassVar[Stage] = "memory"

    def encode(self, k: Array, v: Array, modality: Array) -> Any:
        """Codes of a prompt's keys (Hkv, n, a) and values (Hkv, n, b); modality (n,) as in views."""
        raise NotImplementedError(f"{type(self).__name__} must define encode()")

    def append(self, codes: Any, k: Array, v: Array) -> Any:
        """Codes with new text entries (Hkv, s, a) and (Hkv, s, b)."""
        raise NotImplementedError(f"{type(self).__name__} must define append()")

    def truncate(self, codes: Any, entries: int) -> Any:
        """Codes without the newest `entries`: what a failed step wrote is taken back.

        Errors: UnsupportedError where these are in codes already, and by default.
        """
        raise UnsupportedError(f"{self.name} cannot take entries back; decode without drafts")

    def nbytes(self, codes: Any) -> int:
        """Bytes held: codes, scales and what stays in full precision."""
        raise NotImplementedError(f"{type(self).__name__} must define nbytes()")

    def entry_bytes(self, codes: Any, entries: int, prompt: int) -> int:
        """Bytes of the oldest `entries`, of which `prompt` came first, as if none had followed and
        without free room. Default: their share of `nbytes`.
        """
        n = self.length(codes)
        return round(self.nbytes(codes) * entries / n) if n else 0

    def length(self, codes: Any) -> int:
        """Entries a head."""
        raise NotImplementedError(f"{type(self).__name__} must define length()")

    def attend(self, q: Array, codes: Any, mask: Array | None, scale: float) -> tuple[Array, Array]:
        """Output (H, q, b) and log-sum-exp (H, q) of queries (H, q, a); mask (q, n) bool or None."""
        raise NotImplementedError(f"{type(self).__name__} must define attend()")

    def decode(self, codes: Any) -> tuple[Array, Array]:
        """Keys (Hkv, n, a) and values (Hkv, n, b) in order, for tests and for policies."""
        raise NotImplementedError(f"{type(self).__name__} must define decode()")


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
