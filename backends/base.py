"""The backend contract: probe, measure, load, and what a shard does. Imports no framework.

A backend is a module with the four functions of `Backend`. A shard is loaded, stepped and closed by one thread.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from together.cluster_types import Device, DeviceProfile
from together.errors import BadPlan, BadSetting, FrameRefused, NotEnoughMemory, UnsupportedModel
from together.models.eyes import Eyes
from together.models.spec import ModelSpec, require_plain
from together.planning.held import held_bytes
from together.planning.memory import looking_bytes, workspace_bytes
from together.sentences import NOTHING, Sentence, say, template
from together.types import (
    BLOCK,
    DTYPE_BYTES,
    PLAIN,
    Activation,
    Batch,
    Dtype,
    LayerRange,
    NamedTensor,
    PackedAs,
    Row,
    RowResult,
    SampleRequest,
    Threads,
)
from together.wording import cut

log = logging.getLogger(__name__)
LAYER_INPUTS = "layer_inputs"  # the name of what layers take beside hidden states, in the order of the layers
_EXPONENT: dict[Dtype, int] = {"fp32": 0x7F800000, "bf16": 0x7F80, "fp16": 0x7C00}  # all ones: infinite or no number

BACKENDS = {  # name: module
    "torch": "backends.on_torch.backend",
    "mlx": "backends.on_mlx.backend",
    "checksum": "backends.checksum",
}
WARMERS = {"torch": "backends.on_torch.early"}  # modules whose `warm` imports more than the backend's own does
SIGHTS = {"torch": "backends.on_torch.devices"}  # modules whose `at_sight` knows devices without the framework


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
    exact: bool = False  # products of quantized matrices keep activations in `dtype`, also where int8 were faster
    stretched: bool = False  # rope turns by its factors for long sequences, where it has two sets


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A step's outcome: the next stage's activation (of the accepted rows, in order), and results.

    Inner stage: `activation` is set (0 tokens when every row was refused), `results` holds refusals only.
    Last stage: `activation` is None, `results` has one entry per row: refused, or sampled and scored (both are empty
    where nothing was asked).
    """

    activation: Activation | None
    results: tuple[RowResult, ...]


@dataclass(frozen=True, slots=True)
class ShardShape:
    """What a shard's frames must fit."""

    model: str
    layers: LayerRange
    last: bool
    width: int  # of hidden states, in elements
    vocabulary: int
    dtype: Dtype
    inputs: int = 0  # how wide is what comes beside hidden states, for these layers and those behind
    axes: int = 0  # of positions that rows may name; 0: none
    eyes: Eyes | None = None  # of a stage that sees pictures
    longest: int | None = None  # sequence that it is loaded for, where its rope is another one beyond that

    @classmethod
    def of(cls, spec: ModelSpec, layers: LayerRange, dtype: Dtype) -> ShardShape:
        inputs = spec.inputs_behind(layers.start) if layers.start else 0
        last, axes = layers.stop == spec.layers, len(spec.sections)
        sizes = spec.hidden_size, spec.vocab_size
        return cls(spec.name, layers, last, *sizes, dtype, inputs, axes, longest=spec.trained)


@dataclass(frozen=True, slots=True)
class Computing:
    """How a stage computes, for a person who compares times."""

    threads: int = 0  # that multiply; 0: the device does it in its own way
    kernels: tuple[str, ...] = ()  # each with how many matrices it multiplies: `linear (113)`

    @classmethod
    def of(cls, kernels: Iterable[str], threads: int = 0) -> Computing:
        """Of the kernels of all matrices, the commonest first; an empty name is of what multiplies nothing."""
        found = Counter(filter(None, kernels))
        return cls(threads, tuple(f"{name} ({count})" for name, count in found.most_common()))


NOTHING_SAID = Computing()


class Shard(Protocol):
    """The loaded weights of one layer range and the KV cache of those layers."""

    @property
    def layers(self) -> LayerRange: ...

    @property
    def capacity(self) -> int:
        """KV tokens it can hold over all sequences, counted as allocated: whole blocks of `block` tokens."""

    @property
    def block(self) -> int:
        """Tokens per KV block: a sequence of n tokens counts as ceil(n / block) blocks, less where forks share some."""

    @property
    def rewind(self) -> int | None:
        """How many last tokens of a sequence it can always undo; None is unbounded (full attention)."""

    @property
    def shares(self) -> bool:
        """Whether a fork holds its source's whole blocks, so that they count once."""

    @property
    def per_sequence(self) -> int:
        """Tokens that each sequence counts for beside its own: what its states of a fixed size are worth."""

    @property
    def sequences(self) -> int:
        """How many sequences it holds tokens of now."""

    @property
    def computing(self) -> Computing:
        """Its threads and kernels, as far as it knows them."""

    def share(self, stages: int) -> Threads | None:
        """`stages` of the ring compute on its processor, itself included: told when it takes its place, before a step.

        Returns what its steps get from now on; None where that is not for it to choose. May take a second.
        """

    def limit(self, percent: int) -> None:
        """The next steps may use so much of its processors: stages of other models compute there, too. Costs nothing.

        Told before each step. Harmless where that is not for it to choose.
        """

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

    def measure(self, folder: Path, device: str, dtype: Dtype, packed: PackedAs = PLAIN) -> DeviceProfile:
        """Time random weights of the shape in `folder`/config.json on `device`, all but the disk; takes seconds."""

    def load(self, request: LoadRequest) -> Shard:
        """Read only the tensors of the range. Raises UnsupportedModel, BrokenModel or NotEnoughMemory."""

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether the framework says by it that an allocation failed. Python's own MemoryError is not asked for."""


def open_backend(name: str) -> Backend:
    """Import a backend by name. Raises BadSetting for an unknown one or one whose framework is not installed."""
    if name not in BACKENDS:
        raise BadSetting("there is no backend {name!r}; choose one of {backends}", name=name, backends=tuple(BACKENDS))
    try:
        return cast(Backend, import_module(BACKENDS[name]))
    except ImportError as error:
        raise BadSetting(
            "backend {name} cannot start here: {error}; run python3 launch.py again to install it",
            name=name,
            error=str(error),
        ) from error


def devices_at_sight(name: str) -> tuple[Device, ...]:
    """A backend's devices, where no framework has to be imported to know them; else nothing: `probe` knows them."""
    if name not in SIGHTS:
        return ()
    found: tuple[Device, ...] = import_module(SIGHTS[name]).at_sight()
    return found


def warm(name: str) -> None:
    """Import what loads of a backend need, whatever the model. Raises BadSetting as `open_backend`."""
    open_backend(name)
    if name in WARMERS:
        import_module(WARMERS[name]).warm()


# --- checks of a request ----------------------------------------------------------------------------------------------


def check_model(spec: ModelSpec, request: LoadRequest) -> None:
    """Raises UnsupportedModel or BadPlan where these layers of this model cannot be a shard."""
    require_plain(spec)
    if request.layers.stop > spec.layers:
        raise BadPlan(
            "{model} has {layers} layers, the plan asks for {asked}; plan again",
            model=spec.name,
            layers=spec.layers,
            asked=str(request.layers),
        )
    parted = next((layer for layer in (request.layers.start, request.layers.stop) if layer in spec.joined), None)
    if parted is not None:
        raise BadPlan("{model}: {reason}; plan again", model=spec.name, reason=say("joined", layer=parted))


def fitted(spec: ModelSpec, request: LoadRequest) -> ModelSpec:
    """The model as it is loaded: with its rope for long sequences it takes any."""
    return replace(spec, trained=None) if request.stretched else spec


def cache_capacity(spec: ModelSpec, request: LoadRequest, backend: str) -> int:
    """Tokens in whole blocks that the granted memory leaves after weights, as `backend` holds them, and workspace.

    Raises NotEnoughMemory if not even one block of one sequence is left.
    """
    size = spec.cache_size(request.layers, request.dtype)
    block_bytes, least = size.token_bytes * BLOCK, size.nbytes(BLOCK, 1)
    weights = held_bytes(spec.stage_weights(request.layers), request.dtype, backend)
    fixed = weights + workspace_bytes(spec) + (0 if request.layers.start else looking_bytes(spec))
    blocks = (request.memory_bytes - fixed) // block_bytes
    if blocks * block_bytes < least:
        raise NotEnoughMemory(
            "{model} needs {sizes:sizes 0} here with room for {tokens} tokens, {sizes:sizes 1} were granted; grant "
            "more, or move layers to another node",
            model=spec.name,
            sizes=(fixed + least, request.memory_bytes),
            tokens=BLOCK,
        )
    return blocks * BLOCK


@contextmanager
def in_words(model: str, library: str) -> Iterator[None]:
    """Turn what a library raises for a model that it cannot build into UnsupportedModel; the log has its traceback."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        log.exception("%s does not take %s", library, model)
        said = " ".join(str(error).split())[:300]
        raise UnsupportedModel(
            "{model}: {library} does not take this model ({said}); choose another version of it",
            model=model,
            library=library,
            said=said,
        ) from error


# --- checks of a frame ------------------------------------------------------------------------------------------------


def check_frame(shape: ShardShape, batch: Batch, hidden: Activation | None) -> None:
    """The one check of what comes with a step. Raises FrameRefused, for a row naming its sequence."""
    if len({row.sequence for row in batch.rows}) != len(batch.rows):
        raise FrameRefused("a sequence has two rows in one batch")
    for row in batch.rows:
        fault = _row_fault(row, shape) or _picture_fault(row, shape)
        if fault:
            raise FrameRefused("the row of sequence {sequence} has {found}", sequence=row.sequence, found=fault)
    if shape.layers.start == 0:
        if hidden is not None:
            raise FrameRefused("the first stage takes token ids, and the frame has hidden states as well")
    elif hidden is not None:
        _check_states(shape, batch.tokens, hidden)
    elif batch.tokens:
        raise FrameRefused("an inner stage takes hidden states, and the frame has none")


def _row_fault(row: Row, shape: ShardShape) -> Sentence:
    """What is wrong with a row; empty where nothing is."""
    vocabulary = shape.vocabulary
    if not row.token_ids:
        return template("no tokens")
    if row.position < 0:
        return template("the position {position}", position=row.position)
    if shape.longest is not None and row.position + len(row.token_ids) > shape.longest:
        said = "tokens beyond {longest}, and the model is loaded for shorter sequences; load it with a longer context"
        return template(said, longest=shape.longest)
    if not 0 <= min(row.token_ids) <= max(row.token_ids) < vocabulary:
        return template("a token outside the vocabulary of {vocabulary}", vocabulary=vocabulary)
    if row.positions and len(row.positions) != shape.axes:
        known = shape.axes or "none"
        return template("positions on {axes} axes, and this model takes {known}", axes=len(row.positions), known=known)
    if any(len(axis) != len(row.token_ids) or not 0 <= min(axis) <= max(axis) < 2**31 for axis in row.positions):
        return template("positions that are not one for each of its tokens")
    if row.adapter:
        return template("the adapter {adapter!r}, and this stage has none", adapter=cut(row.adapter))
    return _sample_fault(row.sample, len(row.token_ids), vocabulary) if row.sample else NOTHING


def _picture_fault(row: Row, shape: ShardShape) -> Sentence:
    """Each part of a picture has its token, and each such token beside pictures is a part of one."""
    if not row.pictures:
        return NOTHING
    eyes, count = shape.eyes, len(row.token_ids)
    if eyes is None:
        return template("pictures, and this stage sees none")
    places: list[int] = []
    for picture in row.pictures:
        held = range(max(0, picture.offset), min(count, picture.offset + picture.tokens))
        if picture.side != eyes.side or not held or (places and held.start <= places[-1]):
            return template("a picture that does not lie in it")
        places += held
    if not row.positions or places != [place for place, token in enumerate(row.token_ids) if token == eyes.token]:
        return template("other tokens than its pictures have parts")
    return NOTHING


def _sample_fault(ask: SampleRequest, count: int, vocabulary: int) -> Sentence:
    if not all(0 <= offset < count for offset in ask.offsets):
        return template("sampling offsets outside its {count} tokens", count=count)
    if not all(0 <= score.offset < count for score in ask.score):
        return template("scoring offsets outside its {count} tokens", count=count)
    if not all(0 <= score.token_id < vocabulary for score in ask.score):
        return template("a token to score outside the vocabulary of {vocabulary}", vocabulary=vocabulary)
    return NOTHING


def _check_states(shape: ShardShape, tokens: int, hidden: Activation) -> None:
    found, wanted = (hidden.dtype, hidden.tokens, hidden.width), (shape.dtype, tokens, shape.width)
    if found != wanted:
        raise FrameRefused(
            "hidden states are ({found}), this stage takes ({wanted}): dtype, tokens, width", found=found, wanted=wanted
        )
    _check_others(shape, hidden)
    for data in (hidden.data, *(other.data for other in hidden.others)):
        bits, exponent = np.frombuffer(data, f"<u{DTYPE_BYTES[hidden.dtype]}"), _EXPONENT[hidden.dtype]
        if ((bits & exponent) == exponent).any():
            raise FrameRefused("hidden states hold infinite values or values that are no numbers")


def _check_others(shape: ShardShape, hidden: Activation) -> None:
    """Beside hidden states comes what the layers here and behind take, and nothing else."""
    strange = next((other.name for other in hidden.others if not shape.inputs or other.name != LAYER_INPUTS), None)
    if strange is not None:
        known = LAYER_INPUTS if shape.inputs else "hidden states alone"
        raise FrameRefused(
            "the frame has the tensor {name!r}, and this stage takes {known}", name=cut(strange), known=known
        )
    if not shape.inputs or not hidden.tokens:
        return
    if not hidden.others:
        raise FrameRefused("the frame lacks the tensor {name!r}, which this stage takes", name=LAYER_INPUTS)
    found, wanted = (hidden.others[0].dtype, hidden.others[0].width), (shape.dtype, shape.inputs)
    if found != wanted:
        raise FrameRefused(
            "the tensor {name!r} is ({found}), this stage takes ({wanted}): dtype, width",
            name=LAYER_INPUTS,
            found=found,
            wanted=wanted,
        )


def with_inputs(hidden: Activation, width: int) -> Activation:
    """Made-up hidden states with as made-up inputs of layers beside them, so wide in all: for trials."""
    if not width:
        return hidden
    data = bytes(hidden.tokens * width * DTYPE_BYTES[hidden.dtype])
    return replace(hidden, others=(NamedTensor(LAYER_INPUTS, hidden.dtype, width, data),))
