"""Trained weights of a method: a safetensors file, its tensors checked by name and shape.

The file is read once while it does not change. Nothing is downloaded, and pickles are refused.
Torch is imported inside.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from foveate.core.errors import CheckpointError, SettingError

Shapes = dict[str, tuple[int, ...]]


def required(weights: str | None, method: str, what: str) -> str:
    """The path that was given; SettingError without one."""
    if not weights:
        raise SettingError(
            f"{method} needs weights=, the path of a safetensors file with its trained {what}; it has "
            "none of its own"
        )
    return weights


def shapes(weights: str, method: str) -> Shapes:
    """Names and shapes of a file's tensors, from its header; CheckpointError if it cannot be read."""
    return _header(weights, method, _stamp(weights, method))


def loaded(weights: str, method: str, device: Any) -> dict[str, Any]:
    """The tensors of a file as float32 on a device (torch); CheckpointError if it cannot be read or
    holds numbers that are not finite.
    """
    return _tensors(weights, method, _stamp(weights, method), str(device))


def check(found: Shapes, wanted: Shapes, method: str, weights: str) -> None:
    """CheckpointError for the first tensor that is missing, or whose shape is another."""
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(
                f"{method}: {weights} has no tensor {name}; it has {', '.join(sorted(found)[:4])} …"
            )
        if found[name] != shape:
            raise CheckpointError(
                f"{method}: {name} of {weights} has the shape {found[name]}, but this model needs "
                f"{shape}; give weights that were trained for it"
            )


def _stamp(weights: str, method: str) -> tuple[int, int]:
    path = Path(weights)
    if not path.is_file():
        raise CheckpointError(f"{method}: there is no weights file {weights}")
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{method}: {weights} is no safetensors file; other formats are refused"
        )
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=16)
def _header(weights: str, method: str, stamp: tuple[int, int]) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    except SafetensorError as error:
        raise CheckpointError(f"{method}: {weights} is truncated or damaged: {error}") from None


@functools.lru_cache(maxsize=4)
def _tensors(weights: str, method: str, stamp: tuple[int, int], device: str) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = {name: x.float() for name, x in load_file(weights, device=device).items()}
    except SafetensorError as error:
        raise CheckpointError(f"{method}: {weights} is truncated or damaged: {error}") from None
    for name, x in found.items():
        if not bool(x.isfinite().all()):
            raise CheckpointError(
                f"{method}: {name} of {weights} has numbers that are not finite; give the weights of a "
                "training that converged"
            )
    return found
