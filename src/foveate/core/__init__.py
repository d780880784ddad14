"""The words of Foveate as types. No model code, no transformers, no torch."""

from foveate.core.budget import Budget, Counts, largest_remainder, resolve
from foveate.core.method import (
    Budgeted,
    Method,
    Paper,
    PixelMethod,
    TokenMethod,
    TowerMethod,
    setting,
)
from foveate.core.plan import Plan
from foveate.core.registry import build, methods, register
from foveate.core.report import Report, SegmentReport
from foveate.core.rng import PlanRng
from foveate.core.schedule import Schedule
from foveate.core.views import (
    Attention,
    BlockView,
    Box,
    EncoderView,
    Need,
    PixelPlan,
    Pixels,
    Question,
    Reduction,
    Segment,
)

__all__ = [
    "Attention",
    "BlockView",
    "Box",
    "Budget",
    "Budgeted",
    "Counts",
    "EncoderView",
    "Method",
    "Need",
    "Paper",
    "PixelMethod",
    "PixelPlan",
    "Pixels",
    "Plan",
    "PlanRng",
    "Question",
    "Reduction",
    "Report",
    "Schedule",
    "Segment",
    "SegmentReport",
    "TokenMethod",
    "TowerMethod",
    "build",
    "largest_remainder",
    "methods",
    "register",
    "resolve",
    "setting",
]
