"""What makers of files change in a model's tensors, which reading undoes: GGUF's converter, and mlx-lm. Pure.

mlx-lm does so where layers are recurrent. Some publishers store all experts of a layer in one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from together.models.families import BY_NAME
from together.models.fused import apart
from together.models.gguf.families import as_stored
from together.models.headers import TensorInfo

CONVOLUTION = ".conv1d.weight"  # `[channels, 1, width]`; in mlx-lm's files `[channels, width, 1]`


def undone(
    config: Mapping[str, Any], tensors: Iterable[TensorInfo], whole: Callable[[], Iterable[TensorInfo]]
) -> Iterator[TensorInfo]:
    """Tensors of a model with what says how their files have them; `whole` gives all of the model's,
    and is asked only where they tell something.

    `config` is the effective configuration. A range of layers may have no convolution, by which mlx-lm's files show.
    """
    family = BY_NAME.get(config["model_type"])
    change = partial(as_stored, config)
    if family and family.recurrent and _is_made_by_mlx(whole()):
        change = partial(_by_mlx, family.larger_on_mlx)
    for tensor in tensors:
        yield from apart(change(tensor)) if family and family.halves else (change(tensor),)


def _is_made_by_mlx(tensors: Iterable[TensorInfo]) -> bool:
    shapes = (tensor.shape for tensor in tensors if tensor.name.endswith(CONVOLUTION))
    return any(len(shape) == 3 and shape[2] == 1 != shape[1] for shape in shapes)


def _by_mlx(larger: tuple[str, ...], tensor: TensorInfo) -> TensorInfo:
    """The convolution's numbers lie in the same order."""
    if tensor.name.endswith(CONVOLUTION):
        channels, width, one = tensor.shape
        return replace(tensor, shape=(channels, one, width))
    return replace(tensor, larger=True) if tensor.name.endswith(larger) else tensor
