"""Pictures to show: the three of the demo, and sheets of samples for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .looks import PILLOW_FONT, font
from .tasks import Sample, samples

DEMO_FAMILIES = ("form", "bar", "shape")


def demo_pictures(seed: int = 0) -> list[Sample]:
    """A form, a bar chart and a scene of shapes from the test split, each with a question and its
    evidence boxes.
    """
    return [samples(name, "test", 1, seed)[0] for name in DEMO_FAMILIES]


def sheet(rows: Sequence[Sequence[Sample]], zoom: int = 2, boxes: bool = True) -> Image.Image:
    """Samples in rows, enlarged, with question and answer below and evidence boxes drawn in."""
    side = max(sample.image.width for row in rows for sample in row) * zoom
    label = 26
    page = Image.new(
        "RGB", (side * max(len(row) for row in rows), (side + label) * len(rows)), "white"
    )
    draw = ImageDraw.Draw(page)
    for y, row in enumerate(rows):
        for x, sample in enumerate(row):
            corner = (x * side, y * (side + label))
            page.paste(sample.image.resize((side, side), Image.Resampling.NEAREST), corner)
            for left, top, right, bottom in sample.boxes if boxes else ():
                spot = [
                    corner[0] + left * zoom,
                    corner[1] + top * zoom,
                    corner[0] + right * zoom,
                    corner[1] + bottom * zoom,
                ]
                draw.rectangle(spot, outline=(255, 0, 255))
            text = f"{sample.question}\n{sample.answer}"
            draw.multiline_text(
                (corner[0] + 2, corner[1] + side),
                text,
                fill="black",
                font=font(PILLOW_FONT, 11),
                spacing=1,
            )
    return page
