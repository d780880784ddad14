"""Plans inside the language model: tokens leave between layers, caches hold what stayed.

`LanguageRun` is attached to a decoder for the length of a `with` block. It hooks its layers, routes
its attention and files keys and values with their sequences. It never runs a layer of its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.errors import PlanError, UnsupportedError
from foveate.core.language import CachePolicy, KVCodec, LanguageFacts, PrefillMethod, Route
from foveate.core.plan import Plan
from foveate.core.views import Reduction
from foveate.engine.kv_cache import RaggedCache
from foveate.engine.kv_policy import PolicyRun
from foveate.engine.language_pass import Prefill, RowMeta, Seen, last_row
from foveate.engine.language_step import Steps, write_prompt
from foveate.engine.language_view import RowView, of_ones
from foveate.models import compat, compat_language
from foveate.models.adapter import AutoAdapter

_NORMS = ("norm", "embedding_norm", "final_layernorm", "ln_f")


class _LookedError(Exception):
    """Ends a layer that is only looked at."""


class LanguageRun:
    """Runs the prefill stage of one plan on one model. Not safe for concurrent calls on a model.

    Errors at construction: SettingError or UnsupportedError if this model cannot run the plan.
    """

    def __init__(self, adapter: AutoAdapter, plan: Plan) -> None:
        self.adapter, self.plan = adapter, plan
        self.lm = compat.decoder_of(adapter.model)
        self.layers: list[nn.Module] = list(self.lm.layers)
        self.text_config = self.lm.config
        count = len(self.layers)
        self.kinds = compat_language.layer_kinds(self.text_config, count)
        self.sources = compat_language.kv_sources(self.text_config, count)
        self.method: PrefillMethod | None = plan.stage("prefill")
        self.memory: CachePolicy | KVCodec | None = plan.stage("memory")
        self.at = self._checked_layers()
        attention = [compat_language.attention_of(layer) for layer in self.layers]
        self._index = {id(m): i for i, m in enumerate(attention) if m is not None}
        self.norm = next((getattr(self.lm, n) for n in _NORMS if hasattr(self.lm, n)), None)
        self._begun: tuple[list[RowMeta], Tensor, str] | None = None
        self.prefill: Prefill | None = None
        self.counts: list[list[int]] = []
        self.deepest: list[np.ndarray] = []
        self._stepping: RaggedCache | None = None
        self._steps = Steps(self.text_config, self.kinds, self.sources)
        self._cache: RaggedCache | None = None
        self._meta: list[RowMeta] = []
        self._parts = self._attached = False
        held = self.new_cache().held
        self.policy: PolicyRun | None = None
        if isinstance(self.memory, CachePolicy):
            self.policy = PolicyRun(self.memory, held, self.sources)
            heads = getattr(self.text_config, "num_attention_heads", 0)
            width = self.text_config.hidden_size
            self.memory.check(LanguageFacts(len(self.policy.layers), width, heads))
        if self.memory is not None:
            self._check_memory(held)
        self._looking = False
        self._looked: Seen | None = None

    def _checked_layers(self) -> tuple[int, ...]:
        if self.method is None:
            return ()
        at = tuple(self.method.layers(len(self.layers)))
        if list(at) != sorted(set(at)) or (at and not 0 <= at[0] <= at[-1] < len(self.layers)):
            raise PlanError(f"{self.method.name}: layers {at} are not ascending within the model")
        self.method.check(LanguageFacts(len(self.layers), self.text_config.hidden_size))
        for layer in at:
            if self.sources[layer] != layer:
                raise UnsupportedError(
                    f"{self.method.name} drops tokens at layer {layer}, which reads the keys of layer "
                    f"{self.sources[layer]} in {self.adapter.model_type}; name a layer below "
                    f"{min(i for i, s in enumerate(self.sources) if s != i)}"
                )
            for source, there in (("previous", layer - 1), ("next", layer)):
                # Before layer 0 a method can read the embeddings; there is no layer before it.
                wanted = source in self.method.reads and there >= 0
                if wanted and self.kinds[there] not in compat_language.CACHED_KINDS:
                    raise UnsupportedError(
                        f"{self.method.name} reads the attention of layer {there}, which is of kind "
                        f"{self.kinds[there]} in {self.adapter.model_type}; name another layer"
                    )
        return at

    def _check_memory(self, held: Sequence[bool]) -> None:
        assert self.memory is not None
        family = self.adapter.model_type
        if not any(held):
            raise UnsupportedError(f"{self.memory.name}: {family} keeps no entries per token")
        windows = [k for k in self.kinds if compat_language.window_of(self.text_config, k)]
        capped = getattr(self.text_config, "attn_logit_softcapping", None)
        if isinstance(self.memory, KVCodec) and (windows or capped):
            raise UnsupportedError(
                f"{self.memory.name} attends over codes, without windows or logit caps; {family} has "
                f"{windows[0] if windows else 'a logit cap'}: choose an eviction policy"
            )

    # --- the doors' side ---------------------------------------------------------------------------
    @contextlib.contextmanager
    def attached(self) -> Iterator[LanguageRun]:
        """Hook the decoder; on leaving hooks, configs and instance attributes are as before."""
        handles = [
            layer.register_forward_pre_hook(self._hook(i), with_kwargs=True)
            for i, layer in enumerate(self.layers)
        ]
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(compat_language.routed(self.adapter.model, self.layers, self))
                stack.enter_context(compat_language.deepstack_rows(self.lm, self._deepstack))
                self._attached = True
                yield self
        finally:
            for handle in handles:
                handle.remove()
            self.prefill, self._stepping, self._begun = None, None, None
            self._attached, self._cache, self._meta = False, None, []

    def begin(self, meta: Sequence[RowMeta], mask: Tensor, side: str) -> None:
        """Say what the next prefill is: rows and their padding mask (B, S)."""
        self._begun = (list(meta), mask != 0, side)

    def idle(self) -> None:
        """Forget an announced prefill that never came."""
        self._begun = None

    def resume(self, cache: RaggedCache, meta: Sequence[RowMeta]) -> None:
        """Say whose rows a cache holds now, before steps of sequences that joined or left."""
        self._cache, self._meta = cache, list(meta)

    @property
    def in_charge(self) -> bool:
        """Whether it is this run that takes over the decoder's attention: the one attached last is."""
        module = next(m for m in map(compat_language.attention_of, self.layers) if m is not None)
        return compat_language.in_charge(module, self)

    @contextlib.contextmanager
    def in_parts(self) -> Iterator[None]:
        """While open, forward passes are parts of a prompt that follow what their rows hold."""
        self._parts = True
        try:
            yield
        finally:
            self._parts = False

    def new_cache(self) -> RaggedCache:
        """An empty cache for a batch."""
        return RaggedCache(self.text_config, len(self.layers), self._write)

    def _write(self, cache: RaggedCache, layer: int, k: Tensor, v: Tensor) -> bool:
        if self._looking:
            return False
        if not self._attached:  # the model's own attention would see the new entries alone
            raise UnsupportedError(
                "the block of this cache's plan has ended: call anew in a new one"
            )
        if self.prefill is not None:
            write_prompt(self.prefill, cache, layer, k, v)
        else:
            self._steps.write(cache, layer, k, v)
        return True

    # --- hooks -------------------------------------------------------------------------------------
    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            if self._looking:
                return None
            if index == 0:
                self._open(args[0] if args else kwargs["hidden_states"], kwargs)
            if self.prefill is None:
                return None
            return self._layer(index, module, list(args), kwargs)

        return hook

    def _open(self, hidden: Tensor, kwargs: dict[str, Any]) -> None:
        cache, begun = kwargs.get("past_key_values"), self._begun
        own = isinstance(cache, RaggedCache)
        self.prefill, self._stepping, self._begun = None, None, None
        if isinstance(cache, RaggedCache) and (self._parts or cache.get_seq_length() > 0):
            self._stepping = cache
            return
        if begun is None:
            return  # a prompt without pictures, or a step over a cache of no concern
        if cache is not None and not own:
            raise UnsupportedError(
                f"a plan inside the language model needs its own cache, not {type(cache).__name__}: "
                "leave past_key_values and cache_implementation out"
            )
        meta, valid, side = begun
        batch = int(hidden.shape[hidden.ndim - 3])
        if int(hidden.shape[-2]) != valid.shape[1]:
            raise UnsupportedError(
                "the prompt came in parts (prefill_chunk_size?): a plan inside the language model "
                "needs it whole"
            )
        each = batch // valid.shape[0]
        if each > 1:
            meta = [m for m in meta for _ in range(each)]
            valid = valid.repeat_interleave(each, 0)
        self._cache, self._meta = cache, meta
        self.prefill = Prefill(meta, valid.to(hidden.device), side)
        self.counts, self.deepest = self.prefill.counts, self.prefill.deepest
        if cache is not None:
            codec = self.memory if isinstance(self.memory, KVCodec) else None
            # Without pictures a request keeps plain entries, as it does through every other door.
            cache.rows = [cache.new_row(codec if m.entered else None, m.modality) for m in meta]
            for row, m in zip(cache.rows, meta, strict=True):
                row.length = m.n

    def _layer(self, index: int, module: nn.Module, args: list[Any], kwargs: dict[str, Any]) -> Any:
        prefill, source = self.prefill, self.sources[index]
        assert prefill is not None
        hidden = args[0] if args else kwargs["hidden_states"]
        if int(hidden.shape[-2]) != prefill.now.valid.shape[1]:
            # Layers that share keys may compute the last token alone.
            if len(prefill.versions) > 1 and kwargs.get("attention_mask") is not None:
                kwargs = {**kwargs, "attention_mask": last_row(prefill, kwargs, source)}
            return tuple(args), kwargs
        if index in self.at:
            fitted = self._fit(prefill, args, kwargs, source) if len(prefill.versions) > 1 else None
            hidden = self._decide(index, module, hidden, fitted or (args, kwargs))
            if args:
                args = [hidden, *args[1:]]
            else:
                kwargs = {**kwargs, "hidden_states": hidden}
        prefill.last, prefill.call = None, ([], {})
        prefill.enter(index)
        if len(prefill.versions) > 1:
            args, kwargs = self._fit(prefill, args, kwargs, source)
        if index + 1 in self.at:
            prefill.note_call(args, kwargs)
        return tuple(args), kwargs

    def _fit(
        self, prefill: Prefill, args: list[Any], kwargs: dict[str, Any], source: int
    ) -> tuple[list[Any], dict[str, Any]]:
        rest = [prefill.fitted("", x, source) for x in args[1:]]
        named = {
            k: v if k == "hidden_states" else prefill.fitted(k, v, source)
            for k, v in kwargs.items()
        }
        return [*args[:1], *rest], named

    def _decide(
        self,
        index: int,
        module: nn.Module,
        hidden: Tensor,
        call: tuple[list[Any], dict[str, Any]],
    ) -> Tensor:
        prefill, method = self.prefill, self.method
        assert prefill is not None and method is not None
        prefill.ahead = None

        def ahead() -> Seen:
            if prefill.ahead is None:
                prefill.ahead = self._look(module, hidden, *call)
            return prefill.ahead

        @functools.cache
        def even(source: str) -> Seen:
            layer = module if source == "next" else self.layers[index - 1]
            called = call if source == "next" else prefill.call
            return of_ones(method.name, layer, called, lambda *c: self._look(layer, hidden, *c))

        plane = hidden if hidden.ndim == 3 else hidden[0]
        kept: list[np.ndarray] = []
        merged: dict[int, tuple[Reduction, np.ndarray]] = {}
        for row in range(plane.shape[0]):
            view = RowView(
                method.name, prefill, row, plane[row], len(self.layers), self.norm, ahead, even
            )
            visual = view.visual
            route, prefill.states[row] = (
                method.decide(index, view, prefill.states[row])
                if visual.size
                else (Route(), prefill.states[row])
            )
            keep = self._kept(route, visual.size)
            text = np.flatnonzero(view.modality == 0)
            stays = visual if keep is None else visual[keep.anchor]
            kept.append(view.origin[np.sort(np.concatenate([text, stays]))])
            if keep is not None and not keep.is_pick:
                merged[row] = (keep, visual)
        prefill.ahead = prefill.last = None
        same = all(len(k) == len(p) for k, p in zip(kept, prefill.now.present, strict=True))
        if same and not merged:
            return hidden
        before = [prefill.columns(row) for row in range(len(kept))]
        relative = prefill.narrow(kept)
        out = compat_language.gathered(hidden, relative, -2, hidden.ndim - 3)
        for row, (reduction, visual) in merged.items():
            prefill.merge(row, hidden, out, before[row], reduction, visual)
        return out

    def _kept(self, route: Route, visual: int) -> Reduction | None:
        name = self.method.name if self.method is not None else ""
        if route.park is not None or route.recall is not None:
            raise UnsupportedError(f"{name} parks tokens, which this engine does not run yet")
        if route.keep is None:
            return None
        route.keep.check()
        if route.keep.n != visual:
            raise PlanError(f"{name} answered for {route.keep.n} tokens; {visual} are present")
        return None if route.keep.is_identity else route.keep

    def _look(
        self, module: nn.Module, hidden: Tensor, args: list[Any], kwargs: dict[str, Any]
    ) -> Seen:
        """Queries and keys of a layer that has not run yet: run it up to its attention function."""
        self._looking, self._looked = True, None
        try:
            if args:
                module.forward(hidden, *args[1:], **kwargs)
            else:
                module.forward(**{**kwargs, "hidden_states": hidden})
        except _LookedError:
            pass
        finally:
            self._looking = False
        found: Seen | None = self._looked
        self._looked = None
        if found is None:
            raise UnsupportedError(
                f"{self.adapter.model_type}: a layer ran without calling an attention function"
            )
        return found

    def _deepstack(self, hidden: Tensor, mask: Tensor, rows: Any) -> Any:
        prefill = self.prefill
        if prefill is None or len(prefill.versions) == 1 or mask.shape[-1] != prefill.width:
            return None
        now = prefill.now
        stays = torch.zeros_like(mask)
        for row in range(mask.shape[0]):
            stays[row, now.index[row][now.valid[row]]] = True
        short = mask.gather(1, now.index) & now.valid
        return short, rows[stays[mask]]

    # --- attention and cache -----------------------------------------------------------------------
    def attend(
        self,
        module: nn.Module,
        inner: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Any:
        """The decoder's attention (`compat_language.Attending`)."""
        index = self._index.get(id(module))
        if index is None:
            return inner(module, q, k, v, mask, **kwargs)
        if self._looking:
            self._looked = Seen(q, k, mask, kwargs.get("scaling"), kwargs.get("softcap"))
            raise _LookedError
        if self._stepping is not None:
            stepped = self._steps.attend(self._stepping, index, module, inner, q, kwargs)
            if self.policy is not None:  # afterwards: new tokens are the last entries until then
                self.policy.stepped(index, self._meta, self._stepping)
            return stepped, None
        prefill, method = self.prefill, self.method
        if prefill and method and index + 1 in self.at and "previous" in method.reads:
            prefill.last = Seen(q, k, mask, kwargs.get("scaling"), kwargs.get("softcap"))
        out = inner(module, q, k, v, mask, **kwargs)
        if prefill and self.policy and self._cache is not None and q.shape[2] == k.shape[2]:
            seen = Seen(q, k, mask, kwargs.get("scaling"), kwargs.get("softcap"))
            self.policy.prefilled(index, prefill, self._cache, seen)
        return out
