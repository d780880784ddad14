"""ATP-LLaVA: small trained modules set the thresholds by which visual tokens stay.

X. Ye, Y. Gan, Y. Ge, X.-P. Zhang, Y. Tang, "ATP-LLaVA: Adaptive Token Pruning for Large Vision
Language Models", CVPR 2025, arXiv 2412.00447. Before layers 4, 14 and 24 of 32, with the attention
of the layer before, mean over heads: S_self(i) is token i's mean attention from visual tokens,
S_cross(i) that from text, S_red = (S_self + S_cross) / 2. Spatial augmentation samples the grid evenly
at a rate R: S_sp = 1 - λ R for sampled places, 0 for others. z = Linear([S_self, S_cross], pooled) gives
through two linear heads and sigmoids the thresholds θ_r and θ_s of this instance. A token stays if
S_red > θ_r or S_sp > θ_s. Kept tokens keep their positions; counts differ from request to request.

Reconstructed, because no code is public: scores are pooled into equal bins in the order of the
prompt (the file's shapes say how many); text means the text behind the first visual token present;
thresholds are set for each segment, whose tokens are pooled alone; the sampled places are every s-th
row and column, s = round(1/√R). Layout tokens have no place in the grid. At least one token of a
request stays. Differences below 2**-30 count as none.

`weights` names a safetensors file with, for module m = 0, 1, …: `atp.<m>.linear.weight` (z, 2 bins) and
`.bias`, `atp.<m>.redundant.weight` (1, z) and `.bias`, `atp.<m>.spatial.weight` (1, z) and `.bias`. `module`
builds untrained ones for a training run.

Cost: one layer's attention matrix read once, O(H S² a) in blocks; no S x S matrix is held.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.errors import CheckpointError, SettingError
from foveate.core.language import LanguageFacts, LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.views import Reduction
from foveate.prefill import _stairs, _weights

BINS, INNER = 64, 64
HEADS = ("redundant", "spatial")


def module(count: int = 3, bins: int = BINS, inner: int = INNER) -> Any:
    """Untrained modules for `count` layers (torch). Its state dict has the names of a weights file."""
    from torch import nn

    def one() -> nn.Module:
        heads = {name: nn.Linear(inner, 1) for name in HEADS}
        return nn.ModuleDict({"linear": nn.Linear(2 * bins, inner), **heads})

    return nn.ModuleDict({"atp": nn.ModuleList(one() for _ in range(count))})


def pooled(scores: np.ndarray, bins: int) -> np.ndarray:
    """Means (bins,) of n >= 1 scores: bin i is of those from floor(i n / bins) to ceil((i + 1) n / bins)."""
    n = scores.size
    total = np.concatenate([[0.0], np.cumsum(scores)])
    start = np.arange(bins) * n // bins
    stop = -(-(np.arange(bins) + 1) * n // bins)
    return (total[stop] - total[start]) / (stop - start)


def attention_to_visual(view: LayerView, queries: np.ndarray) -> np.ndarray:
    """Mean attention (V,) of these queries (r,) to each visual token, mean over heads; 0 for none."""
    if not queries.size:
        return np.zeros(len(view.visual))
    like = view.queries("previous")
    xp = arrays.namespace(like)
    share = np.zeros(len(view.modality), np.float32)
    share[queries] = 1.0 / queries.size
    s = xp.astype(like[:, :, 0], xp.float32) * 0 + xp.asarray(share, device=like.device)[None, :]
    seen = view.left_multiply(s, "previous")
    mean = xp.mean(xp.astype(seen, arrays.wide(seen)), axis=0)
    return arrays.scores_of(mean, "attention")[view.visual]


def sampled(cell: np.ndarray, width: int, height: int, stride: int) -> np.ndarray:
    """(n,) bool: places in a (t, height, width) grid on every stride-th row and column."""
    row, column = cell // width % height, cell % width
    found: np.ndarray = (cell >= 0) & (row % stride == 0) & (column % stride == 0)
    return found


@register
@dataclass(frozen=True)
class ATPLLaVA(PrefillMethod):
    """Thresholds by instance and layer, from trained modules on two attention scores."""

    name: ClassVar[str] = "atp-llava"
    summary: ClassVar[str] = (
        "drops visual tokens below thresholds that trained modules set for each picture and layer"
    )
    paper: ClassVar[Paper | None] = Paper(
        "ATP-LLaVA: Adaptive Token Pruning for Large Vision Language Models",
        "Ye, Gan, Ge, Zhang, Tang",
        2025,
        "2412.00447",
    )
    evidence: ClassVar[Evidence] = "reconstructed"
    reads: ClassVar[frozenset[Any]] = frozenset({"previous"})
    counts: ClassVar[Any] = "adaptive"

    weights: str | None = setting(None, "safetensors file of the trained modules; needed")
    at: str = setting(
        "1/8 7/16 3/4", "layers before which the modules stand, or shares of the depth"
    )
    rate: Fraction = setting(Fraction(1, 4), "share R of grid places that are sampled, 0 < R <= 1")
    scale: float = setting(3.0, "λ of the spatial score 1 - λ R", low=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _weights.required(self.weights, self.name, "modules")
        _stairs.check_places(_stairs.fractions(self.at, "atp-llava: at"), "atp-llava: at")
        if not 0 < self.rate <= 1:
            raise SettingError(f"atp-llava: rate = {self.rate} is out of range: 0 < rate <= 1")

    def layers(self, count: int) -> tuple[int, ...]:
        places = _stairs.fractions(self.at, "atp-llava: at")
        found = _stairs.layers_of(places, count, "atp-llava: at")
        self._shapes()
        return found

    def check(self, facts: LanguageFacts) -> None:
        self.layers(facts.layers)

    def modules(self, facts: Any) -> Any | None:
        """The trained modules as a torch module; CheckpointError if the file is another's."""
        import torch

        shapes = self._shapes()
        inner, wide = shapes["atp.0.linear.weight"]
        with torch.device("meta"):
            stack = module(len(self.at.split()), wide // 2, inner)
        weights = _weights.required(self.weights, self.name, "modules")
        stack.load_state_dict(_weights.loaded(weights, self.name, "cpu"), assign=True)
        return stack.eval()

    def _shapes(self) -> _weights.Shapes:
        """The file's shapes, checked against each other and the number of modules."""
        weights = _weights.required(self.weights, self.name, "modules")
        shapes = _weights.shapes(weights, self.name)
        first, steps = shapes.get("atp.0.linear.weight"), len(self.at.split())
        if first is not None and (len(first) != 2 or first[1] % 2):
            raise CheckpointError(
                f"atp-llava: atp.0.linear.weight of {weights} has the shape {first}, not (z, 2 bins)"
            )
        inner, wide = first or (INNER, 2 * BINS)
        wanted: _weights.Shapes = {}
        for m in range(steps):
            wanted |= {f"atp.{m}.linear.weight": (inner, wide), f"atp.{m}.linear.bias": (inner,)}
            for head in HEADS:
                wanted |= {f"atp.{m}.{head}.weight": (1, inner), f"atp.{m}.{head}.bias": (1,)}
        _weights.check(shapes, wanted, self.name, weights)
        if f"atp.{steps}.linear.weight" in shapes:
            raise CheckpointError(
                f"atp-llava: {weights} has more than the {steps} modules that at names; "
                "give each its place"
            )
        return shapes

    def thresholds(self, step: int, own: np.ndarray, cross: np.ndarray) -> tuple[float, float]:
        """θ_r and θ_s of one segment from its scores (n,), by module `step`."""
        weights = _weights.required(self.weights, self.name, "modules")
        tensors = _weights.loaded(weights, self.name, "cpu")

        def part(name: str) -> np.ndarray:
            return arrays.to_numpy(tensors[f"atp.{step}.{name}"]).astype(np.float64)

        matrix = part("linear.weight")
        bins = matrix.shape[1] // 2
        z = matrix @ np.concatenate([pooled(own, bins), pooled(cross, bins)]) + part("linear.bias")
        logits = [float((part(f"{h}.weight") @ z + part(f"{h}.bias"))[0]) for h in HEADS]
        redundant, spatial = (0.5 + 0.5 * float(np.tanh(x / 2)) for x in logits)
        return redundant, spatial

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        self._shapes()
        step = self.layers(view.layers).index(layer)
        visual = view.visual
        text = np.flatnonzero(view.modality == 0)
        own = attention_to_visual(view, visual)
        cross = attention_to_visual(view, text[text > visual[0]])
        score = arrays.quantum((own + cross) / 2, arrays.ORDER_BITS)
        spatial = arrays.quantum(np.asarray(1.0 - self.scale * float(self.rate)), arrays.ORDER_BITS)
        stride = max(1, round(float(self.rate) ** -0.5))
        stays = np.zeros(visual.size, bool)
        for s in np.unique(view.segment[visual]):
            mine = np.flatnonzero(view.segment[visual] == s)
            found = self.thresholds(step, own[mine], cross[mine])
            least, least_spatial = arrays.quantum(np.asarray(found), arrays.ORDER_BITS)
            stays[mine] = score[mine] > least
            if spatial > least_spatial:
                _, height, width = view.grids[int(s)]
                stays[mine] |= sampled(view.cell[visual][mine], width, height, stride)
        if not stays.any():
            stays[int(score.argmax())] = True
        kept = np.flatnonzero(stays)
        return Route(keep=Reduction.pick(kept, visual.size, "hidden")), state
