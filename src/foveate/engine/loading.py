"""Load a model and its processor from a local folder or a hub id: safetensors only, no remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveate.core.errors import CheckpointError, InputError, UnsupportedError, nearest

DTYPES = ("float32", "float16", "bfloat16", "auto")


def load(
    source: str | Path,
    *,
    dtype: Any = "auto",
    device_map: str | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """(model, processor) ready for inference.

    dtype "auto" takes float32 on a CPU (half precision is slower there) and the checkpoint's own
    elsewhere.
    Raises CheckpointError for a missing, truncated, pickled or non-VLM folder, InputError for a bad
    dtype.
    """
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"dtype = {dtype!r}; {nearest(dtype, DTYPES)}")
    check_folder(source)
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from foveate.models.processors import build_processor

    where = str(source)
    try:
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{where}: no readable model configuration: {first_line(error)}"
        ) from None
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise UnsupportedError(
            f"{where} is a {config.model_type} model, which takes no pictures; a vision-language model "
            "is needed (`foveate list --families`)"
        )
    on_cpu = device_map in (None, "cpu") and not torch.cuda.is_available()
    wanted = "float32" if dtype == "auto" and on_cpu else dtype
    processor = build_processor(where, config=config, revision=revision)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            where,
            config=config,
            dtype=wanted if wanted == "auto" else getattr(torch, wanted),
            device_map=device_map,
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"{where}: the weights cannot be loaded: {first_line(error)}"
        ) from None
    except Exception as error:  # safetensors raises a class of its own for a truncated file
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(f"{where}: a weights file is truncated or damaged: {error}") from None
    if device_map is None and torch.cuda.is_available():
        model = model.to("cuda")
    return model.eval(), processor


def check_folder(source: str | Path) -> None:
    """Refuse early what a local folder shows at a glance; a hub id passes."""
    path = Path(source)
    if not path.exists():
        if path.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") > 1:
            raise CheckpointError(f"no model folder at {source}")
        return
    if not path.is_dir():
        raise CheckpointError(
            f"{source} is a file; a model is a folder with config.json and *.safetensors"
        )
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{source} has no config.json, so it is no model folder")
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{config} is not readable JSON: {error}") from None
    if not list(path.glob("*.safetensors")):
        pickled = sorted(
            p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")
        )
        if pickled:
            raise CheckpointError(
                f"{source} holds weights in pickle format ({pickled[0]}), which can run code when read; "
                "convert them to safetensors"
            )
        raise CheckpointError(f"{source} has no *.safetensors file")


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
