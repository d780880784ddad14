"""Weights files of methods with trained modules, filled with random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from foveate.core.language import LanguageFacts
from foveate.prefill import atp_llava, dyvte


def save_routers(
    path: Path,
    hidden: int,
    after: Sequence[int],
    *,
    inner: int = 32,
    seed: int = 0,
    leaves: Sequence[int] | None = None,
) -> str:
    """DyVTE routers after these layers. leaves: those that always say exit, the others never; None
    leaves them random.
    """
    torch.manual_seed(seed)
    stack = dyvte.routers(LanguageFacts(max(after) + 2, hidden), inner)
    tensors = {k: v for k, v in stack.state_dict().items() if int(k.split(".")[1]) in after}
    if leaves is not None:
        for layer in after:
            second = torch.zeros(2, inner)
            # GELU of zero is zero, so a first matrix of zeros gives equal logits: nobody leaves. Of
            # a large input with either sign it is never below -0.2, and its sum over both is above 0.
            first = torch.zeros(inner, 2 * hidden)
            if layer in leaves:
                first[0, -1], first[1, -1] = 1e3, -1e3
                second[1, :2] = 1.0
            tensors[f"routers.{layer}.0.weight"] = first
            tensors[f"routers.{layer}.2.weight"] = second
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return str(path)


def save_atp(path: Path, count: int = 3, *, bins: int = 5, inner: int = 7, seed: int = 0) -> str:
    """ATP modules whose thresholds lie among attention scores, so that they part the tokens."""
    torch.manual_seed(seed)
    tensors = dict(atp_llava.module(count, bins, inner).state_dict())
    for m in range(count):
        tensors[f"atp.{m}.redundant.weight"] *= 0.1
        tensors[f"atp.{m}.redundant.bias"] += -3.2
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return str(path)
