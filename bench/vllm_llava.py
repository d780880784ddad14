"""A LLaVA of 27 million random weights at the true geometry of its eyes: CLIP at 336 pixels with
patches of 14, so 576 visual tokens an image. Says nothing of accuracy; it costs what it costs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

EDGE, PATCH, VOCAB, IMAGE = 336, 14, 300, 290
MARK = "<image>"


def save_llava(folder: Path) -> Path:
    """Write the checkpoint folder that vLLM reads, unless it is there; gives the folder."""
    if (folder / "done").exists():
        return folder
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    eyes = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=EDGE,
        patch_size=PATCH,
        projection_dim=64,
    )
    mind = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = LlavaConfig(
        vision_config=eyes,
        text_config=mind,
        image_token_index=IMAGE,
        image_seq_length=(EDGE // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    model = Llava(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _processor().save_pretrained(folder)
    _rename(folder / "model.safetensors")
    (folder / "done").touch()
    return folder


def _rename(path: Path) -> None:
    """Weights under the names that vLLM reads."""
    from safetensors.torch import load_file, save_file

    own, wanted = "vision_tower.", "vision_tower.vision_model."
    weights: dict[str, Any] = {}
    for key, value in load_file(path).items():
        at = key.find(own)
        renamed = at >= 0 and not key[at:].startswith(wanted)
        weights[key.replace(own, wanted) if renamed else key] = value.contiguous()
    save_file(weights, path, metadata={"format": "pt"})


def _processor() -> Any:
    """A byte-level tokenizer and CLIP's picture processor."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from foveate.models.compat_processors import assemble

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[symbol] = len(vocab)
    for i in range(len(vocab), VOCAB):
        vocab[MARK if i == IMAGE else f"<reserved_{i}>"] = i
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<s>", "</s>", MARK])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    pictures = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": EDGE}, crop_size={"height": EDGE, "width": EDGE}
    )
    template = (
        "{% for message in messages %}{{ message.role }}: {% for part in message.content %}"
        "{% if part.type == 'image' %}" + MARK + "{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{{ '\n' }}{% endfor %}assistant:"
    )
    settings = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": template,
    }
    parts = {"image_processor": pictures, "tokenizer": tokenizer, "video_processor": None}
    return assemble(transformers.LlavaProcessor, parts, settings)
