"""GLM-4V and its kin: a video's frames are written with the picture placeholder; token types tell
them apart.
"""

from __future__ import annotations

from torch import Tensor

from foveate.models.adapter import AutoAdapter, family

TYPES = {"image": 1, "video": 2}


@family("glm4v", "glm46v", "glm_ocr", "glm4v_moe")
class GlmAdapter(AutoAdapter):
    """Without mm_token_type_ids every placeholder counts as a picture's."""

    def spots(self, modality: str, ids: Tensor, types: Tensor | None) -> Tensor:
        here = super().spots("image", ids, types)
        if types is None:
            return here if modality == "image" else here & False
        return here & (types == TYPES[modality])
