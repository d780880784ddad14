"""The pixel stage: what is asked for is what the model gets, and leaving a tile out is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from foveate.core import PixelMethod, PixelPlan, Plan, Reduction, TokenMethod
from foveate.core.errors import InputError, PlanError, UnsupportedError
from foveate.engine.attach import special_ids
from foveate.engine.compress import Compressed, compress
from foveate.engine.pixels import Look
from foveate.models.adapter import adapter_for
from foveate.models.processors import video_inputs
from foveate.models.resolution import resolution_of
from foveate.models.video import Video
from tests.models.tiny_processors import FAMILIES, make_processor
from tests.support import tiny

SIZES = [
    (64, 64), (100, 60), (30, 200), (200, 30), (56, 28), (28, 28), (9, 9), (130, 128), (300, 301),
    (33, 95), (61, 64), (1, 1),
]  # fmt: skip
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TILED = ("smolvlm", "idefics3", "internvl")
EXACT, BITE = 2e-5, 1e-3


def picture(h: int, w: int, seed: int = 0) -> Image.Image:
    """A picture with detail everywhere, and most of it on the right."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (h, w, 3)) * (np.arange(w) + 1)[None, :, None] // w
    return Image.fromarray(noise.astype(np.uint8))


class Session:
    """A tiny model with its processor: rows of pictures in, inputs out."""

    def __init__(self, name: str) -> None:
        self.model = tiny.cached_model(name)
        self.adapter = adapter_for(self.model)
        self.processor = make_processor(name)
        special_ids(self.adapter, self.processor)  # tells which tile ends a picture

    def look(self, plan: str | PixelMethod) -> Look:
        method = Plan.parse(plan).stage("pixels") if isinstance(plan, str) else plan
        return Look(self.adapter, self.processor, method, 0)

    def inputs(
        self, rows: Sequence[Sequence[Image.Image]], look: Look | None = None, side: str = "left"
    ) -> dict[str, Any]:
        """As the engine makes them: before, the processor, after."""
        texts = [self.text(len(row), i) for i, row in enumerate(rows)]
        pictures: Any = [list(row) for row in rows]
        if look is not None:
            pictures, _ = look.before(rows, [[] for _ in rows])
        self.processor.tokenizer.padding_side = side
        call = look.call if look is not None else {}
        out = dict(
            self.processor(text=texts, images=pictures, padding=True, return_tensors="pt", **call)
        )
        return look.after(out) if look is not None else out

    def text(self, count: int, extra: int = 0) -> str:
        content = [{"type": "image"}] * count + [
            {"type": "text", "text": "what is" + " is" * extra}
        ]
        messages = [{"role": "user", "content": content}]
        return str(
            self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )

    def placeholders(self, inputs: dict[str, Any]) -> list[int]:
        spots = (inputs["input_ids"] == self.adapter.token_id("image")) & (
            inputs["attention_mask"] != 0
        )
        return spots.sum(-1).tolist()

    @torch.no_grad()
    def rows(self, short: Compressed) -> list[Tensor]:
        """Logits of each row, padding left out."""
        out = self.model(**short.kwargs, use_cache=False).logits
        mask = short.kwargs["attention_mask"].bool()
        return [out[i][mask[i]] for i in range(out.shape[0])]

    def run(self, inputs: dict[str, Any], plan: Plan | None = None) -> list[Tensor]:
        with torch.no_grad():
            return self.rows(compress(self.adapter, plan or Plan(), inputs))


@pytest.fixture(scope="module")
def session() -> Any:
    made: dict[str, Session] = {}

    def get(name: str) -> Session:
        if name not in made:
            made[name] = Session(name)
        return made[name]

    return get


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# --- the rule -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_processor(name: str, session: Any) -> None:
    s = session(name)
    rule = resolution_of(s.adapter, s.processor)
    for size in SIZES:
        made = s.inputs([[picture(*size)]])
        assert rule.tokens(size) == s.placeholders(made)[0], size


@pytest.mark.parametrize("name", ("smolvlm", "idefics3"))
def test_the_split_is_that_of_the_processor_for_every_shape(name: str, session: Any) -> None:
    s = session(name)
    rule = resolution_of(s.adapter, s.processor)
    for h in range(5, 120, 13):
        for w in range(3, 120, 11):
            rows, cols = _grid(s, h, w)
            assert rule.grid((h, w)) == (max(1, rows), max(1, cols)), (h, w)


def _grid(s: Session, h: int, w: int) -> tuple[int, int]:
    made = s.processor.image_processor(
        [[Image.new("RGB", (w, h))]], return_row_col_info=True, return_tensors="pt"
    )
    return int(made["rows"][0][0]), int(made["cols"][0][0])


def test_anyres_follows_the_picture_where_its_pinpoints_do(session: Any) -> None:
    for name in ("llava_next", "llava_onevision"):
        s = Session(name)
        s.processor.image_processor.image_grid_pinpoints = [[28, 28], [28, 56], [56, 56], [84, 84]]
        rule = resolution_of(s.adapter, s.processor)
        assert rule.resizes and not rule.droppable
        small, large = rule.tokens((28, 28)), rule.tokens((84, 84))
        assert small < large
        look = s.look("downscale:keep=1/2")
        made = s.inputs([[picture(84, 84)]], look)
        assert look.dropped == [large - s.placeholders(made)[0]] and look.dropped[0] > 0


def test_several_pictures_of_one_prompt_are_counted_as_the_family_does() -> None:
    s = Session("llava_onevision")
    s.processor.image_processor.image_grid_pinpoints = [[28, 28], [56, 56], [84, 84]]
    rule = resolution_of(s.adapter, s.processor)
    pair = [picture(84, 84), picture(84, 84, 1)]
    assert 2 * rule.tokens((84, 84), None, 2) == s.placeholders(s.inputs([pair]))[0]
    assert rule.tokens((84, 84), None, 2) < rule.tokens((84, 84))


# --- smaller pictures ---------------------------------------------------------------------------
@pytest.mark.parametrize("name", ("llava", *PACKED, *TILED))
@pytest.mark.parametrize("keep", ["1/2", "1/4", "1/5"])
def test_downscale_keeps_its_budget_and_says_what_it_saved(
    name: str, keep: str, session: Any
) -> None:
    s = session(name)
    rows = [[picture(100, 60), picture(64, 64, 1)], [picture(90, 90, 2)]]
    full = s.placeholders(s.inputs(rows))
    look = s.look(f"downscale:keep={keep}")
    made = s.inputs(rows, look)
    now = s.placeholders(made)
    assert look.changed and look.dropped == [a - b for a, b in zip(full, now, strict=True)]
    rule = look.resolution
    for row, tokens in zip(rows, now, strict=True):
        sizes = [rule.tokens((p.height, p.width)) for p in row]
        least = sum(rule.tokens((p.height, p.width), (1, 1)) for p in row)
        budget = sum(max(1, int(n * Fraction(keep) + Fraction(1, 2))) for n in sizes)
        assert tokens <= max(budget, least)
    out = s.run(made)
    assert len(out) == 2 and all(torch.isfinite(x).all() for x in out)


@pytest.mark.parametrize("name", ("llava", *PACKED, *TILED))
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_smaller_pictures_equals_single_runs(name: str, side: str, session: Any) -> None:
    s = session(name)
    rows = [[picture(100, 60), picture(64, 64, 1)], [picture(90, 90, 2)]]
    both = s.run(s.inputs(rows, s.look("downscale:keep=1/2"), side))
    for i, row in enumerate(rows):
        look = s.look("downscale:keep=1/2")
        pictures, _ = look.before([row], [[]])
        alone = dict(
            s.processor(
                text=[s.text(len(row), i)], images=pictures, return_tensors="pt", **look.call
            )
        )
        assert relative(both[i], s.run(look.after(alone))[0]) < EXACT


@pytest.mark.parametrize("name", ("llava", *PACKED, *TILED))
def test_a_side_above_the_picture_changes_nothing(name: str, session: Any) -> None:
    s = session(name)
    rows = [[picture(40, 60)]]
    look = s.look("downscale:side=4096")
    made, plain = s.inputs(rows, look), s.inputs(rows)
    assert not look.changed and look.dropped == [0] and not look.call
    assert made.keys() == plain.keys()
    assert all(torch.equal(made[k], plain[k]) for k in plain)


def test_interpolated_positions_reach_the_tower(session: Any) -> None:
    s = session("llava")
    made = s.inputs([[picture(56, 56)]], s.look("downscale:side=14"))
    assert made["pixel_values"].shape[-2:] == (14, 14) and s.placeholders(made) == [4]
    with torch.no_grad():
        want = s.model.base_model.get_image_features(
            pixel_values=made["pixel_values"], interpolate_pos_encoding=True, return_dict=True
        ).pooler_output[0]
        short = compress(s.adapter, Plan(), made)
    assert torch.equal(short.kwargs["mm_encoder_outputs"]["image"].pooler_output[0], want)
    assert "interpolate_pos_encoding" not in short.kwargs
    assert short.rows[0].segments[0].grid == (1, 2, 2)


def test_a_fixed_tower_takes_one_size_a_batch(session: Any) -> None:
    s = session("llava")
    look = s.look(Sizes(sizes=((14, 14), (21, 21))))
    with pytest.raises(UnsupportedError, match="one size a batch"):
        look.before([[picture(56, 56), picture(56, 56)]], [[]])


@pytest.mark.parametrize("name", ("smolvlm", "idefics3", "internvl", "qwen2_5_vl"))
def test_pictures_beside_a_smaller_one_stay_as_they_are(name: str, session: Any) -> None:
    s = session(name)
    rows = [[picture(61, 90)], [picture(90, 90, 1)]]
    method = Sizes(sizes=(None, (28, 28)))
    look = s.look(method)
    made = s.inputs(rows, look)
    alone = s.inputs(rows[:1])
    assert look.dropped[0] == 0 and look.dropped[1] > 0
    pixels, want = made["pixel_values"], alone["pixel_values"]
    got = pixels[0, : want.shape[1]] if pixels.ndim == 5 else pixels[: want.shape[0]]
    assert torch.equal(got, want[0] if pixels.ndim == 5 else want)


def test_bounds_that_undo_what_was_asked_for_are_said(session: Any) -> None:
    s = session("qwen2_5_vl")
    look = s.look("downscale:side=3")
    s.inputs([[picture(64, 64)]], look)
    assert "asked for 3 x 3 pixels" in look.notes[0][0] and "8 x 8" in look.notes[0][0]
    look = s.look("downscale:side=3")
    s.inputs([[picture(8, 8)]], look)
    assert "nothing was saved" in look.notes[0][0] and look.dropped == [0]


# --- tiles --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class KeepSegments(TokenMethod):
    """Keeps the segments of a list whole and drops the others: the reference for dropped tiles."""

    name: ClassVar[str] = "keep-segments"
    summary: ClassVar[str] = "test: whole segments"
    counts = "adaptive"
    ordinals: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Fraction(1))
        object.__setattr__(self, "row", iter(self.ordinals))

    def select(self, segments: Any, counts: Any, question: Any, rng: Any) -> list[Reduction]:
        kept = set(next(self.row))  # type: ignore[attr-defined]
        return [
            Reduction.pick(range(s.n) if i in kept else [], s.n) for i, s in enumerate(segments)
        ]


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("side", ["left", "right"])
def test_leaving_tiles_out_equals_dropping_their_tokens(name: str, side: str, session: Any) -> None:
    s = session(name)
    rows = [[picture(100, 60), picture(64, 64, 1)], [picture(90, 90, 2)]]
    full = s.inputs(rows, None, side)
    look = s.look("tiles:keep=1/2")
    made = s.inputs(rows, look, side)
    tiles = [[t.tiles for t in row] for row in look._rows]
    kept, ordinals = [], []
    for row, seen in zip(tiles, look._rows, strict=True):
        start, mine = 0, []
        for count, item in zip(row, seen, strict=True):
            assert item.plan.tiles is not None and item.plan.tiles[-1] == count - 1  # thumbnail
            mine += [start + i for i in item.plan.tiles]
            start += count
        ordinals.append(tuple(mine))
        kept.append(len(mine))
    each = look.resolution.tile_tokens
    assert s.placeholders(made) == [k * each for k in kept]
    assert look.dropped == [sum(r) * each - k * each for r, k in zip(tiles, kept, strict=True)]
    text = [int(full["attention_mask"][i].sum()) - n for i, n in enumerate(s.placeholders(full))]
    left = [int(made["attention_mask"][i].sum()) - n for i, n in enumerate(s.placeholders(made))]
    assert text == left, "text between the tiles stays"
    got = s.run(made)
    plan = Plan((KeepSegments(ordinals=tuple(ordinals)),))
    want = s.run(full, plan)
    for a, b in zip(got, want, strict=True):
        assert relative(a, b) < EXACT
    # The test bites: one other tile in its place gives other logits.
    wrong = [tuple([0, *o[1:]]) if 0 not in o else (1, *o[1:]) for o in ordinals]
    off = s.run(full, Plan((KeepSegments(ordinals=tuple(wrong)),)))
    assert max(relative(a[-1:], b[-1:]) for a, b in zip(got, off, strict=True)) > BITE


@pytest.mark.parametrize("name", TILED)
def test_all_tiles_and_single_tiles_change_nothing(name: str, session: Any) -> None:
    s = session(name)
    for plan, rows in (("tiles:keep=1", [[picture(100, 60)]]), ("tiles:keep=1/4", [[_single(s)]])):
        look = s.look(plan)
        made, plain = s.inputs(rows, look), s.inputs(rows)
        assert not look.changed and look.dropped == [0]
        assert all(torch.equal(made[k], plain[k]) for k in plain)


def _single(s: Session) -> Image.Image:
    """A picture that the family shows in one tile, or (where it blows all up) is made to."""
    rule = resolution_of(s.adapter, s.processor)
    if len(rule.tiling((28, 28))[0]) > 1:
        s.processor.image_processor.size = {"longest_edge": 32}
        vars(s.adapter).pop("_resolution")
    return picture(28, 28)


@pytest.mark.parametrize("name", ("smolvlm", "internvl"))
def test_tiles_of_a_smaller_picture(name: str) -> None:
    s = Session(name)
    rule = resolution_of(s.adapter, s.processor)
    edge = rule.edge[0]
    look = s.look(Sizes(sizes=((2 * edge, edge),), tiles=((1, 2),)))
    made = s.inputs([[picture(200, 100)]], look)
    assert s.placeholders(made) == [2 * rule.tile_tokens]
    assert torch.isfinite(s.run(made)[0]).all()


def test_a_prompt_that_does_not_fit_its_tiles_is_refused(session: Any) -> None:
    s = session("internvl")
    look = s.look("tiles:keep=1/2")
    look.before([[picture(100, 60)]], [[]])
    made = dict(s.processor(text=[s.text(1)], images=[[picture(100, 60)]], return_tensors="pt"))
    spot = int((made["input_ids"][0] == s.adapter.token_id("image")).nonzero()[0])
    made["input_ids"][0, spot] = 5
    with pytest.raises(InputError, match="placeholders"):
        look.after(made)


# --- frames -------------------------------------------------------------------------------------
def video(frames: int, seed: int = 0) -> Video:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (frames, 28, 28, 3), dtype=np.uint8)
    return Video(pixels, np.arange(frames) / 2, 2.0, frames / 2)


@pytest.mark.parametrize("name", ("qwen2_5_vl", "qwen3_vl", "llava_onevision"))
@pytest.mark.parametrize("plan", ["frames:frames=4", "keyframes:keep=1/2"])
def test_fewer_frames_reach_the_model(name: str, plan: str, session: Any) -> None:
    s = session(name)
    clip = video(8)
    look = s.look(plan)
    _, clips = look.before([[]], [[clip]])
    (kept,) = clips[0]
    assert kept.frames.shape[0] == 4 and look.changed and look.dropped == [0]
    assert look.notes == [["video 0: 4 of 8 frames"]]
    index = [int(np.flatnonzero(clip.time_s == t)[0]) for t in kept.time_s]
    assert np.array_equal(kept.frames, clip.frames[index])
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "is"}]}]
    text = s.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    made = dict(s.processor(text=[text], return_tensors="pt", **video_inputs([kept])))
    made = look.after(made)
    with torch.no_grad():
        short = compress(s.adapter, Plan(), made)
    assert sum(seg.grid[0] for seg in short.rows[0].segments) in (2, 4)


def test_frame_methods_need_a_video_and_picture_methods_a_picture(session: Any) -> None:
    s = session("qwen2_5_vl")
    with pytest.raises(UnsupportedError, match="frames of a video"):
        s.look("frames:frames=4").before([[picture(64, 64)]], [[]])
    with pytest.raises(UnsupportedError, match="acts on pictures"):
        s.look("downscale:keep=1/2").before([[]], [[video(4)]])


# --- refusals -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("llava_next", "downscale:keep=1/2"),
        ("llava_next", "tiles:keep=1/2"),
        ("llava_onevision", "tiles:keep=1/2"),
        ("llava", "tiles:keep=1/2"),
        ("qwen2_5_vl", "tiles:keep=1/2"),
    ],
)
def test_a_family_that_cannot_follow_is_refused_before_anything(
    name: str, plan: str, session: Any
) -> None:
    s = session(name)
    with pytest.raises(UnsupportedError, match=f"not available on {name}"):
        s.look(plan).before([[picture(64, 64)]], [[]])


@dataclass(frozen=True)
class Sizes(PixelMethod):
    """Answers sizes and tiles as told, one a picture over all rows."""

    name: ClassVar[str] = "sizes"
    summary: ClassVar[str] = "test: sizes as told"
    sizes: tuple[Any, ...] = ()
    tiles: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "left", list(zip(self.sizes, self.tiles or (None,) * 9, strict=False))
        )

    def reduce(self, pixels: Any, rng: Any) -> list[PixelPlan]:
        told = [self.left.pop(0) for _ in pixels]  # type: ignore[attr-defined]
        return [PixelPlan(size=size, tiles=tiles) for size, tiles in told]


@pytest.mark.parametrize(
    "method",
    [
        Sizes(sizes=((0, 5),)),
        Sizes(sizes=(None,), tiles=((),)),
        Sizes(sizes=(None,), tiles=((0, 99),)),
        Sizes(sizes=(None,), tiles=((1, 0),)),
    ],
)
def test_plans_that_do_not_fit_their_picture_are_refused(method: Sizes, session: Any) -> None:
    with pytest.raises(PlanError, match="sizes"):
        session("internvl").look(method).before([[picture(100, 60)]], [[]])


def test_rows_without_pictures_pass(session: Any) -> None:
    look = session("internvl").look("tiles:keep=1/2")
    assert look.before([[], []], [[], []]) == ([[], []], [[], []])
    assert not look.changed and look.notes == [[], []] and look.dropped == [0, 0]
    assert look.after({"input_ids": torch.ones(2, 3)}).keys() == {"input_ids"}
