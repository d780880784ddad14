"""A layer store whose entries are codes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import UnsupportedError
from foveate.core.language import CachePolicy, KVCodec
from foveate.core.views import Reduction
from foveate.engine.kv import LayerStore


class CodedStore(LayerStore):
    """One sequence's entries at one layer, held by a codec; every head has the same length."""

    def __init__(self, codec: KVCodec, modality: np.ndarray) -> None:
        super().__init__()
        self.codec, self.modality = codec, modality
        self.codes: Any = None
        self._heads = 0
        self._plain = 0
        self._prompt_entries = 0

    @property
    def heads(self) -> int:
        return self._heads

    @property
    def lengths(self) -> tuple[int, ...]:
        n = self.codec.length(self.codes) if self.codes is not None else 0
        return (n,) * self._heads

    @property
    def nbytes(self) -> int:
        return self.codec.nbytes(self.codes) if self.codes is not None else 0

    def entry_bytes(self, late: int) -> int:
        """Bytes of all entries but the newest `late` of every head, without free room."""
        if self.codes is None:
            return 0
        entries = max(0, self.lengths[0] - late)
        return self.codec.entry_bytes(self.codes, entries, self._prompt_entries)

    @property
    def bytes_per_entry(self) -> int:
        """Bytes of one key and one value of one head in the model's own type, before coding."""
        return self._plain

    def append(self, k: Tensor, v: Tensor, origin: Tensor) -> None:
        if self.codes is None:
            self._heads = int(k.shape[0])
            self._plain = int(k[0, :1].nbytes + v[0, :1].nbytes)
            at = origin.cpu().numpy()
            known = at < len(self.modality)
            modality = np.zeros(len(at), self.modality.dtype)
            modality[known] = self.modality[at[known]]
            self.codes = self.codec.encode(k, v, modality)
            self._prompt_entries = len(at)
        else:
            self.codes = self.codec.append(self.codes, k, v)

    def attend(self, q: Tensor, scaling: float) -> Tensor:
        """Output (1, s, H, b) of queries (1, H, s, a), the last s entries being their own."""
        n, s = self.lengths[0], int(q.shape[2])
        mask = None
        if s > 1:
            place = torch.arange(n, device=q.device)
            mask = place[None] <= (n - s + torch.arange(s, device=q.device))[:, None]
        out, _ = self.codec.attend(q[0], self.codes, mask, scaling)
        found: Tensor = out
        return found.transpose(0, 1)[None].to(q.dtype)

    def head(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        k, v = self.codec.decode(self.codes)
        return k[index], v[index], torch.arange(k.shape[1], device=k.device)

    def reduce(self, chosen: Sequence[Reduction]) -> None:
        raise UnsupportedError("a plan holds one method of stage memory: codes cannot be evicted")

    def take_back(self, length: int) -> None:
        """Forget what came after the first `length` tokens of the sequence; a prompt goes as a whole.
        UnsupportedError where the codec cannot take so much back.
        """
        prompt = len(self.modality)
        if self.codes is None:
            return
        if length < prompt:
            self.codes = None
            return
        beyond = self.lengths[0] - (self._prompt_entries + length - prompt)
        if beyond > 0:
            self.truncate(beyond)

    def truncate(self, entries: int) -> None:
        self.codes = self.codec.truncate(self.codes, entries)

    def clone(self) -> CodedStore:
        other = CodedStore(self.codec, self.modality)
        other.codes, other._prompt_entries = copy.deepcopy(self.codes), self._prompt_entries
        other._heads, other._plain = self._heads, self._plain
        return other


def changes_by_step(memory: CachePolicy | KVCodec | None) -> bool:
    """Whether earlier entries change as tokens are added, so that steps must come again one by one."""
    overflows = isinstance(memory, CachePolicy) and memory.when == "overflow"
    return overflows or isinstance(memory, KVCodec)
