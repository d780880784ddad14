"""Where in the model a prefill method acts, and how many tokens it leaves: shared by schedules.

A place is a layer number (1, 2, …) or, below 1, a share of the model's depth, so that one setting
serves models of any number of layers. Several places or shares stand in one setting, with spaces.
"""

from __future__ import annotations

from fractions import Fraction

from foveate.core.budget import Budget, image_count
from foveate.core.errors import SettingError


def fractions(text: str, where: str) -> tuple[Fraction, ...]:
    """Numbers of a setting such as "1/4 1/2 3/4"; SettingError names the field."""
    try:
        found = tuple(Fraction(word) for word in text.split())
    except (ValueError, ZeroDivisionError):
        found = ()
    if not found:
        raise SettingError(f"{where} = {text!r} is no list of numbers such as '1/4 1/2 3/4'")
    return found


def check_places(places: tuple[Fraction, ...], where: str) -> None:
    """SettingError unless places ascend, are above 0 and are layers or shares, not a mixture."""
    for place in places:
        if place <= 0 or (place > 1 and place.denominator != 1):
            raise SettingError(
                f"{where} = {place} is out of range: a layer from 1 on, or a share of the depth "
                "between 0 and 1"
            )
    if len({place < 1 for place in places}) > 1:
        raise SettingError(f"{where} mixes layers and shares of the depth; give one kind")
    if any(b <= a for a, b in zip(places, places[1:], strict=False)):
        raise SettingError(f"{where} must ascend; got {' '.join(map(str, places))}")


def check_shares(shares: tuple[Fraction, ...], steps: int, where: str) -> None:
    """SettingError unless there is one share a step, in (0, 1], and none grows."""
    if len(shares) != steps:
        raise SettingError(f"{where} has {len(shares)} numbers for {steps} layers; give one each")
    last = Fraction(1)
    for share in shares:
        if not 0 < share <= 1:
            raise SettingError(f"{where} = {share} is out of range: above 0, at most 1")
        if share > last:
            raise SettingError(
                f"{where} grows from {last} to {share}; dropped tokens cannot return"
            )
        last = share


def layers_of(places: tuple[Fraction, ...], count: int, where: str) -> tuple[int, ...]:
    """Layers of ascending places in a model with `count` layers.

    A share is rounded to the nearest layer, at least 1; where two fall on one layer, the later
    moves on. SettingError for a layer outside the model.
    """
    found: list[int] = []
    for place in places:
        if place < 1:
            layer = max((place * count + Fraction(1, 2)).__floor__(), found[-1] + 1 if found else 1)
        else:
            layer = int(place)
        if layer >= count:
            raise SettingError(
                f"{where} = {place} is outside the model, whose layers are 0 to {count - 1}"
            )
        found.append(layer)
    return tuple(found)


def count_of(share: Fraction, entered: int) -> int:
    """Tokens that a share of the `entered` ones is: rounded half up, at least one; 0 for share 0."""
    return image_count(Budget(keep=share), entered) if share else 0
