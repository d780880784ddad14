"""The tokenizer and processor of lab-nano, built from the word list alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .words import ORDINALS, SIDE, vocabulary

if TYPE_CHECKING:
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

PAD, BOS, EOS, IMAGE = range(4)
SPECIALS = ("<pad>", "<s>", "</s>", "<image>")
PIXEL_MEAN, PIXEL_STD = 0.5, 0.28

MAX_LENGTH = 16384
"""Tokens of a prompt: 64 pictures of 196 tokens and more."""

CHAT_TEMPLATE = (
    f"{{%- set ordinals = {list(ORDINALS)} -%}}"
    + """
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set parts = [{'type': 'text', 'text': message['content']}] -%}
{%- else -%}
{%- set parts = message['content'] -%}
{%- endif -%}
{%- for part in parts if part['type'] == 'image' -%}
{%- if loop.length > 4 -%}{{- ' ' + ordinals[loop.index0 * 4 // loop.length] -}}
{%- elif loop.length > 1 -%}{{- ' ' + ordinals[loop.index0] -}}
{%- endif -%}
<image>
{%- endfor -%}
{%- for part in parts if part['type'] == 'text' -%}
{%- if message['role'] == 'assistant' -%}
{%- if part['text'][0] in 'abcdefghijklmnopqrstuvwxyz' -%}{{- ' ' -}}{%- endif -%}
{{- part['text'] + eos_token -}}
{%- else -%}
{{- ' ' + (part['text'] | lower).replace('?', '').strip() -}}
{%- endif -%}
{%- endfor -%}
{%- endfor -%}
"""
)
"""A question follows the pictures after one blank, in lower case without its question mark; the
answer follows at once. Of several pictures each comes behind its ordinal, see `words.quarter`.
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 400 entries: a word of the vocabulary is one entry, capitals and
    digits stay single.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    core.train_from_iterator([" " + word for word in vocabulary()] * 2, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_processor(patch: int, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """A stock LlavaProcessor with the PIL image processor: any picture becomes (3, 112, 112)."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    pictures = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[PIXEL_MEAN] * 3,
        image_std=[PIXEL_STD] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
