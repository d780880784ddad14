"""The processor side: how many placeholders a picture gets, and what its cache entries are called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.serve.vllm import metrics
from foveate.serve.vllm.families import Family
from foveate.serve.vllm.layouts import interleaved, shorten
from foveate.serve.vllm.pixels import TILES_FIELD, Looking, without_places, without_tiles
from foveate.serve.vllm.plan_source import (
    REQUEST_FIELD,
    RequestPlanError,
    Serving,
    identity,
)
from foveate.serve.vllm.reach import check_reach, extent_of, frames_of, table_length
from foveate.serve.vllm.showing import Shown, count_as_handed, refuse, settings_of
from foveate.serve.vllm.startup import serving_of

MODALITIES = ("image", "video")
IDENTITY_FIELD = "foveate_identity"
QUESTION_FIELD = "foveate_question"
_OWN = (REQUEST_FIELD, IDENTITY_FIELD, QUESTION_FIELD)
_AHEAD = "foveate_ahead"  # in the instance dict of what vLLM caches of an item's place in prompts


def plan_field(modality: str) -> str:
    """The field that carries each item's plan from the processor to the model."""
    return f"foveate_plan_{modality}"


def words_field(modality: str) -> str:
    """The field that carries what is written between the frames of each item."""
    return f"foveate_words_{modality}"


def written(plan: str, question: str, tiles: str = "") -> Tensor:
    """(bytes,) uint8: a plan, the ids of a question's words, and of each of a picture's tiles 1 where it
    stays and 0 where it does not; for vLLM sends tensors between its processes.
    """
    text = f"{plan}\n{question}\n{tiles}"
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def read(data: Tensor) -> tuple[str, tuple[int, ...]]:
    """The plan's text and the ids that `written` put there."""
    plan, question, _ = _lines(data)
    return plan, tuple(int(x) for x in question.split(",") if x)


def read_tiles(data: Tensor) -> np.ndarray:
    """Which tiles stay, (tiles,) bool; of no length where none were looked at."""
    return np.array([x == "1" for x in _lines(data)[2].strip()], dtype=bool)


def _lines(data: Tensor) -> list[str]:
    return bytes(data.cpu().numpy().tobytes()).decode().split("\n")


@functools.cache
def _version() -> str:
    return version("foveate")


# Stands before a processor of vLLM among the bases of a class that is made at run time: what super() is
# there, a type checker cannot know, hence the ignores below.
class PlannedProcessor:
    """Stands before vLLM's processor class in the order of resolution. What `super()` gives is vLLM's,
    hence the ignores.
    """

    family: ClassVar[Family]
    info: Any

    @functools.cached_property
    def _serving(self) -> Serving | None:
        return serving_of(self.info.ctx.model_config)

    # --- the plan joins the request's processor settings, which every cache key covers ------------
    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        settings = dict(inputs.hf_processor_mm_kwargs)
        if self._serving is None:
            if REQUEST_FIELD in settings:
                raise RequestPlanError(
                    f"{REQUEST_FIELD}: this server was started without Foveate's plug-in being "
                    'active; start it with --additional-config \'{"foveate": {"plan": "none"}}\''
                )
            return super().apply(inputs, *args, **kwargs)  # type: ignore[misc]
        given = settings.pop(REQUEST_FIELD, None)
        plan = self._serving.served() if given is None else self._serving.requested(given)
        items = inputs.mm_data_items
        looking = None
        try:
            self.family.check(self.info.get_hf_config(), plan)
            refuse_embeddings(items)
            if plan.stage("pixels") is not None:
                looking = self._looking(plan, settings, bool(items.get("video")))
        except FoveateError as error:
            raise RequestPlanError(f"plan {str(plan)!r}: {error}") from None
        if looking is not None:
            settings |= looking.shown.call(looking.method)
            items = type(items)(looking.items(items))
        settings[REQUEST_FIELD] = str(plan)
        settings[IDENTITY_FIELD] = identity(plan, _version())
        settings.pop(QUESTION_FIELD, None)
        method = plan.stage("tokens")
        if method is not None and any(n.what == "question" for n in method.needs):
            settings[QUESTION_FIELD] = self._question(inputs.prompt)
        if plan.methods and not self.family.videos and inputs.mm_data_items.get("video"):
            raise RequestPlanError(
                f"videos of {self.family.architecture} would be served whole under plan {str(plan)!r}; "
                "send the frames as pictures"
            )
        changed = replace(inputs, hf_processor_mm_kwargs=settings, mm_data_items=items)
        try:
            out = super().apply(changed, *args, **kwargs)  # type: ignore[misc]
        except FoveateError as error:
            raise RequestPlanError(f"plan {str(plan)!r}: {error}") from error
        ranges = out["mm_placeholders"]
        places = {m: self._placeholder(m) for m in ranges}
        metrics.count(ranges, out["prompt_token_ids"], places)
        return out

    def _question(self, prompt: str | list[int]) -> str:
        """Ids of the words after the last picture, special tokens left out, or of all words where none
        follow: what `attach` takes for the question.
        """
        tokenizer, config = self.info.get_tokenizer(), self.info.get_hf_config()
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        left_out = set(tokenizer.all_special_ids)
        for part in (config, config.get_text_config()):
            left_out |= {
                v
                for k, v in vars(part).items()
                if k.endswith(("_token_id", "_token_index")) and isinstance(v, int)
            }
        places = {self._placeholder(m) for m in self.family.modalities}
        last = max((i for i, x in enumerate(ids) if x in places), default=-1)
        after = [x for x in ids[last + 1 :] if x not in left_out]
        words = after or [x for x in ids if x not in left_out]
        return ",".join(str(x) for x in words or ids)  # vLLM's profiling asks without words

    def _placeholder(self, modality: str) -> int:
        config, processor = self.info.get_hf_config(), self.info.get_hf_processor()
        return self.family.placeholder(config, modality, processor)

    def _shown(self, settings: Mapping[str, Any]) -> Shown:
        """The family's rule under the processor settings of a request."""
        own = _without_own(settings)
        processor = self.info.get_hf_processor(**own)
        changes = self.info.ctx.get_merged_mm_kwargs(own)
        return Shown(self.family, self.info.get_hf_config(), settings_of(processor, changes))

    def _looking(self, plan: Plan, settings: Mapping[str, Any], videos: bool = False) -> Looking:
        """The plan's pixel method on this family; UnsupportedError where it cannot be followed."""
        method: Any = plan.stage("pixels")
        shown = self._shown(settings)
        refuse(method, self.family, shown, videos)
        if shown.call(method):
            count_as_handed(self.info)
        images = self.info.get_hf_processor(**_without_own(settings)).image_processor
        return Looking(method, shown, plan.seed, getattr(images, "resample", None))

    def _plan(self, settings: Mapping[str, Any]) -> Plan | None:
        if self._serving is None:
            return None
        return self._serving.served(settings.get(REQUEST_FIELD))

    # --- vLLM's own code must not see our settings -------------------------------------------------
    # Signatures changed between 0.28 and 0.32, hence *args.
    def _call_hf_processor(self, *args: Any, **kwargs: Any) -> Any:
        return super()._call_hf_processor(  # type: ignore[misc]
            *map(_without_own, args), **{k: _without_own(v) for k, v in kwargs.items()}
        )

    def _apply_hf_processor_main(self, *args: Any, **kwargs: Any) -> Any:
        out = super()._apply_hf_processor_main(  # type: ignore[misc]
            *map(_without_own, args), **{k: _without_own(v) for k, v in kwargs.items()}
        )
        given = (*args, *kwargs.values())
        settings = next((x for x in given if isinstance(x, Mapping) and REQUEST_FIELD in x), {})
        plan = self._plan(settings) if settings else None
        method = None if plan is None else plan.stage("pixels")
        if plan is None or method is None or method.acts != "tiles":
            return out
        pictures = next(x for x in given if hasattr(x, "get_all_counts")).get("image")
        if pictures:
            looking = self._looking(plan, settings)
            kept = looking.tiles(pictures.get_all())
            without_tiles(
                out[1] if isinstance(out, tuple) else out, kept, looking.shown.tiles_field
            )
        return out

    def _apply_hf_processor_text_mm(
        self, prompt_text: str, mm_items: Any, *args: Any, **kwargs: Any
    ) -> Any:
        # Up to 0.31: the processor of the family may write all placeholders itself; ours come after.
        ids, data, done = super()._apply_hf_processor_text_mm(  # type: ignore[misc]
            prompt_text, mm_items, *args, **kwargs
        )
        if self._serving is None or not any(mm_items.get_all_counts().values()):
            return ids, data, done
        return self.info.get_tokenizer().encode(prompt_text), data, False

    # --- what travels to the model ------------------------------------------------------------------
    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        from vllm.multimodal.inputs import MultiModalFieldConfig

        plan = self._plan(hf_processor_mm_kwargs)
        clean = _without_own(hf_processor_mm_kwargs)
        found = super()._get_mm_fields_config(hf_inputs, clean)  # type: ignore[misc]
        if plan is None:
            return found
        fields = dict(found)
        tiles = hf_inputs.pop(TILES_FIELD, [])
        for modality in MODALITIES:
            items = max(
                (
                    len(c.build_elems(name, hf_inputs[name]))
                    for name, c in found.items()
                    if c.modality == modality and name in hf_inputs
                ),
                default=0,
            )
            if items:
                question = str(hf_processor_mm_kwargs.get(QUESTION_FIELD, ""))
                hf_inputs[plan_field(modality)] = written(str(plan), question).repeat(items, 1)
                if modality == "image" and tiles:
                    texts = ["".join("01"[int(x)] for x in mask) for mask in tiles]
                    wide = max(map(len, texts))
                    rows = [written(str(plan), question, t.ljust(wide)) for t in texts]
                    hf_inputs[plan_field(modality)] = torch.stack(rows)
                # vLLM drops the other fields of pictures that are encoded already, but positions
                # are still asked for.
                own = [plan_field(modality)]
                if modality == "video" and self.family.between is not None:
                    hf_inputs[words_field(modality)] = self._words(hf_inputs, items)
                    own.append(words_field(modality))
                for name in own:
                    fields[name] = MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
        return fields

    def _words(self, hf_inputs: Any, items: int) -> list[Tensor]:
        """Ids of each video's part of the prompt with one placeholder a frame."""
        config, encode = self.info.get_hf_config(), self.info.get_tokenizer().encode
        between: Any = self.family.between
        return [
            torch.tensor(
                between(
                    config,
                    functools.partial(encode, add_special_tokens=False),
                    {"timestamps": hf_inputs["timestamps"][i]},
                )
            )
            for i in range(items)
        ]

    # --- placeholders ---------------------------------------------------------------------------------
    def _takes(self, modality: str) -> bool:
        """Whether clients may send this. An EC consumer measures the others as well, as embeddings,
        which are refused.
        """
        limits = self.info.ctx.model_config.multimodal_config
        return bool(limits is None or limits.get_limit_per_prompt(modality))

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any
    ) -> Any:
        plan = self._plan(hf_processor_mm_kwargs)
        clean = _without_own(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, clean, out_mm_kwargs)  # type: ignore[misc]
        if plan is None or (plan.is_identity and not self.family.mrope):
            return updates
        config = self.info.get_hf_config()
        tokenizer = self.info.get_tokenizer()

        def shortened(modality: str, content: Any) -> Callable[[int], Any]:
            def of_item(index: int) -> Any:
                placeholder = self._placeholder(modality)
                whole = content(index) if callable(content) else content
                full = getattr(whole, "full", whole)
                ids = (
                    tokenizer.encode(full, add_special_tokens=False)
                    if isinstance(full, str)
                    else list(full)
                )
                item = out_mm_kwargs[modality][index]
                fields = {k: v.data for k, v in item.items()}
                tiles = read_tiles(fields[plan_field(modality)])
                if tiles.size:
                    each = self._shown(hf_processor_mm_kwargs).tile_tokens
                    ids = without_places(ids, placeholder, tiles, each)
                n = sum(t == placeholder for t in ids)
                layout = self.family.layout(config, fields, n, modality)
                words = fields.get(words_field(modality))
                if words is not None:
                    less = interleaved(ids, placeholder, words.tolist(), layout, plan)
                    # The model fills the whole run, words too.
                    out = replace(whole, full=less, is_embed=None)
                else:
                    less = shorten(ids, placeholder, layout, plan)
                    out = replace(whole, full=less) if hasattr(whole, "full") else less
                if not self.family.mrope:
                    return out
                run = sum(t == placeholder for t in less) if words is None else len(less)
                spread = 0
                if plan.positions != "renumber":
                    (span,) = layout.spans
                    frames = frames_of(self.family, config, span, words)
                    spread = extent_of(self.family, config, span, fields, frames) - run
                return _with_ahead(out, spread)

            return of_item

        return [
            replace(u, replacement=shortened(u.modality, u.replacement))
            if u.modality in MODALITIES and self._takes(u.modality)
            else u
            for u in updates
        ]

    def _merge_mm_kwargs(
        self, cache: Any, mm_hashes: Any, mm_is_cached: Any, *args: Any, **kwargs: Any
    ) -> Any:
        out = super()._merge_mm_kwargs(cache, mm_hashes, mm_is_cached, *args, **kwargs)  # type: ignore[misc]
        try:
            self._check_reach(out[1])
        except RequestPlanError:
            # vLLM sends no item twice, and the engine will not see those of this request.
            for modality, hashes in mm_hashes.items():
                for name, known in zip(hashes, mm_is_cached[modality], strict=True):
                    if not known:
                        cache.invalidate(name)
            raise
        return out

    def _apply_prompt_updates(self, token_ids: Any, mm_prompt_updates: Any) -> Any:
        self._check_reach(mm_prompt_updates)  # without a cache, nothing was merged
        return super()._apply_prompt_updates(token_ids, mm_prompt_updates)  # type: ignore[misc]

    def _check_reach(self, mm_prompt_updates: Any) -> None:
        """RequestPlanError where the positions of a request with these items reach too far."""
        if self._serving is None or not self.family.mrope:
            return
        ahead = sum(
            vars(updates[0].content)[_AHEAD]
            for modality, items in mm_prompt_updates.items()
            if modality in MODALITIES and self._takes(modality)
            for updates in items
        )
        context_tokens = self.info.ctx.model_config.max_model_len
        check_reach(ahead, context_tokens, table_length(self.info.get_hf_config()))


def _with_ahead(content: Any, ahead: int) -> Any:
    """What vLLM puts into prompts for an item, with how many more positions than tokens it takes. vLLM
    keeps it as long as it knows the item, of which it may forget everything else here.
    """
    from vllm.multimodal.processing import PromptUpdateDetails

    out = content if hasattr(content, "full") else PromptUpdateDetails.from_seq(content)
    vars(out)[_AHEAD] = ahead
    return out


def _without_own(value: Any) -> Any:
    if isinstance(value, Mapping) and any(k in value for k in _OWN):
        return {k: v for k, v in value.items() if k not in _OWN}
    return value


def refuse_embeddings(items: Mapping[str, Any]) -> None:
    """RequestPlanError where a client sent features of its own: there is nothing to encode."""
    for modality, found in items.items():
        if type(found).__name__.endswith("EmbeddingItems"):
            raise RequestPlanError(
                f"{modality} embeddings cannot be served together with a Foveate plan: send the "
                f"{modality} itself, or ask a server without the plug-in"
            )


__all__ = ["MODALITIES", "PlannedProcessor", "plan_field", "read", "written"]
