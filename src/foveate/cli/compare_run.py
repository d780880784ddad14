"""Several plans on the same pictures: who takes part, every answer, and what follows from them."""

from __future__ import annotations

import base64
import dataclasses
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from foveate.cli.asking import UNABLE, Task, pictures_of
from foveate.cli.record import GUIDE
from foveate.core import registry
from foveate.core.errors import FoveateError, InputError, SettingError, UnsupportedError
from foveate.core.plan import Plan
from foveate.core.report import PHASES, Report

if TYPE_CHECKING:
    from PIL import Image

    from foveate.engine.engine import Engine
    from foveate.engine.request import Answer, Request
    from foveate.lab.tasks import Sample

CONTROLS = ("random", "pool", "downscale")
FULL = "all tokens"
THUMBNAIL, COLOURS = 224, 256  # longest side in pixels; colours of a drawn picture


@dataclass
class Entry:
    """One column of the comparison. `error`: why this model cannot serve it at all."""

    name: str
    plan: Plan
    control: bool = False
    error: FoveateError | None = None


@dataclass
class Look:
    """One picture or video and its question; `sample` where the lab rendered it and knows the answer."""

    source: str
    title: str
    question: str
    task: Task
    request: Request
    sample: Sample | None = None
    picture: str = ""  # data address of the picture as it is

    @property
    def truth(self) -> str | None:
        return self.sample.answer if self.sample is not None else None


@dataclass
class Cell:
    """What one entry made of one look; `picture` is the data address of its kept patches."""

    answer: str | None = None
    token_ids: tuple[int, ...] = ()
    report: Report | None = None
    error: FoveateError | None = None
    picture: str = ""
    note: str = ""
    same: bool | None = None
    right: bool | None = None


@dataclass
class Outcome:
    """All cells: rows follow the looks, columns the entries."""

    entries: list[Entry]
    looks: list[Look]
    rows: list[list[Cell]] = field(default_factory=list)

    def column(self, entry: Entry) -> list[Cell]:
        at = self.entries.index(entry)
        return [row[at] for row in self.rows]


def line_up(names: Sequence[str], plans: Sequence[str], keep: Fraction) -> list[Entry]:
    """All tokens, the named methods, the plans and the controls, each once.

    UnknownMethodError names the nearest. A method that needs more than a share has its error.
    """
    entries = [Entry(FULL, Plan())]
    for name in [*names, *CONTROLS]:
        if any(e.name == name for e in entries):
            continue
        try:
            entries.append(Entry(name, plan_of(name, keep), control=name in CONTROLS))
        except SettingError as error:  # trained weights, say, that only a whole plan can name
            entries.append(Entry(name, Plan(), error=error))
    taken = {str(e.plan) for e in entries}
    for text in plans:
        plan = Plan.load(text)
        if plan.is_identity:
            raise InputError("--plan none is there already: all tokens always stand beside")
        if str(plan) not in taken:
            taken.add(str(plan))
            entries.append(Entry(str(plan), plan))
    return entries


def plan_of(name: str, keep: Fraction) -> Plan:
    """The plan of one method alone at a share of tokens; without a share to set, its defaults."""
    method = registry.get(name)
    has = any(f.name == "keep" for f in dataclasses.fields(method))
    return Plan((registry.build(name, **({"keep": keep} if has else {})),))


def compare_all(
    engine: Engine,
    entries: list[Entry],
    looks: list[Look],
    *,
    max_new_tokens: int,
    drawn: int,
    progress: Callable[[int], None],
) -> Outcome:
    """Ask every look of every entry, one request at a time.

    Entries take turns on each picture, and another one begins each time, so that a machine that
    becomes slower does so for all. The first `drawn` looks are drawn. One unmeasured run of each
    entry goes ahead; an entry that the model cannot serve is marked there.
    """
    for entry in entries:
        if entry.error is None:
            _warm_up(engine, entry, looks)
        progress(1)
    outcome = Outcome(entries, looks)
    for number, look in enumerate(looks):
        row = [Cell(error=e.error) for e in entries]
        for step in range(len(entries)):
            at = (number + step) % len(entries)
            if entries[at].error is None:
                draw = number < drawn
                row[at] = _ask(engine, entries[at], look, max_new_tokens, draw)
            progress(1)
        _judge(row, look)
        outcome.rows.append(row)
    for entry in entries[1:]:
        _mark_unable(entry, outcome)
    return outcome


def _warm_up(engine: Engine, entry: Entry, looks: list[Look]) -> None:
    for look in looks:
        try:
            answer = engine.generate([look.request], entry.plan, max_new_tokens=1)[0]
        except UNABLE as error:
            entry.error = error
            return
        if answer.error is None:
            return


def _ask(engine: Engine, entry: Entry, look: Look, max_new_tokens: int, draw: bool) -> Cell:
    try:
        answer = engine.generate([look.request], entry.plan, max_new_tokens=max_new_tokens)[0]
    except UnsupportedError as error:
        return Cell(error=error)
    if answer.error is not None:
        return Cell(error=answer.error)
    cell = Cell(answer.text, answer.token_ids, answer.report)
    if draw:
        _draw(engine, entry, look, answer, cell)
    return cell


def _draw(engine: Engine, entry: Entry, look: Look, answer: Answer, cell: Cell) -> None:
    """Pictures are drawn and packed at once: a long comparison must not hold them all."""
    from foveate.engine.draw import beside

    if entry.plan.is_identity:
        look.picture = cell.picture = packed(_plain(engine, look, answer))
        return
    try:
        cell.picture = packed(beside(pictures_of(engine, look.task, entry.plan, answer)))
    except UnsupportedError as error:
        cell.note = f"not drawn: {error}"


def _plain(engine: Engine, look: Look, answer: Answer) -> Image.Image:
    """The picture itself, or the first frame of a video."""
    from foveate.engine.draw import fit

    if answer.pictures:
        return fit(answer.pictures[0])
    from PIL import Image

    from foveate.models.video import load_video

    source = look.task.items[0].source
    return fit(Image.fromarray(load_video(source, max_frames=engine.max_frames).frames[0]))


def packed(image: Image.Image) -> str:
    """A small PNG as a data address."""
    from PIL import Image

    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Median cut would give small patches of colour up first, and those are what is looked for.
    few = small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _judge(row: list[Cell], look: Look) -> None:
    """Agreement with all tokens, and the lab's rule where the lab rendered the picture."""
    from foveate.lab.score import is_right

    full = row[0].answer
    for cell in row:
        if cell.answer is None:
            continue
        cell.same = cell.answer == full if full is not None else None
        if look.sample is not None:
            cell.right = is_right(look.sample, cell.answer)


def _mark_unable(entry: Entry, outcome: Outcome) -> None:
    """An entry without a single answer is refused as a whole, if the pictures are not to blame."""
    cells = outcome.column(entry)
    fine = [c for c, row in zip(cells, outcome.rows, strict=True) if row[0].error is None]
    if entry.error is None and fine and all(c.error is not None for c in fine):
        entry.error = fine[0].error


# --- figures -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Share:
    """`hits` of `of`, with the 95 % Wilson interval."""

    hits: int
    of: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.hits / self.of

    def to_dict(self) -> dict[str, Any]:
        low, high = round(self.low, 4), round(self.high, 4)
        return {"hits": self.hits, "of": self.of, "share": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class Figures:
    """One entry over all pictures: mean tokens and KV bytes, medians of milliseconds, shares. Tokens
    kept are a mean over the layers of the language model where a method drops them inside it.
    """

    answered: int
    tokens_in: float | None
    tokens_kept: float | None
    agreement: Share | None
    accuracy: Share | None
    ms: dict[str, float]
    ttft_ms: float | None
    kv_bytes: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "answered": self.answered,
            "tokens_in": self.tokens_in,
            "tokens_kept": self.tokens_kept,
            "agreement": self.agreement.to_dict() if self.agreement else None,
            "accuracy": self.accuracy.to_dict() if self.accuracy else None,
            "ms": {k: round(v, 3) for k, v in self.ms.items()},
            "ttft_ms": round(self.ttft_ms, 3) if self.ttft_ms is not None else None,
            "kv_bytes": self.kv_bytes,
        }


def figures(cells: Sequence[Cell]) -> Figures:
    reports = [c.report for c in cells if c.report is not None]
    first = [r.ttft_ms for r in reports if r.ttft_ms is not None]
    phases = {p: [r.ms[p] for r in reports if p in r.ms] for p in (GUIDE, *PHASES)}
    cached = [r.kv_bytes for r in reports if r.kv_bytes is not None]
    return Figures(
        answered=len(reports),
        tokens_in=statistics.fmean(r.visual_tokens_in for r in reports) if reports else None,
        tokens_kept=statistics.fmean(r.tokens_by_layer for r in reports) if reports else None,
        agreement=_share([c.same for c in cells if c.same is not None]),
        accuracy=_share([c.right for c in cells if c.right is not None]),
        ms={p: statistics.median(found) for p, found in phases.items() if found},
        ttft_ms=statistics.median(first) if first else None,
        kv_bytes=statistics.fmean(cached) if cached else None,
    )


def _share(verdicts: Sequence[bool]) -> Share | None:
    if not verdicts:
        return None
    from foveate.measure.stats import wilson

    found = wilson(sum(verdicts), len(verdicts))
    return Share(sum(verdicts), len(verdicts), found.low, found.high)
