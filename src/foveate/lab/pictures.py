"""Pictures to show: the three of the demo."""

from __future__ import annotations

from .tasks import Sample, samples

DEMO_FAMILIES = ("form", "bar", "shape")


def demo_pictures(seed: int = 0) -> list[Sample]:
    """A form, a bar chart and a scene of shapes from the test split, each with a question and its
    evidence boxes.
    """
    return [samples(name, "test", 1, seed)[0] for name in DEMO_FAMILIES]
