"""Pictures of every kind in, one upright RGB picture or a MediaError out."""

from __future__ import annotations

import base64
import io
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import InputError, MediaError
from foveate.models.media import LoadedImage, load_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encode(image: Image.Image | np.ndarray[Any, Any], kind: str = "PNG", **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(loaded: LoadedImage) -> np.ndarray[Any, Any]:
    assert loaded.image.mode == "RGB"
    return np.asarray(loaded.image)


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels: only its header may be read."""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_sources_give_the_same_picture(tmp_path: Path) -> None:
    data = encode(RGB)
    path = tmp_path / "picture of a cat.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    sources: list[Any] = [path, str(path), data, Image.fromarray(RGB), RGB, url]
    loaded = [load_image(source) for source in sources]
    for one in loaded:
        np.testing.assert_array_equal(pixels(one), RGB)
        assert one.notes == ()
    assert len({one.sha256 for one in loaded}) == 1
    assert len(loaded[0].sha256) == 64


def test_hash_knows_pixels_and_size() -> None:
    one = load_image(RGB)
    changed = RGB.copy()
    changed[0, 0, 0] ^= 1
    assert load_image(changed).sha256 != one.sha256
    assert load_image(RGB.reshape(9, 6, 3)).sha256 != one.sha256


def test_the_callers_picture_is_left_alone() -> None:
    mine = Image.fromarray(RGB)
    loaded = load_image(mine)
    loaded.image.putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(mine), RGB)


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(turn: int) -> None:
    upright = RGB
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    loaded = load_image(encode(np.ascontiguousarray(stored), exif=exif))
    np.testing.assert_array_equal(pixels(loaded), upright)
    # turned once and for all: reading the result again changes nothing
    np.testing.assert_array_equal(pixels(load_image(loaded.image)), upright)


def test_sixteen_bit_grey_is_scaled() -> None:
    wide = np.linspace(0, 65535, 54).astype(np.uint16).reshape(6, 9)
    expected = np.rint(wide / 257).astype(int)
    for source in (encode(wide), encode(wide, "TIFF"), wide):
        grey = pixels(load_image(source)).astype(int)
        np.testing.assert_array_equal(grey, np.repeat(expected[:, :, None], 3, 2))
    assert expected.min() == 0 and expected.max() == 255


def test_sixteen_bit_colour_is_scaled() -> None:
    """A 16-bit RGB PNG made by hand: 0x8000 is middle grey, not white."""
    row = b"\0" + struct.pack(">6H", 0, 0x8000, 0xFFFF, 0x4000, 0x0100, 0xFF00)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(row))
        + chunk(b"IEND", b"")
    )
    assert pixels(load_image(data)).tolist() == [[[0, 128, 255], [64, 1, 255]]]


def test_palette_and_transparency() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    np.testing.assert_array_equal(
        pixels(load_image(encode(palette))), np.asarray(palette.convert("RGB"))
    )
    index = palette.getpixel((0, 0))
    see_through = pixels(load_image(encode(palette, transparency=index)))
    hidden = np.asarray(palette) == index
    assert (see_through[hidden] == 255).all()
    np.testing.assert_array_equal(see_through[~hidden], np.asarray(palette.convert("RGB"))[~hidden])


def test_alpha_lies_over_white() -> None:
    layer = np.zeros((1, 3, 4), np.uint8)
    layer[0, :, 0] = 200
    layer[0, :, 3] = (0, 128, 255)
    seen = pixels(load_image(encode(layer)))[0].astype(int)
    alpha = layer[0, :, 3:].astype(float) / 255
    expected = layer[0, :, :3] * alpha + 255 * (1 - alpha)
    assert np.abs(seen - expected).max() <= 1
    assert seen[0].tolist() == [255, 255, 255] and seen[2].tolist() == [200, 0, 0]
    grey = np.array([[[10, 0], [10, 255]]], np.uint8)
    assert pixels(load_image(encode(Image.fromarray(grey, "LA")))).tolist() == [
        [[255, 255, 255], [10, 10, 10]]
    ]


def test_transparent_colour_of_grey_sixteen_bit() -> None:
    wide = Image.fromarray(np.array([[0, 1000, 65535]], np.uint16))
    data = encode(wide)
    # add the chunk that names 1000 as transparent, which Pillow does not write for this mode
    extra = chunk(b"tRNS", struct.pack(">H", 1000))
    at = data.index(b"IDAT") - 4
    seen = pixels(load_image(data[:at] + extra + data[at:]))
    assert seen[0, :, 0].tolist() == [0, 255, 255]


def test_cmyk_and_grey_and_bilevel() -> None:
    ink = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    image = Image.fromarray(ink, "CMYK")
    expected = [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]]
    assert pixels(load_image(encode(image, "TIFF"))).tolist() == expected
    near = pixels(load_image(encode(image.resize((48, 16), 0), "JPEG", quality=100))).astype(int)
    assert np.abs(near[8, [8, 24, 40]] - np.array(expected[0])).max() <= 4
    assert (
        pixels(load_image(encode(RGB[:, :, 0]))).tolist() == np.repeat(RGB[:, :, :1], 3, 2).tolist()
    )
    assert pixels(load_image(encode(Image.fromarray(RGB[:, :, 0] > 99)))).max() == 255


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame_and_says_so(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (i * 60, 0, 255 - i * 60)) for i in range(4)]
    data = encode(
        frames[0], kind, save_all=True, append_images=frames[1:], duration=100,
        **({"lossless": True} if kind == "WEBP" else {}),
    )  # fmt: skip
    loaded = load_image(data)
    assert loaded.notes == (f"animated {kind} with 4 frames: first frame used",)
    assert loaded.image.getpixel((3, 3)) == (0, 0, 255)


def test_pages_of_a_tiff() -> None:
    pages = [Image.fromarray(RGB), Image.fromarray(RGB[::-1].copy())]
    loaded = load_image(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    np.testing.assert_array_equal(pixels(loaded), RGB)
    assert loaded.notes == ("TIFF with 2 pictures: first one used",)


# --- bad input ---------------------------------------------------------------------------------


def test_paths_that_are_no_picture(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture at all")
    (tmp_path / "vector.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for path, words in {
        tmp_path / "missing.png": "missing",
        tmp_path: "folder",
        tmp_path / "empty.png": "empty",
        tmp_path / "text.png": "accepted: JPEG",
        tmp_path / "vector.eps": "accepted: JPEG",
        Path("/dev/zero"): "no regular file",
    }.items():
        with pytest.raises(MediaError, match=words):
            load_image(path)
        with pytest.raises(InputError, match=words):
            load_image(str(path))
    for text in ("", "a\0b", "x" * 5000):
        with pytest.raises(MediaError):
            load_image(text)
    with pytest.raises(MediaError, match="empty"):
        load_image(b"")
    with pytest.raises(MediaError, match="NoneType"):
        load_image(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_cut_short_and_damaged(kind: str) -> None:
    data = encode(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    for share in (0.02, 0.5, 0.9):
        with pytest.raises(MediaError):
            load_image(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it skips in a damaged TIFF
def test_every_single_byte_error_is_typed() -> None:
    """A flipped byte anywhere gives a picture or a MediaError, never another exception."""
    for kind in ("PNG", "GIF", "TIFF", "JPEG"):
        data = encode(RGB, kind)
        for at in range(len(data)):
            broken = bytearray(data)
            broken[at] ^= 0xFF
            try:
                load_image(bytes(broken), max_pixels=10**6)
            except MediaError as error:
                assert str(error)


def test_size_is_checked_before_decoding() -> None:
    data = png_header(20_000, 10_000)
    with pytest.raises(MediaError, match="max_pixels=200000000"):
        load_image(data)
    # with the limit raised decoding starts, and finds that there is nothing
    with pytest.raises(MediaError, match=r"damaged|convert"):
        load_image(png_header(300, 300), max_pixels=90_000)
    with pytest.raises(MediaError, match="limit of 89999"):
        load_image(png_header(300, 300), max_pixels=89_999)
    with pytest.raises(MediaError, match="limit"):
        load_image(RGB, max_pixels=53)
    with pytest.raises(MediaError, match="limit"):
        load_image(Image.fromarray(RGB), max_pixels=53)
    assert load_image(RGB, max_pixels=54).image.size == (9, 6)
    with pytest.raises(MediaError, match="at least 1"):
        load_image(RGB, max_pixels=0)


def test_a_raised_limit_holds_against_pillows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(encode(RGB), max_pixels=54).image.size == (9, 6)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_zero_size() -> None:
    for shape in ((0, 5, 3), (5, 0, 3), (0, 0)):
        with pytest.raises(MediaError, match="no pixels"):
            load_image(np.zeros(shape, np.uint8))
    with pytest.raises(MediaError, match="no pixels"):
        load_image(Image.new("RGB", (0, 4)))
    with pytest.raises(MediaError):
        load_image(png_header(0, 4))


def test_arrays_without_a_defined_meaning() -> None:
    for array in (RGB.astype(np.float32), RGB > 3, RGB[None], RGB[:, :, :2], RGB[0, 0]):
        with pytest.raises(MediaError):
            load_image(array)
    with pytest.raises(MediaError, match="32-bit"):
        load_image(Image.fromarray(np.ones((3, 3), np.float32)))
    with pytest.raises(MediaError, match="32-bit"):
        load_image(encode(Image.fromarray(np.ones((3, 3), np.int32)), "TIFF"))


def test_unreadable_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    blob = bytearray(exif.tobytes())
    blob[6:10] = b"XX\0*"  # no byte order any more
    assert load_image(encode(RGB, "JPEG", exif=bytes(blob))).image.size == (9, 6)

    def refuse(self: Image.Image) -> None:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", refuse)
    loaded = load_image(RGB)
    assert loaded.image.size == (9, 6)
    assert any("orientation ignored" in note for note in loaded.notes)


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png,notbase64", "base64"),
        ("data:image/png;base64", "base64"),
        ("data:image/png;base64,!!!!", "base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,AAAA", "accepted"),
        ("file:///etc/hostname", "refused"),
        ("file:/etc/hostname", "refused"),
        ("FILE:///etc/hostname", "refused"),
        ("ftp://example.org/a.png", "refused"),
        ("gopher://example.org/a.png", "refused"),
        ("http://example.org/a.png", "allow_url"),
        ("https://example.org/a.png", "allow_url"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(MediaError, match=words):
        load_image(url)
    if words == "refused":
        with pytest.raises(MediaError, match=words):
            load_image(url, allow_url=True)


def test_data_url_is_bounded() -> None:
    data = encode(RGB)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with pytest.raises(MediaError, match="max_bytes"):
        load_image(url, max_bytes=len(data) // 2)
    assert load_image(url, max_bytes=len(data)).image.size == (9, 6)


class Pages(BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Pages.seen.append(self.path)
        if self.path == "/to-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        elif self.path == "/to-ftp":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/picture.png")
            self.end_headers()
        elif self.path == "/to-picture":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/picture.png":
            body = encode(RGB)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"\0" * 65536)
            except OSError:
                return
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            stop = threading.Event()
            try:
                while not stop.wait(0.05):
                    self.wfile.write(b"\0")
            except OSError:
                return
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    Pages.seen.clear()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_web_picture_only_when_allowed(site: str) -> None:
    with pytest.raises(MediaError, match="allow_url"):
        load_image(f"{site}/picture.png")
    assert Pages.seen == []
    for page in ("picture.png", "to-picture"):
        np.testing.assert_array_equal(pixels(load_image(f"{site}/{page}", allow_url=True)), RGB)


def test_web_answers_that_are_refused(site: str) -> None:
    for page, words in {
        "to-file": "not allowed|no http",
        "to-ftp": "no http",
        "loop": "cannot be fetched",
        "missing": "404",
        "endless": "max_bytes",
    }.items():
        with pytest.raises(MediaError, match=words):
            load_image(f"{site}/{page}", allow_url=True, max_bytes=2**20)
    with pytest.raises(MediaError, match="timeout_s"):
        load_image(f"{site}/slow", allow_url=True, timeout_s=0.3)


def test_dead_server() -> None:
    with pytest.raises(MediaError, match="cannot be fetched"):
        load_image("http://127.0.0.1:9/picture.png", allow_url=True, timeout_s=2)
