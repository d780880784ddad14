"""DyVTE: all visual tokens leave once the text has taken what it needs from them.

Q. Wu, W. Lin, Y. Zhou, W. Ye, Z. Zeng, X. Sun, R. Ji, "Accelerating Multimodal Large Language Models
via Dynamic Visual-Token Exit and the Empirical Findings", NeurIPS 2025, arXiv 2411.19628. After layer
l a router reads u = [mean of the text states behind the pictures without the last; the last text
state] (2D): Linear(2D, 2048), GELU, Linear(2048, 2), no biases, logits (keep, exit). At the first layer
whose exit logit is the larger one, all visual tokens leave for good; kept text keeps its positions.

Here: any padding, and each request of a batch leaves at its own layer. With one text token behind
the pictures it stands for the mean, too; with none there, all text of the prompt is read. Exit needs
a difference above 2**-20, so that both array libraries and every batch agree. Weights are not
released here: `weights` names a safetensors file with tensors `routers.<l>.0.weight` (2048, 2D) and
`routers.<l>.2.weight` (2, 2048), one pair for each layer l after which there is a router; `routers`
builds untrained ones for a training run.

Cost: O(S D + 2048 D) after each layer with a router, no attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, arrays, register, setting
from foveate.core.errors import CheckpointError
from foveate.core.language import LanguageFacts, LayerView, PrefillMethod, Route
from foveate.core.method import Evidence
from foveate.core.views import Array, Reduction
from foveate.prefill import _weights

INNER = 2048


def routers(facts: LanguageFacts, inner: int = INNER) -> Any:
    """Untrained routers, a torch module: one after each layer but the last, Xavier-initialised. Its
    state dict has the names of a weights file.
    """
    from torch import nn

    def router() -> nn.Module:
        first = nn.Linear(2 * facts.hidden, inner, bias=False)
        second = nn.Linear(inner, 2, bias=False)
        for layer in (first, second):
            nn.init.xavier_uniform_(layer.weight)
        return nn.Sequential(first, nn.GELU(), second)

    stack = nn.ModuleDict({str(i): router() for i in range(facts.layers - 1)})
    return nn.ModuleDict({"routers": stack})


def text_states(hidden: Array, modality: np.ndarray, visual: np.ndarray) -> Array:
    """u (2D,) of hidden (S, D), in the library's wide type."""
    xp = arrays.namespace(hidden)
    text = np.flatnonzero(modality == 0)
    behind = text[text > visual[-1]]
    text = behind if behind.size else text
    rows = xp.astype(arrays.take(hidden, text), arrays.wide(hidden))
    mean = xp.mean(rows[:-1, :], axis=0) if text.size > 1 else rows[0, :]
    return xp.concat([mean, rows[-1, :]])


def _wanted(shapes: _weights.Shapes, layer: int, hidden: int) -> _weights.Shapes:
    """Tensors of one router; its inner width is what the file has."""
    first, second = (f"routers.{layer}.{part}.weight" for part in (0, 2))
    inner = (shapes.get(first) or (INNER,))[0]
    return {first: (inner, 2 * hidden), second: (2, inner)}


@register
@dataclass(frozen=True)
class DyVTE(PrefillMethod):
    """A small MLP on text states says after each layer whether pictures are still needed."""

    name: ClassVar[str] = "dyvte"
    summary: ClassVar[str] = (
        "drops all visual tokens after the layer at which a trained router says so, by text states"
    )
    paper: ClassVar[Paper | None] = Paper(
        "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the "
        "Empirical Findings",
        "Wu, Lin, Zhou, Ye, Zeng, Sun, Ji",
        2025,
        "2411.19628",
    )
    evidence: ClassVar[Evidence] = "reference"
    counts: ClassVar[Any] = "adaptive"

    weights: str | None = setting(None, "safetensors file of the trained routers; needed")

    def __post_init__(self) -> None:
        super().__post_init__()
        _weights.required(self.weights, self.name, "routers")

    def _found(self) -> tuple[str, _weights.Shapes, list[int]]:
        """The file, its tensors' shapes, and the layers after which it has a router."""
        weights = _weights.required(self.weights, self.name, "routers")
        shapes = _weights.shapes(weights, self.name)
        words = [name.split(".") for name in shapes]
        known = {int(w[1]) for w in words if len(w) == 4 and w[0] == "routers" and w[1].isdigit()}
        if not known:
            raise CheckpointError(
                f"dyvte: {weights} has no tensor routers.<layer>.0.weight; it has "
                f"{', '.join(sorted(shapes)[:4]) or 'none'}"
            )
        return weights, shapes, sorted(known)

    def layers(self, count: int) -> tuple[int, ...]:
        weights, _, after = self._found()
        if after[-1] + 1 >= count:
            raise CheckpointError(
                f"dyvte: {weights} has a router after layer {after[-1]}, but there is none to leave "
                f"before in a model whose layers are 0 to {count - 1}"
            )
        return tuple(layer + 1 for layer in after)

    def check(self, facts: LanguageFacts) -> None:
        weights, shapes, after = self._found()
        self.layers(facts.layers)
        wanted: _weights.Shapes = {}
        for layer in after:
            wanted |= _wanted(shapes, layer, facts.hidden)
        _weights.check(shapes, wanted, self.name, weights)

    def modules(self, facts: Any) -> Any | None:
        """The trained routers as a torch module; CheckpointError if they do not fit the model."""
        import torch

        self.check(facts)
        weights, shapes, after = self._found()
        with torch.device("meta"):
            stack = routers(facts, shapes[f"routers.{after[0]}.0.weight"][0])
        # Layers that the file has no router for keep none.
        for name in [n for n in stack["routers"] if int(n) not in after]:
            del stack["routers"][name]
        stack.load_state_dict(_weights.loaded(weights, self.name, "cpu"), assign=True)
        return stack.eval()

    def decide(self, layer: int, view: LayerView, state: Any) -> tuple[Route, Any]:
        visual = view.visual
        if visual.size == len(view.modality):
            return Route(), state  # no text that could have read the pictures
        weights, shapes, _ = self._found()
        wanted = _wanted(shapes, layer - 1, int(view.hidden.shape[1]))
        _weights.check(shapes, wanted, self.name, weights)
        u = text_states(view.hidden, view.modality, visual)
        arrays.check_finite(u[None, :], "text states")
        keep, leave = self._logits(weights, layer - 1, u)
        if arrays.quantum(np.asarray(leave - keep)) <= 0:
            return Route(), state
        return Route(keep=Reduction.pick([], visual.size, "hidden")), state

    def _logits(self, weights: str, after: int, u: Array) -> tuple[float, float]:
        import torch

        with torch.no_grad(), arrays.exact(u):
            x = torch.as_tensor(u).float()
            tensors = _weights.loaded(weights, self.name, x.device)
            inner = torch.nn.functional.gelu(tensors[f"routers.{after}.0.weight"] @ x)
            keep, leave = (tensors[f"routers.{after}.2.weight"] @ inner).tolist()
        return keep, leave
