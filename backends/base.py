"""The backend contract: probe, measure, load, and what a shard must do. Knows no framework and no network.

A backend is a module with the four functions of `Backend`. A shard is loaded, stepped and closed by one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from together.cluster_types import Device, DeviceProfile
from together.errors import BadSetting
from together.models.families import FAMILIES as FAMILIES
from together.types import Activation, Batch, Dtype, LayerRange, RowResult

BACKENDS = ("torch", "mlx", "checksum")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to load and how much memory it may take."""

    folder: Path  # holds config.json and *.safetensors
    layers: LayerRange
    device: str
    dtype: Dtype  # compute and KV cache; weights are converted to it while loading
    memory_bytes: int  # weights + KV cache; what the weights leave is the KV cache's
    home: Path  # where the sha256 of files is remembered
    progress: Callable[[float], None] = lambda fraction: None  # 0 to 1


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's outcome: the next stage's activation (of the accepted rows, in order), and results.

    Inner stage: `activation` is set (0 tokens when every row was refused), `results` holds refusals only.
    Last stage: `activation` is None, `results` has one entry per row: refused, or sampled (`sampled` is empty where
    nothing was asked).
    """

    activation: Activation | None
    results: tuple[RowResult, ...]


class Shard(Protocol):
    """The loaded weights of one layer range and the KV cache of those layers."""

    @property
    def layers(self) -> LayerRange: ...

    @property
    def capacity(self) -> int:
        """KV tokens it can hold over all sequences, counted as allocated: whole blocks of `block` tokens."""

    @property
    def block(self) -> int:
        """Tokens per KV block: a sequence of n tokens counts as ceil(n / block) blocks."""

    @property
    def rewind(self) -> int | None:
        """How many last tokens of a sequence it can always undo; None is unbounded (full attention)."""

    @property
    def sequences(self) -> int:
        """How many sequences it holds tokens of now."""

    def step(self, batch: Batch, hidden: Activation | None) -> StepOutput:
        """Apply the orders, run the rows, commit lengths.

        `hidden` is `[batch.tokens, hidden_size]`, and None on the first stage.
        Raises FrameRefused when `hidden` does not fit the batch or this shard; any error leaves no row committed.
        """

    def close(self) -> None:
        """Free everything; called once, by the thread that loaded."""


class Backend(Protocol):
    """What a backend module offers."""

    def probe(self) -> tuple[Device, ...]:
        """The devices here and the memory a stage could use on each, instantly."""

    def measure(self, folder: Path, device: str, dtype: Dtype) -> DeviceProfile:
        """Time random weights of the shape in `folder`/config.json on `device`, all but the disk; takes seconds."""

    def load(self, request: LoadRequest) -> Shard:
        """Read only the tensors of the range. Raises UnsupportedModel, BrokenModel or NotEnoughMemory."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the framework says by it that an allocation failed. Python's own MemoryError is not asked for."""


def open_backend(name: str) -> Backend:
    """Import a backend by name. Raises BadSetting for an unknown one or one whose framework is not installed."""
    if name not in BACKENDS:
        raise BadSetting(f"there is no backend {name!r}; choose one of {', '.join(BACKENDS)}")
    try:
        return cast(Backend, import_module(f"backends.on_{name}.backend"))
    except ImportError as error:
        raise BadSetting(f"backend {name} cannot start here: {error}; run launch.py again to install it") from error
