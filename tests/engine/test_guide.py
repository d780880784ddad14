"""A small model guides a large one: scores against whole attention matrices, exits that skip the large
model, layouts that must agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import foveate
from foveate.core import Plan
from foveate.core.errors import InputError, MediaError, SettingError, UnsupportedError
from foveate.engine import guide as guiding
from foveate.engine.continuous import ContinuousEngine
from foveate.engine.engine import Engine
from foveate.engine.request import Request
from foveate.lab import demo_pictures, nano_path
from foveate.models.adapter import adapter_for
from foveate.prefill.sgl import SGL
from tests.engine.inside import generated, reference_logits
from tests.engine.reference import relative
from tests.models.tiny_processors import save_folder
from tests.prefill.test_prefill_models import batch
from tests.support import tiny

FAMILIES = ("llava", "qwen2_5_vl")
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 5, "min_new_tokens": 5, "suppress_tokens": [tiny.IMAGE, tiny.VIDEO],
}  # fmt: skip


def picture(width: int, height: int, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def three() -> list[Request]:
    return [
        Request("what is in the picture ?", images=[picture(60, 40, 1)]),
        Request("colour ?", images=[picture(30, 56, 2), picture(28, 28, 3)]),
        Request("is the picture in the picture ?", images=[picture(56, 56, 4)]),
    ]


def engine(name: str, seed: int, folder: Path, attention: str | None = None) -> Engine:
    model = tiny.make_model(name, seed=seed, attention=attention)
    return Engine.from_pretrained(save_folder(name, model, folder / f"{name}-{seed}"))


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A random model guided by another of the same family."""
    folder = tmp_path_factory.mktemp("pair")
    large = engine(str(request.param), 0, folder)
    large.guide = engine(str(request.param), 1, folder)
    return large


def forwards(owner: Engine) -> list[int]:
    """A list that grows with each pass of the owner's language model."""
    ran: list[int] = []
    owner.adapter.model.register_forward_pre_hook(lambda *_: ran.append(1))
    return ran


def whole_attention(small: Engine, request: Request, new: tuple[int, ...]) -> tuple[Any, Tensor]:
    """Scores (N,) and logits of one request: full attention matrices of all layers, by eager."""
    ready = small.prepare(request)
    inputs = small._process([ready], [ready.pictures], [[]])
    ids = inputs["input_ids"]
    n, visual = ids.shape[1], (ids[0] == small.adapter.token_id("image")).nonzero()[:, 0]
    extra = torch.tensor([new[:-1]])
    call = {**inputs, "input_ids": torch.cat([ids, extra], 1)}
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    if "mm_token_type_ids" in inputs:
        types = inputs["mm_token_type_ids"]
        call["mm_token_type_ids"] = torch.cat([types, torch.zeros_like(extra)], 1)
    model = small.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        out = model(**call, output_attentions=True, use_cache=False)
    finally:
        model.set_attn_implementation(before)
    total = torch.zeros(visual.numel(), dtype=torch.float64)
    for layer in out.attentions:
        for query in range(int(visual[-1]) + 1, n + len(new) - 1):
            total += layer[0, :, query, visual].double().sum(0)
    return total.numpy(), out.logits[0, n - 1 :]


@torch.no_grad()
def test_scores_are_the_attention_of_all_layers_heads_and_words(pair: Engine) -> None:
    """In a ragged batch of three, against whole matrices of a teacher-forced pass of each alone."""
    small = pair.guide
    method, requests = SGL(exit=0.5), three()
    ready = small.preprocessed([small.prepare(r) for r in requests], Plan())
    said = guiding.asked(small, ready, method, OPTIONS)
    for request, found in zip(requests, said, strict=True):
        draft = found.guidance.draft
        assert draft is not None and len(draft) == 5
        want, logits = whole_attention(small, request, draft)
        got = np.asarray(found.guidance.scores)
        assert got.shape == want.shape and np.allclose(got, want, rtol=1e-4, atol=1e-5)
        assert np.ptp(want) > 0.05 * want.mean(), "scores must differ, or this shows nothing"
        sure = torch.log_softmax(logits.float(), -1)
        first = [float(sure[i, t]) for i, t in enumerate(draft)]
        assert math.isclose(
            2 * (found.guidance.confidence or 0) - math.exp(sum(first) / 5),
            math.exp(sum(again_by_hand(small, request, draft, want))),
            rel_tol=1e-3,
            abs_tol=1e-6,
        )
    alone = guiding.EngineGuide(small, method, **OPTIONS).guide(requests[1])
    assert np.allclose(alone.scores, said[1].guidance.scores, rtol=1e-4)
    assert alone.draft == said[1].guidance.draft


def again_by_hand(
    small: Engine, request: Request, draft: tuple[int, ...], scores: np.ndarray
) -> list[float]:
    """Log-probabilities of the draft where all layers hide all but the best 5 % visual tokens."""
    ready = small.prepare(request)
    inputs = small._process([ready], [ready.pictures], [[]])
    ids = inputs["input_ids"][0]
    visual = (ids == small.adapter.token_id("image")).nonzero()[:, 0].numpy()
    best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    stays = {int(visual[i]) for i in best[: max(1, math.floor(len(scores) / 20 + 0.5))]}
    present = np.array([i for i in range(len(ids)) if i not in set(visual) or i in stays])
    layers = len(small.adapter.model.model.language_model.layers)
    row = {k: v for k, v in inputs.items() if k in ("input_ids", "mm_token_type_ids")}
    mm = {
        k: v
        for k, v in inputs.items()
        if k not in ("input_ids", "mm_token_type_ids", "attention_mask")
    }
    positions = torch.arange(len(ids))[None]
    if small.adapter.mrope:
        from foveate.models import compat

        context = {k: v for k, v in inputs.items() if k != "input_ids"}
        positions = compat.position_ids(small.model, inputs["input_ids"], context)[:, 0]
    logits = reference_logits(
        small.model, small.adapter, row, mm, torch.cat([ids, torch.tensor(draft)]),
        [present] * layers, positions,
    )  # fmt: skip
    sure = torch.log_softmax(logits.float(), -1)
    return [float(sure[i, t]) for i, t in enumerate(draft)]


@pytest.mark.parametrize("name", tiny.REPRESENTATIVE)
@pytest.mark.parametrize("plan", ["sgl:layer=2,keep=1/3", "sgl:layer=0,keep=1/20"])
@torch.no_grad()
def test_the_guided_model_equals_the_masked_reference(name: str, plan: str) -> None:
    model = tiny.make_model(name)
    adapter = adapter_for(model)
    rows, medias = batch(name, model)
    image = adapter.token_id("image")
    counts = [int((r["input_ids"] == image).sum()) for r in rows]
    scores = [np.random.default_rng(i).random(n) for i, n in enumerate(counts)]
    call = {**tiny.pad_batch(rows, "left"), **tiny.join_images(name, medias)}
    parsed = Plan.parse(plan + ";positions=retain")
    out, short, run = generated(model, adapter, parsed, call, guidance=scores)
    got = torch.stack(out.logits, 1)
    prompt = short.kwargs["input_ids"].shape[1]
    method = parsed.stage("prefill")
    assert isinstance(method, SGL)
    for i, (row, mm) in enumerate(zip(rows, medias, strict=True)):
        present = run.record.present[i]
        visual = (row["input_ids"][0] == image).nonzero()[:, 0].numpy()
        k = max(1, math.floor(method.keep * counts[i] + 0.5))
        best = sorted(visual[np.argsort(-scores[i], kind="stable")[:k]])
        assert [p for p in present[-1].tolist() if p in set(visual)] == best
        real = short.kwargs["attention_mask"][i].bool()
        positions = short.kwargs["position_ids"]
        positions = (positions[:, i] if positions.ndim == 3 else positions[i][None])[:, real]
        sequence = torch.cat([row["input_ids"][0], out.sequences[i, prompt:]])
        want = reference_logits(model, adapter, row, mm, sequence, present, positions)
        assert relative(got[i], want) <= 2e-5
        wrong = reference_logits(model, adapter, row, mm, sequence, present, positions, shift=1)
        assert relative(got[i], wrong) >= 1e-3, "a shifted position must show"


def test_batch_equals_single_and_the_report_says_what_the_guide_cost(pair: Engine) -> None:
    plan = "sgl:layer=2,keep=1/2"
    together = pair.generate(three(), plan, **OPTIONS)
    for request, answer in zip(three(), together, strict=True):
        assert answer.ok, answer.error
        alone = pair.generate([request], plan, **OPTIONS)[0]
        assert alone.token_ids == answer.token_ids
        report = answer.report
        assert report is not None and report.layers is not None
        n = report.layers[0]
        assert report.layers[1] == n and report.layers[2] == math.floor(n / 2 + 0.5)
        assert "a guide answered first" in report.notes
        assert report.ms["guide"] > 0 and report.ttft_ms is not None
        assert report.ttft_ms >= report.ms["guide"] + report.ms["prefill"]


def test_a_sure_guide_answers_and_the_large_model_does_not_run(pair: Engine) -> None:
    ran = forwards(pair)
    answers = pair.generate(three(), "sgl:keep=1/2,exit=0", **OPTIONS)
    assert not ran
    own = pair.guide.generate(three(), "none", **OPTIONS)
    for answer, small in zip(answers, own, strict=True):
        assert answer.ok and answer.token_ids == small.token_ids and answer.text == small.text
        report = answer.report
        assert report is not None and report.plan == "sgl:exit=0.0,keep=1/2"
        assert any("did not run" in note for note in report.notes)
        assert report.ms["guide"] > 0 and report.layers is None
    pair.generate(three(), "sgl:keep=1/2,exit=1.1", **OPTIONS)
    assert ran, "no guide is that sure"


def test_in_one_batch_some_exit_and_some_go_on(pair: Engine) -> None:
    small = pair.guide
    ready = small.preprocessed([small.prepare(r) for r in three()], Plan())
    sure = [
        s.guidance.confidence or 0.0 for s in guiding.asked(small, ready, SGL(exit=1.0), OPTIONS)
    ]
    limit = sorted(sure)[1]  # the two surest exit
    ran = forwards(pair)
    answers = pair.generate(three(), f"sgl:keep=1/2,layer=2,exit={limit!r}", **OPTIONS)
    assert len(ran) == 5, "one prefill and four steps, for the one that goes on"
    guided = pair.generate(three(), "sgl:keep=1/2,layer=2", **OPTIONS)
    own = small.generate(three(), "none", **OPTIONS)
    for i, answer in enumerate(answers):
        want = own[i] if sure[i] >= limit else guided[i]
        assert answer.token_ids == want.token_ids


def test_one_bad_request_does_not_take_the_others_down(pair: Engine) -> None:
    bad = [
        Request("what ?", images=[b"no picture"]),
        Request("<image> ?", images=[picture(28, 28, 1)]),
    ]
    if pair.adapter.model_type != "llava":
        bad = bad[:1]
    answers = pair.generate([three()[0], *bad, three()[2]], "sgl:layer=2,keep=1/2", **OPTIONS)
    assert answers[0].ok and answers[-1].ok
    assert all(isinstance(a.error, InputError | MediaError) for a in answers[1:-1])


def test_requests_without_pictures_need_no_guide(pair: Engine) -> None:
    ran = forwards(pair.guide)
    request = Request("what is in the picture ?")
    guided, plain = (pair.generate([request], p, **OPTIONS)[0] for p in ("sgl:exit=0", "none"))
    assert guided.token_ids == plain.token_ids and not ran


def test_other_stages_of_the_plan_still_act(pair: Engine) -> None:
    answer = pair.generate(three()[:1], "uniform:keep=1/2+sgl:layer=2,keep=1/2", **OPTIONS)[0]
    report = answer.report
    assert report is not None and report.layers is not None
    entered = report.visual_tokens_kept
    assert report.layers[1] == entered < report.visual_tokens_in
    assert report.layers[2] == max(1, math.floor(entered / 2 + 0.5))


# --- what is refused --------------------------------------------------------------------------------
def test_a_guide_that_splits_pictures_otherwise_is_refused(tmp_path: Path) -> None:
    large = engine("qwen2_5_vl", 0, tmp_path)
    small = engine("qwen2_5_vl", 1, tmp_path)
    processor: Any = small.processor.image_processor
    processor.size = type(processor.size)(shortest_edge=64, longest_edge=28 * 28)
    large.guide = small
    ran = forwards(large), forwards(small)
    with pytest.raises(UnsupportedError, match="a guide must split pictures as its model does"):
        large.generate(three()[:1], "sgl", **OPTIONS)
    assert ran == ([], []), "refused before anything ran"


def test_options_that_name_tokens_need_one_tokenizer(pair: Engine) -> None:
    tokenizer: Any = pair.guide.processor.tokenizer
    other = {**tokenizer.get_vocab(), "more": 299}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "get_vocab", lambda: other)
        with pytest.raises(InputError, match="suppress_tokens names tokens"):
            pair.generate(three()[:1], "sgl", **OPTIONS)
        assert pair.generate(three()[:1], "sgl", max_new_tokens=1)[0].report is not None


def test_equal_counts_in_another_grid_are_refused(pair: Engine) -> None:
    def turned(*args: Any, **kwargs: Any) -> Any:
        said = asked(*args, **kwargs)
        piece = said[0].row.placed[0].piece
        t, h, w = piece.grid
        piece.grid = (t, h * w, 1) if w > 1 else (h, 1, 1)
        return said

    asked: Callable[..., Any] = guiding.asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guiding, "asked", turned)
        with pytest.raises(UnsupportedError, match="splits pictures into"):
            pair.generate(three()[:1], "sgl", **OPTIONS)


def test_without_a_guide() -> None:
    large = Engine.from_pretrained(nano_path())
    request = Request(images=[demo_pictures()[0].image], question=demo_pictures()[0].question)
    ran = forwards(large)
    with pytest.raises(UnsupportedError, match="guide=Engine"):
        large.generate([request], "sgl")
    with pytest.raises(UnsupportedError, match="guide=Engine"), foveate.attach(large.model, "sgl"):
        pass
    with pytest.raises(UnsupportedError, match="guide=Engine"):
        ContinuousEngine(large, "sgl")
    assert not ran
    with pytest.raises(InputError, match=r"guide= takes a foveate\.Engine"):
        Engine(large.model, large.processor, guide=large.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": "-1"}, "layer = -1 is out of range"),
        ({"layer": "3/2"}, "layer = 3/2 is out of range"),
        ({"keep": 0}, "keep = 0 is out of range"),
        ({"keep": 2}, "keep = 2 is out of range"),
        ({"exit": -0.1}, "exit = -0.1 is out of range"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SGL(**settings)


def test_layers_and_streamers(pair: Engine) -> None:
    assert SGL(layer=10).layers(48) == (10,)  # type: ignore[arg-type]
    assert SGL().layers(48) == (14,) and SGL().layers(3) == (0,)
    with pytest.raises(SettingError, match="layers are 0 to 5"):
        pair.generate(three(), "sgl:layer=6", **OPTIONS)
    with pytest.raises(InputError, match="streamer"):
        pair.generate(three()[:1], "sgl:exit=1/2", streamer=object(), **OPTIONS)


def test_lab_nano_guides_itself() -> None:
    """A quarter of the tokens from the second layer on, by its own attention: the answers stay."""
    large, small = (Engine.from_pretrained(nano_path()) for _ in range(2))
    large.guide = small
    requests = [Request(images=[d.image], question=d.question) for d in demo_pictures()]
    full = large.generate(requests, "none")
    kept = large.generate(requests, "sgl:layer=1,keep=1/4")
    assert [a.text for a in kept] == [a.text for a in full]
    ran = forwards(large)
    sure = large.generate(requests, "sgl:layer=1,keep=1/4,exit=0.9")
    assert [a.text for a in sure] == [a.text for a in full]
    exits = sum("did not run" in " ".join(a.report.notes) for a in sure if a.report is not None)
    assert exits >= 1 and (bool(ran) == (exits < len(sure)))
