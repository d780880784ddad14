"""KV codecs by themselves: packing, parity with plain attention, bytes, odd sizes, bad settings."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.core import Plan
from foveate.core.errors import NonFiniteError, SettingError, UnsupportedError
from foveate.memory import _bits
from foveate.memory.calibquant import CalibQuant, calibrated
from foveate.memory.kivi import Kivi

CODECS = [
    Kivi(bits=2),
    Kivi(bits=4, group=8, residual=16),
    Kivi(bits=8, group=5, residual=10),
    CalibQuant(bits=1, offset=0),
    CalibQuant(bits=2, offset=0),
    CalibQuant(bits=4),
    CalibQuant(bits=8),
]
every = pytest.mark.parametrize("codec", CODECS, ids=lambda c: str(Plan((c,))))


def entries(n: int, a: int = 20, b: int = 12, seed: int = 0, dtype: Any = torch.float32) -> Any:
    g = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, n, a, generator=g), torch.randn(2, n, b, generator=g)
    return k.to(dtype), v.to(dtype), (np.random.default_rng(seed).random(n) < 0.7).astype(np.int8)


def plain(q: Any, k: Any, v: Any, mask: Any, scale: float) -> tuple[Any, Any]:
    """Attention of q (H, s, a) by a loop over query heads."""
    each, outs, lses = q.shape[0] // k.shape[0], [], []
    for h in range(q.shape[0]):
        logits = (q[h] @ k[h // each].T) * scale
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        outs.append(torch.softmax(logits, -1) @ v[h // each])
        lses.append(torch.logsumexp(logits, -1))
    return torch.stack(outs), torch.stack(lses)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 40), st.integers(0, 2**31))
def test_packing_gives_back_every_code_in_the_fewest_bytes(
    bits: int, width: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (3, width), generator=g)
    packed = _bits.pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (3, -(-width * bits // 8))
    assert torch.equal(_bits.unpack(packed, bits, width).long(), codes)


@every
@pytest.mark.parametrize("n", [1, 7, 64, 1200])
@pytest.mark.parametrize("queries", [1, 3])
def test_attention_over_codes_is_plain_attention_over_what_they_decode_to(
    codec: Any, n: int, queries: int
) -> None:
    k, v, modality = entries(n)
    codes = codec.encode(k, v, modality)
    for i in range(2):
        new = entries(queries, seed=1 + i)
        codes = codec.append(codes, new[0], new[1])
    total = n + 2 * queries
    q = torch.randn(6, queries, 20, generator=torch.Generator().manual_seed(9))
    mask = torch.arange(total) <= (total - queries + torch.arange(queries))[:, None]
    for given_mask in (mask, None):
        out, lse = codec.attend(q, codes, given_mask, 0.3)
        want, want_lse = plain(q, *codec.decode(codes), given_mask, 0.3)
        assert codec.length(codes) == total
        torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(lse, want_lse, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2])
@pytest.mark.parametrize("offset", [1.5, 3.0, 500.0])
def test_calibration_lowers_visual_logits_alone(bits: int, offset: float) -> None:
    codec = CalibQuant(bits=bits, offset=offset)
    k, v, modality = entries(50)
    codes = codec.append(codec.encode(k, v, modality), k[:, :2], v[:, :2])
    q = torch.randn(4, 2, 20, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 52, dtype=torch.bool)
    mask[0, -1] = mask[1, 4] = False
    got, _ = codec.attend(q, codes, mask, 0.5)
    keys, values = codec.decode(codes)
    seen = np.append(modality > 0, [False, False])
    for h in range(4):
        for i in range(2):
            logits = (q[h, i] @ keys[h // 2].T) * 0.5
            chosen = torch.as_tensor(seen) & mask[i]
            part = logits[chosen]
            low, top = part.min(), part.max()
            slope = max(0.0, float((top - offset - low) / (top - low + 1e-8)))
            logits[chosen] = (part - low) * slope + low
            want = torch.softmax(logits.masked_fill(~mask[i], -torch.inf), -1) @ values[h // 2]
            torch.testing.assert_close(got[h, i], want, atol=1e-5, rtol=1e-5)


def test_calibration_never_turns_an_order_around() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0]]])
    assert calibrated(logits, 3.0).tolist() == [[[0.0, 0.0, 0.0]]]
    torch.testing.assert_close(calibrated(logits, 1.0), torch.tensor([[[0.0, 0.5, 1.0]]]))


def tensors(x: Any) -> list[Any]:
    if torch.is_tensor(x):
        return [x]
    held = vars(x).values() if hasattr(x, "__dict__") else ()
    return [t for value in held for t in tensors(value)]


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors_held(codec: Any, dtype: Any) -> None:
    k, v, modality = entries(300, dtype=dtype)
    codes = codec.encode(k, v, modality)
    for i in range(40):
        codes = codec.append(codes, *entries(1, seed=i, dtype=dtype)[:2])
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(codes)
        }
        assert codec.nbytes(codes) == sum(held.values())


def in_use(x: Any) -> int:
    """Bytes of the tensors held, room for more left out."""
    if torch.is_tensor(x):
        return int(x.nbytes)
    if isinstance(x, _bits.Rows):
        return int(x.data.nbytes)
    held = vars(x).values() if hasattr(x, "__dict__") else ()
    return sum(in_use(value) for value in held)


@every
@pytest.mark.parametrize("prompt", [1, 16, 31, 128, 300])
def test_bytes_of_entries_leave_out_room_and_what_came_later(codec: Any, prompt: int) -> None:
    """A report counted up to 31 empty rows of full precision, and later entries as codes."""
    k, v, modality = entries(prompt)
    codes = codec.encode(k, v, modality)
    want = {prompt: in_use(codes)}
    for n in range(prompt + 1, prompt + 150):
        codes = codec.append(codes, *entries(1, seed=n)[:2])
        want[n] = in_use(codes)
    assert want[prompt] <= codec.nbytes(codes)
    for n, held in want.items():
        assert codec.entry_bytes(codes, n, prompt) == held


def test_codes_take_the_bits_they_say() -> None:
    k, v, _ = entries(1024, a=64, b=64)
    for bits in (1, 2, 4, 8):
        codes = CalibQuant(bits=bits).encode(k, v, np.ones(1024))
        assert codes.key.codes.nbytes == 2 * 1024 * 64 * bits // 8
    codes = Kivi(bits=2).encode(k, v, None)
    assert codes.key.codes.nbytes == 2 * 1024 * 64 // 4
    assert codes.value.codes.nbytes == 2 * (1024 - 128) * 64 // 4


class Largest(TorchDispatchMode):
    """The most numbers that any result holds while open, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.is_tensor(out) and out.is_floating_point():
            self.numbers = max(self.numbers, out.numel())
        return out


@pytest.mark.parametrize("codec", [Kivi(), CalibQuant(bits=1)], ids=lambda c: c.name)
def test_no_step_expands_all_keys(codec: Any) -> None:
    k, v, _ = entries(8192, a=64, b=64)
    codes = codec.encode(k, v, np.ones(8192))
    q = torch.randn(4, 1, 64)
    with Largest() as seen:
        codec.attend(q, codes, None, 0.1)
    assert seen.numbers <= 2 * _bits.BLOCK_TOKENS * 64 < k.numel() / 8


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_equal_numbers(codec: Any, dtype: Any) -> None:
    k, v, modality = entries(40, dtype=dtype)
    k[:, :, 3], v[:, 5:9] = 0.5, 0.0
    codes = codec.append(codec.encode(k, v, modality), k[:, :1], v[:, :1])
    out, lse = codec.attend(k[:, :1].repeat(2, 1, 1), codes, None, 0.2)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    decoded = codec.decode(codes)
    assert decoded[0].dtype == dtype and decoded[0].shape == (2, 41, 20)
    if codec.name == "kivi":  # a group of equal numbers is exact
        assert torch.equal(decoded[0][:, :, 3], k[:, :1, 3].expand(2, 41))


@pytest.mark.parametrize("residual", [4, 16])
def test_a_window_of_kivi_moves_on_as_the_paper_says(residual: int) -> None:
    codec = Kivi(bits=4, group=4, residual=residual)
    k, v, _ = entries(3 * residual + 5)
    codes = codec.encode(k[:, :6], v[:, :6], None)
    for n in range(7, k.shape[1] + 1):
        codes = codec.append(codes, k[:, n - 1 : n], v[:, n - 1 : n])
        full = codes.key_full.shape[1]
        assert 1 <= full <= residual and (n - full) % residual == 0
        assert codes.value_full.shape[1] == min(n, residual + 1)
        assert torch.equal(codes.key_full, k[:, n - full : n])
        whole = codec.encode(k[:, : n - full], v[:, : n - full], None)
        assert torch.equal(whole.key.codes.data, codes.key.codes.data)


@every
def test_a_step_can_be_taken_back_and_done_again(codec: Any) -> None:
    k, v, modality = entries(60)
    codes = codec.encode(k[:, :30], v[:, :30], modality[:30])
    again = copy.deepcopy(codes)
    for i in range(30, 60):
        one = slice(i, i + 1)
        codes = codec.append(codes, k[:, one], v[:, one])
        again = codec.append(again, 7 * k[:, one], v[:, one])  # a step that failed
        again = codec.append(codec.truncate(again, 1), k[:, one], v[:, one])
        assert codec.length(again) == i + 1
        for x, y in zip(codec.decode(codes), codec.decode(again), strict=True):
            assert torch.equal(x, y)
    with pytest.raises(UnsupportedError, match="taken back"):
        codec.truncate(codes, 61)


def test_bad_settings_are_named() -> None:
    for text, word in (
        ("kivi:bits=3", "bits"),
        ("kivi:bits=1", "bits"),
        ("kivi:group=32,residual=100", "multiple of group"),
        ("kivi:residual=0", "residual"),
        ("calibquant:bits=3", "bits"),
        ("calibquant:offset=-1", "offset"),
        ("calibquant:shrink_keys=0", "shrink_keys"),
    ):
        with pytest.raises(SettingError, match=word):
            Plan.parse(text)


@every
def test_numbers_that_are_not_finite_are_refused(codec: Any) -> None:
    k, v, _ = entries(200)
    k[1, 3, 4] = torch.inf
    with pytest.raises(NonFiniteError, match="not finite"):
        codec.encode(k, v, np.ones(200))
