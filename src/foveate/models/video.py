"""Videos in: frames and their times from a file (by PyAV), a folder of pictures or a list of them.

The container is recognised by its first bytes and opened with that one demuxer by name, so
playlists (HLS, DASH, concat ...) are never interpreted, whatever the file is called; should a
demuxer still try to open something else, the attempt is refused. Long videos are sampled uniformly
down to `max_frames`, which a note says.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.core.errors import FoveateError, InputError, MediaError, MissingExtraError
from foveate.models.media import IMAGE_SUFFIXES, ImageSource, LoadedImage, load_image, regular_file

SEEKABLE = ("mov", "matroska")  # containers whose index brings us to a keyframe exactly
_PLAYLIST = re.compile(rb"^\xef?\xbb?\xbf?\s*(#EXTM3U|ffconcat|file[ '\"]|<|\[playlist\])", re.I)
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


@dataclass(frozen=True)
class Video:
    """Sampled frames: `frames` (t, H, W, 3) uint8, `time_s` (t,) float64 from the first frame on.

    `fps_source` is the mean rate of the source in frames per second, `duration_s` its length.
    """

    frames: NDArray[np.uint8]
    time_s: NDArray[np.float64]
    fps_source: float
    duration_s: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Index:
    """Presentation times of all frames in stream ticks, and those of the keyframes, ascending."""

    ticks: tuple[int, ...]
    keys: tuple[int, ...]
    tick_s: float
    timed: bool  # False: the container stores no times; ticks are frame numbers
    header_s: float


class _SeekMissedError(Exception):
    """A seek landed behind the frame it should reach; the file is then read from its start."""


def sample_indices(total: int, k: int) -> NDArray[np.int64]:
    """The middle of each of k equal parts of `total` frames: (min(k, total),) int64, increasing."""
    if total < 1 or k < 1:
        raise InputError(f"cannot choose {k} of {total} frames; both must be at least 1")
    k = min(k, total)
    return (2 * np.arange(k, dtype=np.int64) + 1) * total // (2 * k)


def load_video(
    path: str | Path | Sequence[ImageSource | LoadedImage],
    *,
    frames: int | None = None,
    fps: float | None = None,
    max_frames: int = 64,
    max_bytes: int = 2 * 2**30,
) -> Video:
    """Read a video file, a folder of pictures, or a list of pictures.

    `frames` asks for that many, spread evenly; `fps` for so many per second; neither for all. More
    than `max_frames` are sampled down to it evenly and noted. `max_bytes` bounds the decoded frames
    and is checked before decoding. For pictures `fps` states how many were taken per second (1).

    Raises MediaError: missing, empty, damaged, a playlist, no such container, no video in it.
    """
    if frames is not None and fps is not None:
        raise InputError("give frames or fps, not both")
    if frames is not None and frames < 1:
        raise InputError(f"frames is {frames}; it must be at least 1")
    if fps is not None and not 0 < fps < float("inf"):
        raise InputError(f"fps is {fps}; it must be a positive number")
    if max_frames < 1:
        raise InputError(f"max_frames is {max_frames}; it must be at least 1")
    if not isinstance(path, str | Path):
        return _from_pictures(list(path), "the list", frames, fps, max_frames, max_bytes)
    if "://" in str(path):
        raise MediaError(f"{path}: videos are read from files only; download it first")
    if Path(path).is_dir():
        found = [p for p in Path(path).iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        found.sort(key=_natural)
        return _from_pictures(found, f"folder {path}", frames, fps, max_frames, max_bytes)
    file = regular_file(path, "video")
    with file.open("rb") as stream:
        return _from_file(stream, str(file), frames, fps, max_frames, max_bytes)


def sniff_container(head: bytes, name: str) -> str:
    """The demuxer for a file that begins with `head` (600 bytes suffice), or MediaError."""
    if head[4:8] in _MOV_BOXES:
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"GIF8":
        return "gif"
    if head[:1] == b"\x47" and head[188:189] == b"\x47" and head[376:377] in (b"\x47", b""):
        return "mpegts"
    if _PLAYLIST.match(head):
        raise MediaError(
            f"{name} is a playlist or manifest that points elsewhere; such files are refused: "
            "give the video file itself"
        )
    raise MediaError(
        f"{name} is no video container that is accepted (MP4/MOV, Matroska/WebM, AVI, MPEG-TS, GIF)"
    )


def _from_file(
    stream: BinaryIO, name: str, frames: int | None, fps: float | None, cap: int, max_bytes: int
) -> Video:
    kind = sniff_container(stream.read(600), name)
    with _opened(stream, kind, name) as container:
        video = _video_stream(container, name)
        height, width = video.codec_context.height, video.codec_context.width
        index, rate = _scan(container, video, name)
    total = len(index.ticks)
    times = (np.asarray(index.ticks, dtype=np.float64) - index.ticks[0]) * index.tick_s
    span_s = float(times[-1])
    fps_source = float(rate or 1.0)
    if span_s > 0 and abs((measured := (total - 1) / span_s) / fps_source - 1) > 0.01:
        fps_source = measured  # a variable rate: the header's figure is no mean
    duration_s = span_s + 1 / fps_source
    chosen, notes = _choose(times, duration_s, frames, fps, cap)
    if index.header_s > 1.05 * duration_s + 0.25:
        notes += (f"the header says {index.header_s:.1f} s, the frames end at {duration_s:.1f} s",)
    _check_memory(len(chosen), height, width, name, max_bytes)
    wanted = [index.ticks[i] for i in chosen]
    try:
        ticks, images, bad = _decode(stream, kind, name, index, wanted, seek=kind in SEEKABLE)
    except _SeekMissedError:
        ticks, images, bad = _decode(stream, kind, name, index, wanted, seek=False)
    if len(images) < len(wanted):
        if not images:
            raise MediaError(f"{name} is damaged: not one frame can be decoded")
        notes += (f"{len(wanted) - len(images)} of {len(wanted)} frames could not be decoded",)
    if bad:
        notes += (f"{bad} of {len(images)} frames are damaged (marked so by the decoder)",)
    time_s = (np.asarray(ticks, dtype=np.float64) - index.ticks[0]) * index.tick_s
    return Video(np.stack(images), time_s, fps_source, duration_s, notes)


@contextmanager
def _opened(stream: BinaryIO, kind: str, name: str) -> Iterator[Any]:
    """A PyAV container on this one file object; libav errors inside become MediaError."""
    try:
        import av
        import av.error
    except ImportError as error:
        raise MissingExtraError("av", "video", "reading a video file") from error

    def refuse(url: str, *_: object) -> NoReturn:
        raise MediaError(f"{name} points to {url}; a video may not open other files")

    # A second lock besides the demuxer's name: nothing but a local file may ever be opened.
    options = {"protocol_whitelist": "file", "format_whitelist": _FULL_NAMES[kind]}
    stream.seek(0)
    try:
        with av.open(
            stream,
            format=kind,
            container_options=options,
            metadata_errors="replace",
            io_open=refuse,
        ) as container:
            yield container
    except (FoveateError, _SeekMissedError):
        raise
    except (av.error.FFmpegError, EOFError, LookupError, ValueError, ArithmeticError) as error:
        # PyAV itself stumbles over some damaged headers with plain Python errors
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{name} is damaged or cut short: {reason}") from error


_FULL_NAMES = {
    "mov": "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska": "matroska,webm",
    "avi": "avi",
    "gif": "gif",
    "mpegts": "mpegts",
}


def _video_stream(container: Any, name: str) -> Any:
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition).lower():  # cover art is no video
            if stream.codec_context is None:
                raise MediaError(f"{name} uses a video codec that is not available here")
            return stream
    raise MediaError(f"{name} holds no video stream")


def _scan(container: Any, stream: Any, name: str) -> tuple[_Index, Any]:
    """Read all packet times without decoding."""
    ticks: list[int] = []
    keys: list[int] = []
    timed = True
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        timed = timed and packet.pts is not None
        ticks.append(packet.pts if timed else 0)
        if packet.is_keyframe and timed:
            keys.append(packet.pts)
    if not ticks:
        raise MediaError(f"{name} holds no video frames")
    rate = stream.average_rate
    tick_s = float(stream.time_base)
    if not timed:
        keys, tick_s = [], 1 / float(rate or 25)
        ticks = list(range(len(ticks)))
    header_s = float(container.duration or 0) / 1e6
    # two fields of one frame may come as two packets with one time
    return _Index(tuple(sorted(set(ticks))), tuple(sorted(keys)), tick_s, timed, header_s), rate


def _choose(
    times: NDArray[np.float64], duration_s: float, frames: int | None, fps: float | None, cap: int
) -> tuple[list[int], tuple[str, ...]]:
    """Indices of the frames to keep, increasing, and notes on what was left out."""
    total = len(times)
    chosen = np.arange(total)
    notes: tuple[str, ...] = ()
    if frames is not None:
        chosen = sample_indices(total, frames)
        if frames > total:
            notes = (f"{frames} frames asked, the video has {total}: all taken",)
    elif fps is not None:
        # the frame on screen at 0, 1/fps, 2/fps ...; a slower video gives each of its frames once
        moments = np.arange(max(1, int(np.ceil(min(duration_s * fps, 2.0**31) - 1e-6)))) / fps
        chosen = np.unique(np.searchsorted(times, moments + 1e-6, side="right") - 1)
    if len(chosen) > cap:
        notes += (f"{len(chosen)} frames sampled uniformly down to the cap of {cap} (max_frames)",)
        chosen = chosen[sample_indices(len(chosen), cap)]
    return [int(i) for i in chosen], notes


def _check_memory(count: int, height: int, width: int, name: str, max_bytes: int) -> None:
    if height < 1 or width < 1:
        raise MediaError(f"{name} has frames without pixels ({width} x {height})")
    need = count * height * width * 3
    if need > max_bytes:
        raise MediaError(
            f"{name}: {count} frames of {width} x {height} need {need} bytes, more than the limit "
            f"of {max_bytes}; ask for fewer frames or raise max_bytes"
        )


def _decode(
    stream: BinaryIO, kind: str, name: str, index: _Index, wanted: list[int], *, seek: bool
) -> tuple[list[int], list[NDArray[np.uint8]], int]:
    """Decode the frames at the wanted ticks (ascending), jumping over keyframes where possible.

    Returns their ticks, their pixels and how many the decoder marked as damaged.
    """
    bad = 0
    ticks: list[int] = []
    images: list[NDArray[np.uint8]] = []
    with _opened(stream, kind, name) as container:
        video = _video_stream(container, name)
        video.thread_type = "AUTO"
        here, number, sought = -(2**62), -1, -(2**62)

        def jump() -> int | None:
            """The keyframe to go to for the next wanted frame, if it saves decoding."""
            at = bisect.bisect_right(index.keys, wanted[len(images)])
            key = index.keys[at - 1] if seek and at else None
            return key if key is not None and key > max(here, sought) else None

        while len(images) < len(wanted):
            landing = False
            if (key := jump()) is not None:
                container.seek(key, stream=video, backward=True)
                sought, landing = key, True
            for frame in container.decode(video):
                number += 1
                if index.timed and frame.pts is None:
                    continue
                here = frame.pts if index.timed else number
                if landing and here > wanted[len(images)]:
                    raise _SeekMissedError
                landing = False
                while len(images) < len(wanted) and wanted[len(images)] <= here:
                    images.append(_pixels(frame, images[0].shape if images else None))
                    ticks.append(here)
                    bad += int(frame.is_corrupt)
                if len(images) == len(wanted) or jump() is not None:
                    break
            else:
                break  # the file ended
    return ticks, images, bad


def _pixels(frame: Any, shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, turned upright by the stream's display matrix (phones store it so)."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    if turns := round(frame.rotation / 90) % 4:
        pixels = np.ascontiguousarray(np.rot90(pixels, turns))
    if shape is not None and pixels.shape != shape:  # a stream may change its size half way
        size = (shape[1], shape[0])
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return pixels


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in parts if p]


def _from_pictures(
    sources: list[Any], name: str, frames: int | None, fps: float | None, cap: int, max_bytes: int
) -> Video:
    if not sources:
        raise MediaError(f"{name} holds no pictures ({', '.join(IMAGE_SUFFIXES)})")
    rate = fps or 1.0
    times = np.arange(len(sources), dtype=np.float64) / rate
    chosen, notes = _choose(times, len(sources) / rate, frames, None, cap)
    if fps is None:
        notes += ("no times are known for pictures: one per second assumed (fps=)",)
    images: list[NDArray[np.uint8]] = []
    for i in chosen:
        source = sources[i]
        loaded = source if isinstance(source, LoadedImage) else load_image(source)
        pixels = np.asarray(loaded.image, dtype=np.uint8)
        if not images:
            _check_memory(len(chosen), pixels.shape[0], pixels.shape[1], name, max_bytes)
        elif pixels.shape != images[0].shape:
            raise MediaError(
                f"{name}: picture {i} is {pixels.shape[1]} x {pixels.shape[0]}, the first "
                f"{images[0].shape[1]} x {images[0].shape[0]}; frames of a video share one size"
            )
        images.append(pixels)
    return Video(np.stack(images), times[chosen], rate, len(sources) / rate, notes)
