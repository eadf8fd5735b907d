"""Pictures: transformers' vision tower on a first stage, and its text model where that exists in a wrapper alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backends.ledger import starts
from together.models.eyes import Eyes
from together.picture import Picture
from together.types import Row

MEAN, DEVIATION = 0.5, 0.5  # of the family's pixels, from 0 to 1; the head refuses a model that wants others


@lru_cache
def text_class(module: Any, prefix: str) -> Any:
    """A causal language model of the module's own text model: its publishers have it inside of a wrapper alone."""
    base, inner = getattr(module, f"{prefix}PreTrainedModel"), getattr(module, f"{prefix}TextModel")

    def begin(self: Any, config: Any) -> None:
        base.__init__(self, config)
        self.model = inner(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    members = {"__init__": begin, "config_class": inner.config_class, "_tied_weights_keys": tied}
    return type(f"{prefix}ForCausalLM", (base,), members)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the tower makes of one picture: in the place of embeddings, and for each of the first layers."""

    embeds: Tensor  # [tokens, hidden]
    deep: tuple[Tensor, ...]  # each [tokens, hidden]


@dataclass(slots=True)
class TorchVision:
    """A first stage's eyes. It keeps what it saw last: the next chunk of a prompt begins within the same picture."""

    tower: Any  # transformers' model
    eyes: Eyes
    device: torch.device
    _seen: dict[str, Seen] = field(default_factory=dict)

    def begin(self, rows: Sequence[Row], embeds: Tensor) -> dict[str, Any]:
        """What the text model is given in the place of `[1, tokens, hidden]` embeddings of these rows' tokens."""
        if not any(row.pictures for row in rows):
            return {"inputs_embeds": embeds}
        pictures = {picture.key: picture for row in rows for picture in row.pictures}
        self._seen = {key: self._seen.get(key) or self._look(picture) for key, picture in pictures.items()}
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=self.device)
        parts: list[tuple[Seen, slice]] = []
        embeds = embeds.clone()
        for row, at in starts(rows):
            for picture in row.pictures:
                begin, end = max(0, picture.offset), min(len(row.token_ids), picture.offset + picture.tokens)
                seen, part = self._seen[picture.key], slice(begin - picture.offset, end - picture.offset)
                embeds[0, at + begin : at + end] = seen.embeds[part].to(embeds.dtype)
                mask[0, at + begin : at + end] = True
                parts.append((seen, part))
        deep = [torch.cat([seen.deep[layer][part] for seen, part in parts]) for layer in range(self.eyes.layers)]
        return {"inputs_embeds": embeds, "visual_pos_masks": mask, "deepstack_visual_embeds": deep}

    def _look(self, picture: Picture) -> Seen:
        merge = self.eyes.merge
        grid = torch.tensor([[1, picture.rows * merge, picture.columns * merge]], device=self.device)
        patches = patches_of(picture, self.eyes, self.tower.config.temporal_patch_size).to(self.device)
        found = self.tower(patches.to(self.tower.dtype), grid_thw=grid)
        return Seen(found.pooler_output, tuple(found.deepstack_features))


def patches_of(picture: Picture, eyes: Eyes, times: int) -> Tensor:
    """`[patches, numbers of one]` in fp32, as transformers' `Qwen2VLImageProcessor` makes them.

    Patches of one token follow one another; a still picture is there `times` times.
    """
    patch, merge, side = eyes.patch, eyes.merge, eyes.side
    raw = np.frombuffer(picture.pixels, np.uint8).reshape(picture.rows * side, picture.columns * side, 3)
    pixels = torch.from_numpy(raw.transpose(2, 0, 1).astype(np.float32))
    pixels = (pixels * (1 / 255) - MEAN) / DEVIATION
    parts = pixels.reshape(3, picture.rows, merge, patch, picture.columns, merge, patch)
    parts = parts.permute(1, 4, 2, 5, 0, 3, 6)  # [rows, columns, merge, merge, colours, patch, patch]
    several = parts[:, :, :, :, :, None].expand(-1, -1, -1, -1, -1, times, -1, -1)
    return several.reshape(picture.tokens * merge**2, -1)
