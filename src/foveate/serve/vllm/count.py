"""`foveate.count_tokens`: how many visual tokens of a picture vLLM will hold under a plan, from the
picture's size alone, for routers and for `foveate doctor --endpoint`.

The placeholders are counted by the layouts with which the plug-in's processor counts them. Needs
neither vLLM nor torch nor transformers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foveate.core.errors import CheckpointError, InputError, UnsupportedError, nearest
from foveate.core.plan import Plan
from foveate.core.views import PixelPlan
from foveate.serve.vllm.families import Family, family_of
from foveate.serve.vllm.picture_sizes import SIZES, Sizes, merged
from foveate.serve.vllm.showing import Shown, counted, refuse

# What transformers takes for the size of a tower, (edge, patch), that a config leaves out.
_TOWERS = {
    "clip_vision_model": (224, 32),
    "siglip_vision_model": (224, 16),
    "idefics3_vision": (224, 32),
    "smolvlm_vision": (224, 32),
    "internvl_vision": (448, 14),
}


@dataclass(frozen=True)
class PictureCount:
    """Visual tokens of one picture: `kept` under the plan, `whole` without one. passes: encoder passes
    (tiles), 0 for towers that take a picture of any size in one.
    """

    kept: int
    whole: int
    passes: int = 0


def count_tokens(
    width: int,
    height: int,
    plan: str | Plan | Mapping[str, Any] | None,
    family: str | Path,
    *,
    processor: Mapping[str, Any] | None = None,
) -> int:
    """Visual tokens that a picture of width x height pixels has in vLLM's prompt under a plan.

    Start and end marks and what a template writes around a picture are not counted. family: a
    `model_type` such as "qwen2_5_vl", with the settings of its published checkpoints, or a model
    folder, whose config and processor settings are read. processor: settings that the server
    changes (`--mm-processor-kwargs`).

    InputError for sizes that no picture has, CheckpointError for a folder that cannot be read,
    UnsupportedError for families and plans that the plug-in does not serve, and for pixel methods
    that look at the picture before they decide its size (`resolution`).
    """
    return count_picture(width, height, plan, family, processor=processor).kept


def count_picture(
    width: int,
    height: int,
    plan: str | Plan | Mapping[str, Any] | None,
    family: str | Path,
    *,
    processor: Mapping[str, Any] | None = None,
) -> PictureCount:
    """`count_tokens`, with the count without a plan beside it."""
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} = {value!r}: a picture has whole pixels, at least 1")
    sizes, config, settings = _facts(family)
    known = family_of(sizes.architecture)
    chosen = _served(Plan.parse(plan), known)
    shown = Shown(known, config, merged(settings, processor or {}))
    looked, method = PixelPlan(), chosen.stage("pixels")
    if method is not None:
        refuse(method, known, shown, videos=False)
        looked = counted(method, shown, (height, width), chosen.seed)
    whole, left = (
        known.layout(config, *shown.made((height, width), p), "image")
        for p in (PixelPlan(), looked)
    )
    passes = len(whole.spans) * bool(whole.passes)
    return PictureCount(sum(left.kept(chosen)), whole.length, passes)


def _served(plan: Plan, family: Family) -> Plan:
    """The plan as a server of the family takes it, so that it is refused here as it is there."""
    from foveate.serve.vllm.plan_source import Serving

    return Serving(str(plan), family.mrope, family.newlines, question=True).served()


def _facts(family: str | Path) -> tuple[Sizes, Any, dict[str, Any]]:
    """A family's rule, config and processor settings, by its name or from a folder."""
    name = str(family)
    by_name = {**SIZES, **{s.architecture: s for s in SIZES.values()}}
    if name in by_name:
        sizes = by_name[name]
        config = {"model_type": sizes.model_type, **sizes.config}
        return sizes, _namespace(config), dict(sizes.processor)
    folder = Path(family)
    if not folder.is_dir():
        raise UnsupportedError(
            f"{name!r} is neither a model folder nor a family that Foveate's plug-in knows; "
            f"{nearest(name, SIZES)}"
        )
    config = _read(folder / "config.json")
    known = SIZES.get(str(config.get("model_type")))
    if known is None:
        raise UnsupportedError(
            f"{folder}: model_type {config.get('model_type')!r} is not served by Foveate's plug-in; "
            f"known: {', '.join(sorted(SIZES))}"
        )
    return known, _namespace(_completed(config, known)), merged(known.missing, _processor(folder))


def _completed(config: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """A folder's config with what transformers leaves out because it is the default."""
    out = {**sizes.config, **{k: v for k, v in config.items() if v is not None}}
    own = config.get("vision_config")
    if not isinstance(own, Mapping):
        return {**out, "vision_config": sizes.config["vision_config"]}
    kind = own.get("model_type", sizes.config["vision_config"]["model_type"])
    if "spatial_merge_size" in sizes.config["vision_config"]:
        default = dict(sizes.config["vision_config"])
    else:
        edge, patch = _TOWERS.get(kind, (None, None))
        default = {"model_type": kind, "image_size": edge, "patch_size": patch}
    vision = {**default, **own}
    for key in ("image_size", "patch_size"):
        if key in default and vision[key] is None:
            raise CheckpointError(f"config.json: vision_config of {kind!r} names no {key}")
    return {**out, "vision_config": vision}


def _processor(folder: Path) -> dict[str, Any]:
    """A folder's processor settings, in the files of old and new transformers."""
    old, new = folder / "preprocessor_config.json", folder / "processor_config.json"
    if not old.is_file() and not new.is_file():
        raise CheckpointError(
            f"{folder} has neither preprocessor_config.json nor processor_config.json: the size at "
            "which pictures are looked at is not known"
        )
    found: dict[str, Any] = _read(old) if old.is_file() else {}
    if new.is_file():
        whole = _read(new)
        pictures = whole.pop("image_processor", None)
        found = {**found, **whole, **(pictures if isinstance(pictures, Mapping) else {})}
    return {k: v for k, v in found.items() if v is not None}


@functools.lru_cache(maxsize=64)
def _text(path: Path, changed_ns: int) -> str:
    return path.read_text(encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path, path.stat().st_mtime_ns))
    except FileNotFoundError:
        raise CheckpointError(f"no {path.name} in {path.parent}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no object")
    return found


def _namespace(value: Any) -> Any:
    if isinstance(value, Mapping):
        return SimpleNamespace(**{str(k): _namespace(v) for k, v in value.items()})
    return value
