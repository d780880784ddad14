"""Options that several verbs share, and the engine they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foveate.cli.console import note, working
from foveate.core.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from foveate.engine.engine import Engine

Model = Annotated[
    str | None,
    typer.Option(
        help="A model's folder or hub id.  [default: the bundled lab-nano]", show_default=False
    ),
]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16, or auto (float32 on a CPU).")]
DeviceMap = Annotated[
    str | None, typer.Option(help="Where layers go, as accelerate takes it: auto, cpu, cuda:0.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
MaxPixels = Annotated[int, typer.Option(min=1, help="Refuse pictures with more pixels.")]
MaxFrames = Annotated[int, typer.Option(min=1, help="Sample longer videos down to this.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
AllowUrl = Annotated[
    bool, typer.Option("--allow-url", help="Fetch pictures from http(s) addresses.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")
]
TextTower = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of the CLIP or SigLIP model that the vision tower was taken from, "
        "for plans that compare words and patches (cdpruner-clip)."
    ),
]
Guide = Annotated[
    str | None,
    typer.Option(
        help="Folder or hub id of a small sibling of the model, for plans that follow one (sgl); "
        "lab-pair is the bundled sibling of lab-nano."
    ),
]
MAX_PIXELS, MAX_FRAMES, MAX_NEW_TOKENS = 64_000_000, 64, 64


@dataclass(frozen=True)
class Loading:
    """Which model to load, and how."""

    model: str | None = None
    dtype: str = "auto"
    device_map: str | None = None
    revision: str | None = None
    max_pixels: int = MAX_PIXELS
    max_frames: int = MAX_FRAMES
    allow_url: bool = False
    feature_cache: Path | None = None  # a folder
    keep_features: bool = False  # in memory, for several questions about the same pictures
    text_tower: str | None = None
    guide: str | None = None  # a small sibling


def open_engine(loading: Loading) -> Engine:
    """The engine of a model; the bundled one by default. MissingExtraError without torch or transformers."""
    if loading.model is not None and not loading.model.strip():
        raise InputError(
            "--model is empty; give a folder or a hub id, or leave it out for lab-nano"
        )
    if loading.guide is not None and not loading.guide.strip():
        raise InputError("--guide is empty; give a folder or a hub id, or lab-pair")
    from foveate.engine.loading import check_folder
    from foveate.lab.nano import nano_path

    # What a folder shows at a glance is refused before torch takes seconds to start.
    source: str | Path = loading.model if loading.model is not None else nano_path()
    check_folder(source)
    guide = _guide_source(loading.guide)
    if guide is not None:
        check_folder(guide)
    try:
        with working("starting torch and transformers"):
            from foveate.engine.engine import Engine
    except ModuleNotFoundError as error:
        if error.name in ("torch", "transformers", "safetensors"):
            raise MissingExtraError(error.name, "hf", "running a model") from None
        raise
    cache = None
    if loading.feature_cache is not None or loading.keep_features:
        from foveate.engine.cache import FeatureCache

        cache = FeatureCache(folder=loading.feature_cache)
    names = ("dtype", "device_map", "max_pixels", "max_frames", "allow_url")
    options: dict[str, Any] = {name: getattr(loading, name) for name in names}
    small = None if guide is None else _loaded(Engine, guide, options)
    options |= {"revision": loading.revision, "text_tower": loading.text_tower}
    return _loaded(Engine, source, {**options, "cache": cache, "guide": small})


def _loaded(engine: Any, source: str | Path, options: dict[str, Any]) -> Engine:
    local = Path(source).is_dir()
    _hush(local)
    if not local:
        note(f"loading {source}")
    with working(f"loading {source}"):
        found: Engine = engine.from_pretrained(source, **options)
        return found


def _guide_source(name: str | None) -> str | Path | None:
    """Where the guide is; the bundled sibling by its name, unless a folder here has that name."""
    if name == "lab-pair" and not Path(name).exists():
        from foveate.lab.nano import pair_path

        return pair_path()
    return name


def _hush(local: bool) -> None:
    """Keep transformers' own remarks off the screen; its download bars stay for hub models."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()


def output_file(path: Path | None, what: str) -> Path | None:
    """A picture to be written: its folder is made now, so that a bad path costs no model run."""
    if path is None:
        return None
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"{what} {path} must end in .png, .jpg or .webp")
    if path.is_dir():
        raise InputError(f"{what} {path} is a folder; give a file name")
    return made_folder(path.parent, what) / path.name


def made_folder(folder: Path, what: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{what}: {folder} cannot be made: {error.strerror}") from None
    return folder


def save_picture(image: Any, path: Path) -> None:
    """Write a Pillow picture; InputError where the file cannot be written."""
    try:
        image.save(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
