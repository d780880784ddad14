"""What names an entry of the feature cache: the picture's preprocessed pixels, the tower that sees
them, and the encoder facts that were captured. Nothing of a question and nothing of a plan's choice
enters, and nothing that depends on either is stored under such a name.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from foveate.core.errors import UnsupportedError
from foveate.core.views import Need
from foveate.models import compat
from foveate.models.adapter import AutoAdapter
from foveate.models.encoded import block_index
from foveate.models.families.anyres import AnyresAdapter
from foveate.models.families.idefics import IdeficsAdapter

FORMAT = 1  # of keys and entries: raise it when either changes, and old files are passed over
_CAPTURED = ("features", "cls", "received", "saliency", "keys", "query")
_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
_PACKED = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True)
class Units:
    """A call's media, one dict a picture. `together`: several may be encoded in one call."""

    each: list[dict[str, Any]]
    together: bool


def units(adapter: AutoAdapter, mm: Mapping[str, Any], modality: str) -> Units:
    """The pictures of a call as if each had come alone, where the family allows it; else the call."""
    tensors = {k: v for k, v in mm.items() if torch.is_tensor(v)}
    rest = {k: v for k, v in mm.items() if k not in tensors}
    whole = Units([dict(mm)], False)
    if any(not isinstance(v, (bool, int, float, str)) for v in rest.values()):
        return whole
    pixels = tensors.get(_PACKED[modality])
    grids = tensors.get(_GRIDS[modality])
    names = set(tensors)
    if pixels is None:
        return whole
    if grids is not None and names == {_PACKED[modality], _GRIDS[modality]}:
        counts = grids.prod(-1).tolist()
        if grids.ndim != 2 or sum(counts) != pixels.shape[0]:
            return whole
        rows = zip(pixels.split(counts), grids.split(1), strict=True)
        return Units([{**rest, _PACKED[modality]: p, _GRIDS[modality]: g} for p, g in rows], True)
    if modality == "image" and names == {"pixel_values"} and pixels.ndim == 4:
        return Units([{**rest, "pixel_values": p} for p in pixels.split(1)], True)
    if modality == "image" and pixels.ndim == 5:
        if isinstance(adapter, IdeficsAdapter) and names <= {
            "pixel_values",
            "pixel_attention_mask",
        }:
            return _tiles(tensors, rest) or whole
        if isinstance(adapter, AnyresAdapter) and names == {"pixel_values", "image_sizes"}:
            return _anyres(adapter, tensors, rest) or whole
    return whole


def _tiles(tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> Units | None:
    """Idefics: (rows, tiles, …), where tiles of zeros are padding that the model takes out."""
    real = (tensors["pixel_values"] != 0).flatten(2).any(-1)
    if not bool(real.any()):
        return None
    where = real.nonzero().tolist()
    return Units(
        [{**rest, **{k: v[r : r + 1, c : c + 1] for k, v in tensors.items()}} for r, c in where],
        True,
    )


def _anyres(
    adapter: AnyresAdapter, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]
) -> Units | None:
    """Each picture with its own tiles, without the padding to the longest of the batch."""
    pixels, sizes = tensors["pixel_values"], tensors["image_sizes"]
    if pixels.shape[0] != sizes.shape[0]:
        return None
    counts = adapter._tiles(tensors, int(pixels.shape[0]))
    each = [
        {**rest, "pixel_values": pixels[i : i + 1, :n], "image_sizes": sizes[i : i + 1]}
        for i, n in enumerate(counts)
    ]
    return Units(each, False)


def combined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One call for several units of `together`, which have equal shapes but for the first axis."""
    if len(parts) == 1:
        return parts[0]
    return {
        k: torch.cat([p[k] for p in parts]) if torch.is_tensor(v) else v
        for k, v in parts[0].items()
    }


# --- names --------------------------------------------------------------------------------------
def facts_of(adapter: AutoAdapter, needs: frozenset[Need]) -> list[list[Any]]:
    """The encoder facts that encode() captures for `needs`, without those that read the question."""
    blocks = len(compat.tower_blocks(adapter.vision))
    found = {(n.what, block_index(n.layer, blocks)) for n in needs if n.what in _CAPTURED}
    return [list(f) for f in sorted(found)]


def unit_key(identity: str, modality: str, facts: list[list[Any]], mm: Mapping[str, Any]) -> str:
    """sha256 (hex) of the pixels, the tower's identity and the captured facts."""
    digest = hashlib.sha256(json.dumps([FORMAT, identity, modality, facts]).encode())
    for name in sorted(mm):
        value = mm[name]
        if torch.is_tensor(value):
            flat = value.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
            head = [name, str(value.dtype), list(value.shape), value.device.type]
            digest.update(json.dumps(head).encode())
            digest.update(flat.data)
        else:
            digest.update(json.dumps([name, type(value).__name__, repr(value)]).encode())
    return digest.hexdigest()


def hashable(mm: Mapping[str, Any]) -> bool:
    """Whether every value of a call is a tensor or a plain value that repr() tells apart."""
    return all(torch.is_tensor(v) or _plain(v) for v in mm.values())


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, (bool, int, float, str))


# --- the tower ----------------------------------------------------------------------------------
class Identities:
    """Names models by what their vision side is, and notices when its weights change in place."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[nn.Module, tuple[Any, str]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, adapter: AutoAdapter) -> str:
        """Hex digest of name, revision, configuration, versions and the vision side's weights.

        Raises UnsupportedError for weights that are not in memory, which cannot be told apart.
        """
        model: nn.Module = adapter.model
        live = _live(adapter)
        known = self._known.get(model)
        if known is None or live is None or known[0] != live:
            known = (live, weights_digest(adapter))
            self._known[model] = known
        config = adapter.config
        facts = [
            type(adapter).__name__,
            str(getattr(config, "_name_or_path", "")),
            str(getattr(config, "_commit_hash", "")),
            config.to_json_string(use_diff=False),
            sorted({str(m.config._attn_implementation) for m in _with_config(adapter)}),
            [transformers.__version__, torch.__version__],
            _switches(adapter),
            known[1],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def vision_weights(adapter: AutoAdapter) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that pictures pass: all of the model's but the language model's."""
    text = {id(t) for t in _state(adapter.model.get_decoder()).values()}
    head = adapter.model.get_output_embeddings()
    if head is not None:
        text |= {id(t) for t in _state(head).values()}
    for name, tensor in _state(adapter.base).items():
        if id(tensor) not in text:
            yield name, tensor


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


def _live(adapter: AutoAdapter) -> Any:
    """Changes whenever a weight is replaced or written; None where torch does not count writes."""
    weights = [t for _, t in vision_weights(adapter)]
    if any(t.is_inference() for t in weights):
        return None
    return [(t.data_ptr(), t._version, t.dtype, t.shape) for t in weights]


def weights_digest(adapter: AutoAdapter) -> str:
    """Exact integer checksums of every weight's bits, with a few values of each in their places."""
    digest = hashlib.sha256()
    for name, tensor in vision_weights(adapter):
        if tensor.device.type == "meta":
            raise UnsupportedError(
                f"{adapter.model_type}: the weight {name} is offloaded, so the feature cache cannot "
                "tell this model from another: run without cache=, or keep the vision tower in memory"
            )
        head = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(json.dumps(head).encode())
        if not tensor.numel():
            continue
        flat = tensor.detach().contiguous().reshape(-1)
        bits = flat.view(_INTEGER.get(flat.element_size(), torch.uint8))
        step = max(1, bits.numel() // 16)
        found = torch.cat([bits.sum(dtype=torch.int64)[None], bits[::step].to(torch.int64)])
        digest.update(found.cpu().numpy().data)
    return digest.hexdigest()


def _with_config(adapter: AutoAdapter) -> list[Any]:
    return [m for m in adapter.vision.modules() if hasattr(m, "config")]


def _switches(adapter: AutoAdapter) -> list[str]:
    """Which of PEFT's adapters act on the vision side; they switch without touching a weight."""
    names = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling")
    return [
        repr([getattr(m, n, None) for n in names])
        for m in adapter.base.modules()
        if hasattr(m, "_disable_adapters")
    ]
