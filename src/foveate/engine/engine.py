"""The engine: requests in, answers and reports out, in ragged batches, with one bad request never
taking others down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from foveate.core.errors import FoveateError, InputError, MediaError
from foveate.core.plan import Plan
from foveate.core.report import Report
from foveate.engine import guide as guiding
from foveate.engine.attach import reading_ids, refuse_attached, special_ids
from foveate.engine.cache import FeatureCache
from foveate.engine.compress import Compressed, compress, refuse_later_stages
from foveate.engine.language_door import (
    acts_inside,
    begin,
    kept_segments,
    language_run,
    refuse_own_caches,
)
from foveate.engine.language_run import LanguageRun
from foveate.engine.loading import load
from foveate.engine.patches import patches_of
from foveate.engine.phases import FirstLogits, Unchanged
from foveate.engine.prompt import chat_text, check_words
from foveate.engine.report import report_of
from foveate.engine.request import Answer, Prepared, Request
from foveate.engine.times import stamper
from foveate.measure.clock import StageClock
from foveate.models import compat
from foveate.models.adapter import adapter_for
from foveate.models.media import load_image
from foveate.models.processors import video_inputs
from foveate.models.video import load_video

_OURS = ("use_cache", "return_dict_in_generate")


@dataclass
class Ready:
    """One batch after preprocessing: the processor's inputs, and what made them."""

    plan: Plan
    members: list[Prepared]
    pictures: list[Any]
    videos: list[Any]
    inputs: dict[str, Any]
    clock: StageClock
    look: Any


@dataclass
class Run:
    """One batch that ran: what the answers and reports are made of."""

    plan: Plan
    members: list[Prepared]
    pictures: list[Any]
    short: Compressed
    clock: StageClock
    look: Any
    out: Any = None
    inside: Any = None


class Engine:
    """Runs plans on one model. `max_pixels` bounds a picture, `max_frames` a video; `cache` keeps
    encoded pictures for later questions (none by default, so that times are those of a first one).

    `guide` is an engine over a small sibling, for methods that follow one.
    A batch is padded on the left; requests without media and requests with pictures or videos run
    as batches of their own. Not safe for concurrent calls on one model.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        max_pixels: int = 64_000_000,
        max_frames: int = 64,
        allow_url: bool = False,
        text_tower: Callable[[str], Any] | str | Path | None = None,
        cache: FeatureCache | None = None,
        guide: Engine | None = None,
    ) -> None:
        self.guide = guiding.checked(guide)
        self.model: Any = compat.unwrap(model)
        self.processor = processor
        self.adapter = adapter_for(self.model)
        self.special_ids = special_ids(self.adapter, processor)
        self.text_tower = reading_ids(text_tower, processor)
        self.cache = cache
        self.max_pixels = max_pixels
        self.max_frames = max_frames
        self.allow_url = allow_url
        self.name = str(getattr(self.model.config, "_name_or_path", "") or self.adapter.model_type)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any) -> Engine:
        """An engine over a local folder or hub id. Options: dtype, device_map, revision, and those
        of Engine.
        """
        loading = {k: options.pop(k) for k in ("dtype", "device_map", "revision") if k in options}
        model, processor = load(source, **loading)
        return cls(model, processor, **options)

    def generate(
        self,
        requests: Sequence[Request],
        plan: str | Plan | None = None,
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
        streamer: Any = None,
        progress: Callable[[int], None] | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answer every request, in order; further options go to transformers' generate().

        Greedy and 64 new tokens unless `max_new_tokens`, `generation_config` or an option says
        otherwise. A request that fails carries its error. A plan that this model cannot serve raises for all.
        """
        parsed = Plan.parse(plan)
        if isinstance(requests, Request) or not all(isinstance(r, Request) for r in requests):
            raise InputError("generate() takes a list of foveate.Request, one for each answer")
        refuse_attached(self.model)
        refuse_later_stages(parsed)
        guiding.refuse(parsed, self.guide, streamer)
        if acts_inside(parsed):
            # use_cache is set below, whatever the model's own config says.
            refuse_own_caches({**options, "use_cache": True}, self.model.generation_config)
            LanguageRun(self.adapter, parsed)  # refuses what this model cannot run
        for name in _OURS:
            if name in options:
                raise InputError(f"{name} is the engine's own; use attach for generate() as it is")
        if int(options.get("num_return_sequences") or 1) > 1:
            raise InputError("the engine gives one answer a request; use attach for several")
        if "generation_config" not in options:
            max_new_tokens = 64 if max_new_tokens is None else max_new_tokens
            options.setdefault("do_sample", False)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise InputError(f"max_new_tokens = {max_new_tokens} is out of range: at least 1")
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size} is out of range: at least 1")
        if streamer is not None and len(requests) != 1:
            raise InputError("a streamer serves one request at a time")
        answers: list[Answer | None] = [None] * len(requests)
        groups: dict[tuple[bool, bool], list[tuple[int, Prepared]]] = {}
        for i, request in enumerate(requests):
            try:
                ready = self.prepare(request)
            except (InputError, MediaError) as error:
                answers[i] = Answer("", error=error, id=request.id)
                continue
            groups.setdefault((bool(ready.pictures), bool(ready.videos)), []).append((i, ready))
        method = parsed.stage("tokens")
        if method is not None and method.video_only and any(videos for _, videos in groups):
            for i, ready in groups.pop((True, False), []):
                missing = InputError(f"{method.name} compares frames; this request has no video")
                answers[i] = Answer("", error=missing, id=ready.request.id)
        settings = {"max_new_tokens": max_new_tokens, "streamer": streamer, **options}
        for members in groups.values():
            for start in range(0, len(members), batch_size):
                part = members[start : start + batch_size]
                found = guiding.answered(self, [p for _, p in part], parsed, settings)
                for (i, _), answer in zip(part, found, strict=True):
                    answers[i] = answer
                if progress is not None:
                    progress(len(part))
        return [a for a in answers if a is not None]

    def prepare(self, request: Request) -> Prepared:
        """Read media and write the chat text; InputError or MediaError says what is wrong with this
        request.
        """
        check_words(self.processor, request)
        notes: list[str] = []
        pictures = []
        for source in request.images:
            loaded = load_image(source, max_pixels=self.max_pixels, allow_url=self.allow_url)
            pictures.append(loaded.image)
            notes += loaded.notes
        videos = []
        for source in request.videos:
            video = load_video(source, frames=None, fps=None, max_frames=self.max_frames)
            videos.append(video)
            notes += video.notes
        text = chat_text(self.processor, request, len(pictures), len(videos))
        return Prepared(request, pictures, videos, text, notes)

    def _guarded(
        self, members: list[Prepared], plan: Plan, settings: Mapping[str, Any]
    ) -> list[Answer]:
        """Run a batch; if an input in it is bad, run each alone so that only the bad one fails."""
        try:
            ready = self._encode(members, plan)
        except (InputError, ValueError, IndexError) as error:
            if len(members) > 1:
                return [a for m in members for a in self._guarded([m], plan, settings)]
            known = (
                error if isinstance(error, FoveateError) else InputError(f"the processor: {error}")
            )
            return [Answer("", error=known, id=members[0].request.id)]
        return self._decode(ready, settings)

    def _encode(self, members: list[Prepared], plan: Plan) -> Run:
        return self.compressed(self.preprocessed(members, plan))

    def preprocessed(self, members: list[Prepared], plan: Plan) -> Ready:
        """A batch through the plan's pixel stage and the processor, before anything is encoded."""
        clock = StageClock(device=self.model.device)
        with clock.phase("preprocess"):
            look = self._look(plan)
            pictures, videos = look.before(
                [m.pictures for m in members], [m.videos for m in members]
            )
            inputs = self._process(members, pictures, videos, look.call)
            inputs = look.after(inputs)
        return Ready(plan, members, pictures, videos, inputs, clock, look)

    @torch.no_grad()
    def compressed(self, ready: Ready, cache: FeatureCache | None = None) -> Run:
        """Encode a batch and choose its visual tokens; `cache` stands in for the engine's own."""
        pictures, videos, clock, look = ready.pictures, ready.videos, ready.clock, ready.look
        short = compress(
            self.adapter,
            ready.plan,
            ready.inputs,
            phase=clock.phase,
            special_ids=self.special_ids,
            text_tower=self.text_tower,
            cache=self.cache if cache is None else cache,
            processor=self.processor,
            times=stamper(videos, pictures),
        )
        if look.notes:
            for m, extra in zip(ready.members, look.notes, strict=True):
                m.notes += extra
        return Run(ready.plan, ready.members, pictures, short, clock, look)

    @torch.no_grad()
    def _decode(self, run: Run, settings: Mapping[str, Any]) -> list[Answer]:
        short, clock = run.short, run.clock
        first = FirstLogits(clock)
        options = {k: v for k, v in settings.items() if v is not None}
        processors = [*options.pop("logits_processor", []), first]
        has_pictures = any(row.placed for row in short.rows)
        clock.start("prefill")
        try:
            with (
                compat.expanding_by_row(self.model, short.expand),
                language_run(self.adapter, run.plan) as inside,
            ):
                extra = begin(inside, short, self.special_ids) if inside and has_pictures else {}
                run.inside = inside
                run.out = self.model.generate(
                    **short.kwargs,
                    **extra,
                    **options,
                    logits_processor=processors,
                    return_dict_in_generate=True,
                    use_cache=True,
                )
        finally:
            clock.stop()
        return self._answers(run, self.stop_ids(settings))

    def _look(self, plan: Plan) -> Any:
        method = plan.stage("pixels")
        if method is None or patches_of(self.adapter, plan, self.processor) is not None:
            return Unchanged()
        from foveate.engine.pixels import Look

        return Look(self.adapter, self.processor, method, plan.seed)

    def _process(
        self,
        members: list[Prepared],
        pictures: list[Any],
        videos: list[Any],
        extra: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        call: dict[str, Any] = {"text": [m.text for m in members], "padding": True}
        call.update(extra or {})
        if any(pictures):
            call["images"] = pictures
        if any(videos):
            call.update(video_inputs([v for row in videos for v in row]))
        inputs = dict(self._left_padded(call))
        dtype, device = self.model.dtype, self.model.device

        def there(x: Any) -> Any:
            if not torch.is_tensor(x):
                return x
            return x.to(device, dtype) if x.is_floating_point() else x.to(device)

        return {k: there(v) for k, v in inputs.items()}

    def _left_padded(self, call: Mapping[str, Any]) -> Any:
        """The processor's output for a batch; the tokenizer's own padding side is put back."""
        tokenizer = self.processor.tokenizer
        side, tokenizer.padding_side = tokenizer.padding_side, "left"
        try:
            return self.processor(**call, return_tensors="pt")
        finally:
            tokenizer.padding_side = side

    def _answers(self, run: Run, eos: set[int]) -> list[Answer]:
        start = run.short.kwargs["input_ids"].shape[1]
        each = run.out.sequences.shape[0] // len(run.members)
        answers = []
        for i, (member, row) in enumerate(zip(run.members, run.short.rows, strict=True)):
            ids = _until(run.out.sequences[i * each, start:].tolist(), eos)
            words = [x for x in ids if x not in eos]
            text = self.processor.tokenizer.decode(words, skip_special_tokens=True).strip()
            report = self.report(run, i, len(ids))
            kept = kept_segments(row, run.inside, i, len(run.members))
            answers.append(
                Answer(
                    text,
                    tuple(ids),
                    report,
                    kept,
                    tuple(run.pictures[i]),
                    tuple(member.notes),
                    id=member.request.id,
                )
            )
        return answers

    def stop_ids(self, settings: Mapping[str, Any]) -> set[int]:
        config = settings.get("generation_config")
        eos = settings.get("eos_token_id", getattr(config, "eos_token_id", None))
        if eos is None:
            eos = self.model.generation_config.eos_token_id
        if eos is None:
            eos = self.processor.tokenizer.eos_token_id
        if eos is None:
            return set()
        return set(eos) if isinstance(eos, list) else {int(eos)}

    def report(self, run: Run, index: int, new_tokens: int) -> Report:
        """What request `index` of a run that has ended cost."""
        return report_of(self, run, index, new_tokens)


def _until(ids: list[int], eos: set[int]) -> list[int]:
    for i, token in enumerate(ids):
        if token in eos:
            return ids[: i + 1]
    return ids
