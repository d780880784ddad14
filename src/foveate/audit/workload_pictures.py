"""Pictures of a workload: from a row's field to the bytes that are sent.

JPEG, PNG, GIF and WebP leave as they came, whatever their names end in; what else can be read (BMP,
TIFF, AVIF …) leaves as PNG, because endpoints that speak the OpenAI API do not promise it.
"""

from __future__ import annotations

import base64
import binascii
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.audit.records import Picture
from foveate.core.errors import MediaError
from foveate.models.media import load_image, regular_file

if TYPE_CHECKING:
    from PIL.Image import Image

_BLOCK = 65535
_PNG = b"\x89PNG\r\n\x1a\n"


def raw_bytes(value: Any, folder: Path | None) -> bytes:
    """The encoded picture that a field holds: a path (relative to `folder`), a `data:` address, bytes,
    or a mapping with "bytes" or "path", as `datasets` has it. Nothing is decoded.

    Errors: MediaError if there is no such file, it is empty, or the value is of another kind.
    """
    if isinstance(value, Mapping):
        held = value.get("bytes")
        value = held if held is not None else value.get("path")
    if isinstance(value, bytes | bytearray):
        if not value:
            raise MediaError("the picture has 0 bytes")
        return bytes(value)
    if not isinstance(value, str) or not value.strip():
        raise MediaError(
            f"a picture cannot be {'empty' if value in (None, '') else type(value).__name__}; "
            "give a path, a data: address or bytes"
        )
    head = value[:8].lower()
    if head.startswith("data:"):
        return _from_data(value)
    if head.startswith(("http:", "https:", "ftp:", "file:")):
        raise MediaError(
            f"{value[:100]} is an address; a workload holds its pictures itself, so that a later run "
            "has the same ones: save the file and give its path"
        )
    path = Path(value)
    if not path.is_absolute():
        if folder is None:
            raise MediaError(f"the path {value!r} is relative to nothing; give the whole path")
        path = folder / path
    try:
        return regular_file(path, "picture").read_bytes()
    except OSError as error:
        raise MediaError(f"picture {str(path)!r} cannot be read: {error.strerror}") from error


def _from_data(address: str) -> bytes:
    head, comma, body = address.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise MediaError("a data: address must read data:image/...;base64,...")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"the data: address is not valid base64: {error}") from error
    if not data:
        raise MediaError("the data: address holds 0 bytes")
    return data


def picture(data: bytes) -> tuple[Picture, bool]:
    """The picture as it is sent, and whether it had to be encoded again. It is decoded once, to be
    sure that it can be.

    Errors: MediaError for what is no picture, damaged or too large.
    """
    decoded = load_image(data).image
    mime = mime_of(data)
    if mime is not None:
        return Picture(data, mime), False
    return Picture(png(decoded), "image/png"), True


def mime_of(data: bytes) -> str | None:
    """The type of an encoded picture by its first bytes; None for what is not sent as it is."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(_PNG):
        return "image/png"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def png(image: Image) -> bytes:
    """An RGB picture as a PNG without compression: equal pixels give equal bytes, and so an equal
    hash of the workload, with every version of every library.

    PNG specification (W3C), sections 9 and 10; RFC 1950 and 1951, stored blocks.
    """
    width, height = image.size
    pixels = image.convert("RGB").tobytes()
    stride = 3 * width
    lines = b"".join(b"\0" + pixels[y * stride : (y + 1) * stride] for y in range(height))
    starts = range(0, len(lines), _BLOCK)
    stored = b"".join(
        struct.pack("<BHH", start + _BLOCK >= len(lines), len(part), len(part) ^ 0xFFFF) + part
        for start in starts
        for part in (lines[start : start + _BLOCK],)
    )
    body = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(lines))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
