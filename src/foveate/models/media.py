"""Pictures in: whatever a user hands over becomes one upright 8-bit RGB picture, or a MediaError.

What is read: JPEG, MPO, PNG, GIF, WebP, BMP, TIFF, PPM and (where Pillow has it) AVIF, nothing
else, so that no decoder that starts other programs is ever reached. What is defined here: the EXIF
orientation is applied; 16-bit grey is scaled by 255/65535, not clipped; palettes are resolved;
alpha and transparent colours are laid over white; CMYK is converted without a colour profile; of
several pictures in one file (GIF, TIFF, MPO ...) the first is taken and a note says so.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import stat
import struct
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import MediaError

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF")
ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
)  # fmt: skip

_DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError, Warning,
)  # fmt: skip
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SCHEME = re.compile(r"^(?:([a-z][a-z0-9+.\-]*)://|(data|file|http|https|ftp):)", re.IGNORECASE)

ImageSource = str | Path | bytes | Image.Image | NDArray[Any]


@dataclass(frozen=True)
class LoadedImage:
    """One decoded picture. `sha256` covers the decoded pixels and the size, not the file."""

    image: Image.Image
    sha256: str
    notes: tuple[str, ...] = ()


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = 64_000_000,
    allow_url: bool = False,
    max_bytes: int = 64 * 2**20,
    timeout_s: float = 20.0,
) -> LoadedImage:
    """Read one picture from a path, a `data:` or http(s) URL, bytes, a Pillow image or an array.

    Arrays are (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or uint16. `max_pixels` is checked
    on the header, before a pixel is decoded. http(s) is followed only with `allow_url`, for at most
    `max_bytes` and `timeout_s` seconds; `max_bytes` also bounds a `data:` URL.

    Raises MediaError: missing, a folder, empty, damaged, too large, of a kind that is not accepted.
    """
    if max_pixels < 1:
        raise MediaError(f"max_pixels is {max_pixels}; it must be at least 1")
    if isinstance(source, Image.Image):
        return _finish(source, "the picture", max_pixels, ())
    if isinstance(source, np.ndarray):
        return _finish(_from_array(source), "the array", max_pixels, ())
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(bytes(source)), "the picture bytes", max_pixels)
    if isinstance(source, str) and (scheme := _scheme(source)):
        data = _from_url(source, scheme, allow_url, max_bytes, timeout_s)
        name = "the data: URL" if scheme == "data" else source
        return _decode(io.BytesIO(data), name, max_pixels)
    if isinstance(source, str | Path):
        path = regular_file(source, "picture")
        with path.open("rb") as stream:
            return _decode(stream, str(path), max_pixels)
    raise MediaError(
        f"a picture cannot be a {type(source).__name__}; "
        "give a path, bytes, a Pillow image or a uint8 array (H, W, 3)"
    )


def regular_file(source: str | Path, what: str) -> Path:
    """The path of an existing, non-empty regular file; `what` names it in the error texts."""
    if not str(source):
        raise MediaError(f"the path of the {what} is empty")
    try:
        path = Path(source).expanduser()
        info = path.stat()
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError(f"{what} {str(source)!r} is missing or cannot be read: {error}") from error
    if stat.S_ISDIR(info.st_mode):
        raise MediaError(f"{what} {str(source)!r} is a folder; name a file in it")
    if not stat.S_ISREG(info.st_mode):
        raise MediaError(f"{what} {str(source)!r} is no regular file (a device, pipe or socket)")
    if info.st_size == 0:
        raise MediaError(f"{what} {str(source)!r} is empty (0 bytes)")
    return path


def _scheme(source: str) -> str:
    """The lower-case URL scheme of a string, or "" for a plain path."""
    match = _SCHEME.match(source)
    return (match[1] or match[2]).lower() if match else ""


def _decode(stream: IO[bytes], name: str, max_pixels: int) -> LoadedImage:
    image = _open(stream, name)
    notes: tuple[str, ...] = ()
    with image:
        _check_size(image, name, max_pixels)
        try:
            image.load()
        except _DECODE_ERRORS as error:
            raise MediaError(f"{name} is damaged or cut short: {error}") from error
        loaded = _finish(image, name, max_pixels, notes)
        count = _picture_count(image)
    if count > 1:
        kind = str(image.format)
        text = f"animated {kind} with {count} frames: first frame used"
        if kind not in ANIMATED:
            text = f"{kind} with {count} pictures: first one used"
        loaded = LoadedImage(loaded.image, loaded.sha256, (*loaded.notes, text))
    return loaded


def _open(stream: IO[bytes], name: str) -> Image.Image:
    """Read the header with the allowed decoders only.

    Pillow's own `open` has a process-wide pixel limit that a caller could lift only for everybody;
    our limit is an argument, so the decoders are asked one by one.
    """
    Image.init()
    prefix = stream.read(16)
    if not prefix:
        raise MediaError(f"{name} is empty (0 bytes)")
    reason = ""
    for kind in FORMATS:
        if kind not in Image.OPEN:
            continue
        factory: Callable[..., Image.Image]
        factory, accept = Image.OPEN[kind]
        stream.seek(0)
        try:
            if accept is not None and accept(prefix) is not True:
                continue
            return factory(stream, "")
        except _DECODE_ERRORS as error:
            reason = f" ({kind}: {error})"
    raise MediaError(
        f"{name} is no picture that can be read{reason}; accepted: {', '.join(FORMATS)}"
    )


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise MediaError(f"{name} has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise MediaError(
            f"{name} has {width} x {height} = {width * height} pixels, more than the limit of "
            f"{max_pixels}; raise it with max_pixels={width * height} or shrink the picture"
        )


def _picture_count(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except _DECODE_ERRORS:
        return 1  # the first picture was read in full; what follows it is not used


def _finish(image: Image.Image, name: str, max_pixels: int, notes: tuple[str, ...]) -> LoadedImage:
    """Turn upright, convert to RGB and hash."""
    _check_size(image, name, max_pixels)
    try:
        image.load()
        try:
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        except _DECODE_ERRORS as error:
            turn = None
            notes = (*notes, f"EXIF data cannot be read ({error}): orientation ignored")
        rgb = _rgb(image, name)
        rgb.info.clear()  # an orientation left behind would turn the picture a second time
        rgb = rgb if turn is None else rgb.transpose(turn)
    except _DECODE_ERRORS as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(f"{name} cannot be converted to RGB: {error}") from error
    size = f"{rgb.width}x{rgb.height}:".encode()
    return LoadedImage(rgb, hashlib.sha256(size + rgb.tobytes()).hexdigest(), notes)


def _rgb(image: Image.Image, name: str) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        wide = np.asarray(image).astype(np.uint32)
        grey = ((np.minimum(wide, 65535) + 128) // 257).astype(np.uint8)
        key = image.info.get("transparency")
        if isinstance(key, int):
            grey[wide == key] = 255
        return Image.fromarray(grey, "L").convert("RGB")
    if mode in ("I", "F"):
        raise MediaError(
            f"{name} holds 32-bit values ({mode}) without a defined white; save it as 8 or 16 bit"
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB") if mode != "RGB" else image.copy()


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise MediaError(f"an array of {array.dtype} has no defined range; pass uint8 or uint16")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise MediaError(f"an array of shape {array.shape} is no picture; pass (H, W, 3) uint8")
    if array.size == 0:
        raise MediaError(f"an array of shape {array.shape} has no pixels")
    if array.dtype == np.uint16:
        array = ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))


def _from_url(url: str, scheme: str, allow_url: bool, max_bytes: int, timeout_s: float) -> bytes:
    if scheme == "data":
        return _from_data_url(url, max_bytes)
    if scheme not in ("http", "https"):
        raise MediaError(f"{scheme}: addresses are refused; give a path or an http(s) address")
    if not allow_url:
        raise MediaError(f"{url} is a web address; allow it with allow_url=True (--allow-url)")
    deadline_s = time.monotonic() + timeout_s
    try:
        with _opener().open(url, timeout=timeout_s) as answer:
            chunks: list[bytes] = []
            size = 0
            while chunk := answer.read1(2**16):
                size += len(chunk)
                if size > max_bytes:
                    raise MediaError(f"{url} is larger than {max_bytes} bytes; raise max_bytes")
                if time.monotonic() > deadline_s:
                    raise MediaError(f"{url} took more than {timeout_s} s; raise timeout_s")
                chunks.append(chunk)
    except MediaError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        raise MediaError(f"{url} cannot be fetched: {error}") from error
    return b"".join(chunks)


def _from_data_url(url: str, max_bytes: int) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise MediaError("a data: URL must read data:image/...;base64,...")
    if len(body) * 3 // 4 > max_bytes + 3:
        raise MediaError(f"the data: URL holds more than {max_bytes} bytes; raise max_bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"the data: URL is not valid base64: {error}") from error


class _WebRedirect(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http(s) only; a server must not lead us to files or other services."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str,
        headers: HTTPMessage, newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise MediaError(f"{req.full_url} redirects to {newurl}, which is no http(s) address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener for http and https alone (urllib's default also reads file: and ftp:)."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(), urllib.request.HTTPDefaultErrorHandler(), _WebRedirect(),
        urllib.request.HTTPErrorProcessor(), urllib.request.UnknownHandler(),
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener
