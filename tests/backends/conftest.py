"""Tiny checkpoints and loaded shards, each made once per session. Knows no test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from backends.base import BACKENDS, Shard
from tests.support.chain import Chain, load_shard
from tests.support.families import LAYERS, Dialect, make_checkpoint
from together.types import Dtype, LayerRange

Checkpoints = Callable[..., Path]
Chains = Callable[..., Chain]


@pytest.fixture(autouse=True)
def _example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a backend is opened as every other, but by the tests of this folder alone."""
    monkeypatch.setitem(BACKENDS, "numpy", "tests.backends.numpy_backend")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the models are so tiny that waiting for each other would take longer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """`checkpoint(name, dtype, dialect)` → folder of that case's model, made when first asked for."""
    made: dict[tuple[str, Dtype, Dialect], Path] = {}

    def make(name: str, dtype: Dtype = "fp32", dialect: Dialect = "new") -> Path:
        key = (name, dtype, dialect)
        if key not in made:
            shard_size = "60KB" if dialect == "old" else "1GB"  # the old ones come in several files
            made[key] = make_checkpoint(tmp_path_factory.mktemp("-".join(key)), name, dtype, dialect, shard_size)
        return made[key]

    return make


@pytest.fixture(scope="session")
def chain(checkpoint: Checkpoints) -> Iterator[Chains]:
    """`chain(name, backends, cuts)` → a chain over the case's model; shards are shared, sequences must not be."""
    shards: dict[tuple[Path, str, LayerRange, Dtype], Shard] = {}

    def load(folder: Path, backend: str, layers: LayerRange, dtype: Dtype) -> Shard:
        key = (folder, backend, layers, dtype)
        if key not in shards:
            shards[key] = load_shard(folder, backend, layers, dtype)
        return shards[key]

    def make(
        name: str,
        backends: tuple[str, ...],
        cuts: tuple[int, ...] = (),
        dtype: Dtype = "fp32",
        dialect: Dialect = "new",
    ) -> Chain:
        folder = checkpoint(name, dtype, dialect)
        ranges = [LayerRange(start, stop) for start, stop in pairwise((0, *cuts, LAYERS))]
        return Chain([load(folder, backend, part, dtype) for backend, part in zip(backends, ranges, strict=True)])

    yield make
    for shard in shards.values():
        shard.close()
