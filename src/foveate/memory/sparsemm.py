"""SparseMM: heads that look at the right place in a picture get most of the cache.

J. Wang, Z. Liu, Y. Rao, J. Lu, "SparseMM: Head Sparsity Emerges from Visual Concept Responses in
MLLMs", ICCV 2025, arXiv 2506.05344. Probe, once for a model: while it writes a
character whose box in the picture is known, a head scores 1 / |patches of the box| if the entry it
attends to most is one of them. Scores are summed over characters and normalised over all heads of
all layers. Budget of KV head h of L layers with H heads each, at B entries a head on average:
b_h = w + ρ (B - w) + (1 - ρ) (B - w) L H score_h, the scores of its query heads summed. Entries are
chosen as in SnapKV, with max-pooling of width 7.

`heads` names the file with the scores: JSON {"scores": L lists of query heads}, or safetensors with
one tensor `scores` (layers, query heads). `head_hits` is the probe's sum for one character;
`foveate.lab.head_probe` runs it on a model and rendered text. Layers that keep no entries of their own
have no row.

What differs: where B is below the window the window shrinks with it; what a full head cannot use
goes to the others; counts sum up to the budget exactly, by largest remainder. Cost O(H w n a) a layer.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.errors import CheckpointError, SettingError
from foveate.core.language import KVView, LanguageFacts
from foveate.core.method import Evidence
from foveate.memory import _shares
from foveate.memory.snapkv import SnapKV


def head_hits(rows: Any, evidence: Any) -> np.ndarray:
    """Hits (H,) of one character: 1 / |evidence| for each head whose largest weight lies on it.

    rows (H, n): attention of the query that writes the character. evidence: the indices, among the n
    entries, of the visual tokens that show it. Ties go to the lowest index. No evidence, no hits.
    """
    weights = np.asarray(arrays.to_numpy(rows), np.float64)
    places = np.unique(np.asarray(evidence, np.int64))
    if not places.size:
        return np.zeros(len(weights))
    return np.isin(weights.argmax(1), places) / places.size


def normalised(hits: Any) -> np.ndarray:
    """Scores (L, H) that sum to 1 over all heads of all layers, from summed hits (L, H).

    Errors: SettingError if no head was ever hit, so that there is nothing to share by.
    """
    total = np.asarray(hits, np.float64)
    if not total.sum() > 0:
        raise SettingError("no head attended to a character it wrote: take more or other samples")
    return total / total.sum()


def load_scores(heads: str) -> np.ndarray:
    """Scores (L, H) of a file, normalised; CheckpointError if it is missing, damaged or no such file."""
    path = Path(heads)
    if not path.is_file():
        raise CheckpointError(f"sparsemm: there is no file {heads} with the scores of heads")
    stat = path.stat()
    return _read(heads, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=8)
def _read(heads: str, stamp: tuple[int, int]) -> np.ndarray:
    path = Path(heads)
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(heads, framework="numpy") as file:
                    found = np.asarray(file.get_tensor("scores"), np.float64)
            except SafetensorError as error:
                raise ValueError(error) from None
        else:
            found = np.asarray(json.loads(path.read_text(encoding="utf-8"))["scores"], np.float64)
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f'sparsemm: {heads} holds no "scores" of layers by heads, all of one length: {error}'
        ) from None
    if found.ndim != 2 or not found.size or not np.isfinite(found).all() or (found < 0).any():
        raise CheckpointError(
            f"sparsemm: the scores of {heads} must be finite numbers of at least 0, one row a layer"
        )
    if found.sum() == 0:
        raise CheckpointError(
            f"sparsemm: all scores of {heads} are 0; there is nothing to share by"
        )
    out: np.ndarray = found / found.sum()
    return out


@register
@dataclass(frozen=True)
class SparseMM(SnapKV):
    """SnapKV's choice with a budget for each head, by how well it finds what a model reads out."""

    name: ClassVar[str] = "sparsemm"
    summary: ClassVar[str] = "heads that look at what the model reads out get most of the budget"
    paper: ClassVar[Paper | None] = Paper(
        "SparseMM: Head Sparsity Emerges from Visual Concept Responses in MLLMs",
        "Wang, Liu, Rao, Lu",
        2025,
        "2506.05344",
    )
    evidence: ClassVar[Evidence] = "reference"
    scope: ClassVar[Any] = "model"

    kernel: int = setting(7, "width of the pooling, odd", low=1)
    pooling: str = setting("maxpool", "how votes are smoothed", choices=("avgpool", "maxpool"))
    heads: str | None = setting(None, "JSON or safetensors file with the scores of heads; needed")
    rho: Fraction = setting(Fraction(1, 10), "share of the prefix that is split equally, 0 to 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.heads:
            raise SettingError(
                "sparsemm needs heads=, the path of a file with the scores of the model's heads; "
                "foveate.lab.head_probe makes one"
            )
        if not 0 <= self.rho <= 1:
            raise SettingError(f"sparsemm: rho = {self.rho} is out of range: 0 to 1")

    def check(self, facts: LanguageFacts) -> None:
        """CheckpointError if the file was made for a model of other sizes, or cannot be read."""
        found = self._scores().shape
        if found != (facts.layers, facts.heads or found[1]):
            raise CheckpointError(
                f"sparsemm: {self.heads} scores {found[0]} layers of {found[1]} heads; this model has "
                f"{facts.layers} layers that keep entries, of {facts.heads} query heads"
            )

    def observe(self, layer: int, view: KVView) -> Any:
        if layer == 0:
            heads = int(view.rows([len(view.keys[0]) - 1]).shape[0])
            self.check(LanguageFacts(view.layers, 0, heads))
        return super().observe(layer, view)

    def _scores(self) -> np.ndarray:
        return load_scores(self.heads or "")

    def allocate(
        self, stats: Sequence[Any], room: Sequence[Sequence[int]], budget: int
    ) -> list[list[int]]:
        sizes = [len(layer) for layer in room]
        flat = [n for layer in room for n in layer]
        mass = [
            Fraction(float(x))
            for row, size in zip(self._scores(), sizes, strict=True)
            for x in row.reshape(size, -1).sum(1)
        ]
        mean = Fraction(budget, len(flat))
        window = min(Fraction(self.window), mean)
        share = (mean - window) * (1 - self.rho) * len(flat)
        base = window + self.rho * (mean - window)
        weights = [base + share * m for m in mass]
        floor = max(1, min(int(base), budget // len(flat)))
        return _shares.by_head(weights, flat, sizes, budget, floor)
