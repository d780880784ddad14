"""The pixel stage of a plan without one, and the end of the prefill phase."""

from __future__ import annotations

from typing import Any, ClassVar

from foveate.measure.clock import StageClock


class Unchanged:
    """The pixel stage of a plan without one."""

    changed = False
    dropped: tuple[int, ...] = ()
    call: ClassVar[dict[str, Any]] = {}
    notes: tuple[list[str], ...] = ()

    def before(self, pictures: Any, videos: Any) -> tuple[Any, Any]:
        return pictures, videos

    def after(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs


class FirstLogits:
    """A logits processor that changes nothing: its first call ends the prefill phase."""

    def __init__(self, clock: StageClock) -> None:
        self.clock, self.seen = clock, False

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if not self.seen:
            self.seen = True
            self.clock.stop()
            self.clock.start("decode")
        return scores
