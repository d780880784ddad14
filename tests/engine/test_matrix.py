"""P2 and P3: every family, batch shape and kind of method, against a masked full-length forward;
the test must bite.
"""

from __future__ import annotations

import pytest

from foveate.models.adapter import adapter_for
from tests.engine.matrix import BITE, EXACT, check_family
from tests.support import tiny

PLAIN = [f for f in tiny.FAMILIES if not f.endswith("_w16")]


@pytest.mark.claim("F2")
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_family(name: str, record_property: pytest.RecordProperty) -> None:
    result = check_family(name)
    record_property("figure", f"{name}: {result.status}, {result.worst:.1e}")
    record_property(
        "bound", f"<= {EXACT} x max abs logit; a position shifted by one gives >= {BITE}"
    )
    wrong = [(c.shape, c.kind, c.diff) for c in result.cells if not c.diff <= EXACT]
    assert not wrong
    bites = [c.bite for c in result.cells if c.bite is not None]
    if result.status == "exact":
        assert len(result.cells) >= 24 and bites and min(bites) >= BITE
    else:
        assert len(result.cells) >= 12


@pytest.mark.claim("F2")
def test_at_least_36_families_are_exact_and_the_rest_has_a_reason() -> None:
    hybrids = {f for f in PLAIN if adapter_for(tiny.make_model(f)).recurrent}
    windows = set(tiny.FAMILIES) - set(PLAIN)
    assert len(tiny.FAMILIES) == 45 and len(PLAIN) - len(hybrids) >= 36
    assert hybrids == set(tiny.RECURRENT) and len(windows) == 3
