"""What methods share that follow a `Schedule`: where they act, and the drop by attention.

Between two layers of equal keep ratio nothing is done, so tokens are gathered only where the
schedule falls.
"""

from __future__ import annotations

from fractions import Fraction

from foveate.core.errors import SettingError
from foveate.core.language import LayerView, Route
from foveate.core.schedule import Schedule
from foveate.prefill import _stairs
from foveate.prefill._scores import best, last_token


def falls(schedule: Schedule, method: str) -> tuple[int, ...]:
    """Layers at which a schedule keeps less than at the layer before.

    Errors: SettingError if it falls at layer 0, before which no layer has ranked the tokens.
    """
    if schedule.keep and schedule.keep[0] < 1:
        raise SettingError(
            f"{method}: layer 0 keeps {schedule.keep[0]}, but no layer before it ranks the tokens; "
            "keep all there, or drop tokens before the language model with a tokens method"
        )
    pairs = zip(schedule.keep, schedule.keep[1:], strict=False)
    return tuple(i + 1 for i, (before, after) in enumerate(pairs) if after < before)


def follow(schedule: Schedule, layer: int, view: LayerView) -> Route:
    """Keep what the schedule says at a layer, ranked by the last token's attention before it."""
    share: Fraction = schedule.keep[layer]
    k = min(_stairs.count_of(share, view.entered), len(view.visual))
    return Route(keep=best(last_token(view, "previous"), k))
