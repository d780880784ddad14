"""Window: the first entries and the last ones stay, whatever they hold. A control.

G. Xiao, Y. Tian, B. Chen, S. Han, M. Lewis, "Efficient Streaming Language Models with Attention
Sinks", ICLR 2024, arXiv 2309.17453, section 3.2: the first tokens take attention that belongs nowhere,
so they stay beside a window of the latest. Here positions stay as they were (the paper counts them
anew within its window), and the window does not move while answering: new tokens come on top. No
attention is read. Cost O(n).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, Reduction, register, setting
from foveate.core.language import CachePolicy, KVView
from foveate.core.method import Evidence
from foveate.memory import _shares


@register
@dataclass(frozen=True)
class WindowKV(CachePolicy):
    """The first `sinks` entries of each head and as many of the last as the budget allows."""

    name: ClassVar[str] = "window-kv"
    summary: ClassVar[str] = "the first entries and the last ones; a control that looks at nothing"
    paper: ClassVar[Paper | None] = Paper(
        "Efficient Streaming Language Models with Attention Sinks",
        "Xiao, Tian, Chen, Han, Lewis",
        2024,
        "2309.17453",
        code_licence="MIT",
    )
    evidence: ClassVar[Evidence] = "control"

    sinks: int = setting(4, "first entries that stay", low=0)

    def select(self, layer: int, view: KVView, k: Sequence[int], stats: Any) -> list[Reduction]:
        out = []
        for head, count in enumerate(k):
            n = len(view.keys[head])
            picks = _shares.ends(n, self.sinks, n)
            chosen = list(dict.fromkeys(picks))[:count]
            out.append(Reduction.pick(np.asarray(chosen), n, "cache"))
        return out
