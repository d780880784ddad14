"""What one request of a finished run cost, as a Report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveate.core.report import Report
from foveate.engine.attribution import accounts
from foveate.engine.patches import unseen_note

if TYPE_CHECKING:
    from foveate.engine.engine import Engine, Run


def report_of(engine: Engine, run: Run, index: int, new_tokens: int) -> Report:
    """Of request `index` of a run that has ended, with an answer of `new_tokens`."""
    plan, short, look, clock = run.plan, run.short, run.look, run.clock
    row, tower = short.rows[index], short.tower
    resolved = plan.resolved(mrope=engine.adapter.mrope)
    prompt = len(row.index)
    notes = list(run.members[index].notes)
    if len(run.members) > 1:
        notes.append(f"milliseconds are of the whole batch of {len(run.members)}")
    if row.cached:
        which = "" if row.cached == len(row.segments) else f" for {row.cached} segments"
        notes.append(f"encoder features from the cache{which}")
    if engine.cache is not None and tower is not None and row.segments:
        notes.append("a tower method acted: its features are not cached")
    notes += unseen_note(row.visual_in, row.unseen, engine.cache is not None)
    saved = look.dropped[index] if look.dropped else 0
    changed = not short.identity or (tower is not None and not tower.identity) or look.changed
    account = accounts(engine, run, index, new_tokens)
    layers = account.layers
    fixed = sum(s.fixed_kept for s in row.reports)
    changed = changed or (layers is not None and layers[-1] < row.visual_kept + fixed)
    changed = changed or account.evicted
    if not changed and not plan.is_identity:
        why = (
            "the budget is at or above the tokens" if row.visual_in + saved else "no visual tokens"
        )
        notes.append(f"{why}: nothing was dropped")
    ms, cpu = clock.wall_ms, clock.cpu_ms
    lead = ("preprocess", "encode", "select", "prefill")
    return Report(
        plan=str(plan),
        plan_hash=resolved.hash,
        model=engine.name,
        positions=short.positions,
        identity=not changed,
        visual_tokens_in=row.visual_in + saved,
        visual_tokens_kept=row.visual_kept,
        fixed_tokens_kept=fixed,
        text_tokens=row.text_tokens,
        prompt_tokens=prompt,
        prompt_tokens_in=row.length + saved,
        new_tokens=new_tokens,
        kv_bytes=account.kv_bytes,
        layers=layers,
        layer_kv_bytes=account.layer_kv_bytes,
        kv_offloaded_bytes=account.offloaded_bytes,
        saved=account.saved,
        tower_tokens=tower.tokens_of(row.placed) if tower is not None else None,
        segments=row.reports,
        ms=dict(ms),
        cpu_ms=dict(cpu),
        ttft_ms=sum(ms.get(p, 0.0) for p in lead),
        notes=(*notes, *account.notes),
    )
