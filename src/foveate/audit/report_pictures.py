"""Pictures of the report's examples: as they were sent, and with the patches that a plan keeps.

The rows do not hold which tokens were kept, so our engine answers the few questions that are shown
once more, one by one. A picture that cannot be made is replaced by the reason.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.audit.metrics import agree
from foveate.audit.records import Item
from foveate.audit.report_data import Audit
from foveate.audit.report_examples import Example
from foveate.audit.report_html import clean
from foveate.core.errors import FoveateError

if TYPE_CHECKING:
    from PIL.Image import Image

    from foveate.audit.workload import Workload
    from foveate.engine.engine import Engine
    from foveate.engine.request import Answer

SIDE = 448  # longest side of an embedded picture in pixels
LAB_NANO = "lab-nano"


@dataclass(frozen=True)
class Shown:
    """A picture as a data address, or why there is none; note: a remark for below it."""

    address: str = ""
    reason: str = ""
    note: str = ""


def reloaded(receipt: Mapping[str, Any]) -> tuple[Workload | None, str]:
    """The workload of a receipt from where its spec says, or None and the reason."""
    from foveate.audit.workload import load_workload

    spec = receipt.get("spec") or {}
    options = {k: spec[k] for k in ("limit", "seed", "metric", "max_new_tokens") if k in spec}
    try:
        found = load_workload(str(spec.get("workload")), **options)
    except FoveateError as error:
        return None, f"the workload cannot be loaded again ({error})"
    if found.hash != (receipt.get("workload") or {}).get("hash"):
        return None, "the workload is not what it was; its hash differs from the receipt's"
    return found, ""


def originals(chosen: Sequence[Example], items: Mapping[str, Item]) -> dict[str, Shown]:
    """The pictures of each question as they were sent, by item."""
    from foveate.engine.draw import beside, fit
    from foveate.models.media import load_image

    out = {}
    for example in chosen:
        item = items.get(example.item)
        if (reason := mismatch(example, item)) or item is None:
            out[example.item] = Shown(reason=reason)
            continue
        if not item.pictures:
            out[example.item] = Shown(reason="a question without pictures")
            continue
        try:
            out[example.item] = packed(
                beside([fit(load_image(p.data).image) for p in item.pictures])
            )
        except FoveateError as error:
            out[example.item] = Shown(reason=str(error))
    return out


def mismatch(example: Example, item: Item | None) -> str:
    """Why an item of the workload is not the one that was asked; empty if it is."""
    if item is None:
        return "the workload at hand does not hold this question"
    if tuple(p.digest for p in item.pictures) != example.pictures:
        return "the workload at hand has other pictures for this question"
    return ""


def kept(
    audit: Audit, chosen: Sequence[Example], items: Mapping[str, Item]
) -> dict[tuple[str, str], Shown]:
    """What each plan of our engine keeps of the questions it answered differently, by (arm, item)."""
    arms = {str(a["name"]): a for a in audit.receipt.get("spec", {}).get("arms", ())}
    engines: dict[str, Engine | str] = {}
    out: dict[tuple[str, str], Shown] = {}
    for example in chosen:
        item = items.get(example.item)
        for told in example.differing:
            arm = arms.get(told.arm, {})
            if item is None or mismatch(example, item) or arm.get("url") or not arm.get("model"):
                continue
            model = str(arm["model"])
            if model not in engines:
                engines[model] = _engine(model)
            engine = engines[model]
            out[told.arm, example.item] = (
                Shown(reason=engine)
                if isinstance(engine, str)
                else _lit(engine, arm.get("plan"), item, told.text)
            )
    return out


def _engine(model: str) -> Engine | str:
    """The engine of a model on this machine, or why there is none. Nothing is downloaded."""
    from foveate.lab.nano import nano_path

    source = nano_path() if model == LAB_NANO else Path(model)
    if not source.is_dir():
        return f"kept patches are not drawn: {model} is no folder on this machine"
    try:
        from foveate.engine.engine import Engine
    except ModuleNotFoundError as error:
        return f"kept patches are not drawn: {error.name} is not installed"
    try:
        return Engine.from_pretrained(source)
    except FoveateError as error:
        return f"kept patches are not drawn: {error}"


def _lit(engine: Engine, plan: Any, item: Item, told: str) -> Shown:
    from foveate.engine.draw import beside
    from foveate.engine.request import Request
    from foveate.engine.sheet import answer_pictures

    request = Request(item.question, images=[p.data for p in item.pictures])
    try:
        answer = engine.generate([request], plan, max_new_tokens=item.max_new_tokens)[0]
        if answer.error is not None:
            raise answer.error
        pictures = answer_pictures(answer, getattr(engine.processor, "image_processor", None))
        drawing = packed(beside(pictures))
    except FoveateError as error:
        return Shown(reason=f"kept patches are not drawn: {error}")
    return Shown(drawing.address, note=_note(answer, told))


def _note(answer: Answer, told: str) -> str:
    note = ""
    if answer.report is not None:
        lit = sum(len(s.anchors if s.deep is None else s.deep) for s in answer.kept)
        note = f"{lit} of {answer.report.visual_tokens_in} tokens"
        if any(s.deep is not None for s in answer.kept):
            note += " in the deepest layers"
    if not agree(answer.text, told):
        # Batches and threads round differently; an answer at the edge may then change.
        note += f'; answered "{clean(answer.text)}" when it was drawn'
    return note.removeprefix("; ")


def packed(image: Image) -> Shown:
    """A picture as a data address, its longest side at most SIDE pixels."""
    from PIL import Image as Pillow

    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Pillow.Resampling.LANCZOS)
    file = io.BytesIO()
    # Full colour resolution: the border of a kept patch is two pixels wide.
    small.save(file, "JPEG", quality=88, subsampling=0, optimize=True)
    text = base64.b64encode(file.getvalue()).decode("ascii")
    return Shown(f"data:image/jpeg;base64,{text}")
