"""Codes of b bits, packed into bytes, and the arithmetic that two codecs share.

A group of numbers x is stored as integers c in 0..2^b - 1 with x ~ c * scale + low. Scale and low are
rounded to the type in which they are stored before codes are made from them, so that what is read
back is off by half a step at most, but for the ends of a range whose bounds were rounded. A group of
equal numbers has scale 0 and codes 0: `low` says it all.

Torch is imported inside the functions: methods are listed where it is not installed.
"""

from __future__ import annotations

from typing import Any

from foveate.core.errors import NonFiniteError, SettingError

BITS = (1, 2, 4, 8)
BLOCK_TOKENS = 512  # coded tokens that are expanded at a time


def check_bits(name: str, bits: int, allowed: tuple[int, ...] = BITS) -> None:
    """SettingError for a width that does not fill bytes."""
    if bits not in allowed:
        raise SettingError(
            f"{name}: bits = {bits} is out of range: one of {', '.join(map(str, allowed))}"
        )


def packed_bytes(width: int, bits: int) -> int:
    """Bytes that hold `width` codes."""
    return -(-width * bits // 8)


def pack(codes: Any, bits: int) -> Any:
    """Codes (..., w) as bytes (..., ceil(w * bits / 8)) uint8; the first code has the lowest bits."""
    import torch
    import torch.nn.functional as F

    codes = codes.to(torch.uint8)
    if bits == 8:
        return codes.contiguous()
    each, width = 8 // bits, codes.shape[-1]
    codes = F.pad(codes, (0, packed_bytes(width, bits) * each - width))
    parts = codes.unflatten(-1, (-1, each))
    out = parts[..., 0].clone()
    for i in range(1, each):
        out |= parts[..., i] << (i * bits)
    return out


def unpack(packed: Any, bits: int, width: int) -> Any:
    """Codes (..., width) uint8 from `pack`."""
    import torch

    if bits == 8:
        return packed[..., :width]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :width]


def affine(low: Any, high: Any, bits: int, dtype: Any) -> tuple[Any, Any]:
    """(scale, low) of groups from low to high, in the type they are stored in."""
    return ((high - low) / (2**bits - 1)).to(dtype), low.to(dtype)


def check_finite(name: str, *bounds: Any) -> None:
    """NonFiniteError for scales or minima that are not finite. Waits for the device."""
    import torch

    if not all(bool(torch.isfinite(x).all()) for x in bounds):
        raise NonFiniteError(
            f"{name}: keys or values of the prompt are not finite, or their range does not fit "
            f"{bounds[0].dtype}: they cannot be coded; run in a wider type, or without the codec"
        )


def code(x: Any, scale: Any, low: Any, bits: int) -> Any:
    """Nearest codes of x, uint8; scale and low broadcast against it. Halves go to the even code."""
    import torch

    step = scale.to(x.dtype)
    flat = step == 0
    found = ((x - low.to(x.dtype)) / step.masked_fill(flat, 1.0)).clamp_(0, 2**bits - 1).round_()
    return found.masked_fill_(flat, 0).to(torch.uint8)


class Rows:
    """A tensor (h, n, w) that grows along n; capacity is a whole number of steps once it grew."""

    def __init__(self, first: Any, step: int) -> None:
        self._data, self.n, self.step = first, int(first.shape[1]), step

    @property
    def data(self) -> Any:
        """The rows in use (h, n, w)."""
        return self._data[:, : self.n]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return int(self._data.nbytes)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of all heads."""
        return int(self._data.shape[0] * self._data.shape[2] * self._data.itemsize)

    def append(self, rows: Any) -> None:
        """More rows (h, s, w)."""
        need = self.n + rows.shape[1]
        if need > self._data.shape[1]:
            room = -(-need // self.step) * self.step
            grown = self._data.new_empty(self._data.shape[0], room, self._data.shape[2])
            grown[:, : self.n] = self.data
            self._data = grown
        self._data[:, self.n : need] = rows
        self.n = need

    def truncate(self, n: int) -> None:
        """Keep the first n rows."""
        self.n = n


# --- attention over entries that are read in blocks -------------------------------------------------
def grouped(q: Any, heads: int) -> Any:
    """Queries (H, s, a) as (Hkv, H / Hkv * s, a) in float32 at least: those that read a KV head."""
    import torch

    wide = torch.promote_types(q.dtype, torch.float32)
    return q.to(wide).reshape(heads, -1, q.shape[-1])


def softmax(logits: Any, mask: Any) -> tuple[Any, Any]:
    """Weights (Hkv, r, n) and log-sum-exp (Hkv, r) of logits (Hkv, r, n); mask (s, n) or None."""
    import torch

    if mask is not None:
        each = logits.shape[1] // mask.shape[0]
        logits = logits.masked_fill(~mask.repeat(each, 1), -torch.inf)
    lse = torch.logsumexp(logits, -1)
    return torch.exp(logits - lse[..., None]), lse
