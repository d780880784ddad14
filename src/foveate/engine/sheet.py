"""Sheets: pictures in rows with readable labels, and the pictures of an answer."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from foveate.core.errors import UnsupportedError
from foveate.engine.draw import PAPER, field_of_view, fit, kept_frames, kept_picture
from foveate.engine.request import Answer

INK, SOFT = (28, 30, 36), (104, 106, 114)
_MARGIN, _GAP = 28, 24
_TITLE, _TEXT = 18, 15
SMALLEST = 280  # a panel is never narrower, so that its labels can be read

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet with its title and the lines below it."""

    image: Image.Image
    title: str
    lines: tuple[str, ...] = ()


def answer_pictures(
    answer: Answer,
    image_processor: Any,
    videos: Sequence[Sequence[Image.Image]] = (),
) -> list[Image.Image]:
    """The kept-patch picture of each picture, then of each video (`videos`: its frames), of an
    answer.

    UnsupportedError where a family's tokens have no place in the picture.
    """
    out = []
    for i, picture in enumerate(answer.pictures):
        mine = [s for s in answer.kept if s.image == i]
        out.append(kept_picture(picture, mine, field_of_view(image_processor, picture.size)))
    later = sorted({s.image for s in answer.kept if s.image >= len(answer.pictures)})
    for frames, numbers in zip(videos, _shared(later, videos), strict=True):
        out.append(kept_frames(frames, [s for s in answer.kept if s.image in numbers]))
    return out


def _shared(numbers: Sequence[int], videos: Sequence[Sequence[Image.Image]]) -> list[list[int]]:
    """Picture numbers of each video: one each, or one a frame in families that read frames as pictures."""
    if len(numbers) == len(videos):
        return [[n] for n in numbers]
    if len(videos) == 1:
        return [list(numbers)]
    if len(numbers) != sum(map(len, videos)):
        raise UnsupportedError(
            f"{len(numbers)} runs of tokens cannot be told apart among {len(videos)} videos; draw one "
            "video at a time"
        )
    left = iter(numbers)
    return [[next(left) for _ in frames] for frames in videos]


def sheet(rows: Sequence[Sequence[Panel]], heading: str = "", note: str = "") -> Image.Image:
    """Panels in rows of equal columns, each picture above its title and lines, on one page."""
    side = max((max(fit(p.image, 1, 560).size) for row in rows for p in row), default=SMALLEST)
    side = max(SMALLEST, side)
    pictures = [[_sized(p.image, side) for p in row] for row in rows]
    columns = max(len(row) for row in rows)
    widths = [
        max([SMALLEST, *(row[c].width for row in pictures if c < len(row))]) for c in range(columns)
    ]
    texts = [[_wrapped(p, widths[c]) for c, p in enumerate(row)] for row in rows]
    heights = [
        max(p.height + _text_height(t) for p, t in zip(row, words, strict=True))
        for row, words in zip(pictures, texts, strict=True)
    ]
    width = 2 * _MARGIN + sum(widths) + _GAP * (columns - 1)
    head = _wrap(heading, _font(24), width - 2 * _MARGIN) if heading else []
    foot = _wrap(note, _font(_TEXT), width - 2 * _MARGIN) if note else []
    top = _MARGIN + (len(head) * 32 + 12 if head else 0)
    height = top + sum(heights) + _GAP * (len(rows) - 1) + _MARGIN
    height += len(foot) * 21 + 10 if foot else 0
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(head):
        draw.text((_MARGIN, _MARGIN + i * 32 - 6), line, INK, font=_font(24))
    for row, row_texts, tall in zip(pictures, texts, heights, strict=True):
        left = _MARGIN
        for picture, (title, lines), wide in zip(row, row_texts, widths, strict=False):
            page.paste(picture, (left, top))
            y = top + picture.height + 10
            for line in title:
                draw.text((left, y), line, INK, font=_font(_TITLE))
                y += 25
            for line in lines:
                draw.text((left, y), line, SOFT, font=_font(_TEXT))
                y += 21
            left += wide + _GAP
        top += tall + _GAP
    for i, line in enumerate(foot):
        y = height - _MARGIN - (len(foot) - i) * 21 + 8
        draw.text((_MARGIN, y), line, SOFT, font=_font(_TEXT))
    return page


def refused_panel(image: Image.Image, title: str, reason: str) -> Panel:
    """A panel for a plan that this model cannot serve: the picture, greyed out, and the reason."""
    grey = fit(image).convert("L").convert("RGB")
    return Panel(Image.blend(grey, Image.new("RGB", grey.size, PAPER), 0.7), title, (reason,))


def _sized(image: Image.Image, side: int) -> Image.Image:
    """Whole multiples for small pictures keep patch borders sharp; others are scaled smoothly."""
    longest = max(image.size)
    if longest > side:
        return fit(image, 1, side)
    times = side // longest
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def _wrapped(panel: Panel, width: int) -> tuple[list[str], list[str]]:
    title = _wrap(panel.title, _font(_TITLE), width)
    lines = [part for line in panel.lines for part in _wrap(line, _font(_TEXT), width)]
    return title, lines


def _text_height(text: tuple[list[str], list[str]]) -> int:
    return 10 + 25 * len(text[0]) + 21 * len(text[1])


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Lines no wider than `width` pixels; a word that is too long is broken."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            joined = f"{line} {word}" if line else word
            if font.getlength(joined) <= width:
                line = joined
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width:
                cut = len(word) - 1
                while cut > 1 and font.getlength(word[:cut]) > width:
                    cut -= 1
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        if line:
            lines.append(line)
    return lines


@functools.cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)
