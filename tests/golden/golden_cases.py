"""Loads the golden vectors: small random inputs and what the methods' authors' own code returned
for them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foveate.core.views import Attention, EncoderView, Segment

DATA = Path(__file__).parent / "data"
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@dataclass(frozen=True)
class Case:
    """One case of one method: settings, inputs and outputs by name."""

    method: str
    index: int
    settings: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    def __str__(self) -> str:
        return f"{self.method}-{self.index}"


def cases(method: str) -> list[Case]:
    """All cases of a method; the files belong to the repository, so their absence is an error."""
    meta = json.loads((DATA / f"{method}.json").read_text())
    with np.load(DATA / f"{method}.npz") as stored:
        return [
            Case(
                method,
                c["case"],
                c["settings"],
                {name: stored[f"case{c['case']}_in_{name}"] for name in c["inputs"]},
                {name: stored[f"case{c['case']}_out_{name}"] for name in c["outputs"]},
            )
            for c in meta["cases"]
        ]


def segment(
    features: np.ndarray,
    *,
    grid: tuple[int, int, int] | None = None,
    encoder_features: np.ndarray | None = None,
    special: np.ndarray | None = None,
    at: dict[int, Attention] | None = None,
    hidden: dict[int, np.ndarray] | None = None,
    image: int = 0,
    kind: Any = "image",
) -> Segment:
    """A segment whose encoder tokens are its projected tokens, one to one."""
    n = features.shape[0]
    view = EncoderView(
        features if encoder_features is None else encoder_features,
        special,
        np.arange(n),
        np.zeros(n, dtype=np.int64),
        at or {},
        special is not None,
        hidden or {},
    )
    return Segment(image, image, kind, grid or (1, 1, n), features, encoder=view)
