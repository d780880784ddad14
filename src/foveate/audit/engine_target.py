"""Our engine as a target: one ContinuousEngine a plan, all over one copy of the weights.

A model can carry the hooks of one plan at a time, so a Host owns model and worker thread, and puts
the plan of the arm whose turn it is on the model. A request is prepared, encoded, prefilled and
decoded in that thread; only its times and its answer come back to the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.audit.meters import ProcessMeter
from foveate.audit.records import Gauges, Item, Observed
from foveate.audit.spec import LAB_NANO
from foveate.core.errors import FoveateError, InputError, MissingExtraError

if TYPE_CHECKING:
    from foveate.engine.continuous import ContinuousEngine
    from foveate.engine.engine import Engine


@dataclass
class _Ask:
    """One request on its way through the worker thread."""

    id: str
    item: Item
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Observed]
    sent_s: float
    chunk_s: list[float] = field(default_factory=list)


class Host:
    """A model, its worker thread, and the plan that is on it now.

    `run` does a piece of work in the thread and waits for it; `post` does not wait. weights: which
    they are, for the receipt: the SHA-256 of a folder's files, or a hub model's commit.
    """

    def __init__(self, engine: Engine, weights: str | None = None) -> None:
        self.engine, self.weights = engine, weights
        self.meter = ProcessMeter(engine.model.device)
        self.active: EngineTarget | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="foveate-engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, model: str) -> Host:
        """The host of a folder, a hub id or the bundled model. MissingExtraError without torch."""
        from foveate.lab.nano import nano_path

        source = nano_path() if model == LAB_NANO else model
        try:
            from foveate.engine.engine import Engine
        except ModuleNotFoundError as error:
            if error.name in ("torch", "transformers", "safetensors"):
                raise MissingExtraError(error.name, "hf", "running a model") from None
            raise
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        engine = Engine.from_pretrained(source)
        commit = getattr(engine.model.config, "_commit_hash", None)
        return cls(engine, digest_of(Path(source)) if Path(source).is_dir() else commit)

    def post(self, work: Callable[[], None]) -> None:
        self._jobs.put(work)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Do `work` in the thread between two steps; its exception comes back here."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def there() -> None:
            try:
                found = work()
            except BaseException as error:  # handed to the waiter
                _tell(loop, future, error=error)
            else:
                _tell(loop, future, found)

        self.post(there)
        return await future

    def close(self) -> None:
        """End the thread; what it was at is finished first."""
        self._jobs.put(None)
        self._thread.join()
        self.meter.close()

    def activate(self, target: EngineTarget) -> None:
        """Put a plan on the model; the one before leaves it. In the worker thread only."""
        if self.active is target:
            return
        if self.active is not None:
            self.active.detach()
        self.active = None
        target.attach()
        self.active = target

    def _work(self) -> None:
        while True:
            busy = self.active is not None and self.active.busy
            try:
                job = self._jobs.get_nowait() if busy else self._jobs.get()
            except queue.Empty:
                assert self.active is not None
                self.active.step()
                continue
            if job is None:
                if self.active is not None:
                    self.active.detach()
                return
            job()


def digest_of(folder: Path) -> str:
    """SHA-256 over the safetensors files of a model folder, by name; hexadecimal."""
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        found.update(file.name.encode())
        with file.open("rb") as handle:
            found.update(hashlib.file_digest(handle, "sha256").digest())
    return found.hexdigest()


class EngineTarget:
    """One arm in this process: a plan on a host's model. Greedy, as ContinuousEngine is.

    options: those of ContinuousEngine. Pictures enter as files, as a server would get them. Prefixes
    and encoded pictures are not shared between requests, so that a repeated question costs what the
    first did.
    """

    def __init__(self, arm: str, host: Host, plan: str | None = None, **options: Any) -> None:
        self.arm, self.host, self.plan = arm, host, plan
        self._options = {"prefix_cache_bytes": 0, **options}
        self._asks: dict[str, _Ask] = {}
        self._numbers = itertools.count()
        self._engine: ContinuousEngine | None = None

    # --- the event loop's side ---------------------------------------------------------------------
    async def open(self) -> None:
        """Try the plan on the model, before anything is sent. UnsupportedError says what cannot be."""
        await self.host.run(lambda: self.host.activate(self))

    async def close(self) -> None:
        def leave() -> None:
            if self.host.active is self:
                self.detach()
                self.host.active = None

        await self.host.run(leave)

    async def ask(self, item: Item) -> Observed:
        loop = asyncio.get_running_loop()
        ask = _Ask(
            f"{self.arm}-{next(self._numbers)}", item, loop, loop.create_future(), loop.time()
        )
        self.host.post(lambda: self._submit(ask))
        try:
            return await ask.future
        except asyncio.CancelledError:
            self.host.post(lambda: self._cancel(ask.id))
            raise

    def reset(self) -> None:
        """The arm's turn begins: its peaks start anew, and its plan goes onto the model."""
        self.host.meter.reset()
        self.host.post(self._begin)

    def gauges(self) -> Gauges:
        return self.host.meter.gauges()

    def describe(self) -> Mapping[str, Any]:
        from foveate.core.plan import Plan

        plan = Plan.parse(self.plan)
        return {
            "kind": "engine",
            "model": self.host.engine.name.rpartition("/")[2] or self.host.engine.name,
            "plan": str(plan),
            "plan_hash": plan.hash,
            "weights": self.host.weights,
            "dtype": str(self.host.engine.model.dtype).removeprefix("torch."),
            "device": str(self.host.engine.model.device),
            # Every step notes its KV bytes; only a run that had nothing left to ask has none.
            "missing": {k: v for k, v in self.host.meter.missing().items() if k != "kv_peak_bytes"},
        }

    # --- the worker thread's side ------------------------------------------------------------------
    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        return bool(self._asks)

    def attach(self) -> None:
        from foveate.engine.continuous import ContinuousEngine

        engine = ContinuousEngine(self.host.engine, self.plan, **self._options)
        engine.__enter__()
        self._engine = engine

    def _begin(self) -> None:
        # A plan that cannot be put on now fails again, and is told, with the first request.
        with contextlib.suppress(Exception):
            self.host.activate(self)

    def detach(self) -> None:
        """Take the plan off the model; requests under way end with an error."""
        engine, self._engine = self._engine, None
        for ask in list(self._asks.values()):
            self._end(ask, _failed(ask, InputError("the arm's turn ended")))
        if engine is not None:
            engine.__exit__(None, None, None)

    def _submit(self, ask: _Ask) -> None:
        from foveate.engine.request import Request

        try:
            self.host.activate(self)
            assert self._engine is not None
            pictures = [p.data for p in ask.item.pictures]
            request = Request(ask.item.question, images=pictures, id=ask.id)

            def heard(_id: str, _token: int, _text: str) -> None:
                ask.chunk_s.append(ask.loop.time())

            self._asks[ask.id] = ask
            self._engine.submit(request, max_new_tokens=ask.item.max_new_tokens, on_token=heard)
        except Exception as error:  # one request's failure is a row, never the run's end
            self._end(ask, _failed(ask, error))

    def step(self) -> None:
        """One step of the engine, and the answers that it finished."""
        engine = self._engine
        assert engine is not None
        try:
            with self.host.meter.device_work():
                went_on = engine.step()
        except Exception as error:  # a failed step fails its requests, never the run
            for ask in list(self._asks.values()):
                self._end(ask, _failed(ask, error))
            self.host.active = None  # what the failed step left behind goes with the engine
            self.detach()
            return
        answers = {id: engine.answer(id) for id in self._asks}
        # A request that ended in this step has let go of its cache, so its report speaks for it.
        ended = [a.report.kv_bytes or 0 for a in answers.values() if a and a.report]
        self.host.meter.note_kv_bytes(engine.kv_bytes + sum(ended))
        for id, ask in list(self._asks.items()):
            answer = answers[id]
            if answer is None:
                if not went_on:
                    self._end(ask, _failed(ask, InputError("the engine lost this request")))
                continue
            if answer.error is not None:
                self._end(ask, _failed(ask, answer.error))
                continue
            report = answer.report
            assert report is not None
            done_s = ask.loop.time()
            chunks = tuple(ask.chunk_s)
            stopped = bool(answer.token_ids) and answer.token_ids[-1] in engine.stop_ids
            self._end(
                ask,
                Observed(
                    sent_s=ask.sent_s,
                    done_s=done_s,
                    # An answer that is a stop token alone has no text to hear: it came at its end.
                    first_s=chunks[0] if chunks else done_s,
                    chunk_s=chunks or (done_s,),
                    text=answer.text,
                    model=self.host.engine.name.rpartition("/")[2],
                    finish="stop" if stopped else "length",
                    prompt_tokens=report.prompt_tokens,
                    completion_tokens=len(answer.token_ids),
                    visual_tokens=report.visual_tokens_kept + report.fixed_tokens_kept,
                    kv_bytes=report.kv_bytes,
                ),
            )

    def _cancel(self, id: str) -> None:
        if self._asks.pop(id, None) is not None and self._engine is not None:
            self._engine.cancel(id)
            self._engine.answer(id)

    def _end(self, ask: _Ask, seen: Observed) -> None:
        self._asks.pop(ask.id, None)
        _tell(ask.loop, ask.future, seen)


def _failed(ask: _Ask, error: Exception) -> Observed:
    detail = str(error) if isinstance(error, FoveateError) else f"{type(error).__name__}: {error}"
    return Observed(
        sent_s=ask.sent_s,
        done_s=ask.loop.time(),
        error="engine",
        error_detail=" ".join(detail.split())[:500],
    )


def _tell(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    found: Any = None,
    error: BaseException | None = None,
) -> None:
    """Resolve a future of another thread's loop, unless its waiter has gone."""

    def there() -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(found)

    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
        loop.call_soon_threadsafe(there)
