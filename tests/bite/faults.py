"""The planted faults: one small, plausible mistake each, and the tests that are expected to catch it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Replace `old` by `new` in src/foveate/`file`; `tests` must then fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


BUDGET = ("tests/core/test_budget.py",)
PLAN = ("tests/core/test_plan.py",)
VIEWS = ("tests/core/test_views.py",)
ATTACH = ("tests/engine/test_attach.py",)
SPLICE = ("tests/engine/test_splice.py",)
ENGINE = ("tests/engine/test_engine.py",)
ADAPTER = ("tests/models/test_adapter.py",)
PREFIX = ("tests/engine/test_prefix_cache.py",)
CODECS = ("tests/memory/test_codecs.py",)
RECYCLED = (
    "tests/prefill/test_prefill_models.py::"
    "test_a_ragged_batch_equals_the_masked_reference[sparsevlm recycle-llava]"
)


def matrix(*families: str) -> tuple[str, ...]:
    return tuple(f"tests/engine/test_matrix.py::test_family[{f}]" for f in families)


FAULTS = (
    Fault("rounding down", "core/budget.py", "n + Fraction(1, 2)", "n + Fraction(0)", BUDGET),
    Fault(
        "an image may vanish", "core/budget.py", "min(n, max(1, want", "min(n, max(0, want", BUDGET
    ),
    Fault(
        "ties to the higher index",
        "core/budget.py",
        "parts[i] - shares[i], i)",
        "parts[i] - shares[i], -i)",
        BUDGET,
    ),
    Fault(
        "a request starves an image", "core/budget.py", "totals, floor=1", "totals, floor=0", BUDGET
    ),
    Fault(
        "rows do not follow their anchors",
        "core/views.py",
        "            place[r],",
        "            r,",
        VIEWS,
    ),
    Fault(
        "ordinal left out of the seed",
        "core/rng.py",
        "[self.seed, item.ordinal, *item.grid]",
        "[self.seed, *item.grid]",
        VIEWS,
    ),
    Fault(
        "retain and renumber swapped",
        "core/plan.py",
        '"retain" if mrope else "renumber"',
        '"renumber" if mrope else "retain"',
        PLAN,
    ),
    Fault(
        "the seed is not hashed",
        "core/plan.py",
        "for k in _OPTIONS if (k, getattr(self, k)) != _LATER}",
        "for k in _OPTIONS if (k, getattr(self, k)) != _LATER and k != 'seed'}",
        PLAN,
    ),
    Fault("two methods a stage", "core/plan.py", "if m.stage in seen:", "if False:", PLAN),
    Fault(
        "padding on the wrong side",
        "engine/splice.py",
        'slice(width - len(picks), width) if side == "left" else',
        'slice(width - len(picks), width) if side != "left" else',
        SPLICE,
    ),
    Fault("padded labels are scored", "engine/splice.py", '"labels": -100', '"labels": 0', ATTACH),
    Fault(
        "every newline stays",
        "engine/splice.py",
        "np.intersect1d(np.arange(ends.size), row_of)",
        "np.arange(ends.size)",
        SPLICE,
    ),
    Fault(
        "weights forgotten",
        "engine/splice.py",
        "x[cols].float() * weights[:, None]",
        "x[cols].float()",
        SPLICE,
    ),
    Fault(
        "special tokens first",
        "engine/splice.py",
        "torch.cat([tokens, view.special])",
        "torch.cat([view.special, tokens])",
        SPLICE,
    ),
    Fault(
        "DeepStack rows not picked",
        "engine/splice.py",
        "[layer[index] for layer in piece.deepstack]",
        "[layer[: len(index)] for layer in piece.deepstack]",
        matrix("qwen3_vl"),
    ),
    Fault(
        "all segments are one image",
        "engine/rows.py",
        "p.image = numbers.setdefault((p.modality, p.image), len(numbers))",
        "p.image = 0",
        ENGINE,
    ),
    Fault(
        "segments in encoder order",
        "engine/rows.py",
        "key=lambda p: int(p.at[0]) if p.at.size else -1",
        "key=lambda p: -int(p.at[0]) if p.at.size else -1",
        (
            "tests/engine/test_engine.py::test_the_report_adds_up",
            *matrix("llava"),
            *ATTACH,
            "tests/engine/test_rows.py",
        ),
    ),
    Fault(
        "M-RoPE positions not kept",
        "engine/compress.py",
        'plan.positions == "retain" and given is None',
        "False",
        matrix("qwen2_5_vl"),
    ),
    Fault(
        "renumbering starts at one",
        "engine/compress.py",
        "cumsum(-1) - 1)",
        "cumsum(-1) * 2 - 1)",
        SPLICE,
    ),
    Fault(
        "beams take the neighbour's picture",
        "engine/compress.py",
        "for placed, pieces in zip(rows, kept, strict=True)\n                for _ in range(repeat)\n",
        "for _ in range(repeat)\n                for placed, pieces in zip(rows, kept, strict=True)\n",
        ATTACH,
    ),
    Fault(
        "leaving does not restore",
        "models/compat.py",
        "            vars(owner).pop(name, None)",
        "            pass",
        ATTACH,
    ),
    Fault(
        "rope_deltas left behind",
        "models/compat.py",
        "            base.rope_deltas = before",
        "            pass",
        ATTACH,
    ),
    Fault(
        "attention implementation left switched",
        "models/compat.py",
        "            config._attn_implementation_internal = before[i]",
        "            pass",
        ATTACH,
    ),
    Fault(
        "a recording hook stays",
        "models/compat.py",
        "            handle.remove()",
        "            pass",
        ATTACH,
    ),
    Fault(
        "attention without its scale",
        "models/compat.py",
        "            logits *= scale\n",
        "",
        ADAPTER,
    ),
    Fault(
        "the streamer shows the short prompt",
        "engine/callers.py",
        "            value = self.prompt",
        "            pass",
        ATTACH,
    ),
    Fault(
        "prompts interleaved for beams",
        "engine/callers.py",
        ".repeat_interleave(repeat, 0)",
        ".repeat(repeat, 1)",
        (
            "tests/engine/test_attach.py::test_beams_and_several_sequences_equal_row_by_row",
            "tests/engine/test_attach.py::test_sequences_of_several_rows_begin_with_their_own_prompt",
        ),
    ),
    Fault(
        "max_length counts the short prompt",
        "engine/callers.py",
        "max(1, value - removed)",
        "value",
        ATTACH,
    ),
    Fault(
        "blocks transposed",
        "models/grids.py",
        "line[:, None] * small + line[None, :]",
        "line[None, :] * small + line[:, None]",
        ADAPTER,
    ),
    Fault(
        "groups of the wrong size",
        "models/pieces.py",
        "group=place // (merge * merge),",
        "group=place // merge,",
        ADAPTER,
    ),
    Fault(
        "class token counted as a patch",
        "models/encoded.py",
        "return hidden[:, front:stop].flatten(0, 1), special",
        "return hidden[:, : stop - front].flatten(0, 1), special",
        ADAPTER,
    ),
    Fault(
        "window order not undone",
        "models/families/qwen.py",
        "pixels[order] = windows",
        "pixels = windows[order]",
        ADAPTER,
    ),
    Fault(
        "newlines seen as tokens",
        "models/families/anyres.py",
        "fixed = packed < 0",
        "fixed = packed < -2",
        (*SPLICE, *ADAPTER),
    ),
    Fault(
        "class token sought in front",
        "models/families/llama4.py",
        "return (0, 1)",
        "return (1, 0)",
        ADAPTER,
    ),
    Fault(
        "videos of GLM read as pictures",
        "models/families/glm.py",
        '{"image": 1, "video": 2}',
        '{"image": 2, "video": 1}',
        matrix("glm4v"),
    ),
    Fault(
        "a method's count is not checked",
        "core/choice.py",
        'if method.counts == "image" and answer.k != counts.per_segment[i]:',
        "if False:",
        SPLICE,
    ),
    Fault(
        "a typed placeholder passes",
        "engine/prompt.py",
        "if any(token in t for t in texts):",
        "if False:",
        ENGINE,
    ),
    Fault(
        "pickled weights are read",
        "engine/loading.py",
        'if not list(path.glob("*.safetensors")):',
        "if False:",
        ENGINE,
    ),
    Fault(
        "one bad request fails the batch",
        "engine/engine.py",
        "except (InputError, MediaError) as error:",
        "except ZeroDivisionError as error:",
        ENGINE,
    ),
    Fault(
        "the layer before is read instead of the stage's own",
        "prefill/pyramiddrop.py",
        'last_token(view, "next")',
        'last_token(view, "previous")',
        ("tests/prefill/test_prefill_reference.py",),
    ),
    Fault(
        "raters move when tokens leave",
        "prefill/sparsevlm.py",
        "np.searchsorted(view.origin, state) if state.size",
        "state if state.size",
        ("tests/prefill/test_prefill_reference.py",),
    ),
    Fault(
        "pivots claim the likest",
        "prefill/dart.py",
        "arrays.top_k(-row[free], share",
        "arrays.top_k(row[free], share",
        ("tests/prefill/test_prefill_reference.py", "tests/golden/test_prefill_golden.py"),
    ),
    Fault(
        "PageRank without its temperature",
        "engine/language_view.py",
        "        logits /= temperature\n",
        "",
        ("tests/engine/test_inside_view.py",),
    ),
    Fault(
        "merged tokens are not written",
        "engine/language_pass.py",
        "            out[row, new] = weighted(reduction, hidden[row, old])",
        "            pass",
        (RECYCLED,),
    ),
    Fault(
        "a merged token has its neighbour's place",
        "engine/language_run.py",
        "stays = visual if keep is None else visual[keep.anchor]",
        "stays = visual if keep is None else visual[keep.anchor - (keep.anchor > 0)]",
        (RECYCLED, "tests/engine/test_inside.py"),
    ),
    Fault(
        "a drop inside is reported as none",
        "engine/report.py",
        "layers[-1] < row.visual_kept + fixed",
        "layers[-1] < 0",
        ("tests/engine/test_inside_report.py",),
    ),
    Fault(
        "beams are counted with another request",
        "engine/language_door.py",
        "run.counts[index * (len(run.counts) // of)]",
        "run.counts[index]",
        ("tests/engine/test_inside_report.py",),
    ),
    Fault(
        "a prefix is served to another plan",
        "engine/prefix_cache.py",
        "            plan.hash,\n",
        "",
        PREFIX,
    ),
    Fault(
        "a prefix is served to another question",
        "engine/prefix_cache.py",
        "            ids[words:].tolist(),\n",
        "",
        PREFIX,
    ),
    Fault(
        "a prefix is served to another picture",
        "engine/prefix_cache.py",
        "            pictures,\n",
        "",
        PREFIX,
    ),
    Fault(
        "a hit is not a copy",
        "engine/prefix_cache.py",
        "return Entry(found.sequence.clone(), found.tokens",
        "return Entry(found.sequence, found.tokens",
        PREFIX,
    ),
    Fault(
        "codes lose their first bit's place",
        "memory/_bits.py",
        "parts[..., i] << (i * bits)",
        "parts[..., i] << (i * bits - bits + 1)",
        CODECS,
    ),
    Fault(
        "one scale for all keys of a block",
        "memory/kivi.py",
        "which = slice(start // self.group, stop // self.group)",
        "which = slice(0, (stop - start) // self.group)",
        CODECS,
    ),
    Fault(
        "visual values without their zero point",
        "memory/calibquant.py",
        " + weights.sum(-1, keepdim=True) * value.low.to(dtype)",
        "",
        CODECS,
    ),
)
