"""A picture under construction, with the dense labels that only training sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .looks import Look, glyph, ground, shape_mask
from .words import BOX_CELLS, COLOUR_LABELS, GLYPHS, SHAPE_LABELS, SIDE

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie outside."""

Item = TypeVar("Item")
MAX_SLOT = 7


class Layer(IntEnum):
    """Planes of the dense label map; 0 in a plane means nothing of that kind is drawn there."""

    GLYPH = 0
    SLOT = 1
    SHAPE = 2
    COLOUR = 3
    WORD = 4
    HEAD = 5
    LEFT = 6
    TOP = 7
    RIGHT = 8
    BOTTOM = 9


EDGES = (Layer.LEFT, Layer.TOP, Layer.RIGHT, Layer.BOTTOM)
"""Where the thing under a pixel ends, in cells plus one: what a box is read from."""


def cells(box: Box) -> tuple[int, int, int, int]:
    """A box in pixels as cells of the answer, rounded."""
    left, top, right, bottom = (int(edge * BOX_CELLS / SIDE + 0.5) for edge in box)
    return left, top, right, bottom


@dataclass(frozen=True)
class Thing:
    """A shape that stands in a scene."""

    shape: str
    colour: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Ask:
    """A question about a scene with its exact answer and the boxes a reader must see to know it."""

    family: str
    question: str
    answer: str
    boxes: tuple[Box, ...]
    box_images: tuple[int, ...] = ()
    metric: str = "exact"

    @property
    def pictures(self) -> tuple[int, ...]:
        """The picture each box lies in; without `box_images` all lie in the first."""
        return self.box_images or (0,) * len(self.boxes)


@dataclass
class Scene:
    """A finished drawing: its canvas, everything that may be asked, and what CLS should know about
    it. Several pictures are `parts`, each a scene of its own; `canvas` is then that of the first.
    """

    kind: str
    canvas: Canvas
    asks: list[Ask]
    things: list[Thing] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    parts: list[Scene] = field(default_factory=list)

    def pages(self) -> list[Scene]:
        """The scene of each picture, in order."""
        return self.parts or [self]


def pick(rng: np.random.Generator, items: tuple[Item, ...] | list[Item]) -> Item:
    """One item, each with the same chance."""
    return items[int(rng.integers(len(items)))]


class Canvas:
    """Pixels (side, side, 3) and labels (layers, side, side) that are drawn on together."""

    def __init__(
        self, rng: np.random.Generator, look: Look, pixels: NDArray[np.float32] | None = None
    ) -> None:
        self.rng = rng
        self.look = look
        self.pixels = ground(rng, look) if pixels is None else pixels
        self.labels: NDArray[np.uint8] = np.zeros((len(Layer), SIDE, SIDE), np.uint8)
        self.taken: list[Box] = []

    def ink(self) -> NDArray[np.float32]:
        """A dark colour for text."""
        return self.rng.uniform(0, 75, 3).astype(np.float32)

    def paint(self, colour: str) -> NDArray[np.float32]:
        """RGB of a named colour under this look, jittered."""
        base = pick(self.rng, self.look.colours[colour])
        spread = self.rng.integers(-self.look.jitter, self.look.jitter + 1, 3)
        return np.clip(np.asarray(base) + spread, 0, 255).astype(np.float32)

    def room(self, width: int, height: int, gap: int = 2, tries: int = 60) -> Box | None:
        """A free box of that size, now taken; None if none was found."""
        for _ in range(tries):
            x = int(self.rng.integers(1, SIDE - width))
            y = int(self.rng.integers(1, SIDE - height))
            if all(
                x + width + gap <= left
                or right + gap <= x
                or y + height + gap <= top
                or bottom + gap <= y
                for left, top, right, bottom in self.taken
            ):
                box = (x, y, x + width, y + height)
                self.taken.append(box)
                return box
        return None

    def blend(self, alpha: NDArray[np.float32], x: int, y: int, rgb: NDArray[np.float32]) -> None:
        """Lay a colour over the pixels through an alpha mask; (x, y) is its upper left."""
        height, width = min(alpha.shape[0], SIDE - y), min(alpha.shape[1], SIDE - x)
        if height <= 0 or width <= 0:
            return
        part = self.pixels[y : y + height, x : x + width]
        part += alpha[:height, :width, None] * (rgb - part)

    def mark(self, layer: Layer, box: Box, value: int) -> None:
        """Write a label into a box."""
        left, top, right, bottom = box
        self.labels[layer, max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = value

    def write(
        self,
        text: str,
        x: int,
        y: int,
        font: str,
        size: int,
        rgb: NDArray[np.float32],
        slots: bool = True,
    ) -> Box:
        """One line of text; labels each character and, with `slots`, its place in the line. Returns
        its box.
        """
        start, top, bottom = x, y + int(size * 0.1), y + int(size * 1.1)
        for place, char in enumerate(text):
            alpha, advance = glyph(font, size, char)
            self.blend(alpha, x, y, rgb)
            box = (x, top, x + advance, bottom)
            self.mark(Layer.GLYPH, box, GLYPHS.index(char) + 1)
            if slots:
                self.mark(Layer.SLOT, box, min(place + 1, MAX_SLOT))
            x += advance
        return (start, top, min(x, SIDE), min(bottom, SIDE))

    def stand(
        self, shape: str, colour: str, box: Box, rgb: NDArray[np.float32] | None = None
    ) -> Thing:
        """Draw a shape into a square box, in `rgb` or a new shade of the colour."""
        left, top, right, _ = box
        shade = self.paint(colour) if rgb is None else rgb
        self.blend(shape_mask(shape, right - left), left, top, shade)
        self.name(shape, colour, box)
        return Thing(shape, colour, box)

    def name(self, shape: str | None, colour: str | None, box: Box) -> None:
        """Label a box with what stands in it and where it ends; None leaves a property out."""
        if shape is not None:
            self.mark(Layer.SHAPE, box, SHAPE_LABELS.index(shape) + 1)
        if colour is not None:
            self.mark(Layer.COLOUR, box, COLOUR_LABELS.index(colour) + 1)
        for layer, edge in zip(EDGES, cells(box), strict=True):
            self.mark(layer, box, edge + 1)

    def image(self) -> NDArray[np.uint8]:
        """The finished picture, (side, side, 3), with a little sensor noise."""
        sigma = self.rng.uniform(0, 4)
        noise = self.rng.standard_normal((SIDE, SIDE, 1), np.float32) * np.float32(sigma)
        done: NDArray[np.uint8] = np.clip(self.pixels + noise, 0, 255).astype(np.uint8)
        return done

    def picture(self) -> Image.Image:
        """The finished picture as a PIL image, mode RGB."""
        return Image.fromarray(self.image(), "RGB")
