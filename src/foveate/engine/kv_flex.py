"""Attention over ragged entries by torch's flex attention, where it serves; SDPA is its twin.

One switch: `attention_path("auto")`, the default, takes flex attention on CUDA devices for calls that
need a mask, which are several queries at once (chunks of a prompt, a second turn, drafts), because it
neither writes the mask down nor repeats keys for grouped heads; a single query goes through SDPA as it
is. Before the first such call the device is tried: where flex attention does not compile or does not
agree with SDPA there, SDPA is used and the log says why. "sdpa" and "flex" take one path everywhere;
uncompiled flex attention, which a CPU gets, is for tests.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.core.errors import SettingError

Path = Literal["auto", "sdpa", "flex"]
Visible = Callable[[Tensor, Tensor], Tensor | None]
PATHS: tuple[Path, ...] = ("auto", "sdpa", "flex")
LEAST_DIM = 16  # numbers a head that the compiled kernel takes at least
_path: ContextVar[Path] = ContextVar("foveate_kv_path", default="auto")
_log = logging.getLogger("foveate")


@contextlib.contextmanager
def attention_path(path: Path) -> Iterator[None]:
    """While open, attention over a plan's cache goes this way; SettingError for an unknown one."""
    if path not in PATHS:
        raise SettingError(f"attention path {path!r} is unknown: {', '.join(PATHS)}")
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


def chosen(inner: Any, q: Tensor, v: Tensor) -> bool:
    """Whether this call, queries q (1, H, s, a) with a mask, goes through flex attention. `inner` is
    the model's attention function: one with caps or sinks of its own keeps it.
    """
    path = _path.get()
    if path == "sdpa" or getattr(inner, "__name__", "") != "sdpa_attention_forward":
        return False
    if path == "flex":
        return True
    dims = min(q.shape[-1], v.shape[-1])
    if q.device.type != "cuda" or q.shape[2] == 1 or dims < LEAST_DIM:
        return False
    return agrees(q.device, q.dtype, int(q.shape[-1]), int(v.shape[-1]))


def attend_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    at: Tensor,
    origin: Tensor,
    visible: Visible | None,
    scaling: float | None,
) -> Tensor:
    """Output (1, s, H, b) of q (1, H, s, a) over k (1, h, n, a), v (1, h, n, b), whose last s entries
    are the queries' own. origin (s,) are their sequence indices, at (1 or h, n) those of the entries.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    heads, s = q.shape[1], q.shape[2]
    n, each, own = k.shape[2], heads // k.shape[1], at.shape[0] > 1

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        causal: Tensor = key <= query + (n - s)
        row = head // each if own else torch.zeros_like(head)
        found = None if visible is None else visible(origin[query], at[row, key])
        return causal if found is None else causal & found

    mask = create_block_mask(mask_mod, 1, heads if own else 1, s, n, device=str(q.device))
    function = _compiled() if q.device.type == "cuda" else _eager()
    out: Tensor = function(q, k, v, block_mask=mask, scale=scaling, enable_gqa=heads != k.shape[1])
    return out.transpose(1, 2)


def _eager() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compiled() -> Any:
    return torch.compile(_eager(), dynamic=True)


@functools.cache
def agrees(device: torch.device, dtype: torch.dtype, a: int, b: int) -> bool:
    """Whether flex attention runs on this device and gives what SDPA gives; tried once."""
    try:
        g = torch.Generator(device).manual_seed(0)
        q, k, v = (
            torch.randn(1, h, n, d, generator=g, device=device, dtype=dtype)
            for h, n, d in ((4, 3, a), (2, 40, a), (2, 40, b))
        )
        at = torch.arange(40, device=device)
        seen = at[None] <= at[37:, None]
        got = attend_flex(q, k, v, at[None], at[37:], None, a**-0.5)
        wide_k, wide_v = (x.repeat_interleave(2, 1) for x in (k, v))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        want = sdpa(q, wide_k, wide_v, attn_mask=seen)
        bound = 1e-3 if dtype == torch.float32 else 3e-2  # TF32, half precision
        difference = float((got.transpose(1, 2) - want).abs().max())
    except Exception as error:  # whatever a compiler raises here, SDPA gives the same answers
        _log.warning("flex attention does not run on %s, SDPA is used: %s", device, error)
        return False
    if not difference <= bound:
        _log.warning("flex attention is off by %.1e on %s, SDPA is used", difference, device)
    return difference <= bound
