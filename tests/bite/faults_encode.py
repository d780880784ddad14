"""Planted faults of dropped patches, time stamps and the joint space of words and patches."""

from __future__ import annotations

from tests.bite.faults import Fault

RULE = ("tests/methods/test_pixelprune.py",)
EDGES = ("tests/methods/test_pixelprune.py::test_edges_and_constant_pictures",)
RAMP = (
    "tests/methods/test_pixelprune.py::test_a_ramp_stays_within_the_threshold_of_what_stands_for_it",
)
SCENE = (
    "tests/methods/test_pixelprune.py::test_a_still_scene_costs_one_step_and_a_cut_is_a_new_picture",
)
BIT = ("tests/methods/test_pixelprune.py::test_a_difference_in_the_last_bit_counts",)
ENGINE = "tests/engine/test_patches.py::test_"
TOWER = (ENGINE + "the_tower_gives_what_a_full_one_gives_that_hides_them",)
FACTS = (ENGINE + "encoder_facts_are_those_of_the_patches_that_are_there",)
BATCH = (ENGINE + "a_batch_of_unequal_pictures_equals_single_runs",)
TOKENS = (ENGINE + "a_token_method_sees_what_the_tower_saw_and_no_grid_that_is_full",)
DOORS = ("tests/engine/test_patches_doors.py",)
TIMES = ("tests/engine/test_times.py",)
JOINT = ("tests/models/test_joint.py",)
PRUNE, PACKED, COMPAT = (
    "encode/pixels/pixelprune.py",
    "models/packed.py",
    "models/compat_packed.py",
)

FAULTS = (
    Fault(
        "the edge rule the wrong way round",
        PRUNE,
        "upright = like(corner, a) & ~like(corner, b)",
        "upright = like(corner, b) & ~like(corner, a)",
        EDGES,
    ),
    Fault(
        "a foreseen block is compared as itself",
        PRUNE,
        "out[r, c] = np.where(new[:, None], here, guess)",
        "out[r, c] = here",
        RAMP,
    ),
    Fault(
        "a still scene is not read from the step before",
        PRUNE,
        "if before is not None:",
        "if before is None:",
        SCENE,
    ),
    Fault(
        "the context of a still block is not looked at",
        PRUNE,
        "        still[there] &= like(out[row, col], before[row, col])",
        "        pass",
        RULE,
    ),
    Fault(
        "the mean instead of the largest difference",
        PRUNE,
        "apart.max(axis=-1) <= threshold",
        "apart.mean(axis=-1) <= threshold",
        RULE,
    ),
    Fault(
        "exact repetition after a division",
        PRUNE,
        "shares=self.threshold > 0",
        "shares=True",
        BIT,
    ),
    Fault(
        "positions of the first patches",
        COMPAT,
        "own.get_vision_position_ids(grids, merge)[keep]",
        "own.get_vision_position_ids(grids, merge)[: int(keep.sum())]",
        TOWER,
    ),
    Fault(
        "learned positions of the first patches",
        COMPAT,
        '"interp_indices": rows[keep]',
        '"interp_indices": rows[: int(keep.sum())]',
        TOWER,
    ),
    Fault(
        "weights of the first patches' positions",
        COMPAT,
        '"interp_weights": weights[keep]',
        '"interp_weights": weights[: int(keep.sum())]',
        TOWER,
    ),
    Fault(
        "pictures attend to one another",
        COMPAT,
        "_borders(own.get_vision_cu_seqlens(grids), keep)",
        "_borders(own.get_vision_cu_seqlens(grids)[[0, -1]], keep)",
        TOWER,
    ),
    Fault(
        "window order not thinned by its own order",
        COMPAT,
        "return rank[order[keep[order]]]",
        "return rank[order[keep]]",
        TOWER,
    ),
    Fault(
        "window borders in the order of the pixels",
        COMPAT,
        "squares[order].repeat_interleave(unit)",
        "squares.repeat_interleave(unit)",
        TOWER,
    ),
    Fault(
        "rows packed to the front of the grid",
        PACKED,
        "    out[there] = rows",
        "    out[: rows.shape[0]] = rows",
        TOWER,
    ),
    Fault(
        "a step that lost all patches keeps its row",
        PACKED,
        "zip(steps, there, strict=True) if ok]",
        "zip(steps, there, strict=True)]",
        (ENGINE + "the_grid_has_a_row_for_each_run_that_is_left",),
    ),
    Fault(
        "encoder tokens mapped to the full grid",
        PACKED,
        "piece.group = (present.long().cumsum(0) - 1)[there]",
        "piece.group = there",
        FACTS,
    ),
    Fault(
        "squares of a raster read as runs",
        PACKED,
        "return raster_owner(self.patches[index], m) if self.raster else place // (m * m)",
        "return place // (m * m)",
        TOWER,
    ),
    Fault(
        "methods see tokens that the tower did not",
        "engine/rows.py",
        "there &= self.piece.present.cpu().numpy()",
        "pass",
        TOKENS,
    ),
    Fault(
        "another row's pictures",
        "engine/patches.py",
        "torch.searchsorted(ends, starts, right=True)",
        "torch.zeros_like(starts)",
        BATCH,
    ),
    Fault(
        "black to white is multiplied by the deviation",
        "engine/patches.py",
        "return 255.0 * scale / float(r), 255.0 * scale / float(g)",
        "return 255.0 * scale * float(r), 255.0 * scale / float(g)",
        DOORS,
    ),
    Fault(
        "dropped patches are drawn as kept",
        "engine/rows.py",
        "            return free[chosen]",
        "            return chosen",
        DOORS,
    ),
    Fault(
        "picture rows and columns swapped",
        PACKED,
        "x.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)",
        "x.transpose(0, 6, 1, 4, 7, 2, 3, 8, 5)",
        DOORS,
    ),
    Fault(
        "what patches left out is cached",
        "engine/cache.py",
        "if around is not None or kept is not None or not hashable",
        "if around is not None or not hashable",
        DOORS,
    ),
    Fault(
        "a row is stamped with its first frame",
        "engine/times.py",
        "(groups[:, 0] + groups[:, -1]) / 2",
        "groups[:, 0]",
        TIMES,
    ),
    Fault(
        "pictures beside a video are stamped",
        "engine/times.py",
        "p for p in placed if p.image >= still",
        "p for p in placed if p.image >= 0",
        TIMES,
    ),
    Fault(
        "another video's times",
        "engine/times.py",
        "of = dict(zip(numbers, times, strict=True))",
        "of = dict(zip(numbers, times[::-1], strict=True))",
        TIMES,
    ),
    Fault(
        "frame numbers read as seconds",
        "engine/times.py",
        "np.asarray(index, dtype=np.float64) / float(fps)",
        "np.asarray(index, dtype=np.float64)",
        TIMES,
    ),
    Fault(
        "patches not normalised before the projection",
        "models/joint.py",
        "normed = self.norm(tokens.to(weight.device, weight.dtype))",
        "normed = tokens.to(weight.device, weight.dtype)",
        JOINT,
    ),
    Fault(
        "a long question is cut off",
        "models/joint.py",
        "range(0, len(bare), room)",
        "range(0, min(len(bare), room), room)",
        JOINT,
    ),
    Fault(
        "relevance without the minus of CLIP",
        "encode/tokens/cdpruner.py",
        "to_unit_range(-mean_cosine(patches, clip))",
        "to_unit_range(mean_cosine(patches, clip))",
        (*JOINT, "tests/golden/test_choice_golden.py"),
    ),
    Fault(
        "patches stay in the encoder's own space",
        "engine/select.py",
        "joint = hidden if patches is None else patches(hidden)",
        "joint = hidden",
        JOINT,
    ),
)
