"""Plans on the lab's tasks, paired: every plan, the uncompressed run and the controls answer the same
samples.

The controls `random`, `pool` and `downscale` stand beside every plan at the share of tokens that it
keeps; there is no way to leave them out. What follows from the answers is in `foveate.lab.judge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foveate.core import registry
from foveate.core.errors import FoveateError, InputError, UnsupportedError
from foveate.core.method import TokenMethod
from foveate.core.plan import Plan
from foveate.core.report import Report

from .evaluate import MAX_NEW_TOKENS, Cell, Row, blind_prior, cells, tally
from .score import is_right
from .tasks import Sample, samples

if TYPE_CHECKING:
    from foveate.engine.engine import Engine
    from foveate.engine.request import Answer

CONTROLS = ("random", "pool", "downscale")
FULL = "all tokens"
FINEST = 10_000
"""Largest denominator of a measured share, so that a control's name can be read."""

Progress = Callable[[int], None]


@dataclass
class Entry:
    """One line of the comparison. `controls` names the plans that it is a control of; `error` says
    why this model cannot serve it.
    """

    name: str
    plan: Plan
    role: Literal["full", "plan", "control"]
    controls: list[str] = field(default_factory=list)
    error: FoveateError | None = None


@dataclass(frozen=True)
class Run:
    """One entry's answers to the n samples of one cell, and what they kept; `evidence` is None where
    it cannot be told. Tokens kept are those that entered the language model, or their mean over
    its layers where some leave on the way.
    """

    row: Row
    texts: tuple[str, ...]
    right: tuple[bool, ...]
    evidence: tuple[float | None, ...]
    tokens_in: tuple[int, ...]
    tokens_kept: tuple[float, ...]


@dataclass
class Comparison:
    """All answers. `runs` and `errors` are by (entry, cell); a cell of which one request failed has
    an error and no run.
    """

    model: str
    mrope: bool
    cells: list[Cell]
    n: int
    split: str
    seed: int
    entries: list[Entry]
    runs: dict[tuple[str, Cell], Run] = field(default_factory=dict)
    errors: dict[tuple[str, Cell], FoveateError] = field(default_factory=dict)
    priors: dict[Cell, float] = field(default_factory=dict)

    def tested(self, cell: Cell) -> list[Sample]:
        """The samples of a cell: drawn anew, the same each time."""
        return samples(cell.family, self.split, self.n, self.seed, cell.level)


def line_up(plans: Sequence[str]) -> list[Entry]:
    """All tokens and the plans, each once; plans are text or .toml and .json files.

    Errors: PlanError for a plan that cannot be read, InputError for the plan that drops nothing.
    """
    entries = [Entry(FULL, Plan(), "full")]
    for text in plans:
        plan = Plan.load(text)
        if plan.is_identity:
            raise InputError(
                f"--plan {text!r} drops nothing: the run with all tokens always stands beside"
            )
        if str(plan) not in (e.name for e in entries):
            entries.append(Entry(str(plan), plan, "plan"))
    return entries


def questions(cells_asked: int, plans: int, n: int) -> int:
    """How many questions a comparison asks at most: plans of equal share have their controls in
    common.
    """
    return cells_asked * n * (1 + plans * (1 + len(CONTROLS)))


def compare(
    engine: Engine,
    plans: Sequence[str] = (),
    families: Sequence[str] | None = None,
    n: int = 100,
    split: str = "test",
    seed: int = 0,
    levels: Sequence[int] = (0,),
    *,
    batch_size: int = 16,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Progress | None = None,
) -> Comparison:
    """Ask the engine n samples of each family and level with all tokens, with each plan, and with
    the controls at each plan's share of tokens.

    One request of each plan goes ahead. A plan that the model cannot serve is an entry with its
    error. Errors: those of `cells` and `line_up`; the engine's, where all tokens fail or no plan
    can be served.
    """
    todo, entries = cells(families, n, split, seed, levels), line_up(plans)
    folder = Path(engine.name)
    model = folder.name if folder.is_dir() else engine.name
    found = Comparison(model, engine.adapter.mrope, todo, n, split, seed, entries)
    step = progress or (lambda _: None)
    left = questions(len(found.cells), len(found.entries) - 1, n)

    def count(done: int) -> None:
        nonlocal left
        left -= done
        step(done)

    settings = {"batch_size": batch_size, "max_new_tokens": max_new_tokens}
    _try_out(engine, found)
    for entry in found.entries:
        _run(engine, found, entry, settings, count)
    for entry in _controls(found):
        found.entries.append(entry)
        _run(engine, found, entry, settings, count)
    step(left)
    return found


def _try_out(engine: Engine, found: Comparison) -> None:
    """One request of each plan, so that a plan which cannot be served costs no evaluation."""
    from .reader import ask

    first = found.cells[0]
    sample = samples(first.family, found.split, 1, found.seed, first.level)
    named = [e for e in found.entries if e.role == "plan"]
    for entry in named:
        try:
            entry.error = ask(engine, sample, entry.plan, max_new_tokens=1)[0].error
        except UnsupportedError as error:
            entry.error = error
    refused = [e.error for e in named if e.error is not None]
    if refused and len(refused) == len(named):
        raise refused[0]


def _run(
    engine: Engine, found: Comparison, entry: Entry, settings: dict[str, int], count: Progress
) -> None:
    from .reader import ask

    for cell in found.cells:
        if entry.error is not None:
            return
        tested = found.tested(cell)
        try:
            answers = ask(engine, tested, entry.plan, progress=count, **settings)
        except UnsupportedError as error:
            if entry.role == "full":
                raise
            entry.error = error
            return
        _record(engine, found, entry, cell, tested, answers)
    mine = [found.errors[key] for key in found.errors if key[0] == entry.name]
    if len(mine) == len(found.cells):
        entry.error = mine[0]
        if entry.role == "full":
            raise mine[0]


def _record(
    engine: Engine,
    found: Comparison,
    entry: Entry,
    cell: Cell,
    tested: list[Sample],
    answers: list[Answer],
) -> None:
    from .seen import evidence_share

    bad = next((a.error for a in answers if a.error is not None), None)
    if bad is not None:
        found.errors[entry.name, cell] = bad
        return
    if cell not in found.priors:
        found.priors[cell] = blind_prior(tested)
    right = [is_right(s, a.text) for s, a in zip(tested, answers, strict=True)]
    processor = getattr(engine.processor, "image_processor", None)
    reports = [a.report for a in answers if a.report is not None]
    found.runs[entry.name, cell] = Run(
        tally(tested, right, cell, found.priors[cell]),
        tuple(a.text for a in answers),
        tuple(right),
        tuple(evidence_share(s, a, processor) for s, a in zip(tested, answers, strict=True)),
        tuple(r.visual_tokens_in for r in reports),
        tuple(_kept(r) for r in reports),
    )


def _controls(found: Comparison) -> list[Entry]:
    """The controls of every plan that ran, each once; a plan that is a control already is not run
    again.
    """
    known = {e.name: e for e in found.entries}
    new: list[Entry] = []
    for entry in [e for e in found.entries if e.role == "plan" and e.error is None]:
        keep = share_of(entry.plan)
        if keep is None:
            keep = _measured(found, entry)
        for name in CONTROLS:
            # Only the method differs: positions and seed are those of the plan.
            plan = replace(entry.plan, methods=(registry.build(name, keep=keep),))
            if str(plan) == entry.name:
                continue
            if str(plan) not in known:
                known[str(plan)] = Entry(str(plan), plan, "control")
                new.append(known[str(plan)])
            known[str(plan)].controls.append(entry.name)
    return new


def share_of(plan: Plan) -> Fraction | None:
    """The share of tokens that a plan keeps by its own words; None where only a run can tell."""
    if len(plan.methods) != 1:
        return None
    method = plan.methods[0]
    if not isinstance(method, TokenMethod) or method.counts == "adaptive":
        return None
    return method.keep


def _measured(found: Comparison, entry: Entry) -> Fraction:
    """Visual tokens kept over those that entered, of all requests of an entry."""
    runs = [found.runs[key] for key in found.runs if key[0] == entry.name]
    kept = sum(x for run in runs for x in run.tokens_kept)
    share = Fraction(kept) / sum(x for run in runs for x in run.tokens_in)
    return min(Fraction(1), share.limit_denominator(FINEST))


def _kept(report: Report) -> float:
    layers = report.layers
    return sum(layers) / len(layers) if layers else report.visual_tokens_kept
