"""Tiny checkpoints and loaded shards, each made once per session. Knows no test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from backends.base import BACKENDS, Shard
from backends.on_torch import added, blocks, compiled, few, gelu, mixing, norms, recurrent_loop, rotary
from tests.support.chain import Chain, load_shard
from tests.support.families import Dialect, make_checkpoint
from tests.support.fixtures import short_trials
from together.models.spec import read_spec
from together.planning.mend import near_cuts
from together.types import Dtype, LayerRange

__all__ = ["chain", "checkpoint", "ring", "short_trials"]

Checkpoints = Callable[..., Path]
Chains = Callable[..., Chain]
Rings = Callable[..., Chain]


@pytest.fixture(autouse=True)
def _example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of a backend is opened as every other, but by the tests of this folder alone."""
    monkeypatch.setitem(BACKENDS, "numpy", "tests.backends.numpy_backend")


@pytest.fixture(scope="module", params=["wide", "narrow"])
def vectors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled loops, with vectors as long as this processor has them, and as it would have them without AVX-512."""
    if compiled.lanes() == 0:
        pytest.skip("llvmlite has no build for this system")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "narrow":
            patch.setattr(compiled, "_WIDE", compiled._NARROW)
        _forget_loops()
        yield
    _forget_loops()


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "llvm", None)
    compiled.lanes.cache_clear()
    yield
    monkeypatch.undo()
    compiled.lanes.cache_clear()


def _forget_loops() -> None:
    """Each has the length of its vectors."""
    loops = (
        added._loop,
        blocks._quantized,
        blocks._product,
        few._loop,
        gelu._loop,
        mixing.mixing_loop,
        norms._loop,
        recurrent_loop._convolution,
        recurrent_loop._rule,
        rotary._loop,
    )
    for known in (compiled.lanes, *loops, rotary.rotation_for):
        known.cache_clear()


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
def ring() -> Iterator[Rings]:
    """`ring(folder, backends, cuts, dtype)` → a chain over a model; shards are shared, sequences must not be.

    It is cut as near to the `cuts` as the model can be, so of too many stages the last ones go.
    """
    shards: dict[tuple[Path, str, LayerRange, Dtype], Shard] = {}

    def load(folder: Path, backend: str, layers: LayerRange, dtype: Dtype) -> Shard:
        key = (folder, backend, layers, dtype)
        if key not in shards:
            shards[key] = load_shard(folder, backend, layers, dtype)
        return shards[key]

    def make(folder: Path, backends: tuple[str, ...], cuts: tuple[int, ...] = (), dtype: Dtype = "fp32") -> Chain:
        spec = read_spec(folder)
        possible = [layer for layer in range(1, spec.layers) if layer not in spec.joined]
        ends = (0, *near_cuts(cuts, possible), spec.layers)
        parts = zip(backends, pairwise(ends), strict=not spec.joined)
        return Chain([load(folder, backend, LayerRange(*part), dtype) for backend, part in parts])

    yield make
    for shard in shards.values():
        shard.close()


@pytest.fixture(scope="session")
def chain(checkpoint: Checkpoints, ring: Rings) -> Chains:
    """`chain(name, backends, cuts, dtype, dialect)` → a chain over the case's model, as `ring`."""

    def make(
        name: str,
        backends: tuple[str, ...],
        cuts: tuple[int, ...] = (),
        dtype: Dtype = "fp32",
        dialect: Dialect = "new",
    ) -> Chain:
        return ring(checkpoint(name, dtype, dialect), backends, cuts, dtype)

    return make
