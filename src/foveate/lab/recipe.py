"""The recipe of a training run: a frozen, validated value read from TOML."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from foveate.core.errors import SettingError, nearest

from .words import KINDS

PACKAGED = Path(__file__).parent / "recipe.toml"
"""The recipe that made lab-nano."""


def _number(low: float, high: float, default: Any = MISSING) -> Any:
    meta = {"low": low, "high": high}
    return field(metadata=meta) if default is MISSING else field(default=default, metadata=meta)


class _Checked:
    """Range check shared by the parts of a recipe."""

    def __post_init__(self) -> None:
        for spec in fields(self):  # type: ignore[arg-type]
            if "low" not in spec.metadata:
                continue
            value, low, high = getattr(self, spec.name), spec.metadata["low"], spec.metadata["high"]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if (
                not number
                or (spec.type == "int" and not isinstance(value, int))
                or not low <= value <= high
            ):
                raise SettingError(
                    f"recipe field {spec.name} is {value!r}; it must lie in {low} to {high}"
                )


@dataclass(frozen=True)
class Geometry(_Checked):
    """Sizes of the vision tower and the language model."""

    patch: int = _number(4, 28, 8)
    vision_width: int = _number(32, 512, 128)
    vision_layers: int = _number(1, 24, 4)
    vision_ff: int = _number(32, 4096, 384)
    vision_heads: int = _number(1, 16, 4)
    text_width: int = _number(32, 512, 192)
    text_layers: int = _number(1, 24, 6)
    text_ff: int = _number(32, 4096, 512)
    text_heads: int = _number(1, 16, 6)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vision_width % (4 * self.vision_heads) or self.text_width % (2 * self.text_heads):
            raise SettingError(
                f"recipe fields vision_width {self.vision_width} and text_width {self.text_width} "
                f"must be multiples of 4 vision_heads = {4 * self.vision_heads} and "
                f"2 text_heads = {2 * self.text_heads}"
            )


@dataclass(frozen=True)
class Stage(_Checked):
    """One stage. It ends after `steps` steps when that is above 0, and after `seconds` of wall
    clock when that is.

    The learning rate and every fading follow the share of `steps` done, or of `seconds` when steps
    is 0. Only a stage with `steps` can be repeated bit by bit; one with `seconds` fits a time
    budget.
    """

    name: str
    mix: dict[str, float]
    seconds: float = _number(0, 1e7, 0.0)
    steps: int = _number(0, 10**9, 0)
    batch: int = _number(1, 4096, 8)
    lr: float = _number(1e-7, 1.0, 1e-3)
    final: float = _number(0.0, 1.0, 0.02)
    warm_steps: int = _number(1, 10**6, 40)
    decay: float = _number(0.0, 1.0, 0.02)
    embedding_lr: float = _number(0.0, 1.0, 0.15)
    answers: float = _number(0.0, 10.0, 1.0)
    dense: float = _number(0.0, 10.0, 0.5)
    dense_end: float = _number(0.0, 10.0, 0.5)
    aligned: float = _number(0.0, 10.0, 0.5)
    questions: int = _number(1, 16, 8)
    patches: int = _number(0, 10**4, 0)
    easy: float = _number(0.0, 1.0, 0.34)

    def __post_init__(self) -> None:
        super().__post_init__()
        for kind, share in self.mix.items():
            if kind not in KINDS:
                raise SettingError(
                    f"recipe field mix has unknown kind {kind!r}: {nearest(kind, KINDS)}"
                )
            if not 0 <= share <= 1:
                raise SettingError(f"recipe field mix.{kind} is {share!r}; it must lie in 0 to 1")
        if not self.mix or sum(self.mix.values()) <= 0:
            raise SettingError(
                "recipe field mix is empty; name at least one kind of picture with a share above 0"
            )
        if self.answers > 0 and self.mix.get("page", 0) > 0:
            raise SettingError(
                "recipe field mix.page must be 0 where answers is above 0: pages have no questions"
            )
        if self.seconds <= 0 and self.steps <= 0:
            raise SettingError(f"recipe stage {self.name} has neither steps nor seconds above 0")


@dataclass(frozen=True)
class Recipe(_Checked):
    """A whole run: seed, geometry, stages, and how often it saves and measures itself (seconds of
    wall clock).
    """

    model: Geometry
    stages: tuple[Stage, ...]
    seed: int = _number(0, 2**31 - 1, 1)
    threads: int = _number(1, 1024, 1)
    save_every: float = _number(0.0, 1e7, 60.0)
    measure_every: float = _number(0.0, 1e7, 300.0)
    measure_pictures: int = _number(1, 10**5, 32)
    bfloat16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.bfloat16, bool):
            raise SettingError(
                f"recipe field bfloat16 is {self.bfloat16!r}; it must be true or false"
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values, for checkpoints and the model card."""
        return asdict(self)


def _build(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    names = [spec.name for spec in fields(kind)]
    for name in values:
        if name not in names:
            raise SettingError(f"recipe {where} has unknown field {name!r}: {nearest(name, names)}")
    absent = [s.name for s in fields(kind) if s.default is MISSING and s.name not in values]
    if absent:
        raise SettingError(f"recipe {where} lacks {', '.join(absent)}")
    return kind(**values)


def from_dict(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values. Errors: SettingError naming field, value and range."""
    rest = dict(values)
    geometry = _build(Geometry, rest.pop("model", {}), "[model]")
    stages = tuple(_build(Stage, stage, "[[stages]]") for stage in rest.pop("stages", ()))
    if not stages:
        raise SettingError("recipe has no [[stages]]")
    recipe: Recipe = _build(Recipe, {**rest, "model": geometry, "stages": stages}, "top level")
    return recipe


def load(file: Path = PACKAGED) -> Recipe:
    """Read a recipe file (TOML). Errors: SettingError for a file that is missing, no TOML, or out
    of range.
    """
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingError(f"recipe file {file} cannot be read: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"recipe file {file} is no TOML: {error}") from error
    return from_dict(values)
