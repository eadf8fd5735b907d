"""What every load of this backend imports, whatever the model."""

from __future__ import annotations

from backends.on_torch import model, shard
from backends.on_torch.library import library

__all__ = ["model", "shard", "warm"]


def warm() -> None:
    """Import what all families of transformers share, and one of them. Raises ImportError."""
    library("transformers.models.llama.modeling_llama")
