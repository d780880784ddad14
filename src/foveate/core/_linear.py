"""The few array operations that choices are made of: norms, cosines, the comparison grid. See
core.arrays.
"""

from __future__ import annotations

from typing import Any

import array_api_compat
import numpy as np

from foveate.core.errors import NonFiniteError

Array = Any
GRID_BITS = 20
ORDER_BITS = 30
_BLOCK_ELEMENTS = 1 << 20
_UNIT_ELEMENTS = 1 << 17


def namespace(*arrays: Array) -> Any:
    """The array-API namespace of numpy or torch arrays (array-api-compat)."""
    return array_api_compat.array_namespace(*arrays)


def to_numpy(x: Any) -> np.ndarray:
    """On the host as numpy, without gradient; bfloat16 becomes float32; CPU tensors are shared."""
    if isinstance(x, np.ndarray):
        return x
    if array_api_compat.is_torch_array(x):
        import torch

        x = x.detach().cpu()
        return np.asarray((x.float() if x.dtype == torch.bfloat16 else x).numpy())
    return np.asarray(x)


def wide(x: Array) -> Any:
    """The dtype scores are computed in: float64, or float32 where the device has none (MPS)."""
    xp = namespace(x)
    return xp.float32 if str(array_api_compat.device(x)).startswith("mps") else xp.float64


def f32(x: Array) -> Array:
    """As float32 and without gradient: choices carry none."""
    xp = namespace(x)
    if array_api_compat.is_torch_array(x):
        x = x.detach()
    return xp.astype(x, xp.float32, copy=False)


def check_finite(x: Array, what: str = "features") -> None:
    """NonFiniteError, with the first offending token, if x holds NaN or infinity."""
    xp = namespace(x)
    width = max(int(np.prod(x.shape[1:], dtype=np.int64)), 1)
    step = max(1, _BLOCK_ELEMENTS // width)
    for start in range(0, int(x.shape[0]), step):
        fine = xp.isfinite(x[start : start + step, ...])
        if not bool(xp.all(fine)):
            token = start + int(np.argwhere(~to_numpy(fine))[0][0])
            break
    else:
        return
    raise NonFiniteError(
        f"{what} of token {token} are not finite; check the picture, the dtype of the model "
        "(float16 overflows in some towers: try bfloat16 or float32) and its weights"
    )


def unit(x: Array, rows: np.ndarray | None = None) -> Array:
    """Rows of x (n, d) at length one, float64 (float32 on MPS); zero rows stay zero.

    With `rows` (r,) int64 on the host only these, (r, d), without a copy of them in x's dtype. In
    blocks of rows.
    """
    xp = namespace(x)
    dtype = wide(x)
    x = x.detach() if array_api_compat.is_torch_array(x) else x
    device = array_api_compat.device(x)
    n, d = int(x.shape[0]) if rows is None else rows.size, int(x.shape[1])
    index = None if rows is None else xp.asarray(rows, device=device)
    out = xp.empty((n, d), dtype=dtype, device=device)
    step = max(1, _UNIT_ELEMENTS // max(d, 1))
    for a in range(0, n, step):
        block = x[a : a + step, :] if index is None else x[index[a : a + step]]
        block = xp.astype(block, dtype)
        # Scaled by the largest entry first, so that no square over- or underflows.
        peak = xp.max(xp.abs(block), axis=1, keepdims=True) if d else xp.ones_like(block[:, :1])
        block = block / xp.where(peak > 0, peak, xp.ones_like(peak))
        length = xp.sqrt(xp.sum(block * block, axis=1, keepdims=True))
        out[a : a + step, :] = block / xp.where(length > 0, length, xp.ones_like(length))
    return out


def quantum(x: Any, bits: int = GRID_BITS) -> np.ndarray:
    """round(x * 2**bits) as int64 on the host, half to even, saturated at ±2**62."""
    scaled = np.rint(np.ldexp(to_numpy(x).astype(np.float64), bits))
    return np.clip(scaled, -(2.0**62), 2.0**62).astype(np.int64)


def on_grid(x: Any, bits: int = ORDER_BITS) -> np.ndarray:
    """x rounded to multiples of 2**-bits, float64 on the host: noise around 0 becomes 0."""
    return np.ldexp(np.rint(np.ldexp(to_numpy(x).astype(np.float64), bits)), -bits)


def nearest(
    a: Array, b: Array, *, normalised: bool = False, bits: int = GRID_BITS
) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a (n, d) its most similar row of b (m, d), m >= 1, by cosine.

    Returns (similarity, index), both (n,) int64; similarity in units of 2**-bits, ties to the
    lowest index. Computed in blocks of rows: O(n m d) time, no (n, m) matrix.
    """
    xp = namespace(a, b)
    right = b if normalised else unit(b)
    n, m = int(a.shape[0]), int(right.shape[0])
    best, index = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    # The left side is brought to length one block by block: no float64 copy of it is held.
    step = max(1, _BLOCK_ELEMENTS // max(m, int(a.shape[1]), 1))
    scale = float(1 << bits)
    for i in range(0, n, step):
        left = a[i : i + step, :]
        block = to_numpy(xp.round(((left if normalised else unit(left)) * scale) @ right.T))
        index[i : i + step] = block.argmax(axis=1)
        best[i : i + step] = block.max(axis=1)
    return best, index
