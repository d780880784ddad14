"""Random: entries drawn at random, beside the recent window. A control.

The draw is numpy's Philox, seeded by the settings' seed, the layer, the KV head and the number of
entries: equal prompts keep equal entries on every machine and in every batch. Cost O(n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Reduction, register, setting
from foveate.core.language import CachePolicy, KVView
from foveate.core.method import Evidence
from foveate.memory import _shares


@register
@dataclass(frozen=True)
class RandomKV(CachePolicy):
    """Each head keeps its last `window` entries and random ones before them."""

    name: ClassVar[str] = "random-kv"
    summary: ClassVar[str] = "random entries and the last ones; a control that looks at nothing"
    evidence: ClassVar[Evidence] = "control"

    window: int = setting(8, "last entries that stay", low=1)
    seed: int = setting(0, "which entries are drawn", low=0)

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        out = []
        for head, count in enumerate(k):
            n = len(view.keys[head])
            words = np.random.SeedSequence([self.seed, layer, head, n])
            drawn = np.random.Generator(np.random.Philox(words)).permutation(n)
            picks = [*_shares.ends(n, 0, self.window), *drawn.tolist()]
            out.append(Reduction.pick(list(dict.fromkeys(picks))[:count], n, "cache"))
        return out
