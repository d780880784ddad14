"""PyramidKV: lower layers keep more entries than upper ones, in equal steps, at the same total.

Cai et al. 2024, "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
arXiv 2406.02069, section 4; as released, in integers: with B = budget - window, the last layer is to
have B // beta, the first 2 B minus that, or all of the prefix if that is less (then the last gets the
rest). Steps are rounded down, so L layers keep up to (L - 1) / 2 entries a head more than the budget, on
average: name it smaller where it must not be exceeded. A prompt below 2 B has no pyramid. Entries are
chosen as in SnapKV. Cost O(H w n a).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foveate.core import Paper, register, setting
from foveate.core.method import Evidence
from foveate.memory.snapkv import SnapKV


@register
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV's choice under a budget that shrinks from layer to layer."""

    name: ClassVar[str] = "pyramidkv"
    summary: ClassVar[str] = "SnapKV's choice, with more entries in lower layers than in upper ones"
    paper: ClassVar[Paper | None] = Paper(
        "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
        "Cai et al.",
        2024,
        "2406.02069",
        code_licence="MIT",
    )
    evidence: ClassVar[Evidence] = "golden"

    beta: int = setting(20, "how steep: the last layer keeps budget // beta of the prefix", low=1)

    def layer_entries(self, layer: int, layers: int, n: int, mean: int) -> int:
        prefix = mean - self.window
        if n < mean or prefix <= 0 or n < 2 * prefix or layers < 2:
            return min(n, mean)
        least = prefix // self.beta
        most = 2 * prefix - least
        if most >= n - self.window:
            most = n - self.window
            least = 2 * prefix - most
        return most - layer * ((most - least) // (layers - 1)) + self.window
