"""Attention rows from queries and keys: blocks and passes in parts against the formula in one."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

# What needs these packages is imported behind the question whether they are here.
from foveate.models.compat import Capture, observe  # noqa: E402


def whole(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax of all logits at once (B, H, S, S); rows that nobody may see count nothing."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is None:
        return torch.softmax(logits, -1)
    weights = torch.softmax(logits.masked_fill(~mask, -torch.inf), -1).nan_to_num(0.0)
    return weights * mask.any(-2)[..., None]


# Several passes to a block; one pass in several blocks of rows; several passes of several blocks.
@pytest.mark.parametrize("shape", [(7, 2, 40, 8), (1, 4, 800, 8), (3, 3, 900, 4)])
@pytest.mark.parametrize("masked", ["no", "one", "each"])
def test_received_attention_is_the_sum_of_all_rows(shape: tuple[int, ...], masked: str) -> None:
    g = torch.Generator().manual_seed(sum(shape))
    q, k = torch.randn(shape, generator=g), torch.randn(shape, generator=g)
    mask = None
    if masked != "no":
        passes, length = (shape[0] if masked == "each" else 1), shape[2]
        real = (
            torch.arange(length)
            < torch.tensor([length - 3 - 2 * i for i in range(passes)])[:, None]
        )
        mask = real[:, None, None, :].expand(passes, 1, length, length)
    capture = Capture(frozenset({"received", "cls"}), 1)
    observe(capture, q, k, mask, None)
    want = whole(q, k, mask)
    assert torch.allclose(capture.received[0], want.sum(-2), atol=1e-4)
    assert torch.allclose(capture.cls[0], want[:, :, 0], atol=1e-6)
    assert capture.padded == (masked != "no")
