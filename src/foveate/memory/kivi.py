"""KIVI: keys coded per channel over groups of tokens, values per token over groups of channels.

Liu et al. 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv 2402.02750,
sections 3.2 and 3.3: keys have a few channels of large size, values have not, so each is coded along
the axis where its outliers share a group. A group holds round(clamp((x - min) / s, 0, 2^b - 1)) with
s = (max - min) / (2^b - 1). The last tokens stay in full precision: of a prompt of n tokens the keys
of the last n mod R and the values of the last min(n, R). Later the keys are coded R at a time, once R
have gathered, and the values one by one as they leave the window. Coding takes effect after the step
that filled the window, as in the authors' code; here it is done at the start of the next one, so the
newest token can always be taken back.

Differs from the published code: a group of equal numbers is stored exactly (theirs divides by zero);
where the group does not divide the head's width, the last group of a value's channels is shorter; a
window that is no multiple of the group is refused. Expanding the codes goes in blocks of 512 tokens,
so that no whole K or V exists in full precision. A step costs O(H n a); the codes take n (a + b)
bits / 8 bytes a head, scales and minima 2 n a / group + 2 n b / group numbers of the model's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from foveate.core import Paper, register, setting
from foveate.core.errors import SettingError, UnsupportedError
from foveate.core.language import KVCodec
from foveate.core.method import Evidence
from foveate.memory import _bits
from foveate.memory._bits import BLOCK_TOKENS, Rows

_VALUE_ROWS = 32  # values are coded one by one: room for so many at a time


@dataclass
class Coded:
    """Tokens in codes (Hkv, n, bytes) with scales and minima; `width` numbers a token."""

    codes: Rows
    scale: Rows
    low: Rows
    width: int

    @classmethod
    def of(cls, parts: tuple[Any, Any, Any], steps: tuple[int, int], width: int) -> Coded:
        """From codes, scale and low; they grow by so many rows of codes and of bounds at a time."""
        codes, scale, low = parts
        return cls(Rows(codes, steps[0]), Rows(scale, steps[1]), Rows(low, steps[1]), width)

    @property
    def n(self) -> int:
        return self.codes.n

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + self.low.nbytes

    def append(self, codes: Any, scale: Any, low: Any) -> None:
        self.codes.append(codes)
        self.scale.append(scale)
        self.low.append(low)


@dataclass
class KiviCodes:
    """One sequence at one layer: coded tokens first, then those in full precision."""

    key: Coded
    value: Coded
    key_full: Any
    value_full: Any

    @property
    def n(self) -> int:
        return self.key.n + int(self.key_full.shape[1])


@register
@dataclass(frozen=True)
class Kivi(KVCodec):
    """Both of a request's keys and values, of pictures and text alike, in 2, 4 or 8 bits."""

    name: ClassVar[str] = "kivi"
    summary: ClassVar[str] = "keys and values in 2 or 4 bits, the newest tokens in full"
    paper: ClassVar[Paper | None] = Paper(
        "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache",
        "Liu et al.",
        2024,
        "2402.02750",
        code_licence="MIT",
    )
    evidence: ClassVar[Evidence] = "golden"

    bits: int = setting(2, "bits of a number: 2, 4 or 8", low=2, high=8)
    group: int = setting(
        32, "tokens that share a key's scale; channels that share a value's", low=1
    )
    residual: int = setting(128, "newest tokens in full precision, a multiple of group", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _bits.check_bits(self.name, self.bits, (2, 4, 8))
        if self.residual % self.group:
            raise SettingError(
                f"{self.name}: residual = {self.residual} is out of range: a multiple of group = "
                f"{self.group}, since keys are coded by whole groups"
            )

    # --- coding ------------------------------------------------------------------------------------
    def encode(self, k: Any, v: Any, modality: Any) -> KiviCodes:
        n = k.shape[1]
        keys, values = n - n % self.residual, n - min(n, self.residual)
        key = self._keys(k[:, :keys])
        value = self._values(v[:, :values])
        _bits.check_finite(self.name, *key[1:], *value[1:])
        groups = self.residual // self.group
        return KiviCodes(
            Coded.of(key, (self.residual, groups), k.shape[2]),
            Coded.of(value, (_VALUE_ROWS, _VALUE_ROWS), v.shape[2]),
            k[:, keys:].clone(),
            v[:, values:].clone(),
        )

    def _keys(self, k: Any) -> tuple[Any, Any, Any]:
        """Codes (Hkv, n, bytes), scale and low (Hkv, n / group, a) of keys (Hkv, n, a)."""
        x = _wide(k).unflatten(1, (k.shape[1] // self.group, self.group))
        scale, low = _bits.affine(x.amin(2), x.amax(2), self.bits, k.dtype)
        found = _bits.code(x, scale[:, :, None], low[:, :, None], self.bits)
        return _bits.pack(found.flatten(1, 2), self.bits), scale, low

    def _values(self, v: Any) -> tuple[Any, Any, Any]:
        """Codes (Hkv, n, bytes), scale and low (Hkv, n, ceil(b / group)) of values (Hkv, n, b)."""
        width = v.shape[2]
        x = self._by_channel(_wide(v), "replicate")
        scale, low = _bits.affine(x.amin(-1), x.amax(-1), self.bits, v.dtype)
        found = _bits.code(x, scale[..., None], low[..., None], self.bits)
        return _bits.pack(found.flatten(2)[..., :width], self.bits), scale, low

    def _by_channel(self, x: Any, mode: str) -> Any:
        """x (Hkv, n, b) as (Hkv, n, groups, group); what fills the last group changes no bound."""
        import torch.nn.functional as F

        short = -x.shape[2] % self.group
        if short and x.shape[1]:
            x = F.pad(x, (0, short), mode)
        elif short:
            x = x.new_empty(x.shape[0], 0, x.shape[2] + short)
        return x.unflatten(2, (-1, self.group))

    def append(self, codes: KiviCodes, k: Any, v: Any) -> KiviCodes:
        import torch

        full = codes.key_full.shape[1]
        due = full - full % self.residual
        if due:
            codes.key.append(*self._keys(codes.key_full[:, :due]))
        codes.key_full = torch.cat([codes.key_full[:, due:], k], 1)
        out = max(0, codes.value_full.shape[1] - self.residual)
        if out:
            codes.value.append(*self._values(codes.value_full[:, :out]))
        codes.value_full = torch.cat([codes.value_full[:, out:], v], 1)
        return codes

    def truncate(self, codes: KiviCodes, entries: int) -> KiviCodes:
        keys = codes.key_full.shape[1] - entries
        values = codes.value_full.shape[1] - entries
        if keys < 0 or values < 0:
            raise UnsupportedError(
                f"{self.name}: of the newest {entries} entries some are in codes and cannot be taken back"
            )
        codes.key_full = codes.key_full[:, :keys].clone()
        codes.value_full = codes.value_full[:, :values].clone()
        return codes

    # --- reading -----------------------------------------------------------------------------------
    def nbytes(self, codes: KiviCodes) -> int:
        full = codes.key_full.nbytes + codes.value_full.nbytes
        return int(codes.key.nbytes + codes.value.nbytes + full)

    def entry_bytes(self, codes: KiviCodes, entries: int, prompt: int) -> int:
        # After a prompt codes are made at the start of the next step: the newest entry has none.
        last = entries if entries <= prompt else entries - 1
        key, value = codes.key, codes.value
        keys = last - last % self.residual
        values = max(0, last - self.residual)
        full = (entries - keys) * codes.key_full[:, :1].nbytes
        full += (entries - values) * codes.value_full[:, :1].nbytes
        bounds = keys // self.group * (key.scale.row_bytes + key.low.row_bytes)
        bounds += values * (value.scale.row_bytes + value.low.row_bytes)
        return int(full + bounds + keys * key.codes.row_bytes + values * value.codes.row_bytes)

    def length(self, codes: KiviCodes) -> int:
        return codes.n

    def attend(self, q: Any, codes: KiviCodes, mask: Any, scale: float) -> tuple[Any, Any]:
        import torch

        heads, s, _ = q.shape
        with torch.autocast(q.device.type, enabled=False):
            rows = _bits.grouped(q, codes.key_full.shape[0])
            logits = rows.new_empty(*rows.shape[:2], codes.n)
            for start, stop in self._blocks(codes.key.n):
                block = self._key_block(codes.key, start, stop, rows.dtype)
                logits[:, :, start:stop] = rows @ block.transpose(1, 2)
            logits[:, :, codes.key.n :] = rows @ codes.key_full.to(rows.dtype).transpose(1, 2)
            weights, lse = _bits.softmax(logits.mul_(scale), mask)
            out = weights[:, :, codes.value.n :] @ codes.value_full.to(rows.dtype)
            for start, stop in self._blocks(codes.value.n):
                block = self._value_block(codes.value, start, stop, rows.dtype)
                out += weights[:, :, start:stop] @ block
        return out.reshape(heads, s, -1), lse.reshape(heads, s)

    def decode(self, codes: KiviCodes) -> tuple[Any, Any]:
        import torch

        k = [self._key_block(codes.key, 0, codes.key.n, codes.key_full.dtype), codes.key_full]
        v = [self._value_block(codes.value, 0, codes.value.n, codes.value_full.dtype)]
        return torch.cat(k, 1), torch.cat([*v, codes.value_full], 1)

    def _blocks(self, n: int) -> list[tuple[int, int]]:
        """Spans of at most BLOCK_TOKENS tokens, or of one group, that end with a group."""
        step = max(1, BLOCK_TOKENS // self.group) * self.group
        return [(start, min(n, start + step)) for start in range(0, n, step)]

    def _key_block(self, key: Coded, start: int, stop: int, dtype: Any) -> Any:
        """Keys (Hkv, stop - start, a); both ends lie at a group's."""
        which = slice(start // self.group, stop // self.group)
        x = _wide(_bits.unpack(key.codes.data[:, start:stop], self.bits, key.width), dtype)
        x = x.unflatten(1, (which.stop - which.start, self.group))
        x = x * _wide(key.scale.data[:, which, None], dtype)
        x += key.low.data[:, which, None]
        return x.flatten(1, 2).to(dtype)

    def _value_block(self, value: Coded, start: int, stop: int, dtype: Any) -> Any:
        """Values (Hkv, stop - start, b)."""
        x = _wide(_bits.unpack(value.codes.data[:, start:stop], self.bits, value.width), dtype)
        x = self._by_channel(x, "constant")
        x = x * _wide(value.scale.data[:, start:stop, :, None], dtype)
        x += value.low.data[:, start:stop, :, None]
        return x.flatten(2)[..., : value.width].to(dtype)


def _wide(x: Any, like: Any = None) -> Any:
    """x in float32, or in float64 where x or `like` is."""
    import torch

    double = torch.float64 in (x.dtype, like)
    return x.to(torch.float64 if double else torch.float32)
