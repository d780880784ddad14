"""A transformers cache over ragged stores: every sequence has its own entries in every layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from foveate.core.errors import UnsupportedError
from foveate.core.language import KVCodec
from foveate.engine.kv import LayerStore
from foveate.engine.kv_coded import CodedStore
from foveate.models import compat_language


@dataclass
class SequenceKV:
    """One sequence: a store per decoder layer (empty in layers that keep no entries of their own),
    and `length`, the tokens it has seen.
    """

    layers: list[LayerStore]
    length: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def memory_bytes(self) -> int:
        """Bytes in the memory of the model's device: on a CPU pages in host memory are there too."""
        groups = [g for layer in self.layers for g in layer.groups]
        return self.nbytes + sum(g.offloaded_bytes for g in groups if g.keys.device.type == "cpu")

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        return tuple(layer.nbytes for layer in self.layers)

    def clone(self) -> SequenceKV:
        return SequenceKV([layer.clone() for layer in self.layers], self.length)

    def take_back(self, length: int) -> None:
        """Forget every token after the first `length`, also where only some layers have seen it."""
        for layer in self.layers:
            layer.take_back(length)
        self.length = min(self.length, length)

    def truncate(self, tokens: int) -> None:
        """Forget the last `tokens` tokens."""
        for layer in self.layers:
            layer.truncate(tokens)
        self.length = max(0, self.length - tokens)


class RaggedLayer(CacheLayerMixin):
    """What the model sees of one layer: update() files entries with their sequences and returns the
    new ones; attention reads the stores.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, cache: RaggedCache, index: int) -> None:
        super().__init__()
        self.cache, self.index, self.seen = cache, index, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        if self.cache.write(self.index, key_states, value_states):
            self.seen += int(key_states.shape[-2])
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + int(query_length), 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.seen = 0

    def crop(self, tokens_to_remove: int) -> None:
        self.seen = max(0, self.seen - abs(int(tokens_to_remove)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows are moved by the cache as a whole."""


class RaggedCache(Cache):
    """`past_key_values` of a batch. `rows` are its sequences, which may join and leave between steps.

    `writer(cache, layer, k, v)` files new entries; it says False while the model is only looked at.
    """

    def __init__(self, text_config: Any, count: int, writer: Callable[..., bool]) -> None:
        native = compat_language.native_layers(text_config)
        self.held = [
            i < len(native) and compat_language.is_entry_layer(native[i]) for i in range(count)
        ]
        self.rows: list[SequenceKV] = []
        self.steps = 0  # tokens added to every row since its prompt
        self.writer = writer
        layers = [
            RaggedLayer(self, i) if self.held[i] else native[i] for i in range(len(native) or count)
        ]
        super().__init__(layers=layers)

    @property
    def recurrent(self) -> bool:
        """Whether some layers keep a batch-wide state that cannot be split into sequences."""
        return any(
            not isinstance(layer, RaggedLayer) and not _dummy(layer) for layer in self.layers
        )

    def new_row(self, codec: KVCodec | None = None, modality: Any = None) -> SequenceKV:
        """An empty sequence; with a codec its layers hold codes. modality (n,) of its prompt."""
        if codec is None:
            return SequenceKV([LayerStore() for _ in self.held])
        return SequenceKV([CodedStore(codec, modality) for _ in self.held])

    def set_seen(self, tokens: int) -> None:
        """Tokens that the model is to believe are held, when rows were exchanged."""
        for layer in self.layers:
            if isinstance(layer, RaggedLayer):
                layer.seen = tokens

    def write(self, layer: int, k: Tensor, v: Tensor) -> bool:
        return self.writer(self, layer, k, v)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(row.nbytes for row in self.rows)

    # --- what generate() does to a cache ----------------------------------------------------------
    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take(beam_idx.tolist())
        self._native("reorder_cache", beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._take([i for i in range(len(self.rows)) for _ in range(repeats)])
        self._native("batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._take(indices.tolist())
        self._native("batch_select_indices", indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row (speculation takes drafts back)."""
        if self.recurrent:
            raise UnsupportedError("a recurrent state cannot be cropped; decode without drafts")
        count = int(tokens_to_remove)
        have = self.get_seq_length()
        removed = -count if count < 0 else max(0, have - count) if count < have else 0
        for row in self.rows:
            row.truncate(removed)
        for layer in self.layers:
            if isinstance(layer, RaggedLayer):
                layer.crop(removed)

    def reset(self) -> None:
        self.rows = []
        super().reset()

    def _take(self, picks: Sequence[int]) -> None:
        used: set[int] = set()
        rows = []
        for i in picks:
            rows.append(self.rows[i].clone() if i in used else self.rows[i])
            used.add(i)
        self.rows = rows

    def _native(self, name: str, value: Any) -> None:
        for layer in self.layers:
            if not isinstance(layer, RaggedLayer) and hasattr(layer, name):
                getattr(layer, name)(value)


def _dummy(layer: Any) -> bool:
    return type(layer).__name__ == "DummyLayer"
