"""Planted faults of the auditor and of the plug-in for vLLM."""

from __future__ import annotations

from tests.bite.faults import Fault

LOAD = ("tests/audit/test_load.py", "tests/audit/test_load_omission.py")
FIGURES = ("tests/audit/test_figures.py", "tests/audit/test_figures_quality.py")
VERDICT = ("tests/audit/test_verdict.py",)
RECEIPT = ("tests/audit/test_receipt.py",)
JOURNAL = ("tests/audit/test_journal.py", "tests/audit/test_turns.py")
PIXELS = ("tests/serving/vllm/test_vllm_showing.py", "tests/core/test_look.py")
IDENTITY = ("tests/serving/vllm/test_vllm_identity.py",)
LAYOUTS = ("tests/serving/vllm/test_vllm_layouts.py",)
PLUGIN = ("tests/serving/vllm/test_vllm_plan.py", "tests/serving/vllm/test_vllm_positions.py")

AUDIT = (
    Fault(
        "open loop counts from when a request left",
        "audit/figures_load.py",
        'return row.observed.sent_s if row.load.startswith("closed") else row.intended_s',
        "return row.observed.sent_s",
        (*FIGURES, *LOAD),
    ),
    Fault(
        "finished requests are sent again",
        "audit/load.py",
        "if (target.arm, name, block, i) not in done]",
        "if (target.arm, name, i, block) not in done]",
        (*LOAD, *JOURNAL),
    ),
    Fault(
        "a loss counts as a gain",
        "audit/verdict_tests.py",
        'self.estimate - self.bound if self.family == "speed" else self.bound - self.estimate',
        'self.bound - self.estimate if self.family == "speed" else self.estimate - self.bound',
        VERDICT,
    ),
    Fault(
        "blocks of different number are paired",
        "audit/figures_speed.py",
        "both = [(baseline[b], candidate[b]) for b in sorted(set(baseline) & set(candidate))]",
        "both = list(zip(baseline.values(), candidate.values(), strict=False))[::-1][:-1]",
        FIGURES,
    ),
    Fault(
        "an edited figure verifies",
        "audit/verify.py",
        "return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-12)",
        "return math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1.0)",
        RECEIPT,
    ),
    Fault(
        "the rows' own hash is not looked at",
        "audit/verify.py",
        "    if digest(file) != said:",
        "    if not file.is_file():",
        RECEIPT,
    ),
    Fault(
        "survivors' positions count from the sequence's start",
        "serve/vllm/positions.py",
        "torch.where(base >= 0, base + own, out[:, here])",
        "torch.where(base >= 0, own, out[:, here])",
        PLUGIN,
    ),
    Fault(
        "a budget for the request is served image by image",
        "serve/vllm/plan_source.py",
        "    if method.budget.per_request is not None:",
        "    if method.budget is None:",
        PLUGIN,
    ),
    Fault(
        "chosen frames forget when they were",
        "serve/vllm/pixels.py",
        "[int(indices[i]) for i in picks]",
        "list(range(len(picks)))",
        PIXELS,
    ),
    Fault(
        "a tile's placeholders stay",
        "serve/vllm/pixels.py",
        "return [t for t in tokens if t != placeholder or next(stays)]",
        "return [t for t in tokens if t != placeholder or next(stays) or True]",
        PIXELS,
    ),
    Fault(
        "a method may ask for tiles that are not there",
        "core/look.py",
        "picks[-1] >= counts[what]",
        "picks[-1] > counts[what]",
        PIXELS,
    ),
    Fault(
        "a video's words stand before its tokens",
        "serve/vllm/layouts.py",
        "return sorted(kept, key=lambda t: t != placeholder)",
        "return sorted(kept, key=lambda t: t == placeholder)",
        LAYOUTS,
    ),
    Fault(
        "a frame's base is the video's",
        "serve/vllm/positions.py",
        "axis=1) + self.bases[frame][:, None]",
        "axis=1) + self.bases[0]",
        PLUGIN,
    ),
    Fault(
        "a third party's new version answers from the old one's cache",
        "serve/vllm/plan_source.py",
        "*(o for o in origins if o is not None)])",
        "*(o for o in origins if o is None)])",
        IDENTITY,
    ),
)
