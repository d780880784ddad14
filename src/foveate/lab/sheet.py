"""A sheet of samples for a person to look at: pictures with evidence boxes, question and answer."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .evaluate import cells
from .looks import PILLOW_FONT, font
from .seen import boxes_of
from .tasks import Sample, samples

LARGEST, ACROSS, WIDEST = 224, 8, 1800
"""Longest side of an enlarged picture and width of a page in pixels; pictures of a sample in a row."""

MARGIN, GAP, BETWEEN = 24, 20, 6
HEAD, LINE = 30, 20
PAPER, INK, SOFT, EVIDENCE = (250, 249, 246), (28, 30, 36), (104, 106, 114), (255, 0, 200)


def sheet(
    families: Sequence[str] | None = None,
    n: int = 4,
    split: str = "test",
    seed: int = 0,
    levels: Sequence[int] = (0,),
) -> Image.Image:
    """n samples of each family and level, in rows; several pictures of a sample stand together.

    Evidence boxes are outlined; below stand question and answer. Errors: those of
    `foveate.lab.evaluate.cells`.
    """
    lines: list[tuple[str, list[Image.Image]]] = []
    for cell in cells(families, n, split, seed, levels):
        title = f"{cell.title}  ({cell.group}, {split})"
        for row in _rows([_panel(s) for s in samples(cell.family, split, n, seed, cell.level)]):
            lines.append((title, row))
            title = ""
    width = max(sum(p.width + GAP for p in row) - GAP for _, row in lines) + 2 * MARGIN
    heights = [max(p.height for p in row) + GAP + (HEAD if title else 0) for title, row in lines]
    page = Image.new("RGB", (width, sum(heights) + 2 * MARGIN - GAP), PAPER)
    pen = ImageDraw.Draw(page)
    top = MARGIN
    for (title, row), height in zip(lines, heights, strict=True):
        if title:
            pen.text((MARGIN, top), title, INK, font=font(PILLOW_FONT, 18))
        left = MARGIN
        for panel in row:
            page.paste(panel, (left, top + (HEAD if title else 0)))
            left += panel.width + GAP
        top += height
    return page


def picture(sample: Sample) -> Image.Image:
    """A sample's pictures in rows, evidence boxes outlined. Up to four are enlarged in whole steps."""
    few = len(sample.images) <= ACROSS // 2
    shown = []
    for number, image in enumerate(sample.images):
        times = max(1, LARGEST // max(image.size)) if few else 1
        size = (image.width * times, image.height * times)
        large = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
        pen = ImageDraw.Draw(large)
        for box in boxes_of(sample, number):
            left, top, right, bottom = (edge * times for edge in box)
            # One pixel around the box, so that what is in it can be seen.
            pen.rectangle((left - 1, top - 1, right, bottom), outline=EVIDENCE)
        shown.append(large)
    wide, tall = max(p.width for p in shown) + BETWEEN, max(p.height for p in shown) + BETWEEN
    columns = min(ACROSS, len(shown))
    size = (columns * wide - BETWEEN, -(-len(shown) // columns) * tall - BETWEEN)
    page = Image.new("RGB", size, PAPER)
    for at, large in enumerate(shown):
        page.paste(large, (at % columns * wide, at // columns * tall))
    return page


def _panel(sample: Sample) -> Image.Image:
    """A sample's pictures with question and answer below."""
    shown = picture(sample)
    words = [(line, SOFT) for line in _wrapped(sample.question, shown.width)]
    words += [(line, INK) for line in _wrapped(sample.answer, shown.width)]
    page = Image.new("RGB", (shown.width, shown.height + 8 + LINE * len(words)), PAPER)
    page.paste(shown, (0, 0))
    pen = ImageDraw.Draw(page)
    for at, (text, colour) in enumerate(words):
        pen.text((0, shown.height + 8 + at * LINE), text, colour, font=font(PILLOW_FONT, 15))
    return page


def _rows(panels: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """Panels in rows that are no wider than a page."""
    rows: list[list[Image.Image]] = [[]]
    for panel in panels:
        if rows[-1] and sum(p.width + GAP for p in rows[-1]) + panel.width > WIDEST:
            rows.append([])
        rows[-1].append(panel)
    return rows


def _wrapped(text: str, width: int) -> list[str]:
    face = font(PILLOW_FONT, 15)
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if lines[-1] and face.getlength(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines
