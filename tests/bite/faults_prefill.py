"""Planted faults of the prefill stage that are told apart by positions alone."""

from __future__ import annotations

from tests.bite.faults import Fault

REFERENCE = ("tests/prefill/test_prefill_reference.py",)
POSITIONS = ("tests/prefill/test_prefill_positions.py",)

PREFILL = (
    Fault(
        "version 2 of SparseVLM does not divide by positions",
        "prefill/sparsevlm.py",
        "if self.debias is not False:",
        "if self.debias:",
        REFERENCE,
    ),
    Fault(
        "words before a picture rate it",
        "prefill/sparsevlm.py",
        "words = words[words > visual[-1]]",
        "words = words[words >= 0]",
        REFERENCE,
    ),
    Fault(
        "the row of ones is of the layer behind",
        "engine/language_run.py",
        'layer = module if source == "next" else self.layers[index - 1]',
        'layer = module if source == "next" else self.layers[index]',
        POSITIONS,
    ),
    Fault(
        "later layers read keys of ones",
        "engine/language_view.py",
        "copy.copy(v) if isinstance(v, MutableMapping) else v",
        "v",
        POSITIONS,
    ),
    Fault(
        "weights of norms count in the row of ones",
        "engine/language_view.py",
        'if hasattr(child, "out_features") or any(True for _ in child.parameters()):',
        'if hasattr(child, "out_features"):',
        POSITIONS,
    ),
)
