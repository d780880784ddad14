"""A whole audit: open the arms, let them take turns, keep the journal, write the receipt.

What a killed run finished stays finished: the same spec in the same folder goes on behind it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.audit.arrivals import Load, Trace, parse_load
from foveate.audit.bounds import Bounds
from foveate.audit.journal import Journal
from foveate.audit.load import run_block
from foveate.audit.metrics import JUDGED
from foveate.audit.receipt import FILE, read_receipt, write_receipt
from foveate.audit.records import Block, Item, Row
from foveate.audit.spec import AuditSpec
from foveate.audit.target import BASELINE, Target
from foveate.audit.turns import Turn, parts, turns
from foveate.audit.verify import verify
from foveate.audit.virtual import run_precise
from foveate.audit.workload import Workload, load_workload
from foveate.core.errors import InputError, MissingExtraError, PlanError, UnsupportedError
from foveate.measure.carbon import grid

TRIES = 3
"""Requests of which one must succeed before a run begins: a flaky endpoint may be audited, a broken
one may not.
"""

GIVE_UP_TURNS = 3
"""An arm whose last turns failed in every request, so many in a row, is not asked any more."""

Heard = Callable[[Row], None]


@dataclass
class Progress:
    """What a caller may listen to: the number of requests in all, those of a journal, each new one."""

    begin: Callable[[int, int], None] = lambda _total, _done: None
    turn: Callable[[Turn], None] = lambda _turn: None
    row: Heard = lambda _row: None


@dataclass
class _Run:
    spec: AuditSpec
    workload: Workload
    loads: Mapping[str, Load]
    journal: Journal
    progress: Progress
    judge: Any = None
    left: dict[tuple[str, str, int], list[Block]] = field(default_factory=dict)


def run_audit(spec: AuditSpec, out: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Run an audit into a folder, or go on with the one that is there; gives the receipt.

    InputError for everything that is wrong with spec, workload, bounds or folder, and for an arm
    that cannot answer at all, before the first measured request.
    """
    bounds = Bounds.from_dict(spec.bounds)
    place = grid(spec.grid) if spec.grid is not None else None
    loads = {str(found): found for found in map(parse_load, spec.loads)}
    if len(loads) < len(spec.loads):
        raise InputError(f"two of the loads {', '.join(spec.loads)} are the same")
    bounds.check(loads)
    workload = load_workload(
        spec.workload,
        limit=spec.limit,
        seed=spec.seed,
        metric=spec.metric,
        max_new_tokens=spec.max_new_tokens,
    )
    bounds.check(loads, {item.category for item in workload.items})
    judge = _judge(spec.judge, workload)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}") from None
    traces = {name: x.digest for name, x in loads.items() if isinstance(x, Trace)}
    header = {
        "spec_hash": spec.hash,
        "workload_hash": workload.hash,
        "traces": traces,
        "spec": spec.as_json(),
    }
    with Journal(out, header) as journal:
        if journal.kept.arms is not None and (out / FILE).is_file():
            old, _ = read_receipt(out)
            if old.get("spec_hash") == spec.hash and verify(out).ok:
                return old  # finished: it was not this process, nor perhaps this machine, that measured
        run = _Run(spec, workload, loads, journal, progress or Progress(), judge, {})
        described = run_precise(_all_turns(run))
        kept = journal.kept
        return write_receipt(
            out,
            spec=spec,
            bounds=bounds,
            place=place,
            traces=traces,
            workload=about(workload),
            arms=described,
            rows=kept.rows,
            blocks=[b for blocks in kept.blocks.values() for b in blocks],
            notes=[*kept.notes, *remarks(spec, workload, kept.rows)],
        )


def about(workload: Workload) -> dict[str, Any]:
    """What a receipt says of a workload."""
    return {
        "name": workload.name,
        "hash": workload.hash,
        "n": len(workload.items),
        "notes": list(workload.notes),
    }


def remarks(spec: AuditSpec, workload: Workload, rows: Sequence[Row]) -> list[str]:
    """What a reader must know that no figure says."""
    out = []
    asked = {r.item for r in rows if not r.warmup}
    if len(asked) < len(workload.items):
        out.append(
            f"{len(asked)} of the workload's {len(workload.items)} items were asked: more blocks or "
            "requests ask more"
        )
    for arm in spec.arms:
        own = [r.observed.error for r in rows if r.arm == arm.name and not r.warmup]
        if own and all(own):
            kinds = ", ".join(f"{k}: {n}" for k, n in sorted(Counter(own).items()) if k)
            out.append(f"arm {arm.name}: every one of its {len(own)} requests failed ({kinds})")
    return out


async def _all_turns(run: _Run) -> dict[str, dict[str, Any]]:
    """Ask everything that the journal does not hold; gives what the arms say of themselves."""
    kept = run.journal.kept
    run.left = parts(kept)
    order = list(turns(run.spec, run.workload.items, list(run.loads)))
    done = sum(not r.warmup for r in kept.rows)
    todo = [t for t in order if t.key not in kept.blocks]
    if kept.arms is not None:  # the run is over, and the arms may be gone
        return kept.arms
    async with AsyncExitStack() as stack:
        dead = {a.name for a in run.spec.arms if given_up(kept.rows, a.name)}
        targets = await open_targets(run.spec, stack, _served(kept.rows), dead)
        if todo:
            for name, target in targets.items():
                if name not in dead:
                    await probe(target, run.workload.items)
        run.progress.begin(len(order) * run.spec.requests, done)
        for turn in todo:
            run.progress.turn(turn)
            # Without a baseline there is nothing to compare with.
            gone = [a for a in (turn.arm, BASELINE) if given_up(kept.rows, a)]
            if gone:
                _note_once(run.journal, gone[-1])
                continue
            await _take_turn(run, turn, targets[turn.arm])
        run.journal.arms({name: target.describe() for name, target in targets.items()})
    assert kept.arms is not None
    return kept.arms


async def _take_turn(run: _Run, turn: Turn, target: Target) -> None:
    journal, spec = run.journal, run.spec
    done = {r.key for r in journal.kept.rows if (r.arm, r.load, r.block) == turn.key}
    own = [key for key in done if key[-1] >= 0]  # warm-up has negative numbers
    earlier = run.left.get(turn.key, [])
    if earlier:
        journal.note(
            f"{turn.arm}, {turn.load}, block {turn.block} was interrupted after "
            f"{len(own)} of {len(turn.items)} requests and went on later: its counters are missing"
        )
    if len(own) >= len(turn.items):
        journal.turn(earlier)  # killed between its last request and its end
        return

    def finished(row: Row) -> None:
        journal.row(row)
        run.progress.row(row)

    block = await run_block(
        target,
        turn.items,
        run.loads[turn.load],
        block=turn.block,
        place=turn.place,
        seed=spec.seed,
        warmup_requests=spec.warmup,
        timeout_s=spec.timeout_s,
        time_limit_s=spec.time_limit_s,
        on_row=finished,
        done=done,
        judge=run.judge,
    )
    journal.turn([*earlier, block])


def given_up(rows: Sequence[Row], arm: str) -> bool:
    """Whether the last turns of an arm that were asked failed in every request."""
    fine: dict[tuple[str, int], bool] = {}  # by turn, in the order in which they were asked
    for row in rows:
        if row.arm == arm and not row.warmup:
            key = (row.load, row.block)
            fine[key] = fine.get(key, False) or row.observed.error is None
    last = list(fine.values())[-GIVE_UP_TURNS:]
    return len(last) == GIVE_UP_TURNS and not any(last)


def _note_once(journal: Journal, arm: str) -> None:
    text = f"arm {arm} was not asked any more after {GIVE_UP_TURNS} turns in which every request failed"
    if text not in journal.kept.notes:
        journal.note(text)


async def probe(target: Target, items: Sequence[Item]) -> None:
    """One answer before the run begins. InputError says how the arm failed to give one."""
    seen = [await target.ask(items[0])]
    if seen[0].error is not None:  # the others at once: each may take as long as a request may
        more = (target.ask(items[number % len(items)]) for number in range(1, TRIES))
        seen += await asyncio.gather(*more)
    if all(found.error is not None for found in seen):
        raise InputError(
            f"arm {target.arm} cannot answer ({seen[0].error}): "
            f"{seen[0].error_detail or 'no reason given'}; nothing was measured"
        )


def _served(rows: Sequence[Row]) -> dict[str, str]:
    fine = [r for r in rows if r.observed.error is None and r.observed.model]
    return {r.arm: str(r.observed.model) for r in reversed(fine)}


async def open_targets(
    spec: AuditSpec,
    stack: AsyncExitStack,
    served: Mapping[str, str],
    dead: Collection[str] = (),
) -> dict[str, Target]:
    """The targets of all arms, open; closed when the stack ends. Arms of one model share it.

    served: the names of models that answered before an interruption, by arm. dead: arms that were
    given up before it, which will not be asked and need not open.
    """
    from foveate.audit.http_target import HttpTarget

    hosts: dict[str, Any] = {}
    targets: dict[str, Target] = {}
    for arm in spec.arms:
        if arm.in_process:
            assert arm.model is not None
            from foveate.audit.engine_target import EngineTarget, Host

            if arm.model not in hosts:
                hosts[arm.model] = Host.load(arm.model)
                stack.callback(hosts[arm.model].close)
            targets[arm.name] = EngineTarget(arm.name, hosts[arm.model], arm.plan)
        else:
            targets[arm.name] = HttpTarget(
                arm.name,
                str(arm.url),
                arm.model,
                api_key_env=arm.api_key_env,
                extra_body=arm.body,
                timeout_s=spec.timeout_s,
                pid=arm.pid,
                served=served.get(arm.name),
            )
    for target in targets.values():
        # First the closing, so that what half opened is closed too.
        stack.push_async_callback(target.close)
        try:
            await target.open()
        except (InputError, PlanError, UnsupportedError) as error:
            if isinstance(error, MissingExtraError):
                raise
            if target.arm in dead:
                continue
            raise type(error)(f"arm {target.arm}: {error}") from None
    return targets


def _judge(name: str | None, workload: Workload) -> Any:
    if name is None:
        left = sum(item.metric == JUDGED for item in workload.items)
        if left:
            raise InputError(f"{left} items have the metric {JUDGED}, and no judge is named")
        return None
    from foveate.audit.judge import load_judge

    return load_judge(name)
