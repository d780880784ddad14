"""The tower stage: exact where nothing merges, equal to full-length duplicates elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from foveate.core import BlockView, Need, Plan, Reduction, TowerMethod
from foveate.core.errors import PlanError, UnsupportedError
from foveate.engine.compress import compress
from foveate.engine.tower import around_tower
from foveate.engine.tower_run import TowerRun
from foveate.models import compat
from foveate.models.adapter import AutoAdapter, adapter_for
from tests.engine.test_attach import snapshot
from tests.support import tiny

PLAIN = (
    "llava", "vipllava", "llava_next", "llava_onevision", "internvl", "idefics2", "idefics3",
    "smolvlm", "paligemma", "paligemma2", "gemma3", "aya_vision", "cohere2_vision", "ovis2",
    "molmo2", "deepseek_vl", "janus", "aria",
)  # fmt: skip
REFUSED = (
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "gemma4", "mistral3", "pixtral",
    "llama4", "lfm2_vl", "minicpmv4_6", "paddleocr_vl", "video_llama_3", "got_ocr2", "gemma3n",
)  # fmt: skip
TOKENWISE = ("llava", "llava_next", "llava_onevision")
EXACT, BITE = 2e-5, 1e-3


def halves(n: int) -> np.ndarray:
    """Group of each of n places: pairs in the first half, single places in the second."""
    place = np.arange(n)
    return np.where(place < n // 2, place // 2, n // 4 + place - n // 2)


@dataclass(frozen=True)
class Fixed(TowerMethod):
    """Merges the patches present by `halves`, in the rounds it is told."""

    name: ClassVar[str] = "fixed"
    summary: ClassVar[str] = "test: neighbours"
    rounds: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        pass

    def block(self, layer: int, layers: int, view: BlockView) -> Reduction | None:
        if layer not in self.rounds:
            return None
        alone = np.asarray(view.protected.cpu())
        size = np.asarray(view.size.cpu(), dtype=np.float64)
        free = np.flatnonzero(~alone)
        group = np.arange(alone.size)
        group[free] = free[halves(free.size)]  # the name of a group is a place inside it or before
        heads, row = np.unique(group, return_inverse=True)
        first = [int(np.flatnonzero(row == i)[0]) for i in range(heads.size)]
        total = np.bincount(row, weights=size)
        return Reduction.of(
            first, row, np.arange(alone.size), size / total[row], alone.size, "hidden"
        )


@dataclass(frozen=True)
class Unweighted(Fixed):
    """The same without log(size) in attention."""

    proportional: ClassVar[bool] = False


def inputs(name: str, pictures: int = 2) -> tuple[Any, AutoAdapter, dict[str, Any]]:
    model = tiny.cached_model(name)
    mm = tiny.random_images(name, pictures, 0)
    return model, adapter_for(model), {**tiny.prompt(name, model, mm), **mm}


@torch.no_grad()
def features(adapter: AutoAdapter, call: dict[str, Any], around: Any = None) -> Tensor:
    found = adapter.encode(adapter.media_kwargs(call, "image"), "image", frozenset(), around)
    return torch.cat([p.payload for p in found.pieces])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@contextlib.contextmanager
def averaged(adapter: AutoAdapter, block: int, groups: np.ndarray) -> Iterator[None]:
    """While open, patches entering a block become, at full length, the mean of their group."""
    front, _ = adapter.specials()

    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        out = hidden.clone()
        for group in np.unique(groups):
            where = front + np.flatnonzero(groups == group)
            out[:, where] = hidden[:, where].mean(1, keepdim=True)
        return ((out, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": out})

    handle = compat.tower_blocks(adapter.vision)[block].register_forward_pre_hook(
        hook, with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("name", PLAIN)
def test_nothing_merged_is_the_untouched_tower(name: str) -> None:
    _, adapter, call = inputs(name)
    want = features(adapter, call)
    for plan in ("tome:r=0", "tome:keep=1", "early-cut:keep=1"):
        around = around_tower(adapter, Plan.parse(plan).stage("tower"))
        got = features(adapter, call, around)
        # The tap computes attention by sdpa; this family is built with eager attention.
        assert relative(got, want) < EXACT if name == "paligemma2" else torch.equal(got, want)
        assert around.identity and around.tokens_in == around.tokens_out > 0


@pytest.mark.parametrize("name", PLAIN)
def test_a_merge_equals_duplicates_at_full_length_and_log_size_bites(name: str) -> None:
    _, adapter, call = inputs(name)
    around = around_tower(adapter, Fixed())
    got = features(adapter, call, around)
    patches = around.encodes[0][0].patches
    with averaged(adapter, 1, halves(patches)):
        want = features(adapter, call)
    assert relative(got, want) < EXACT
    assert relative(got, features(adapter, call)) > BITE
    assert relative(features(adapter, call, around_tower(adapter, Unweighted())), want) > BITE
    assert around.tokens_out * 4 == around.tokens_in * 3


@pytest.mark.parametrize("name", ["llava_onevision", "internvl", "smolvlm"])
def test_two_rounds_compose(name: str) -> None:
    _, adapter, call = inputs(name)
    around = around_tower(adapter, Fixed(rounds=(1, 2)))
    got = features(adapter, call, around)
    patches = around.encodes[0][0].patches
    first = halves(patches)
    second = halves(int(first.max()) + 1)[first]
    with averaged(adapter, 1, first), averaged(adapter, 2, second):
        want = features(adapter, call)
    assert relative(got, want) < EXACT
    passes = around.encodes[0][0].passes
    assert around.blocks_in == (16 * passes, 12 * passes, 9 * passes)


def test_one_round_of_tome_against_a_plain_loop() -> None:
    _, adapter, call = inputs("llava")
    block = compat.tower_blocks(adapter.vision)[0]
    seen: dict[str, Tensor] = {}
    handles = [
        block.self_attn.k_proj.register_forward_hook(lambda _, __, out: seen.update(keys=out)),
    ]
    want_full = features(adapter, call)
    handles[0].remove()
    heads = block.self_attn.num_heads
    keys = seen["keys"].unflatten(-1, (heads, -1)).mean(2).double()
    around = around_tower(adapter, Plan.parse("tome:r=5").stage("tower"))
    got = features(adapter, call, around)
    run = around.encodes[0][0]
    for p in range(run.passes):
        metric = keys[p] / keys[p].norm(dim=-1, keepdim=True)
        length = metric.shape[0]
        edges = []
        for i in range(2, length, 2):  # place 0 is the class token
            best = max(range(1, length, 2), key=lambda j, i=i: (float(metric[i] @ metric[j]), -j))
            edges.append((-float(metric[i] @ metric[best]), i, best))
        groups = {j: {j} for j in range(length)}
        for _, i, j in sorted(edges)[:5]:
            groups[j] |= groups.pop(i)
        mine = [set(np.flatnonzero(run.group[p].numpy() == g)) for g in range(run.now)]
        assert sorted(map(sorted, mine)) == sorted(map(sorted, groups.values()))
        assert run.size[p].sum() == length
        assert {min(g): len(g) for g in groups.values()} == dict(
            zip(run.anchor[p].tolist(), run.size[p].int().tolist(), strict=True)
        )
    assert relative(got, want_full) > BITE


def test_the_class_token_of_a_merge_is_never_touched() -> None:
    _, adapter, call = inputs("llava")
    around = around_tower(adapter, Plan.parse("tome:keep=1/2").stage("tower"))
    features(adapter, call, around)
    run = around.encodes[0][0]
    assert (run.group[:, 0] == 0).all() and (run.group[:, 1:] != 0).all()
    assert (run.size[:, 0] == 1).all()


@pytest.mark.parametrize("name", ["llava", "smolvlm", "internvl"])
def test_keep_reaches_its_count_exactly(name: str) -> None:
    _, adapter, call = inputs(name)
    for keep, share in (("1/2", 2), ("1/4", 4)):
        if name == "llava" and share == 4:
            continue  # one round in this tower: it can halve once
        around = around_tower(adapter, Plan.parse(f"tome:keep={keep}").stage("tower"))
        features(adapter, call, around)
        assert around.tokens_out * share == around.tokens_in


def test_more_than_the_rounds_can_merge_is_refused() -> None:
    _, adapter, call = inputs("llava")
    around = around_tower(adapter, Plan.parse("tome:keep=1/4").stage("tower"))
    with pytest.raises(UnsupportedError, match="8/16"):
        features(adapter, call, around)


def test_cut_tokens_keep_their_state_and_the_rest_runs_without_them() -> None:
    _, adapter, call = inputs("llava")
    blocks = compat.tower_blocks(adapter.vision)
    states: list[Tensor] = []
    handle = blocks[0].register_forward_hook(lambda _, __, out: states.append(out))
    around = around_tower(adapter, Plan.parse("early-cut:keep=1/4").stage("tower"))
    got = features(adapter, call, around)
    handle.remove()
    run = around.encodes[0][0]
    assert run.now == 1 + 4
    projector = adapter.base.multi_modal_projector
    with torch.no_grad():
        first = torch.cat([projector(s[1:]) for s in states[0]])
        kept = states[0].gather(1, run.anchor[..., None].expand(-1, -1, states[0].shape[-1]))
        alone = torch.cat([projector(s[1:]) for s in blocks[1](kept, None)])
    cut = torch.as_tensor(run.labels() < 0)
    assert int(cut.sum()) == run.passes * 12
    assert relative(got[cut], first[cut]) < EXACT
    assert relative(got[~cut], alone) < EXACT


@pytest.mark.parametrize("name", TOKENWISE)
@pytest.mark.parametrize("plan", ["tome:keep=1/2", "early-cut:keep=1/2"])
@torch.no_grad()
def test_the_language_model_sees_one_token_a_group(name: str, plan: str) -> None:
    model, adapter, call = inputs(name)
    short = compress(adapter, Plan.parse(plan), call)
    assert short.tower is not None
    runs = short.tower.encodes[0]
    assert runs[0].now < runs[0].length
    row = short.rows[0]
    for placed, reduction in zip(row.placed, row.reductions, strict=True):
        kept = placed.piece.features[placed.free][reduction.anchor]
        gaps = torch.cdist(kept.double(), kept.double()) + torch.eye(len(kept))
        assert float(gaps.min()) > 1e-9, "a group stands twice"
        full = placed.piece.features[placed.free]
        if plan.startswith("tome"):
            nearest = torch.cdist(full.double(), kept.double()).min(1).values
            assert float(nearest.max()) < 1e-5, "a group is not represented"
    if name == "llava":
        assert row.visual_kept == short.tower.tokens_out == row.visual_in // 2
        assert short.tower.tokens_of(row.placed) == (row.visual_in, row.visual_kept)
    out = model(**short.kwargs, use_cache=False).logits
    assert torch.isfinite(out).all()


@torch.no_grad()
def test_where_a_grid_follows_the_tokens_all_stay() -> None:
    _, adapter, call = inputs("internvl")
    short = compress(adapter, Plan.parse("tome:keep=1/2"), call)
    assert short.rows[0].visual_kept == short.rows[0].visual_in
    assert short.tower is not None and short.tower.tokens_out * 2 == short.tower.tokens_in


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "smolvlm"])
def test_a_batch_merges_as_each_picture_alone(name: str) -> None:
    model = tiny.cached_model(name)
    adapter = adapter_for(model)
    method = Plan.parse("tome:keep=1/2").stage("tower")
    parts = tiny.split_images(name, tiny.random_images(name, 3, 0, unequal=False))
    both = features(adapter, tiny.join_images(name, parts), around_tower(adapter, method))
    single = [features(adapter, p, around_tower(adapter, method)) for p in parts]
    assert relative(both, torch.cat(single)) < EXACT


@pytest.mark.parametrize("name", ["llava", "internvl", "smolvlm"])
@torch.no_grad()
def test_a_token_method_reads_the_attention_of_all_patches(name: str) -> None:
    """What it sees is the attention of the full-length tower in which merged patches are equal."""
    _, adapter, call = inputs(name)
    mm = adapter.media_kwargs(call, "image")
    needs = frozenset({Need("saliency", -1), Need("keys", -1), Need("features", -1)})
    around = around_tower(adapter, Fixed())
    got = adapter.encode(mm, "image", needs, around)
    with averaged(adapter, 1, halves(around.encodes[0][0].patches)):
        want = adapter.encode(mm, "image", needs)
    for block, attention in want.tokens.attention.items():
        mine = got.tokens.attention[block]
        for fact in ("cls", "received", "keys"):
            a, b = getattr(mine, fact), getattr(attention, fact)
            assert (a is None) == (b is None)
            if b is not None:
                assert relative(a, b) < EXACT, fact


@torch.no_grad()
def test_attention_of_tokens_that_were_cut_is_refused() -> None:
    _, adapter, call = inputs("internvl")
    with pytest.raises(UnsupportedError, match="early-cut"):
        compress(adapter, Plan.parse("early-cut:keep=1/2+visionzip:keep=1/2"), call)


@pytest.mark.parametrize("name", REFUSED)
def test_towers_that_cannot_be_shortened_are_refused(name: str) -> None:
    model, adapter, call = inputs(name)
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match="tome cannot act on"):
        compress(adapter, Plan.parse("tome:keep=1/2"), call)
    assert snapshot(model) == before


@pytest.mark.parametrize("name", ["llava", "internvl", "smolvlm"])
def test_hooks_and_configuration_are_restored(name: str) -> None:
    model, adapter, call = inputs(name)
    features(adapter, call)
    before = snapshot(model)
    want = features(adapter, call)
    features(adapter, call, around_tower(adapter, Fixed()))
    assert snapshot(model) == before
    broken = around_tower(adapter, Broken())
    with pytest.raises(KeyboardInterrupt):
        features(adapter, call, broken)
    assert snapshot(model) == before and not broken.encodes
    assert torch.equal(features(adapter, call), want)


@dataclass(frozen=True)
class Broken(TowerMethod):
    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "test: fails in mid-tower"

    def block(self, layer: int, layers: int, view: BlockView) -> Reduction | None:
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Says(TowerMethod):
    """Answers what it is told, to see it refused."""

    name: ClassVar[str] = "says"
    summary: ClassVar[str] = "test: answers as told"
    what: str = "short"

    def __post_init__(self) -> None:
        pass

    def block(self, layer: int, layers: int, view: BlockView) -> Reduction | None:
        m = int(view.hidden.shape[0])
        every = np.arange(m)
        if self.what == "special":
            return Reduction.of(every[:-1], np.maximum(every - 1, 0), every, np.ones(m), m)
        if self.what == "twice":
            return Reduction.of([0, 1], [0, 1, 1], [0, 1, 1], [1, 0.5, 0.5], m)
        if self.what == "heavy":
            return Reduction.of(every, every, every, np.full(m, 2.0), m)
        if self.what == "nothing":
            return Reduction.pick([0], m)
        if self.what == "uneven":
            return Reduction.pick(every[: m - int(float(view.hidden.sum()) > self.cutoff)], m)
        return Reduction.pick(every[:-1], m - 1)

    @property
    def cutoff(self) -> float:
        return CUTOFF[0]


CUTOFF = [0.0]


@pytest.mark.parametrize("what", ["special", "twice", "heavy", "nothing", "uneven", "short"])
def test_answers_that_are_no_partition_are_refused(what: str) -> None:
    _, adapter, call = inputs("llava")
    sums: list[float] = []
    blocks = compat.tower_blocks(adapter.vision)
    handle = blocks[0].register_forward_hook(
        lambda _, __, out: sums.extend(out.sum((1, 2)).tolist())
    )
    features(adapter, call)
    handle.remove()
    CUTOFF[0] = float(np.mean(sums))
    with pytest.raises(PlanError, match="says"):
        features(adapter, call, around_tower(adapter, Says(what=what)))


def test_features_encoded_before_do_not_mix_with_a_tower_method() -> None:
    _, adapter, call = inputs("llava")
    found = {"image": adapter.encode(adapter.media_kwargs(call, "image"))}
    with pytest.raises(UnsupportedError, match="tome"):
        compress(adapter, Plan.parse("tome:keep=1/2"), call, encoded=found)


@pytest.mark.parametrize("front", [0, 1])
def test_rounds_compose_into_one_map(front: int) -> None:
    """Merged, scattered and gathered again: each token is the mean of its patches, three times."""
    run = TowerRun(2, 9 + front, front, 0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(2, 9 + front, 3, generator=generator)
    tokens, names = full, [[{i} for i in range(9 + front)] for _ in range(2)]
    for pairs in ([(0, 1), (4, 6)], [(1, 3)], [(0, 4)]):
        answers = []
        for p in range(2):
            m = run.now
            row, size = np.arange(m), run.size[p].double().numpy()
            for a, b in pairs:
                pair = ((a + p) % (m - front) + front, (b + p) % (m - front) + front)
                first, second = sorted(pair)
                row[second] = row[first]
                names[p][first] = names[p][first] | names[p][second]
            heads, row = np.unique(row, return_inverse=True)
            names[p] = [names[p][h] for h in heads]
            total = np.bincount(row, weights=size)
            answers.append(Reduction.of(heads, row, np.arange(m), size / total[row], m, "hidden"))
        tokens = run.merge(tokens, answers)
        spread = run.scatter(tokens, full)
        assert torch.equal(run.gather(spread), tokens)
        for p in range(2):
            for token, members in enumerate(names[p]):
                where = sorted(members)
                mean = full[p, where].mean(0)
                assert torch.allclose(tokens[p, token], mean, atol=1e-6)
                assert torch.allclose(spread[p, where], mean.expand(len(where), -1), atol=1e-6)
                assert run.size[p, token] == len(where)
        assert (run.protected.sum(1) == front).all()
