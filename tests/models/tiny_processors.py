"""Small real processors for nine families, built offline: a byte-level BPE and Pillow backends.

Ids fit the tiny models of the tests: vocabulary 300, pad 0, bos 1, eos 2, text 3..280, picture
token 290, video token 291, vision start and end 292 and 293.

    processor = make_processor("qwen2_5_vl")
    folder = save_folder("qwen2_5_vl", model, tmp_path)   # model + processor files, from_pretrained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from foveate.models.compat_processors import assemble
from foveate.models.frame_processors import frame_processor

IMAGE, VIDEO, START, END = 290, 291, 292, 293
FAMILIES = (
    "llava",
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "smolvlm",
    "idefics3",
    "internvl",
)
WORDS = ("what", "is", "in", "the", "picture", "colour")

_PINPOINTS = [[28, 56], [56, 28]]
_QWEN_TOKENS = {
    IMAGE: "<|image_pad|>",
    VIDEO: "<|video_pad|>",
    START: "<|vision_start|>",
    END: "<|vision_end|>",
}
_LLAVA_TOKENS = {IMAGE: "<image>", VIDEO: "<video>"}
_IDEFICS_TOKENS = {
    IMAGE: "<image>",
    VIDEO: "<video>",
    281: "<fake_token_around_image>",
    282: "<global-img>",
    283: "<end_of_utterance>",
    284: "<row_1_col_1>",
    285: "<row_1_col_2>",
    286: "<row_2_col_1>",
    287: "<row_2_col_2>",
}
_INTERN_TOKENS = {IMAGE: "<IMG_CONTEXT>", VIDEO: "<video>", START: "<img>", END: "</img>"}

# per family: processor class, image processor class, its settings, tokens, processor settings,
# and what the chat template writes for a picture and a video
_QWEN_IMAGE = dict(
    patch_size=4,
    temporal_patch_size=2,
    merge_size=2,
    size={"shortest_edge": 64, "longest_edge": 4096},
)
_TILED = dict(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
_QWEN_MARKS = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
)
_MARKS = ("<image>", "<video>")
_ANYRES = dict(image_grid_pinpoints=_PINPOINTS)
_SELECT = dict(vision_feature_select_strategy="default")
Recipe = tuple[str, str, dict[str, Any], dict[int, str], dict[str, Any], tuple[str, str]]
RECIPES: dict[str, Recipe] = {
    "llava": (
        "LlavaProcessor", "CLIPImageProcessorPil",
        dict(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}), _LLAVA_TOKENS,
        dict(patch_size=7, num_additional_image_tokens=1, **_SELECT), _MARKS,
    ),
    "llava_next": (
        "LlavaNextProcessor", "LlavaNextImageProcessorPil",
        dict(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **_ANYRES),
        _LLAVA_TOKENS, dict(patch_size=7, num_additional_image_tokens=1, **_SELECT), _MARKS,
    ),
    "llava_onevision": (
        "LlavaOnevisionProcessor", "LlavaOnevisionImageProcessorPil",
        dict(size={"height": 28, "width": 28}, **_ANYRES), _LLAVA_TOKENS,
        dict(num_image_tokens=16, vision_feature_select_strategy="full"), _MARKS,
    ),
    "qwen2_vl": (
        "Qwen2VLProcessor", "Qwen2VLImageProcessorPil", _QWEN_IMAGE, _QWEN_TOKENS, {}, _QWEN_MARKS,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLProcessor", "Qwen2VLImageProcessorPil", _QWEN_IMAGE, _QWEN_TOKENS, {},
        _QWEN_MARKS,
    ),
    "qwen3_vl": (
        "Qwen3VLProcessor", "Qwen2VLImageProcessorPil", _QWEN_IMAGE, _QWEN_TOKENS, {},
        # the video part of the prompt brings its own start and end marks, one pair a frame group
        (_QWEN_MARKS[0], "<|video_pad|>"),
    ),
    "smolvlm": (
        "SmolVLMProcessor", "SmolVLMImageProcessorPil", _TILED, _IDEFICS_TOKENS,
        dict(image_seq_len=4), _MARKS,
    ),
    "idefics3": (
        "Idefics3Processor", "Idefics3ImageProcessorPil", _TILED, _IDEFICS_TOKENS,
        dict(image_seq_len=4), _MARKS,
    ),
    "internvl": (
        "InternVLProcessor", "GotOcr2ImageProcessorPil",
        dict(size={"height": 28, "width": 28}, crop_to_patches=True, min_patches=1, max_patches=4),
        _INTERN_TOKENS, dict(image_seq_length=4), ("<IMG_CONTEXT>", "<video>"),
    ),
}  # fmt: skip
# frame settings that fit the tiny towers (patch 4 or 7, edge 28 or 32)
_FRAMES: dict[str, dict[str, Any]] = {
    "llava_onevision": dict(size={"height": 28, "width": 28}),
    "qwen2_vl": _QWEN_IMAGE,
    "qwen2_5_vl": _QWEN_IMAGE,
    "qwen3_vl": {**_QWEN_IMAGE, "size": {"shortest_edge": 64, "longest_edge": 8192}},
    "smolvlm": dict(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
    "internvl": dict(size={"height": 28, "width": 28}),
}


def make_tokenizer(tokens: dict[int, str], vocab_size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the given special tokens at the given ids and a few whole words."""
    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[symbol] = len(vocab)
    merges: list[tuple[str, str]] = []
    for word in WORDS:  # each merge makes one more entry; all of them stay below 281
        piece = word[0]
        for letter in word[1:]:
            if piece + letter not in vocab and len(vocab) < 280:
                merges.append((piece, letter))
                vocab[piece + letter] = len(vocab)
            if piece + letter not in vocab:
                break
            piece += letter
    taken = dict(tokens)
    for index in range(len(vocab), vocab_size):
        vocab[taken.pop(index, f"<reserved_{index}>")] = index
    if taken:
        raise ValueError(f"ids {sorted(taken)} do not lie between the text and {vocab_size}")
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<s>", "</s>", *tokens.values()])
    named: dict[str, str] = {}
    if "<IMG_CONTEXT>" in tokens.values():
        named = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens=named,
    )


def chat_template(marks: tuple[str, str]) -> str:
    """One line a message: role, then its pictures, videos and words in order."""
    return (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}"
        + marks[0]
        + "{% elif part.type == 'video' %}"
        + marks[1]
        + ""
        "{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


def make_processor(family: str, vocab_size: int = 300) -> Any:
    """A processor of the family's own class, small enough for the tiny models."""
    owner, pictures, settings, tokens, own, marks = RECIPES[family]
    kind = getattr(transformers, owner)
    parts = {
        "image_processor": getattr(transformers, pictures)(**settings),
        "tokenizer": make_tokenizer(tokens, vocab_size),
        "video_processor": frame_processor(owner, _FRAMES.get(family, {})),
    }
    return assemble(kind, parts, {**own, "chat_template": chat_template(marks)})


def save_folder(family: str, model: Any, tmp_path: Path) -> Path:
    """A checkpoint folder: the model (None = left out) and its processor's files."""
    folder = Path(tmp_path) / family
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        model.save_pretrained(folder)
    processor = make_processor(family)
    pinpoints = getattr(getattr(model, "config", None), "image_grid_pinpoints", None)
    if pinpoints is not None:  # tiles and features are counted from the same list
        processor.image_processor.image_grid_pinpoints = pinpoints
    processor.save_pretrained(folder)
    return folder
