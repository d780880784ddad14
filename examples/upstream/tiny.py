"""A tiny Qwen2.5-VL of random weights, and an engine for it: what the reproductions beside share.

Each of them runs on stock vLLM 0.32, on a CPU or a GPU, needs no download, and ends with exit code 1
where the bug shows and 0 where it does not:

    python examples/upstream/prefix_ends_at_vision_start.py

With --plan PLAN the same requests run under Foveate's plug-in instead of --video-pruning-rate.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

RATE = 0.5
START, IMAGE, VIDEO, END = 300, 301, 302, 303
MARKS = {START: "<|vision_start|>", IMAGE: "<|image_pad|>", VIDEO: "<|video_pad|>"}
MARKS[END] = "<|vision_end|>"
PIXELS = {"shortest_edge": 64, "longest_edge": 1 << 20}
PACKED = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": PIXELS}


def arguments(text: str | None) -> argparse.Namespace:
    """--plan and --work; without a plan vLLM starts without plug-ins."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n\n")[0])
    parser.add_argument("--plan", help="a plan of Foveate instead of --video-pruning-rate")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint (default: temporary)")
    given = parser.parse_args()
    if given.plan is None:
        os.environ["VLLM_PLUGINS"] = ""
    return given


def verdict(occurs: bool, what: str) -> None:
    """Say what was seen and end."""
    print(f"{'the bug shows' if occurs else 'no bug'}: {what}", flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(occurs))  # engines do not always end after an exception


def checkpoint(work: Path | None) -> Path:
    """The model folder, made if it is not there."""
    folder = (work or Path(tempfile.mkdtemp())) / "tiny-qwen2.5-vl"
    if (folder / "config.json").exists():
        return folder
    import torch
    import transformers

    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 304,
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 8192,
            "rope_parameters": rope,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_heads": 2,
            "out_hidden_size": 128,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.mul_(3)  # default initialisation answers nearly the same to all prompts
    model.save_pretrained(folder)
    processor(transformers).save_pretrained(folder)
    return folder


def processor(transformers: Any) -> Any:
    """One token a byte of text, and patches of 4 x 4 pixels of which 2 x 2 become a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {w: i for i, w in enumerate(words)}
    vocab.update({f"<unused_{i}>": i for i in range(len(words), START)})
    vocab.update({w: i for i, w in MARKS.items()})
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<s>", "</s>", *MARKS.values()])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    return transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**PACKED),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(**PACKED),
        chat_template="{{ messages[0].content }}",
    )


def engine(folder: Path, *, rate: float | None = None, plan: str | None = None, **more: Any) -> Any:
    """An engine in this process. rate: vLLM's own pruning; plan: Foveate's."""
    from vllm import LLM

    settings: dict[str, Any] = {
        "model": str(folder),
        "dtype": "float32",
        "max_model_len": 4096,
        "max_num_seqs": 4,
        "block_size": 32,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 1, "video": 1},
        **more,
    }
    if plan is not None:
        settings["additional_config"] = {"foveate": {"plan": plan}}
    elif rate is not None:
        settings["video_pruning_rate"] = rate
    return LLM(**settings)


def let_cpu_runner_prune() -> None:
    """Work around `cpu_runner_never_prunes`, so that the other bugs can be seen on a CPU. Does nothing
    on other platforms.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    original = CPUModelRunner.load_model

    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        config = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = config.is_multimodal_pruning_enabled()

    CPUModelRunner.load_model = load_model


def sampling(tokens: int = 6) -> Any:
    from vllm import SamplingParams

    return SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, logprobs=1)


def picture(seed: int, width: int, height: int) -> Any:
    """Blocks of 4 x 4 pixels in random colours, so that every token differs."""
    import numpy as np
    from PIL import Image

    blocks = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3))
    return Image.fromarray(blocks.astype(np.uint8).repeat(4, 0).repeat(4, 1))


def image_request(seed: int, width: int, height: int, question: str) -> dict[str, Any]:
    prompt = f"<|vision_start|><|image_pad|><|vision_end|>{question}"
    return {"prompt": prompt, "multi_modal_data": {"image": picture(seed, width, height)}}


def video_request(
    seed: int,
    question: str,
    *,
    before: str = "",
    frames: int = 8,
    width: int = 48,
    height: int = 48,
) -> dict[str, Any]:
    """A video of `frames` frames; every second one repeats the one before."""
    import numpy as np

    shown = [np.asarray(picture(seed * 100 + i // 2, width, height)) for i in range(frames)]
    about = {
        "total_num_frames": frames,
        "fps": 2.0,
        "duration": frames / 2.0,
        "video_backend": "opencv",
        "frames_indices": list(range(frames)),
        "do_sample_frames": False,
    }
    prompt = f"{before}<|vision_start|><|video_pad|><|vision_end|>{question}"
    return {"prompt": prompt, "multi_modal_data": {"video": (np.stack(shown), about)}}
