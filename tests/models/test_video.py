"""Videos of every accepted container in; frames, times and notes out, or a MediaError."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from foveate.core.errors import InputError, MediaError, MissingExtraError
from foveate.models import video as video_module
from foveate.models.video import Video, load_video, sample_indices, sniff_container

KINDS = [
    ("clip.mp4", "libx264"),
    ("clip.mov", "mpeg4"),
    ("clip.mkv", "libx264"),
    ("clip.webm", "libvpx-vp9"),
    ("clip.avi", "mpeg4"),
    ("clip.ts", "mpeg2video"),
    ("clip.gif", "gif"),
]


def shade(index: np.ndarray[Any, Any] | int) -> Any:
    """Grey of frame `index`, distinct and far apart for neighbours up to 40 frames."""
    return 20 + np.asarray(index) % 40 * 5


def write(
    path: Path,
    codec: str = "libx264",
    count: int = 40,
    fps: int = 10,
    size: tuple[int, int] = (48, 64),
    ticks_ms: list[int] | None = None,
    corner: bool = False,
) -> Path:
    """A video whose frame i is plain grey `shade(i)`; `corner` paints the top left quarter red."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000 if ticks_ms else fps)
        stream.height, stream.width = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.gop_size = 12
        stream.bit_rate = 4_000_000
        if codec in ("libx264", "mpeg2video"):
            stream.codec_context.max_b_frames = 2
        for i in range(count):
            pixels = np.full((*size, 3), shade(i), np.uint8)
            if corner:
                pixels[: size[0] // 2, : size[1] // 2] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = ticks_ms[i] if ticks_ms else i
            frame.time_base = Fraction(1, 1000 if ticks_ms else fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def seen(video: Video) -> np.ndarray[Any, Any]:
    """The source frame number that each frame's grey tells."""
    grey = video.frames[:, 8:40, 8:56].astype(float).mean((1, 2, 3))
    return np.rint((grey - 20) / 5).astype(int)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("clips")
    return {name: write(root / name, codec) for name, codec in KINDS}


@pytest.mark.parametrize("name", [name for name, _ in KINDS])
@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        ({}, list(range(40))),
        ({"frames": 5}, [4, 12, 20, 28, 36]),
        ({"frames": 1}, [20]),
        ({"fps": 2.0}, list(range(0, 40, 5))),
        ({"fps": 0.1}, [0]),
        ({"fps": 100.0}, list(range(40))),
        ({"max_frames": 4}, [5, 15, 25, 35]),
    ],
)
def test_the_right_frames_at_the_right_times(
    name: str, ask: dict[str, Any], expected: list[int], clips: dict[str, Path]
) -> None:
    video = load_video(clips[name], **ask)
    assert video.frames.shape == (len(expected), 48, 64, 3)
    assert video.frames.dtype == np.uint8 and video.time_s.dtype == np.float64
    np.testing.assert_allclose(video.time_s, np.array(expected) / 10, atol=2e-3)
    assert video.fps_source == pytest.approx(10)
    assert video.duration_s == pytest.approx(4.0, abs=0.01)
    if name.endswith(".gif"):  # 8 colours a channel: neighbours share a grey
        assert (np.diff(seen(video)) >= 0).all()
    else:
        assert seen(video).tolist() == expected
    assert len(video.notes) == ("max_frames" in ask)


def test_frame_cap_is_said(clips: dict[str, Path]) -> None:
    for ask in ({}, {"frames": 30}, {"fps": 9.0}):
        video = load_video(clips["clip.mp4"], max_frames=8, **ask)  # type: ignore[arg-type]
        assert len(video.frames) == 8
        assert any("cap of 8" in note for note in video.notes)
        assert (np.diff(video.time_s) > 0).all() and video.time_s[-1] > 3
    assert load_video(clips["clip.mp4"], frames=8, max_frames=8).notes == ()
    many = load_video(clips["clip.mp4"], frames=50)
    assert len(many.frames) == 40 and "all taken" in many.notes[0]


def test_variable_rate(tmp_path: Path) -> None:
    ticks = [0, 100, 200, 1000, 1100, 5000, 5050, 9000]
    path = write(tmp_path / "uneven.mkv", count=8, ticks_ms=ticks)
    video = load_video(path)
    np.testing.assert_allclose(video.time_s, np.array(ticks) / 1000, atol=1e-6)
    assert video.fps_source == pytest.approx(7 / 9)
    # the frame on screen at 0, 1, 2 ... s; a frame that stays is given once
    assert seen(load_video(path, fps=1)).tolist() == [0, 3, 4, 5, 6, 7]


def test_long_video_jumps_over_keyframes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "long.mp4", count=400)
    decoded: list[int] = []
    original = video_module._decode

    def count(*args: Any, **kwargs: Any) -> Any:
        decoded.append(int(kwargs["seek"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(video_module, "_decode", count)
    fast = load_video(path, frames=3)
    monkeypatch.setattr(video_module, "SEEKABLE", ())
    slow = load_video(path, frames=3)
    assert decoded == [1, 0]
    np.testing.assert_array_equal(fast.frames, slow.frames)
    np.testing.assert_array_equal(fast.time_s, slow.time_s)
    assert seen(fast).tolist() == [i % 40 for i in (66, 200, 333)]


def test_missed_seek_falls_back_to_the_start(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container whose index lies (all keyframes three frames late) is read from its start."""
    original = video_module._scan

    def late(*args: Any) -> Any:
        index, rate = original(*args)
        step = index.ticks[1] - index.ticks[0]
        keys = tuple(k - 3 * step for k in index.keys[1:])
        return video_module._Index(index.ticks, keys, index.tick_s, True, index.header_s), rate

    class Forward:
        """A demuxer that seeks to the keyframe behind the wanted one."""

        def __init__(self, container: Any) -> None:
            self.container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def seek(self, offset: int, **options: Any) -> None:
            options["backward"] = False
            self.container.seek(offset, **options)

    opened = video_module._opened

    def forward(*args: Any) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def wrapped() -> Any:
            with opened(*args) as container:
                yield Forward(container)

        return wrapped()

    monkeypatch.setattr(video_module, "_scan", late)
    monkeypatch.setattr(video_module, "_opened", forward)
    # keyframes are 0, 12, 24, 36: the jump towards 35 lands on 36
    video = load_video(clips["clip.mp4"], frames=4)
    assert seen(video).tolist() == [5, 15, 25, 35]


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), (0, 0)),
        ((0, 1, -1, 0), (0, 1)),  # shown turned clockwise by 90 degrees
        ((-1, 0, 0, -1), (1, 1)),
        ((0, -1, 1, 0), (1, 0)),
    ],
)
def test_phone_rotation(matrix: tuple[int, ...], corner: tuple[int, int], tmp_path: Path) -> None:
    path = write(tmp_path / "phone.mp4", count=3, corner=True)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # version and flags, times, id, duration, layer, volume
    a, b, c, d = (value * 0x10000 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(bytes(data))
    frames = load_video(path).frames
    turned = matrix[0] == 0
    assert frames.shape == (3, *((64, 48) if turned else (48, 64)), 3)
    half = (frames.shape[1] // 2, frames.shape[2] // 2)
    red = [
        (row, column)
        for row in (0, 1)
        for column in (0, 1)
        if frames[0, half[0] // 2 + row * half[0], half[1] // 2 + column * half[1], 0] > 200
    ]
    assert red == [corner]


def test_file_without_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are counted where a container stores no times."""
    path = write(tmp_path / "clip.avi", "mpeg4", count=12)
    original = video_module._scan

    def untimed(*args: Any) -> Any:
        index, rate = original(*args)
        return video_module._Index(
            tuple(range(len(index.ticks))), (), 0.1, False, index.header_s
        ), rate

    monkeypatch.setattr(video_module, "_scan", untimed)
    assert seen(load_video(path, frames=3)).tolist() == [2, 6, 10]


# --- pictures as a video -----------------------------------------------------------------------


def test_folder_of_pictures(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("RGB", (64, 48), (int(shade(i)),) * 3).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    video = load_video(tmp_path)
    assert seen(video).tolist() == list(range(12))  # frame2 before frame10
    assert video.time_s.tolist() == list(range(12)) and "one per second" in video.notes[0]
    video = load_video(tmp_path, fps=4)
    assert video.time_s[:3].tolist() == [0, 0.25, 0.5] and video.duration_s == 3.0
    assert video.notes == ()
    capped = load_video(tmp_path, fps=4, max_frames=3)
    assert seen(capped).tolist() == [2, 6, 10] and "cap of 3" in capped.notes[0]
    assert capped.time_s.tolist() == [0.5, 1.5, 2.5]


def test_list_of_pictures() -> None:
    pictures: list[Any] = [np.full((48, 64, 3), shade(i), np.uint8) for i in range(3)]
    pictures[1] = Image.fromarray(pictures[1])
    assert seen(load_video(pictures)).tolist() == [0, 1, 2]


def test_bad_lists_and_folders(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no pictures"):
        load_video([])
    with pytest.raises(MediaError, match="no pictures"):
        load_video(tmp_path)
    with pytest.raises(MediaError, match="share one size"):
        load_video([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])
    (tmp_path / "a.png").write_bytes(b"not a png")
    with pytest.raises(MediaError, match=r"a\.png"):
        load_video(tmp_path)


# --- bad input ---------------------------------------------------------------------------------


PLAYLISTS = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n",
    "hls.m3u8": "\n #EXTM3U\n#EXTINF:4,\nhttp://127.0.0.1:9/a.ts\n",
    "bom.m3u8": "\ufeff#EXTM3U\n#EXTINF:4,\n{target}\n",
    "concat.mp4": "ffconcat version 1.0\nfile '{target}'\n",
    "plain.txt": "file '{target}'\n",
    "dash.mpd": "<?xml version='1.0'?><MPD><Period/></MPD>",
    "list.pls": "[playlist]\nFile1={target}\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlist_pointing_elsewhere(name: str, tmp_path: Path, clips: dict[str, Path]) -> None:
    path = tmp_path / name
    path.write_text(PLAYLISTS[name].replace("{target}", str(clips["clip.ts"])), encoding="utf-8")
    with pytest.raises(MediaError, match="playlist"):
        load_video(path)


def test_second_lock_no_demuxer_opens_another_file(
    tmp_path: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the first bytes are not looked at, a playlist leads nowhere."""
    path = tmp_path / "list.m3u8"
    target = clips["clip.ts"]
    path.write_text(PLAYLISTS["hls.mp4"].replace("{target}", str(target)))
    with av.open(str(path), format="hls") as container:  # the lock is needed: libav follows it
        assert len(container.streams.video) == 1
    monkeypatch.setattr(video_module, "sniff_container", lambda head, name: "hls")
    monkeypatch.setitem(video_module._FULL_NAMES, "hls", "hls,mpegts")
    with pytest.raises(MediaError, match=r"points to .*clip\.ts"):
        load_video(path)


@pytest.mark.parametrize("name", [name for name, _ in KINDS])
def test_cut_short_and_damaged(name: str, clips: dict[str, Path], tmp_path: Path) -> None:
    data = clips[name].read_bytes()
    path = tmp_path / name
    path.write_bytes(data[:40])
    with pytest.raises(MediaError):
        load_video(path)
    rng = np.random.default_rng(0)
    for _ in range(12):
        broken = bytearray(data)
        for at in rng.integers(0, len(data), 40):
            broken[at] ^= 0xFF
        path.write_bytes(bytes(broken))
        try:
            assert len(load_video(path).frames) >= 1
        except MediaError as error:
            assert str(error)


def test_half_a_matroska_file_says_so(clips: dict[str, Path], tmp_path: Path) -> None:
    data = clips["clip.mkv"].read_bytes()
    path = tmp_path / "half.mkv"
    path.write_bytes(data[: int(len(data) * 0.85)])
    video = load_video(path)
    assert 1 <= len(video.frames) < 40
    assert any("the header says 4.0 s" in note for note in video.notes)


def test_not_a_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    for path, words in {
        tmp_path / "missing.mp4": "missing",
        tmp_path / "empty.mp4": "empty",
        tmp_path / "text.mp4": "no video container",
        tmp_path / "picture.png": "no video container",
        Path("/dev/zero"): "no regular file",
    }.items():
        with pytest.raises(MediaError, match=words):
            load_video(path)
    for address in ("https://example.org/a.mp4", "concat://a.mp4", "file:///etc/hostname"):
        with pytest.raises(MediaError, match="files only"):
            load_video(address)
    with pytest.raises(MediaError, match="missing"):
        load_video("concat:a.ts|b.ts")


def test_sound_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="no video stream"):
        load_video(path)


def test_memory_is_checked_before_decoding(
    clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("decoded")

    monkeypatch.setattr(video_module, "_decode", never)
    need = 40 * 48 * 64 * 3
    with pytest.raises(MediaError, match=f"need {need} bytes"):
        load_video(clips["clip.mp4"], max_bytes=need - 1)
    with pytest.raises(AssertionError, match="decoded"):
        load_video(clips["clip.mp4"], max_bytes=need)


@pytest.mark.parametrize(
    "ask",
    [
        {"frames": 2, "fps": 1.0},
        {"frames": 0},
        {"fps": 0.0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"max_frames": 0},
    ],
)
def test_settings_out_of_range(ask: dict[str, Any], clips: dict[str, Path]) -> None:
    with pytest.raises(InputError):
        load_video(clips["clip.mp4"], **ask)


def test_missing_package(clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match="av"):
        load_video(clips["clip.mp4"])


def test_sample_indices() -> None:
    for total in (1, 2, 7, 40, 1001):
        for k in (1, 2, 3, 7, 40):
            chosen = sample_indices(total, k)
            assert len(chosen) == min(k, total)
            assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < total
            # symmetric: as much is left out before the first as after the last
            assert abs(int(chosen[0]) - (total - 1 - int(chosen[-1]))) <= 1
    assert sample_indices(10, 10).tolist() == list(range(10))
    for bad in ((0, 1), (1, 0), (-1, 3)):
        with pytest.raises(InputError):
            sample_indices(*bad)


def test_containers_are_told_by_their_first_bytes(clips: dict[str, Path]) -> None:
    kinds = {name: sniff_container(path.read_bytes()[:600], name) for name, path in clips.items()}
    assert kinds == {
        "clip.mp4": "mov", "clip.mov": "mov", "clip.mkv": "matroska", "clip.webm": "matroska",
        "clip.avi": "avi", "clip.ts": "mpegts", "clip.gif": "gif",
    }  # fmt: skip
