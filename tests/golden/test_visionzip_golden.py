"""VisionZip against the authors' code: kept indices, merged features, and the order of tiles."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.core import Counts, PlanRng, arrays
from foveate.core.views import Attention
from foveate.encode.tokens.visionzip import VisionZip
from tests.golden.golden_cases import TOLERANCE, Case, cases, segment

pytestmark = [pytest.mark.claim("F10"), pytest.mark.claim("C1")]

ALL = cases("visionzip")


@pytest.mark.parametrize("case", [c for c in ALL if "hidden" in c.inputs], ids=str)
def test_tokens_and_indices(case: Case) -> None:
    dominant, contextual = case.settings["dominant"], case.settings["contextual"]
    k = 1 + dominant + contextual
    for b in range(case.inputs["hidden"].shape[0]):
        hidden = case.inputs["hidden"][b]
        attention = Attention(
            cls=case.inputs["attn_cls"][b][:, 1:], keys=case.inputs["metric"][b][1:, None, :]
        )
        item = segment(hidden[1:], special=hidden[:1], at={-2: attention})
        method = VisionZip(per_image=k, contextual=contextual / k)
        reduction = method.select([item], Counts(k, (k,)), None, PlanRng(0))[0]
        assert reduction.space == "encoder"
        reduction.check(specials=1)
        got = arrays.apply(reduction, hidden[1:], hidden[:1])
        indices = np.sort(case.outputs["indices"][b][1:]) - 1
        # Ours stands in spatial order: CLS, then dominant and contextual tokens by place; theirs
        # is CLS, dominant, contextual, where the targets are every step-th of the tokens left over.
        rest = np.setdiff1d(np.arange(hidden.shape[0] - 1), indices)
        targets = rest[:: rest.size // contextual][:contextual]
        place = np.concatenate([[-1], indices, targets])
        assert reduction.anchor[1:].tolist() == sorted(place[1:].tolist())
        assert np.allclose(got, case.outputs["tokens"][b][np.argsort(place)], **TOLERANCE)
