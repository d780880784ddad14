"""HiPrune and VScan against the authors' code."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core import Counts, PlanRng, arrays
from foveate.core.views import Attention
from foveate.encode.tokens.hiprune import HiPrune
from foveate.encode.tokens.vscan import VScan, local_scan, merge_into, window_of
from tests.golden.golden_cases import TOLERANCE, Case, cases, segment

pytestmark = [pytest.mark.claim("F10"), pytest.mark.claim("C1")]

RNG = PlanRng(0)


@pytest.mark.parametrize("case", cases("hiprune"), ids=str)
def test_hiprune(case: Case) -> None:
    llava = case.settings["version"] == "llava"
    middle, deep = (np.atleast_2d(case.inputs[name]) for name in ("recv_mid", "recv_deep"))
    masks = np.atleast_2d(case.outputs["mask"])
    for b in range(len(masks)):
        first = 1 if llava else 0
        at = {
            8: Attention(received=middle[b][first:]),
            -2: Attention(received=deep[b][first:]),
        }
        n = masks.shape[1]
        width = 24 if llava else case.settings["width"]
        k = case.settings["keep"] if llava else round(n * case.settings["ratio"])
        item = segment(np.ones((n, 2), np.float32), grid=(1, n // width, width), at=at)
        method = HiPrune(per_image=k, alpha=case.settings["alpha"], wrap=True)
        kept = method.select([item], Counts(k, (k,)), None, RNG)[0]
        assert kept.anchor.tolist() == arrays.nonzero(masks[b]).tolist()


@pytest.mark.parametrize("case", cases("vscan"), ids=str)
def test_vscan(case: Case) -> None:
    if case.settings.get("version") == "qwen":
        x = case.inputs["embeds"]
        grid = (1, case.settings["rows"], case.settings["columns"])
        k = int(x.shape[0] * case.settings["ratio"])
        at = {
            5: Attention(received=case.inputs["recv_local"]),
            -1: Attention(received=case.inputs["recv_global"]),
        }
        method = VScan(per_image=k, window=4, deep=-1)
        kept = method.select([segment(x, grid=grid, at=at)], Counts(k, (k,)), None, RNG)[0]
        assert kept.anchor.tolist() == arrays.nonzero(case.outputs["kept"]).tolist()
        assert np.allclose(arrays.apply(kept, x), case.outputs["out"], **TOLERANCE)
        return
    k, grid = case.settings["keep"], (1, 24, 24)
    for b, x in enumerate(case.inputs["features"]):
        shallow, deep = case.inputs["attn_shallow"][b], case.inputs["attn_deep"][b]
        expected = arrays.nonzero(case.outputs["mask"][b]).tolist()
        local = int(k / 2) // 16 * 16
        if local == k // 2:
            item = segment(x, grid=grid, at={5: Attention(cls=shallow), -2: Attention(cls=deep)})
            kept = VScan(per_image=k).select([item], Counts(k, (k,)), None, RNG)[0]
        else:
            # Their count falls short of k here, so the parts are put together with their numbers.
            near = local_scan(shallow.mean(0), window_of(grid, 6), local)
            rest = np.setdiff1d(np.arange(576), near)
            far = rest[arrays.top_k(deep.mean(0)[rest], k - int(k / 2), arrays.FINE_BITS)]
            kept = merge_into(x, np.concatenate([near, far]))
        assert kept.anchor.tolist() == expected
        assert np.allclose(arrays.apply(kept, x), case.outputs["merged"][b], **TOLERANCE)
