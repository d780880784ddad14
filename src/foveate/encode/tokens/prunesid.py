"""PruneSID: tokens in groups of a principal component each, without near-duplicates inside a
group.

Paper: Z. Fang, P. Lyu, C. Zhang, G. Lu, J. Yu, W. Pei, "Prune Redundancy, Preserve Essence: Vision
Token Compression in VLMs via Synergistic Importance-Diversity", ICLR 2026, arXiv 2603.09480. With
tokens as variables and the channels of sigmoid(features) as samples, k / 4 principal components are
taken; a token belongs to the component on which its loading is largest in magnitude. Inside a group
tokens go through non-maximum suppression in the order of their attention: a token falls if its
cosine to a survivor is above (k / 32) times the mean cosine. A group gets 1 + a share in proportion
to its survivors, at most 5 * ceil(k / 64), its size and its survivors (all caps rise together while
they sum to less than k); what is left goes to the groups with most survivors. In a group survivors
come first, then the others, both by attention.

Reconstructed from a description of the code; it differs in three points: components are exact
(theirs come from a randomised method), the CLS token is not added, and groups without a token are
left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foveate.core import arrays
from foveate.core.budget import Counts
from foveate.core.method import Evidence, Paper, Rng, TokenMethod
from foveate.core.registry import register
from foveate.core.views import Array, Need, Question, Reduction, Segment
from foveate.encode.tokens._common import each, encoder_features, saliency

LAYER = -2
_BLOCK = 512


def _centred(features: np.ndarray) -> np.ndarray:
    """sigmoid of rows (n, c), less the mean of each row, float64."""
    x = np.negative(features, dtype=np.float64)
    with np.errstate(over="ignore"):  # an infinite exp is a sigmoid of 0
        np.exp(x, out=x)
    x += 1.0
    np.reciprocal(x, out=x)
    x -= x.mean(axis=1, keepdims=True)
    return x


def groups_of(features: np.ndarray, components: int) -> np.ndarray:
    """(n,) number of the principal component with the largest loading of each token of (n, c).

    O(n c min(n, c)). Runs on the host: the eigenvectors must be the same for any array library. In
    blocks of rows, computed twice, so that only (c, c) and the loadings are held.
    """
    n, c = features.shape
    if n <= c:
        x = _centred(features)
        values, vectors = np.linalg.eigh(x @ x.T)
    else:
        total = np.zeros((c, c))
        for a in range(0, n, 4 * _BLOCK):
            x = _centred(features[a : a + 4 * _BLOCK])
            total += x.T @ x
        values, vectors = np.linalg.eigh(total)
    order = np.argsort(-values, kind="stable")[:components]
    # Components without variance have no direction; they would group by rounding noise.
    order = order[values[order] > max(float(values.max()), 0.0) * 2.0**-30]
    if order.size == 0:
        return np.zeros(n, dtype=np.int64)
    loading = vectors = np.ascontiguousarray(vectors[:, order])
    if n > c:
        loading = np.empty((n, order.size))
        for a in range(0, n, _BLOCK):
            np.matmul(_centred(features[a : a + _BLOCK]), vectors, out=loading[a : a + _BLOCK])
    loading /= np.maximum(np.sqrt(np.einsum("ij,ij->j", loading, loading)), 1e-300)
    out = np.empty(n, dtype=np.int64)
    for a in range(0, n, _BLOCK):
        out[a : a + _BLOCK] = arrays.on_grid(np.abs(loading[a : a + _BLOCK]), 20).argmax(axis=1)
    return out


def suppress(u: Array, limit: float) -> np.ndarray:
    """(m,) survivors of non-maximum suppression of unit rows (m, c) in their order: a row falls if
    its cosine to a survivor is above `limit`. In blocks: no (m, m) matrix is held.
    """
    m = int(u.shape[0])
    alive = np.ones(m, dtype=bool)
    for a in range(0, m, _BLOCK):
        b = min(a + _BLOCK, m)
        part = u[a:b, :]
        for start in range(0, a, _BLOCK):
            before = np.flatnonzero(alive[start : start + _BLOCK])
            if before.size:
                close = arrays.to_numpy(part @ arrays.take(u, start + before).T)
                alive[a:b] &= arrays.on_grid(close.max(axis=1)) <= limit
        inside = arrays.on_grid(part @ part.T) <= limit
        for i in range(b - a):
            if alive[a + i]:
                alive[a + i + 1 : b] &= inside[i, i + 1 :]
    return alive


def quotas(sizes: np.ndarray, survivors: np.ndarray, k: int) -> np.ndarray:
    """Tokens of each group; they sum to k."""
    groups = sizes.shape[0]
    caps = np.minimum(np.minimum(sizes, survivors), 5 * math.ceil(k / 64))
    while caps.sum() < k:
        caps = np.minimum(caps + 1, sizes)
    edges = np.rint(np.cumsum(survivors) * max(k - groups, 0) / survivors.sum()).astype(np.int64)
    out = np.minimum(1 + np.diff(np.concatenate([[0], edges])), caps)
    order = np.argsort(-survivors, kind="stable")
    # More groups than tokens: those with fewest survivors go without.
    out[order[k:]] = 0
    while out.sum() < k:
        room = order[out[order] < caps[order]][: k - int(out.sum())]
        out[room] += 1
    return out


def prune(features: Array, score: np.ndarray, k: int) -> np.ndarray:
    """k tokens of (n, c) with attention (n,)."""
    group = groups_of(arrays.to_numpy(features), max(1, k // 4))
    xp = arrays.namespace(features)
    n = int(features.shape[0])
    centre = sum(
        xp.sum(arrays.unit(features[a : a + _BLOCK, :]), axis=0) for a in range(0, n, _BLOCK)
    )
    limit = arrays.on_grid(xp.sum((centre / n) ** 2)) * (k / 32)
    order = arrays.top_k(score, n, arrays.FINE_BITS)
    ranked = []
    for number in np.unique(group):
        members = order[group[order] == number]
        alive = suppress(arrays.unit(features, members), float(limit))
        ranked.append((np.concatenate([members[alive], members[~alive]]), int(alive.sum())))
    sizes = np.asarray([m.size for m, _ in ranked])
    parts = quotas(sizes, np.asarray([a for _, a in ranked]), k)
    return np.concatenate([m[:q] for (m, _), q in zip(ranked, parts, strict=True)])


@register
@dataclass(frozen=True)
class PruneSID(TokenMethod):
    """Component groups, suppression inside them, quotas by what survives."""

    name: ClassVar[str] = "prunesid"
    summary: ClassVar[str] = "keeps attended, unlike tokens from each principal component"
    paper: ClassVar[Paper | None] = Paper(
        "Prune Redundancy, Preserve Essence: Vision Token Compression via Importance-Diversity",
        "Fang, Lyu, Zhang, Lu, Yu, Pei",
        2026,
        "2603.09480",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    needs: ClassVar[frozenset[Need]] = frozenset({Need("saliency", LAYER), Need("features", LAYER)})

    def select(
        self, segments: list[Segment], counts: Counts, question: Question | None, rng: Rng
    ) -> list[Reduction]:
        def choose(segment: Segment, k: int) -> Reduction:
            score = saliency(segment, LAYER, self.name)
            features = encoder_features(segment, LAYER, self.name)
            return Reduction.pick(prune(features, score, k), segment.n)

        return each(segments, counts, choose)
