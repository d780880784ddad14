"""The language models of two 7B checkpoints at their own geometry, random weights, bf16, for a GPU;
times are CUDA events there.

    python -m bench.inside_gpu [--geometry llava15-7b,qwen25vl-7b] [--tokens 576,2880,10240]
        [--batch 1,4,16,64] [--methods fastv,pyramiddrop] [--rounds 5] [--new 32] [--keep 1/10]

For each cell: the time to the first token of transformers' own forward and of each method, in turn,
with the FLOP-ideal ratio (as bench.prefill) and the peak of device memory; then `new` tokens of
generate() over transformers' cache and over a tenth of the entries in ours, as bench.decode. A cell
that does not fit into the device's memory says so. Results: bench/results/inside-gpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from bench import decode
from bench.common import RESULTS, median, numbers, words
from bench.encode_store import Store, version
from bench.inside import TEXT, Geometry, Inside
from bench.prefill import SHARED, key
from foveate.core import Plan
from foveate.core.errors import FoveateError
from foveate.engine.compress import Compressed, compress
from foveate.engine.language_run import LanguageRun
from foveate.models.adapter import AutoAdapter, adapter_for
from foveate.models.encoded import Encoded, EncoderTokens, Piece

PATH = RESULTS / "inside-gpu.json"
ROWS = 16  # rows of a picture's merged grid; all N of the grid are multiples of it


def llava15_7b(*, layers: int = 32, vocab: int = 32064) -> tuple[Any, AutoAdapter]:
    """LLaVA-1.5-7B: 32 layers, 4096 wide, 32 heads; the tower is cut to one block."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 1,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "vocab_size": vocab,
            "max_position_embeddings": 32768,
        },
        image_token_index=vocab - 64,
        vision_feature_layer=-1,
    )
    return _built(LlavaForConditionalGeneration, config)


def qwen25vl_7b(*, layers: int = 28, vocab: int = 152064) -> tuple[Any, AutoAdapter]:
    """Qwen2.5-VL-7B: 28 layers, 3584 wide, 28 heads over 4; the tower is cut to one block."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    special = {
        f"{name}_token_id": vocab - 64 + i
        for i, name in enumerate(("image", "video", "vision_start", "vision_end"))
    }
    config = Qwen2_5_VLConfig(
        vision_config={"depth": 1, "fullatt_block_indexes": [0], "out_hidden_size": 3584},
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": layers,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": vocab,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
        },
        **special,
    )
    return _built(Qwen2_5_VLForConditionalGeneration, config)


def _built(kind: Any, config: Any) -> tuple[Any, AutoAdapter]:
    torch.manual_seed(0)
    dtype = torch.get_default_dtype()
    model = kind._from_config(config, attn_implementation="sdpa", dtype=dtype).eval()
    return model, adapter_for(model)


GEOMETRIES = {
    g.name: g
    for g in (
        Geometry("llava15-7b", "LLaVA-1.5-7B", llava15_7b),
        Geometry("qwen25vl-7b", "Qwen2.5-VL-7B", qwen25vl_7b),
    )
}


class OnDevice(Inside):
    """A model built on a device, in a dtype; calls are made there."""

    def __init__(self, geometry: Geometry, device: str, dtype: torch.dtype) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        with self.defaults():
            super().__init__(geometry)

    @contextlib.contextmanager
    def defaults(self) -> Iterator[None]:
        """New tensors are made on the device, floats in the dtype."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                yield
        finally:
            torch.set_default_dtype(before)

    def call(self, n: int, batch: int, plan: Plan) -> Compressed:
        """The engine's call; families with M-RoPE get the grid of a picture of n tokens."""
        from bench.geometry import prompt

        token = self.adapter.token_id("image")
        assert token is not None
        rows = [prompt(n, token, TEXT, seed=i) for i in range(batch)]
        inputs: dict[str, Tensor] = {k: torch.cat([r[k] for r in rows]) for k in rows[0]}
        config = self.model.config
        if hasattr(config.vision_config, "spatial_merge_size"):
            merge, start = config.vision_config.spatial_merge_size, config.vision_start_token_id
            ids = inputs["input_ids"]
            ids[:, TEXT // 2 - 1] = start  # M-RoPE looks for pictures behind it
            inputs["mm_token_type_ids"] = (ids == token).int()
            grid = [1, ROWS * merge, n // ROWS * merge]
            inputs["image_grid_thw"] = torch.tensor([grid] * batch)
        inputs = {k: v.to(self.device) for k, v in inputs.items()}
        return compress(self.adapter, plan, inputs, encoded={"image": self._encoded(n, batch)})

    def _encoded(self, n: int, batch: int) -> Encoded:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        size, like = (n, self.shape.hidden), {"device": self.device, "dtype": self.model.dtype}
        parts = [torch.randn(size, **like) for _ in range(batch)]
        grid = (1, ROWS, n // ROWS)
        pieces = [Piece(p, p, "image", grid, picture=i) for i, p in enumerate(parts)]
        out = BaseModelOutputWithPooling(pooler_output=parts)
        return Encoded("image", out, pieces, EncoderTokens(blocks=0), tokenwise=False)

    def seconds(self, run: Callable[[], Any]) -> float:
        """Seconds between two CUDA events around a run."""
        if self.device.type != "cuda":
            from bench.common import cpu_s

            return cpu_s(run)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(self.device)
        return begin.elapsed_time(end) / 1e3

    def peak_of(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Seconds of a run, and bytes that it held beyond what was there, at most (0 on a CPU)."""
        if self.device.type != "cuda":
            return self.seconds(run), 0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        taken = self.seconds(run)
        return taken, torch.cuda.max_memory_allocated(self.device) - before


def prefill_round(bench: OnDevice, store: Store, n: int, batch: int, methods: list[str]) -> None:
    """All tokens once, then each method once: a row a method."""
    dense, dense_peak = bench.peak_of(bench.dense(n, batch))
    for name in methods:
        place, code = key(bench.geometry.name, n, batch, name), _code(name)
        try:
            with LanguageRun(bench.adapter, Plan.parse(name)).attached() as run:
                taken, peak = bench.peak_of(bench.planned(n, batch, run))
                counts = run.counts[0]
        except FoveateError as error:
            store.put(place, "time", code, {"not_run": str(error)[:160]})
            continue
        ideal = bench.ratio(n, counts)
        values = {
            "dense_s": dense,
            "plan_s": taken,
            "ratio": taken / (dense * ideal),
            "dense_peak_bytes": dense_peak,
            "plan_peak_bytes": peak,
        }
        store.append(place, code, counts[-1], values)
        store.cells[place]["time"]["flop_ratio"] = round(ideal, 4)


def decode_round(bench: OnDevice, store: Store, context: int, batch: int, args: Any) -> None:
    """Tokens a second over both caches in turn."""
    place = decode.key(bench.geometry.name, context, args.keep, args.new, batch)
    keep, values = Fraction(args.keep), dict[str, float]()
    for kind in ("dense", "kept"):
        with contextlib.ExitStack() as stack:
            stack.enter_context(bench.defaults())
            if kind == "dense":
                cache = decode.dynamic(bench, context, batch)
            else:
                run = stack.enter_context(LanguageRun(bench.adapter, Plan()).attached())
                cache = decode.ragged(bench, run, context, batch, keep)
            values[f"{kind}_held_bytes"] = decode.held_bytes(cache)
            work = functools.partial(decode.generate, bench, cache, context, batch, args.new)
            values[f"{kind}_tokens_per_s"] = batch * args.new / bench.seconds(work)
    values["kept_over_dense"] = values["kept_tokens_per_s"] / values["dense_tokens_per_s"]
    store.append(place, _code(decode.CHOOSER), round(Fraction(args.keep) * context), values)


def _code(name: str) -> str:
    return version(name, (*SHARED, "bench.inside_gpu"))


@torch.no_grad()
def measure(bench: OnDevice, store: Store, args: argparse.Namespace) -> None:
    """Every cell of one model; one that does not fit says so and the next is tried."""
    for n in args.tokens:
        for batch in args.batch:
            try:
                for i in range(args.rounds + 1):
                    # The first round pays for kernels that are chosen once; it is thrown away.
                    into = store if i else Store(args.scratch)
                    prefill_round(bench, into, n, batch, args.methods)
                    decode_round(bench, into, TEXT + n, batch, args)
            except torch.OutOfMemoryError:
                for name in args.methods:
                    place = key(bench.geometry.name, n, batch, name)
                    store.put(place, "time", _code(name), {"not_run": "does not fit"})
                torch.cuda.empty_cache()
            store.save()
            print(bench.geometry.name, n, batch, file=sys.stderr, flush=True)


def table(store: Store) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(title="language models of 7B: medians of CUDA events")
    for column in ("cell", "dense", "plan", "over ideal or dense", "rounds"):
        shown.add_column(column)
    for place in sorted(store.cells):
        cell = store.cells[place]["time"]
        if "not_run" in cell:
            shown.add_row(place, f"not run: {cell['not_run']}")
        elif "ratio" in cell:
            figures = (f"{median(cell[k]) * 1e3:.1f} ms" for k in ("dense_s", "plan_s"))
            shown.add_row(place, *figures, f"{median(cell['ratio']):.3f}", str(cell["rounds"]))
        else:
            figures = (f"{median(cell[f'{k}_tokens_per_s']):.0f} /s" for k in ("dense", "kept"))
            over = f"{median(cell['kept_over_dense']):.2f}"
            shown.add_row(place, *figures, over, str(cell["rounds"]))
    Console(width=120).print(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])

    parser.add_argument("--geometry", type=words, default=list(GEOMETRIES))
    parser.add_argument("--tokens", type=numbers, default=[576, 2880, 10240])
    parser.add_argument("--batch", type=numbers, default=[1, 4, 16, 64])
    parser.add_argument("--methods", type=words, default=["fastv", "pyramiddrop"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--keep", default="1/10")
    args = parser.parse_args()
    args.scratch = PATH.with_name("never-written.json")
    if not torch.cuda.is_available():
        parser.error(
            "no CUDA device: a model of 7B is measured on one; bench.prefill and bench.decode "
            "measure smaller ones on a CPU"
        )
    store = Store(PATH)
    for g in args.geometry:
        measure(OnDevice(GEOMETRIES[g], "cuda", torch.bfloat16), store, args)
        torch.cuda.empty_cache()
    table(store)


if __name__ == "__main__":
    main()
