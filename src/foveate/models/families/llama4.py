"""Llama 4: the class token stands last, and the model projects inside forward, so raw features
travel back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.models.adapter import AutoAdapter, family
from foveate.models.encoded import Piece
from foveate.models.grids import block_group, square


@family("llama4")
class Llama4Adapter(AutoAdapter):
    """Methods choose on projected features; the payload is what the linear projector has yet to
    see.
    """

    def specials(self) -> tuple[int, int]:
        return (0, 1)

    def pieces(self, out: Any, mm: Mapping[str, Any]) -> list[Piece]:
        config = self.config.vision_config
        patches = (config.image_size // config.patch_size) ** 2
        raw: Tensor = out.last_hidden_state
        pieces = []
        for i, payload in enumerate(raw.reshape(-1, *raw.shape[-2:]).unbind(0)):
            n = int(payload.shape[0])
            group = block_group(patches, n, payload.device)
            source = torch.arange(patches, device=payload.device) + i * patches
            pieces.append(
                Piece(
                    self.base.multi_modal_projector(payload),
                    payload,
                    "image",
                    (1, *square(n)),
                    source=source,
                    group=group,
                    part=torch.full_like(source, i),
                    picture=i,
                )
            )
        return pieces

    def put(self, new: Any, out: Any, payloads: list[Tensor]) -> None:
        new.last_hidden_state = torch.cat(payloads)[None]
