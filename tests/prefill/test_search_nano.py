"""G-Search on the bundled model with a handful of questions."""

from __future__ import annotations

from fractions import Fraction

from foveate.core import Plan
from foveate.core.schedule import Schedule
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import demo_pictures, nano_path
from foveate.prefill import g_search
from foveate.prefill.schedule import ScheduleDrop


def test_a_schedule_that_keeps_the_answers_of_lab_nano() -> None:
    engine = Engine.from_pretrained(nano_path())
    requests = [Request(images=[d.image], question=d.question) for d in demo_pictures()][:4]
    dense = [a.text for a in engine.generate(requests, "none", max_new_tokens=8)]

    def agreement(schedule: Schedule) -> float:
        plan = Plan((ScheduleDrop.of(schedule),))
        texts = [a.text for a in engine.generate(requests, plan, max_new_tokens=8)]
        return sum(a == b for a, b in zip(texts, dense, strict=True)) / len(dense)

    quarters = [Fraction(i, 4) for i in range(1, 5)]
    found = g_search(agreement, 6, tolerance=0.0, at=(2, 4), ratios=quarters)
    assert found.dense == found.score == 1.0
    assert found.schedule.mean_keep < 1, "nothing was saved"
    assert found.calls <= 5
    report = engine.generate(requests[:1], Plan((ScheduleDrop.of(found.schedule),)))[0].report
    assert report is not None and report.layers == found.schedule.counts(196)
