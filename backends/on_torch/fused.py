"""What a layer computes besides its products, in one call each where a CPU's own loops can do it."""

from __future__ import annotations

from typing import Any

from backends.on_torch.gelu import fuse_gelu
from backends.on_torch.norms import fuse_norms
from backends.on_torch.rotary import fuse_rotations


def fuse(model: Any) -> Any:
    """Give a transformers model on its device these modules: what is not known to compute the same stays as it is."""
    first = next(model.parameters())
    if first.device.type == "cpu":
        fuse_norms(model)
        fuse_rotations(model, first.dtype)
        fuse_gelu(model, first.dtype)
    return model
