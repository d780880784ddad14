"""The contracts of methods: frozen, validated settings and one call each. The engine owns
everything else.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from foveate.core.budget import Budget, Counts
from foveate.core.errors import SettingError, naming, nearest
from foveate.core.views import (
    BlockView,
    Grid,
    Need,
    PixelPlan,
    Pixels,
    Question,
    Reduction,
    Segment,
)

Stage = Literal["pixels", "tower", "tokens", "prefill", "memory", "decode"]
STAGES: tuple[Stage, ...] = ("pixels", "tower", "tokens", "prefill", "memory", "decode")
Evidence = Literal["golden", "reference", "reconstructed", "control"]
Rng = Callable[[Segment], np.random.Generator]


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. `code_licence` is that of the authors' code ("none" if it has
    none).
    """

    title: str
    authors: str
    year: int
    arxiv: str | None = None
    code_licence: str = "none"


def setting(
    default: Any,
    help: str,
    *,
    low: Any = None,
    high: Any = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field of a method's settings with its inclusive range; shown by CLI, server and docs."""
    meta = {"help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=meta)


def describe_range(meta: Mapping[str, Any]) -> str:
    if meta.get("choices"):
        return "one of " + ", ".join(meta["choices"])
    low, high = meta.get("low"), meta.get("high")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return (
        f"at least {low}" if low is not None else f"at most {high}" if high is not None else "any"
    )


def _plain_types(hint: Any) -> list[type]:
    if get_origin(hint) in (Union, types.UnionType):
        return [t for a in get_args(hint) for t in _plain_types(a)]
    return [hint]


def parse_value(text: Any, hint: Any, where: str) -> Any:
    """Bring a value from text, TOML or JSON to the field's type; SettingError names the field."""
    kinds = _plain_types(hint)
    if text is None or (isinstance(text, str) and text.lower() == "none"):
        if type(None) in kinds:
            return None
        raise SettingError(f"{where} may not be none")
    for kind in kinds:
        try:
            if kind is bool:
                if isinstance(text, bool):
                    return text
                if str(text).lower() in ("true", "false"):
                    return str(text).lower() == "true"
            elif kind is int:
                if isinstance(text, bool):
                    continue
                if isinstance(text, str) or float(text).is_integer():
                    return int(text)
            elif kind is float and not isinstance(text, bool):
                return float(Fraction(text) if isinstance(text, str) and "/" in text else text)
            elif kind is Fraction and not isinstance(text, bool):
                return Fraction(str(text) if isinstance(text, float) else text)
            elif kind is str:
                return str(text)
        except (ValueError, TypeError, ZeroDivisionError, OverflowError):
            continue
    names = " or ".join(k.__name__ for k in kinds if k is not type(None))
    raise SettingError(f"{where} = {text!r} is not of type {names}")


@dataclass(frozen=True)
class Method:
    """Base of every method: a frozen dataclass whose fields are its settings.

    Subclasses set the class attributes and register with `foveate.core.registry.register`.
    `counts`: "image" (kept tokens follow from grid and budget alone), "request" (only the sum over
    the
    request does) or "adaptive" (neither).
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    summary: ClassVar[str]
    paper: ClassVar[Paper | None] = None
    evidence: ClassVar[Evidence] = "reference"
    needs: ClassVar[frozenset[Need]] = frozenset()
    counts: ClassVar[Literal["image", "request", "adaptive"]] = "image"
    video_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in dataclasses.fields(self):
            where = f"{self.name}: {f.name}"
            value = parse_value(getattr(self, f.name), hints[f.name], where)
            object.__setattr__(self, f.name, value)
            if value is None:
                continue
            if isinstance(value, float) and not np.isfinite(value):
                raise SettingError(f"{where} = {value} must be finite")
            low, high, choices = (f.metadata.get(k) for k in ("low", "high", "choices"))
            bad = (low is not None and value < low) or (high is not None and value > high)
            if bad or (choices and value not in choices):
                raise SettingError(
                    f"{where} = {value} is out of range: {describe_range(f.metadata)}"
                )

    @classmethod
    def from_settings(cls, values: Mapping[str, Any]) -> Any:
        """Build from untrusted settings; an unknown field names its nearest neighbours."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise SettingError(f"{cls.name} has no setting {key!r}; {nearest(key, known)}")
        return cls(**values)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that differ from their defaults, in field order."""
        out = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if f.default is dataclasses.MISSING or value != f.default:
                out[f.name] = value
        return out

    def count(self, grid: Grid, k: int) -> int:
        """Tokens kept of an image of this grid when the budget says k; a method may state a floor."""
        return k

    def modules(self, facts: Any) -> Any | None:
        """Trained weights the method brings, or None. Torch is imported inside."""
        return None


@dataclass(frozen=True)
class Budgeted(Method):
    """A method with a budget: exactly one of keep, per_image, per_request."""

    keep: Fraction | None = setting(
        None, "share of each image's visual tokens that is kept, 0 < keep <= 1"
    )
    per_image: int | None = setting(None, "visual tokens kept of each image", low=1)
    per_request: int | None = setting(None, "visual tokens kept of all images together", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        with naming(self.name):
            _ = self.budget

    @property
    def budget(self) -> Budget:
        return Budget(self.keep, self.per_image, self.per_request)


@dataclass(frozen=True)
class PixelMethod(Method):
    """Decides what is looked at: resolution, tiles, patches, frames."""

    stage: ClassVar[Stage] = "pixels"
    # What its plans set; the engine refuses a family that cannot follow before anything is
    # computed.
    acts: ClassVar[Literal["size", "tiles", "frames", "patches"]] = "size"

    def reduce(
        self, pixels: list[Pixels], rng: Callable[[Pixels], np.random.Generator]
    ) -> list[PixelPlan]:
        """One plan for each picture or video of a request."""
        raise NotImplementedError(f"{type(self).__name__} must define reduce()")


@dataclass(frozen=True)
class TowerMethod(Method):
    """Merges tokens inside the vision encoder. `proportional`: attention adds log(size) to its
    logits.
    """

    stage: ClassVar[Stage] = "tower"
    proportional: ClassVar[bool] = True

    def reads(self, layer: int, layers: int) -> frozenset[str]:
        """What block() wants to see before block `layer`: of "keys", "saliency"; empty = it is not
        asked.
        """
        return frozenset({"keys"})

    def block(self, layer: int, layers: int, view: BlockView) -> Reduction | None:
        """A partition of the m tokens present at this block, or None to leave them; the engine
        composes.
        """
        raise NotImplementedError(f"{type(self).__name__} must define block()")


@dataclass(frozen=True)
class TokenMethod(Budgeted):
    """Chooses which visual tokens enter the language model, picked or merged."""

    stage: ClassVar[Stage] = "tokens"

    def select(
        self,
        segments: list[Segment],
        counts: Counts,
        question: Question | None,
        rng: Rng,
    ) -> list[Reduction]:
        """One Reduction for each segment of one request; `counts.per_segment` is aligned with
        `segments`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define select()")
