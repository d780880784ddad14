"""A pair of models: a small one answers first, scores the visual tokens by its attention and guides
the large one; where it is sure enough, its answer stands and the large one does not run.

What is scored and how sure is enough are the method's (`foveate.core.language.GuidedMethod`). Here
are the small model's run with its attention watched, the alignment of both models' visual tokens, and
the record of what the guide cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import FoveateError, InputError, UnsupportedError
from foveate.core.language import Guidance, GuidedMethod
from foveate.core.plan import Plan
from foveate.engine.compress import RowResult
from foveate.engine.guide_watch import Watch
from foveate.engine.language_door import refuse_unguided
from foveate.engine.prompt import chat_text, check_words
from foveate.engine.request import Answer, Prepared, Request
from foveate.models.adapter import MODALITIES

if TYPE_CHECKING:
    from foveate.engine.engine import Engine, Ready, Run

# Of the options of generate() those that the guide answers under too; it is greedy. The last three
# name tokens.
_BY_TOKEN = ("eos_token_id", "suppress_tokens", "bad_words_ids")
_SHARED = ("max_new_tokens", "min_new_tokens", *_BY_TOKEN)


@dataclass
class Said:
    """What the guide says of one request, its segments, and milliseconds spent: on the batch it was
    in, and of these on going over its answers.
    """

    answer: Answer
    guidance: Guidance
    row: RowResult
    ms: float
    cpu_ms: float
    again_ms: float
    again_cpu_ms: float


def checked(guide: Any) -> Any:
    """An engine to guide another, or None; InputError for anything else."""
    if guide is not None and not callable(getattr(guide, "preprocessed", None)):
        raise InputError(
            f"guide= takes a foveate.Engine over the small model, not {type(guide).__name__}"
        )
    return guide


def method_of(plan: Plan) -> GuidedMethod | None:
    """The method of a plan that follows a guide, if there is one."""
    method = plan.stage("prefill")
    return method if isinstance(method, GuidedMethod) else None


def refuse(plan: Plan, guide: Any, streamer: Any = None) -> None:
    """UnsupportedError for a plan that needs a guide where there is none; InputError for a streamer,
    which would not see an answer that the guide gives.
    """
    refuse_unguided(plan, guide)
    method = method_of(plan)
    if method is not None and streamer is not None and method.exit is not None:
        raise InputError(f"a streamer cannot be combined with {method.name}: exit")


def answered(
    engine: Engine, members: list[Prepared], plan: Plan, settings: Mapping[str, Any]
) -> list[Answer]:
    """Answers of a batch, with the guide's help where the plan follows one and there are visual tokens.

    Errors: UnsupportedError where the two models split pictures into different tokens.
    """
    method, guide = method_of(plan), engine.guide
    if method is None or not any(m.pictures or m.videos for m in members):
        return engine._guarded(members, plan, settings)
    _same_words(engine, guide, settings)
    try:
        ready = engine.preprocessed(members, plan)
        mine = _own(guide, members, plan)
        _same_counts(engine, ready, guide, mine)
        said = asked(guide, mine, method, settings)
    except (InputError, ValueError, IndexError) as error:
        if len(members) > 1:
            return [a for m in members for a in answered(engine, [m], plan, settings)]
        known = error if isinstance(error, FoveateError) else InputError(f"the processor: {error}")
        return [Answer("", error=known, id=members[0].request.id)]
    out: list[Answer | None] = [_standing(engine, plan, method, s) for s in said]
    rest = [i for i, answer in enumerate(out) if answer is None]
    if rest and len(rest) < len(members):
        ready = engine.preprocessed([members[i] for i in rest], plan)
    if rest:
        run = engine.compressed(ready)
        for i, row in zip(rest, run.short.rows, strict=True):
            _align(engine, row, guide, said[i])
        for i, answer in zip(rest, engine._decode(run, settings), strict=True):
            out[i] = _with_costs(answer, said[i])
    return [a for a in out if a is not None]


class EngineGuide:
    """An engine as a `foveate.core.language.Guide`: one request's scores and draft."""

    def __init__(self, engine: Engine, method: GuidedMethod, **settings: Any) -> None:
        self.engine, self.method, self.settings = engine, method, settings

    def guide(self, request: Request) -> Guidance:
        """Answer a request and say what was looked at."""
        ready = self.engine.preprocessed([self.engine.prepare(request)], Plan())
        return asked(self.engine, ready, self.method, self.settings)[0].guidance


# --- the small model's side -------------------------------------------------------------------------
def _own(guide: Engine, members: Sequence[Prepared], plan: Plan) -> Ready:
    """The batch in the guide's own chat template, after the plan's pixel stage."""
    again = []
    for m in members:
        check_words(guide.processor, m.request)
        text = chat_text(guide.processor, m.request, len(m.pictures), len(m.videos))
        again.append(replace(m, text=text, notes=list(m.notes)))
    pixels = tuple(m for m in plan.methods if m.stage == "pixels")
    return guide.preprocessed(again, Plan(pixels, seed=plan.seed))


@torch.no_grad()
def asked(
    guide: Engine, ready: Ready, method: GuidedMethod, settings: Mapping[str, Any]
) -> list[Said]:
    """The guide's answers to a batch, with the attention that its visual tokens received."""
    options: dict[str, Any] = {k: settings[k] for k in _SHARED if settings.get(k) is not None}
    config = settings.get("generation_config")
    options.setdefault("max_new_tokens", getattr(config, "max_new_tokens", None) or 64)
    options |= {"do_sample": False, "num_beams": 1}
    if method.exit is not None:
        options["output_logits"] = True
    run = guide.compressed(ready)
    watch = Watch(run.short, guide.stop_ids(options))
    with watch.on(guide.model):
        answers = guide._decode(run, options)
    scores = [x.cpu().numpy() for x in watch.received]
    again_ms = again_cpu_ms = 0.0
    sure: list[float | None] = [None] * len(answers)
    if method.exit is not None:
        ids = [a.token_ids for a in answers]
        again = _gone_over(guide, run, method, scores, ids, options)
        again_ms, again_cpu_ms = _spent(again)
        first, second = (
            log_probabilities(run.out.logits, ids),
            log_probabilities(again.out.logits, ids),
        )
        sure = [method.confidence(a, b) for a, b in zip(first, second, strict=True)]
    ms, cpu_ms = _spent(run)
    costs = (ms + again_ms, cpu_ms + again_cpu_ms, again_ms, again_cpu_ms)
    return [
        Said(answer, Guidance(found, answer.token_ids, confidence), row, *costs)
        for answer, found, confidence, row in zip(
            answers, scores, sure, run.short.rows, strict=True
        )
    ]


def _spent(run: Run) -> tuple[float, float]:
    """Wall-clock and CPU milliseconds of a batch, all phases."""
    return sum(run.clock.wall_ms.values()), sum(run.clock.cpu_ms.values())


def _gone_over(
    guide: Engine,
    run: Run,
    method: GuidedMethod,
    scores: Sequence[np.ndarray],
    ids: Sequence[tuple[int, ...]],
    options: Mapping[str, Any],
) -> Run:
    """The same answers once more, token by token, under the method's probe."""
    short = run.short
    kwargs = dict(short.kwargs)
    if "mm_encoder_outputs" in kwargs:
        kwargs["mm_encoder_outputs"] = short.expand(None, 1)
    rows = [replace(row, guidance=s) for row, s in zip(short.rows, scores, strict=True)]
    clock = type(run.clock)(device=guide.model.device)
    again = replace(
        run,
        plan=Plan((method.probe(),)),
        short=replace(short, kwargs=kwargs, rows=rows),
        clock=clock,
        out=None,
    )
    stop = min(guide.stop_ids(options), default=0)
    forced = {
        "max_new_tokens": max(map(len, ids)),
        "eos_token_id": options.get("eos_token_id"),
        "logits_processor": [_Forced(ids, stop)],
        "do_sample": False,
        "num_beams": 1,
        "output_logits": True,
    }
    guide._decode(again, forced)
    return again


class _Forced:
    """A logits processor that lets each row only say given tokens, then `stop`."""

    def __init__(self, ids: Sequence[tuple[int, ...]], stop: int) -> None:
        self.ids, self.stop, self.step = ids, stop, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        wanted = [row[self.step] if self.step < len(row) else self.stop for row in self.ids]
        self.step += 1
        out = torch.full_like(scores, -torch.inf)
        out[torch.arange(len(wanted)), torch.as_tensor(wanted)] = 0.0
        return out


def log_probabilities(
    logits: Sequence[Tensor], ids: Sequence[tuple[int, ...]]
) -> list[list[float]]:
    """Log-probability of each row's tokens, from the logits (B, vocabulary) of each step."""
    out: list[list[float]] = [[] for _ in ids]
    for step, found in enumerate(logits):
        sure = torch.log_softmax(found.float(), -1)
        for row, tokens in enumerate(ids):
            if step < len(tokens):
                out[row].append(float(sure[row, tokens[step]]))
    return out


# --- the pair ---------------------------------------------------------------------------------------
def _same_counts(engine: Engine, ready: Ready, guide: Engine, mine: Ready) -> None:
    """UnsupportedError if the prompts have different numbers of placeholders; nothing ran yet."""
    for modality in MODALITIES:
        counts = []
        for owner, made in ((engine, ready), (guide, mine)):
            if owner.adapter.token_id(modality) is None:
                counts.append([0] * len(made.members))
                continue
            types = made.inputs.get("mm_token_type_ids")
            spots = owner.adapter.spots(modality, made.inputs["input_ids"], types)
            counts.append(spots.sum(1).tolist())
        if counts[0] != counts[1]:
            raise UnsupportedError(
                f"the guide {guide.name} makes {counts[1]} visual tokens of the {modality} inputs of "
                f"this batch, {engine.name} makes {counts[0]}: a guide must split pictures as its "
                "model does; give both processors the same sizes and tiles"
            )


def _same_words(engine: Engine, guide: Engine, settings: Mapping[str, Any]) -> None:
    """InputError for options that name tokens, where the guide numbers its words otherwise."""
    named = [k for k in _BY_TOKEN if settings.get(k) is not None]
    if not named or engine.processor is guide.processor:
        return
    words = [owner.processor.tokenizer.get_vocab() for owner in (engine, guide)]
    if words[0] != words[1]:
        raise InputError(
            f"{named[0]} names tokens of {engine.name}, but the guide {guide.name} has another "
            "tokenizer: leave it out, or set it in both models' generation configs"
        )


def _align(engine: Engine, row: RowResult, guide: Engine, said: Said) -> None:
    """Hand a row the guide's scores; UnsupportedError if its segments are others."""

    def layout(found: RowResult) -> list[tuple[Any, ...]]:
        return [(p.modality, p.piece.kind, p.piece.grid, p.piece.n) for p in found.placed]

    if layout(row) != layout(said.row):
        raise UnsupportedError(
            f"the guide {guide.name} splits pictures into {layout(said.row)}, {engine.name} into "
            f"{layout(row)}: give both processors the same sizes and tiles"
        )
    row.guidance = np.asarray(said.guidance.scores)


def _standing(engine: Engine, plan: Plan, method: GuidedMethod, said: Said) -> Answer | None:
    """The guide's answer if it is sure enough, None if the large model is to run."""
    sure = said.guidance.confidence
    if method.exit is None or sure is None or sure < method.exit:
        return None
    report = said.answer.report
    if report is not None:
        resolved = plan.resolved(mrope=engine.adapter.mrope)
        note = f"the guide's answer stands: confidence {sure:.3f}, exit {method.exit}"
        report = replace(
            report,
            plan=str(plan),
            plan_hash=resolved.hash,
            ms={"guide": said.again_ms, **report.ms},
            cpu_ms={"guide": said.again_cpu_ms, **report.cpu_ms},
            ttft_ms=said.ms,  # before the end nobody knows that the answer stands
            notes=(*report.notes, f"{note}; {engine.name} did not run"),
        )
    return replace(said.answer, report=report)


def _with_costs(answer: Answer, said: Said) -> Answer:
    """The large model's answer, with what the guide took before it."""
    report = answer.report
    if report is None:
        return answer
    sure = said.guidance.confidence
    note = "a guide answered first" + ("" if sure is None else f": confidence {sure:.3f}")
    first = None if report.ttft_ms is None else report.ttft_ms + said.ms
    ms, cpu = {"guide": said.ms, **report.ms}, {"guide": said.cpu_ms, **report.cpu_ms}
    notes = (*report.notes, note)
    return replace(answer, report=replace(report, ms=ms, cpu_ms=cpu, ttft_ms=first, notes=notes))
