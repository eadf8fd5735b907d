"""What mlx-lm itself computes from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from tests.support.chain import Logits
from tests.support.mlx_folders import mlx_lm


def mlx_lm_model(folder: Path) -> Any:
    """The model as mlx-lm opens it, to compute in fp32."""
    model, _ = mlx_lm().load_model(folder)
    model.set_dtype(mx.float32)
    return model


def mlx_lm_logits(folder: Path, ids: Sequence[int]) -> Logits:
    """`[len(ids), vocab]`."""
    logits: mx.array = mlx_lm_model(folder)(mx.array(list(ids))[None])[0]
    return np.array(logits.astype(mx.float32))


def mlx_lm_greedy(folder: Path, prompt: Sequence[int], count: int) -> tuple[int, ...]:
    """The next tokens as `mlx_lm.generate` makes them, with its cache."""
    steps = import_module("mlx_lm.generate").generate_step(
        mx.array(list(prompt)), mlx_lm_model(folder), max_tokens=count
    )
    return tuple(int(token) for token, _ in steps)
