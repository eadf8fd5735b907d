"""All experts of a layer in one tensor, each with its gate before its up: one by one, where they lie. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from together.models.headers import TensorInfo

# Llama 4's, in `feed_forward`, have inputs before outputs: no matrix of theirs lies in one piece.
_FUSED = re.compile(
    r"(.+(?<!\.feed_forward)\.experts)\.(gate_up_proj|down_proj)|(.+\.block_sparse_moe)\.(input|output)_linear\.weight"
)
_BOTH, _DOWN = ("gate_proj", "up_proj"), ("down_proj",)
_PARTS = {"gate_up_proj": _BOTH, "down_proj": _DOWN, "input": _BOTH, "output": _DOWN}


def apart(tensor: TensorInfo) -> Iterator[TensorInfo]:
    """Each expert's matrices, which lie in one piece each; of any other tensor itself."""
    match = _FUSED.fullmatch(tensor.name)
    parts = match and _PARTS[match[2] or match[4]]
    if not match or not parts or len(tensor.shape) != 3 or tensor.shape[1] % len(parts):
        yield tensor
        return
    path = match[1] or f"{match[3]}.experts"
    experts, rows, columns = tensor.shape[0], tensor.shape[1] // len(parts), tensor.shape[2]
    size = tensor.nbytes // experts // len(parts)
    for place in range(experts * len(parts)):
        start, name = tensor.start + place * size, parts[place % len(parts)]
        yield replace(
            tensor,
            name=f"{path}.{place // len(parts)}.{name}.weight",
            stored=tensor.key,
            shape=(rows, columns),
            start=start,
            stop=start + size,
            cut=True,
        )
