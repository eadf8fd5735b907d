"""transformers as a stage needs it, for computing alone: by itself it also imports what trains and what compiles.

That is 80 MB in every stage (115 where scipy is installed), and two thirds of the time that the import takes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode

_COMPILER = "torch._dynamo"


def library(module: str) -> Any:
    """A module of transformers. Raises ImportError."""
    _forgo_collectives()
    try:
        with _less():
            return import_module(module)
    except (AttributeError, ImportError, TypeError):  # a version that does more with the compiler than decorate
        return import_module(module)


@contextmanager
def uninitialised() -> Iterator[None]:
    """Models are built without random weights, and compute with real numbers where their tensors have no data.

    Otherwise torch asks its compiler what becomes of tensors without data, and imports it.
    """
    with library("transformers.initialization").no_init_weights(), _RealNumbers():
        yield


class _RealNumbers(TorchFunctionMode):
    """What a model makes of plain numbers is on the CPU, whatever device its tensors get.

    A row of zeros is, too: what stands for the periods of a head that rope does not turn.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        zeros = func is torch.zeros and len(args) == 1 and isinstance(args[0], int)
        place = {"device": "cpu"} if zeros or func in (torch.arange, torch.tensor) else {}
        return func(*args, **(kwargs or {}) | place)


def _forgo_collectives() -> None:
    """transformers asks torch once in a process, and takes the answer of a torch that was built without them."""
    from transformers.utils.import_utils import is_torch_distributed_available

    given = torch.distributed.is_available
    setattr(torch.distributed, "is_available", lambda: False)  # noqa: B010
    try:
        is_torch_distributed_available()
    finally:
        setattr(torch.distributed, "is_available", given)  # noqa: B010


class _Decorators(ModuleType):
    """Stands for torch's compiler while functions are only marked for it: each mark returns the function as it is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unmarked


def _unmarked(function: Any = None, *_: object, **__: object) -> Any:
    return function if callable(function) else _unmarked


@contextmanager
def _less() -> Iterator[None]:
    """What an import needs no more of than a name is not imported; whoever asks for it later gets it.

    The compiler, which the first mark imports. The losses: training, with scipy where that is installed. The package of
    all models, which reads the code of each one to know its names; the modules in it are found as always.
    """
    losses = ModuleType("transformers.loss.loss_utils")
    losses.LOSS_MAPPING = {}  # type: ignore[attr-defined]
    packages = _Decorators(_COMPILER), ModuleType("transformers.models")
    for package, parent in zip(packages, (torch, transformers), strict=True):
        package.__path__ = [str(Path(parent.__path__[0]) / package.__name__.rpartition(".")[2])]
    absent = [module for module in (*packages, losses) if module.__name__ not in sys.modules]
    for module in absent:
        sys.modules[module.__name__] = module
    compiler = packages[0]
    if compiler in absent:
        setattr(torch, "_dynamo", compiler)  # noqa: B010
    try:
        yield
    finally:
        for module in absent:
            sys.modules.pop(module.__name__, None)
        if compiler in absent:
            delattr(torch, "_dynamo")
