"""mlx-lm's model classes, imported without mlx-lm's package. Knows no checkpoint, no batch and no cache.

`import mlx_lm` runs its `__init__`, which imports transformers and with it torch: 5.0 s and 256 MB on a small Linux
machine, against 0.2 s and 60 MB this way. The files of `mlx_lm/models` need only mlx and, by relative imports, each
other, so they run as well under a package name of ours with the same folder. Being our copies, they may call our
attention.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Protocol

import mlx.core as mx

from together.errors import BadSetting

_PACKAGE = "backends.mlx_lm_models"  # a name only: there is no such folder


class AttentionCache(Protocol):
    """What the layers here get as their `cache`: it attends itself, because only it knows the sequences."""

    def attend(self, queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array: ...


def model_module(name: str) -> ModuleType:
    """`mlx_lm/models/<name>.py`, calling our attention. Raises BadSetting where mlx-lm is not installed."""
    if _PACKAGE not in sys.modules:
        sys.modules.setdefault(_PACKAGE, _package())
    base = import_module(f"{_PACKAGE}.base")
    base.__dict__["scaled_dot_product_attention"] = _attention  # before the model's file takes the name from there
    return import_module(f"{_PACKAGE}.{name}")


def _package() -> ModuleType:
    library = find_spec("mlx_lm")  # finds a top-level package without running it
    if library is None or not library.submodule_search_locations:
        raise BadSetting("mlx-lm is not installed here; run launch.py again to install it")
    spec = ModuleSpec(_PACKAGE, None, is_package=True)
    spec.submodule_search_locations = [str(Path(library.submodule_search_locations[0]) / "models")]
    return module_from_spec(spec)


def _attention(
    queries: mx.array, keys: mx.array, values: mx.array, cache: AttentionCache, scale: float, mask: None = None
) -> mx.array:
    """In the place of mlx-lm's `scaled_dot_product_attention`; the layers are called without a mask."""
    return cache.attend(queries, keys, values, scale)
