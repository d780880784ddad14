"""Where the bundled models lie."""

from __future__ import annotations

from pathlib import Path

from foveate.core.errors import CheckpointError

FILES = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "processor_config.json", "chat_template.jinja", "README.md",
)  # fmt: skip


def nano_path() -> Path:
    """The folder of lab-nano, for `from_pretrained`.

    Errors: CheckpointError when a file of it is missing or its weights are cut short.
    """
    return _bundled("lab-nano")


def pair_path() -> Path:
    """The folder of lab-pair, the small sibling of lab-nano with its tokenizer and visual layout.

    Errors: as `nano_path`.
    """
    return _bundled("lab-pair")


def _bundled(name: str) -> Path:
    folder = Path(__file__).parent / "weights" / name
    check_folder(folder)
    return folder


def check_folder(folder: Path) -> None:
    """Refuse a model folder that lacks files or whose safetensors header promises more bytes than
    there are.
    """
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"model folder {folder} is incomplete, it lacks {', '.join(missing)}: "
            "reinstall the package or train it with `python -m foveate.lab.train`"
        )
    check_safetensors(folder / "model.safetensors")


def check_model(folder: Path) -> None:
    """Refuse a model folder that lacks its config, has no safetensors, or whose weights are cut
    short; nothing is loaded.

    Errors: CheckpointError.
    """
    from foveate.engine.loading import check_folder as check_files

    check_files(folder)
    for file in sorted(folder.glob("*.safetensors")):
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Refuse a safetensors file that is cut short, by its own header."""
    import json

    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{file} is truncated: {size} bytes cannot hold its header")
        try:
            header = json.loads(handle.read(length))
        except ValueError as error:
            raise CheckpointError(f"{file} is damaged: its header is not JSON") from error
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    need = 8 + length + max(ends, default=0)
    if size != need:
        raise CheckpointError(f"{file} is truncated: it has {size} bytes of {need}")
