"""CalibQuant: visual keys and values in as little as one bit, text in full precision.

Han et al. 2025, "CalibQuant: 1-Bit KV Cache Quantization for Multimodal LLMs", arXiv 2502.14882.
Each head and channel has one range over all visual tokens of the request, taken from the rotated keys
and the values. At one bit both its ends are multiplied by 0.5 (keys) or 0.3 (values), because a range
that outliers set puts every number at its ends. Codes are c = round(clamp(x / s + z)), z = -min / s.

Attention never scales the codes up ("post-scaling"): with l = -s z the smallest number of a channel,
    logits = (q * s) c^T + q l^T,    output = (a c) * s + (sum a) l.
Score calibration, at 1 and 2 bits: coded keys make the largest visual logits too large, so the visual
logits of a head are mapped linearly from [m, M] to [m, M - 3] before the joint softmax with the text.

Differs from the published code: m and M are those of each query apart (there, over the queries of a
call, of which a decode step has one), so that a recomputed answer sees what its steps saw; where
M - m is below 3 all visual logits become m, where the published map would turn their order around;
a channel of equal numbers has one code instead of a division by zero. Codes are expanded in blocks of
512 tokens. A step costs O(H n a); v visual tokens take v (a + b) bits / 8 bytes a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from foveate.core import Paper, register, setting
from foveate.core.errors import UnsupportedError
from foveate.core.language import KVCodec
from foveate.core.method import Evidence
from foveate.memory import _bits
from foveate.memory._bits import BLOCK_TOKENS, Rows

_TEXT_ROWS = 32  # room for so many new tokens at a time
_CALIBRATED = (1, 2)


@dataclass
class Coded:
    """Visual tokens in codes (Hkv, v, bytes) of `width` numbers; scale and low (Hkv, 1, width)."""

    codes: Any
    scale: Any
    low: Any
    width: int

    @property
    def nbytes(self) -> int:
        return int(self.codes.nbytes + self.scale.nbytes + self.low.nbytes)


@dataclass
class CalibCodes:
    """One sequence at one layer. visual (n_prompt,) bool, on the host, tells the order of entries;
    text holds the others of the prompt and all new ones.
    """

    visual: np.ndarray
    key: Coded
    value: Coded
    text_key: Rows
    text_value: Rows

    @property
    def v(self) -> int:
        return int(self.key.codes.shape[1])

    @property
    def n(self) -> int:
        return self.v + self.text_key.n

    @property
    def order(self) -> np.ndarray:
        """(n,): where each entry stands among the visual ones followed by the others."""
        visual = np.concatenate([self.visual, np.zeros(self.n - len(self.visual), bool)])
        return np.where(visual, np.cumsum(visual) - 1, self.v + np.cumsum(~visual) - 1)


@register
@dataclass(frozen=True)
class CalibQuant(KVCodec):
    """Visual entries in 1, 2, 4 or 8 bits by head and channel; text entries as they are."""

    name: ClassVar[str] = "calibquant"
    summary: ClassVar[str] = "visual keys and values in 1 to 8 bits, text in full"
    paper: ClassVar[Paper | None] = Paper(
        "CalibQuant: 1-Bit KV Cache Quantization for Multimodal LLMs",
        "Han et al.",
        2025,
        "2502.14882",
        code_licence="MIT",
    )
    evidence: ClassVar[Evidence] = "golden"

    bits: int = setting(2, "bits of a number: 1, 2, 4 or 8", low=1, high=8)
    offset: float = setting(
        3.0, "what calibration takes off the largest visual logit; 0 = off", low=0.0
    )
    shrink_keys: float = setting(
        0.5, "part of a key's range that is coded at 1 bit", low=0.01, high=1.0
    )
    shrink_values: float = setting(
        0.3, "part of a value's range that is coded at 1 bit", low=0.01, high=1.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _bits.check_bits(self.name, self.bits)

    # --- coding ------------------------------------------------------------------------------------
    def encode(self, k: Any, v: Any, modality: Any) -> CalibCodes:
        import torch

        visual = np.asarray(modality) > 0
        at = torch.as_tensor(np.flatnonzero(visual), device=k.device)
        rest = torch.as_tensor(np.flatnonzero(~visual), device=k.device)
        return CalibCodes(
            visual,
            self._coded(k[:, at], self.shrink_keys),
            self._coded(v[:, at], self.shrink_values),
            Rows(k[:, rest], _TEXT_ROWS),
            Rows(v[:, rest], _TEXT_ROWS),
        )

    def _coded(self, x: Any, shrink: float) -> Coded:
        """Codes of the visual tokens' x (Hkv, v, a)."""
        if not x.shape[1]:
            empty = x[:, :, :0].to(dtype=_byte())
            return Coded(empty, x.new_zeros(x.shape[0], 1, 0), x.new_zeros(x.shape[0], 1, 0), 0)
        part = shrink if self.bits == 1 else 1.0
        wide = _bits.grouped(x, x.shape[0])
        low, high = wide.amin(1, keepdim=True) * part, wide.amax(1, keepdim=True) * part
        scale, low = _bits.affine(low, high, self.bits, x.dtype)
        _bits.check_finite(self.name, scale, low)
        codes = _bits.pack(_bits.code(wide, scale, low, self.bits), self.bits)
        return Coded(codes, scale, low, x.shape[2])

    def append(self, codes: CalibCodes, k: Any, v: Any) -> CalibCodes:
        codes.text_key.append(k)
        codes.text_value.append(v)
        return codes

    def truncate(self, codes: CalibCodes, entries: int) -> CalibCodes:
        if codes.n - entries < len(codes.visual):
            raise UnsupportedError(f"{self.name}: entries of the prompt cannot be taken back")
        codes.text_key.truncate(codes.text_key.n - entries)
        codes.text_value.truncate(codes.text_value.n - entries)
        return codes

    # --- reading -----------------------------------------------------------------------------------
    def nbytes(self, codes: CalibCodes) -> int:
        return (
            codes.key.nbytes + codes.value.nbytes + codes.text_key.nbytes + codes.text_value.nbytes
        )

    def entry_bytes(self, codes: CalibCodes, entries: int, prompt: int) -> int:
        text = codes.text_key.row_bytes + codes.text_value.row_bytes
        return codes.key.nbytes + codes.value.nbytes + (entries - codes.v) * text

    def length(self, codes: CalibCodes) -> int:
        return codes.n

    def attend(self, q: Any, codes: CalibCodes, mask: Any, scale: float) -> tuple[Any, Any]:
        import torch

        heads, s, _ = q.shape
        with torch.autocast(q.device.type, enabled=False):
            text_key, text_value = codes.text_key.data, codes.text_value.data
            rows = _bits.grouped(q, text_key.shape[0])
            logits = rows.new_empty(*rows.shape[:2], codes.n)
            visual = logits[:, :, : codes.v]
            if codes.v:
                self._visual_logits(rows, codes.key, visual)
            logits[:, :, codes.v :] = rows @ text_key.to(rows.dtype).transpose(1, 2)
            logits.mul_(scale)
            if mask is not None:
                place = torch.as_tensor(codes.order, device=mask.device)
                mask = torch.empty_like(mask).index_copy_(1, place, mask)
            if codes.v and self.bits in _CALIBRATED and self.offset > 0:
                seen = None if mask is None else mask[:, : codes.v]
                visual.copy_(calibrated(visual, self.offset, seen))
            weights, lse = _bits.softmax(logits, mask)
            out = weights[:, :, codes.v :] @ text_value.to(rows.dtype)
            if codes.v:
                out += self._visual_sum(weights[:, :, : codes.v], codes.value)
        return out.reshape(heads, s, -1), lse.reshape(heads, s)

    def _visual_logits(self, q: Any, key: Coded, out: Any) -> None:
        """Fill out (Hkv, r, v) with q (Hkv, r, a) times the keys, before the attention's scale."""
        low, scaled = q @ key.low.to(q.dtype).transpose(1, 2), q * key.scale.to(q.dtype)
        for start in range(0, key.codes.shape[1], BLOCK_TOKENS):
            part = slice(start, start + BLOCK_TOKENS)
            block = _bits.unpack(key.codes[:, part], self.bits, key.width).to(q.dtype)
            out[:, :, part] = scaled @ block.transpose(1, 2) + low

    def _visual_sum(self, weights: Any, value: Coded) -> Any:
        """weights (Hkv, r, v) times the values: (Hkv, r, b)."""
        total = weights.new_zeros(*weights.shape[:2], value.width)
        for start in range(0, value.codes.shape[1], BLOCK_TOKENS):
            part = slice(start, start + BLOCK_TOKENS)
            block = _bits.unpack(value.codes[:, part], self.bits, value.width).to(weights.dtype)
            total += weights[:, :, part] @ block
        dtype = weights.dtype
        return total * value.scale.to(dtype) + weights.sum(-1, keepdim=True) * value.low.to(dtype)

    def decode(self, codes: CalibCodes) -> tuple[Any, Any]:
        import torch

        place = torch.as_tensor(codes.order, device=codes.text_key.data.device)
        k = torch.cat([*self._expanded(codes.key), codes.text_key.data], 1)
        v = torch.cat([*self._expanded(codes.value), codes.text_value.data], 1)
        return k[:, place], v[:, place]

    def _expanded(self, coded: Coded) -> list[Any]:
        if not coded.width:
            return []
        found = _bits.unpack(coded.codes, self.bits, coded.width).to(coded.scale.dtype)
        return [found * coded.scale + coded.low]


def calibrated(logits: Any, offset: float, seen: Any = None) -> Any:
    """Visual logits (H, r, v) mapped from each query's [m, M] to [m, max(m, M - offset)]; seen (s, v)
    bool leaves out keys that a query does not see, None = all are seen.
    """
    import torch

    low = high = logits
    if seen is not None:
        hidden = ~seen.repeat(logits.shape[1] // seen.shape[0], 1)
        low, high = logits.masked_fill(hidden, torch.inf), logits.masked_fill(hidden, -torch.inf)
    m, top = low.amin(-1, keepdim=True), high.amax(-1, keepdim=True)
    slope = ((top - offset - m) / (top - m + 1e-8)).clamp(min=0.0)
    return (logits - m) * slope + m


def _byte() -> Any:
    import torch

    return torch.uint8
