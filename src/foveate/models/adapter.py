"""AutoAdapter: what any vision-language model of transformers gives by convention. Families that
deviate override a little.

It encodes, says which features belong to which segment, maps encoder tokens to projected ones, and
packs kept
features back into the container that the model takes through `mm_encoder_outputs`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from foveate.core.errors import InputError, UnsupportedError
from foveate.core.views import Kind, Need
from foveate.models import compat
from foveate.models.encoded import (
    Encoded,
    EncoderTokens,
    Piece,
    block_index,
    flatten_capture,
    flatten_hidden,
    joined,
)
from foveate.models.packed import KeptPatches
from foveate.models.pieces import packed_pieces, tiled_pieces

MODALITIES = ("image", "video")
_PIXELS = {"image": ("pixel_values", "image_patches"), "video": ("pixel_values_videos",)}
_ATTENTION = ("cls", "received", "saliency", "keys", "query")
_adapters: dict[str, type[AutoAdapter]] = {}

A = TypeVar("A", bound="type[AutoAdapter]")


def family(*model_types: str) -> Callable[[A], A]:
    """Class decorator: this adapter serves these `config.model_type`s."""

    def add(cls: A) -> A:
        for name in model_types:
            _adapters[name] = cls
        return cls

    return add


def adapter_for(model: Any) -> AutoAdapter:
    """The adapter of a loaded model; UnsupportedError or InputError if it cannot be driven."""
    import foveate.models.families  # noqa: F401  (registers the overrides)

    inner = compat.unwrap(model)
    config = getattr(inner, "config", None)
    if config is None or not hasattr(inner, "generate"):
        raise InputError(f"{type(inner).__name__} is no transformers model with generate()")
    if not hasattr(inner.base_model, "get_image_features"):
        raise UnsupportedError(
            f"{type(inner).__name__} ({config.model_type}) has no get_image_features(): it is no "
            "vision-language model that puts visual tokens into the sequence"
        )
    if not compat.accepts_encoder_outputs(inner):
        raise UnsupportedError(
            f"{config.model_type}: forward() of this class does not take mm_encoder_outputs, so "
            "features cannot be handed back; see `foveate list --families`"
        )
    return _adapters.get(config.model_type, AutoAdapter)(inner)


class AutoAdapter:
    """Drives one loaded model by convention.

    front, back: special tokens before and after the patches of an encoder pass (None = infer).
    project: the projector maps each encoder token alone, see `project`.
    """

    tokenwise: ClassVar[bool] = False
    unsupported: ClassVar[str | None] = None

    def __init__(self, model: Any) -> None:
        self.model = model
        self.base = model.base_model
        self.config = model.config
        self.text_config = model.config.get_text_config()
        if self.unsupported:
            raise UnsupportedError(f"{self.config.model_type}: {self.unsupported}")
        self._parts: tuple[nn.Module, tuple[list[nn.Module], list[nn.Module], bool]] | None = None

    # --- facts ----------------------------------------------------------------------------------
    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    def token_id(self, modality: str) -> int | None:
        """Placeholder id of a modality, None if the family has none."""
        for name in (f"{modality}_token_id", f"{modality}_token_index"):
            value = getattr(self.config, name, None)
            if value is not None:
                return int(value)
        return None

    def spots(self, modality: str, ids: Tensor, types: Tensor | None) -> Tensor:
        """Where placeholders of a modality stand: bool (B, S). types: mm_token_type_ids, if the
        call has them.
        """
        token = self.token_id(modality)
        if token is None:
            raise InputError(f"{self.model_type} has no placeholder for {modality}")
        return ids == token

    @property
    def mrope(self) -> bool:
        """Positions are (t, h, w) triples."""
        return hasattr(self.base, "get_rope_index")

    @property
    def recurrent(self) -> bool:
        """Some decoder layers keep a recurrent state, which no mask can imitate."""
        kinds = getattr(self.text_config, "layer_types", None) or ()
        return any("linear" in k or "conv" in k or "mamba" in k for k in kinds)

    def cuttable(self, inputs: Mapping[str, Any]) -> bool:
        """Whether a prompt may pass in parts: not where a picture's tokens see each other both ways."""
        both = getattr(self.text_config, "use_bidirectional_attention", None) == "vision"
        return not both and "token_type_ids" not in inputs

    @property
    def vision(self) -> nn.Module:
        tower: nn.Module = self.model.get_encoder("image")
        return tower

    def feature_layer(self) -> int:
        """Block whose output the projector reads; below 0 it counts from the end.

        The config counts hidden states, of which the first is the input of block 0.
        """
        layer = getattr(self.config, "vision_feature_layer", -1)
        if not isinstance(layer, int):
            return -1
        return layer - 1 if layer > 0 else layer

    # --- encode ---------------------------------------------------------------------------------
    def feature_fn(self, modality: str) -> Callable[..., Any] | None:
        return getattr(self.base, f"get_{modality}_features", None)

    def media_kwargs(self, kwargs: Mapping[str, Any], modality: str) -> dict[str, Any]:
        """The part of a processor's output that get_<modality>_features takes; {} without pixels."""
        fn = self.feature_fn(modality)
        if fn is None or not any(kwargs.get(p) is not None for p in _PIXELS[modality]):
            return {}
        names = inspect.signature(fn).parameters
        return {
            k: kwargs[k] for k in names if k in kwargs and k != "kwargs" and kwargs[k] is not None
        }

    def encode(
        self,
        mm: Mapping[str, Any],
        modality: str = "image",
        needs: frozenset[Need] = frozenset(),
        around: Callable[[], contextlib.AbstractContextManager[Any]] | None = None,
        kept: KeptPatches | None = None,
    ) -> Encoded:
        """Run the vision side once, on `kept` patches alone if given. `needs` says which encoder
        facts to capture on the way.
        """
        fn = self.feature_fn(modality)
        if fn is None:
            raise UnsupportedError(f"{self.model_type} takes no {modality}")
        blocks, modules, _ = self._tower_parts()
        layers = {n.layer for n in needs if n.what in _ATTENTION}
        wanted = {block_index(layer, len(blocks)) for layer in layers}
        layers = {n.layer for n in needs if n.what == "features"}
        if layers:
            layers.add(self.feature_layer())
        states = {block_index(layer, len(blocks)) for layer in layers}
        front, back = self.specials()
        captures: dict[int, compat.Capture] = {}
        kinds: dict[int, set[str]] = {}
        for need in needs:
            if need.what in _ATTENTION:
                what = ("cls" if front else "received") if need.what == "saliency" else need.what
                kinds.setdefault(block_index(need.layer, len(blocks)), set()).add(what)
        for index in wanted:
            captures[id(modules[index])] = compat.Capture(frozenset(kinds[index]), front)
        with contextlib.ExitStack() as stack:
            if around is not None:
                stack.enter_context(around())
            if kept is not None:
                stack.enter_context(kept.dropping())
            if captures:
                stack.enter_context(compat.tapped(modules, captures))
            found = stack.enter_context(compat.recorded({i: blocks[i] for i in states}))
            out = fn(**mm, return_dict=True)
        if kept is not None:
            mm = {**mm, "kept_tokens": kept.tokens}
        tokens = EncoderTokens(blocks=len(blocks))
        self._fill_hidden(tokens, out, found, mm)
        self._fill_attention(tokens, captures, {i: id(modules[i]) for i in wanted}, mm)
        pieces = self.video_pieces(out, mm) if modality == "video" else self.pieces(out, mm)
        if kept is not None:
            kept.narrow(pieces)
        tokens.drop_unless_covering(pieces)
        self._spread_deepstack(out, pieces)
        return Encoded(modality, out, pieces, tokens, self.tokenwise and modality == "image")

    def specials(self) -> tuple[int, int]:
        """Special tokens before and after the patches of each encoder pass."""
        return (1, 0) if self._tower_parts()[2] else (0, 0)

    def _tower_parts(self) -> tuple[list[nn.Module], list[nn.Module], bool]:
        """The tower's blocks, the attention module of each, and whether it has a special token;
        looked up once a tower, for that walks all its modules.
        """
        vision = self.vision
        if self._parts is None or self._parts[0] is not vision:
            blocks = compat.tower_blocks(vision)
            attention = [compat.attention_modules(b)[0] for b in blocks]
            special = any(
                hasattr(m, name)
                for m in vision.modules()
                for name in ("class_embedding", "cls_token")
            )
            self._parts = vision, (blocks, attention, special)
        return self._parts[1]

    def reorder(self, tokens: Tensor, mm: Mapping[str, Any]) -> Tensor:
        """Bring flattened encoder tokens (M, …) to the order of the pixels; identity by default.
        mm["kept_tokens"] (n,) bool, if there, says which visual tokens' patches entered the tower.
        """
        return tokens

    def _fill_hidden(
        self,
        tokens: EncoderTokens,
        out: Any,
        found: Mapping[int, list[Tensor]],
        mm: Mapping[str, Any],
    ) -> None:
        front, back = self.specials()
        if not found:
            return
        tokens.feature_block = block_index(self.feature_layer(), tokens.blocks)
        own = out.get("hidden_states")
        for block, calls in found.items():
            # What the model itself feeds its projector wins: the last state may be normalised.
            state = own[block + 1] if own is not None and block == tokens.feature_block else None
            flats = [
                flatten_hidden(c, front, back) for c in ([state] if state is not None else calls)
            ]
            if not flats:
                continue
            tokens.hidden[block] = self.reorder(joined([f for f, _ in flats]), mm)
            special = [s for _, s in flats if s is not None]
            if special:
                tokens.special[block] = torch.cat(special)

    def _fill_attention(
        self,
        tokens: EncoderTokens,
        captures: dict[int, compat.Capture],
        modules: dict[int, int],
        mm: Mapping[str, Any],
    ) -> None:
        front, back = self.specials()
        for block, module in modules.items():
            found = flatten_capture(captures[module], front, back)
            if found is None:
                raise UnsupportedError(
                    f"{self.model_type}: the vision tower computes attention in a way that cannot be "
                    "observed; choose a method that reads features alone, such as divprune"
                )
            tokens.attention[block] = type(found)(
                cls=self._reorder_heads(found.cls, mm),
                received=self._reorder_heads(found.received, mm),
                keys=self.reorder(found.keys, mm) if found.keys is not None else None,
                query=found.query,
            )
            calls = captures[module].received or captures[module].cls
            batched = calls and calls[0].shape[0] > 1
            if (batched or (calls and front)) and not captures[module].padded:
                tokens.queries = int(calls[0].shape[2])

    def _reorder_heads(self, x: Tensor | None, mm: Mapping[str, Any]) -> Tensor | None:
        return None if x is None else self.reorder(x.T.contiguous(), mm).T

    def _spread_deepstack(self, out: Any, pieces: list[Piece]) -> None:
        layers = out.get("deepstack_features") if hasattr(out, "get") else None
        if not layers:
            return
        flat = [torch.cat(list(layer)) for layer in layers]
        start = 0
        for piece in pieces:
            piece.deepstack = [layer[start : start + piece.n] for layer in flat]
            start += piece.n

    # --- pieces ---------------------------------------------------------------------------------
    def features(self, out: Any) -> list[Tensor]:
        """Projected features (n, d), one entry a picture or tile, in order."""
        pooled = out.pooler_output
        if torch.is_tensor(pooled):
            return list(pooled.reshape(-1, *pooled.shape[-2:]).unbind(0))
        return list(pooled)

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        """Segments in placeholder order. By convention: packed towers by grid, others one tile an
        entry.
        """
        features = self.features(out)
        grids = mm.get("image_grid_thw")
        if grids is not None:
            return self.packed(features, grids)
        return self.tiled(features, self._tile_tokens(out))

    def video_pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        grids = mm.get("video_grid_thw")
        features = self.features(out)
        if grids is None:
            raise UnsupportedError(
                f"{self.model_type}: the layout of this family's video tokens is not known; give the "
                "frames as pictures"
            )
        return self.packed(features, grids, kind="video")

    def _tile_tokens(self, out: Any) -> int:
        """Patches of one encoder pass (batched towers), 0 if they are packed or unknown."""
        last = out.last_hidden_state
        if last is None:
            return 0
        if last.ndim == 4:
            return int(last.shape[1] * last.shape[2])
        if last.ndim == 3:
            return int(last.shape[1]) - sum(self.specials())
        return 0

    def tiled(self, features: Sequence[Tensor], patches: int, kind: Kind = "image") -> list[Piece]:
        """One piece an encoder pass of `patches` tokens; n == patches maps one to one, else square
        blocks.
        """
        return tiled_pieces(features, patches, kind)

    def packed(
        self, features: Sequence[Tensor], grids: Tensor, kind: Kind = "image"
    ) -> list[Piece]:
        """Pieces of a packed tower: grid (t, h, w) in patches, consecutive groups of merge²
        patches.
        """
        return packed_pieces(self.model_type, features, grids, kind)

    # --- back into the model --------------------------------------------------------------------
    def project(self, encoder_tokens: Tensor) -> Tensor:
        """Projected tokens of encoder tokens (k, c), for towers whose projector maps each token
        alone.
        """
        raise UnsupportedError(f"{self.model_type}: the projector does not map tokens one by one")

    def repack(
        self, encoded: Encoded, payloads: Sequence[Tensor], deepstack: Sequence[list[Tensor] | None]
    ) -> Any:
        """A fresh output object with these payloads, in the container the model's forward expects."""
        out = encoded.out
        fields = {k: v for k, v in out.items() if k not in ("hidden_states", "attentions")}
        new = type(out)(**fields)
        self.put(new, out, list(payloads))
        if fields.get("deepstack_features") is not None:
            layers = len(fields["deepstack_features"])
            new.deepstack_features = [
                [d[i] for d in deepstack if d is not None] for i in range(layers)
            ]
        return new

    def put(self, new: Any, out: Any, payloads: list[Tensor]) -> None:
        new.pooler_output = (
            torch.cat(payloads)[None] if torch.is_tensor(out.pooler_output) else payloads
        )

    def pictures(self, pieces: Sequence[Piece], runs: Sequence[int], ids: Tensor) -> list[int]:
        """Picture index of each piece of one row. `runs`: index of the run of placeholders it
        starts in.

        By convention a piece that knows its picture keeps it.
        """
        return [p.picture for p in pieces]
