"""Plain data that every room shares: layer ranges, sampling, rows, frames and plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal, get_args

from together.picture import Picture

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
DTYPE_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

BLOCK = 256  # KV tokens are planned and granted in blocks of this size; a backend may allocate them in smaller ones
STEP_TOKENS = 256  # limit of one frame: larger products gain little, and a step's own tensors grow with it


# --- layers -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class LayerRange:
    """Half-open range of decoder layers; the embedding goes with layer 0, norm + LM head with the last layer."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise ValueError(f"layer range {self.start}:{self.stop} is empty or negative")

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.stop}"

    @classmethod
    def parse(cls, text: str) -> LayerRange:
        """`"0:8"` → LayerRange(0, 8). Raises ValueError for anything else."""
        start, colon, stop = text.strip().partition(":")
        if not colon or not start.isdecimal() or not stop.isdecimal():
            raise ValueError(f"a layer range is written start:stop, as 0:8, not {text[:20]!r}")
        return cls(int(start), int(stop))


# --- quantized matrices -----------------------------------------------------------------------------------------------

Mode = Literal["affine", "mxfp4", "mxfp8", "nvfp4"]
MODES: tuple[Mode, ...] = get_args(Mode)
WORD = 32  # bits of the words that hold codes
AFFINE_BITS, AFFINE_GROUPS = (2, 3, 4, 5, 6, 8), (16, 32, 64, 128)
_FP_SHAPES: dict[Mode, tuple[int, int]] = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


@dataclass(frozen=True, slots=True, order=True)
class Packing:
    """`bits` per code, and `group` codes of a row under one scale. Raises ValueError for one that there is not."""

    mode: Mode
    bits: int
    group: int

    def __post_init__(self) -> None:
        affine = self.mode == "affine" and self.bits in AFFINE_BITS and self.group in AFFINE_GROUPS
        if not affine and _FP_SHAPES.get(self.mode) != (self.bits, self.group):
            raise ValueError(f"{self.mode} with {self.bits} bits in groups of {self.group} is no packing")

    def __str__(self) -> str:
        return f"affine {self.bits} bit, groups of {self.group}" if self.mode == "affine" else self.mode

    def words(self, inputs: int) -> int:
        """Words of a row of so many weights."""
        return inputs * self.bits // WORD

    def groups(self, inputs: int) -> int:
        """Scales of a row of so many weights."""
        return inputs // self.group

    @property
    def name(self) -> str:
        """As a form's name has it: `affine-4-g64`, `mxfp4`."""
        return f"affine-{self.bits}-g{self.group}" if self.mode == "affine" else self.mode


@dataclass(frozen=True, slots=True)
class PackedAs:
    """How most matrices of a model's layers and its LM head are packed (None: plain), and how they are multiplied."""

    layers: Packing | None = None
    head: Packing | None = None
    exact: bool = False  # without int8 activations

    @property
    def plain(self) -> bool:
        """Nothing is packed, so `exact` changes nothing."""
        return self.layers is None and self.head is None


PLAIN = PackedAs()


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Names one exact model on every machine; `path` is only a hint (where the head found it)."""

    name: str
    path: str
    fingerprint: str  # sha256 over config.json, headers and samples of weights, by models/units.py
    layers: int
    revision: str = ""  # the hub's commit, where `name` is an id there
    form: str = ""  # what the machines make of the published weights; "": nothing
    tokenizer: str = ""  # sha256 of the head's tokenizer.json; "": the fingerprint covers it

    @property
    def key(self) -> str:
        """Names the very bytes that a stage reads, and the folder that a cache keeps them in."""
        return model_key(self.fingerprint, self.form)


def model_key(fingerprint: str, form: str) -> str:
    """Names a published checkpoint, or what machines make of it."""
    return f"{fingerprint}.{form}" if form else fingerprint


# --- sampling ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is exactly greedy; `top_k` 0 and `top_p` 1 switch those off."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class Continuation:
    """A token that may come right after the row's token at `offset`."""

    offset: int
    token_id: int


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Where in a row the last stage samples or scores, and how. Offsets count from the row's first token."""

    offsets: tuple[int, ...]
    settings: Sampling
    prompt_length: int  # tokens of the sequence that are prompt: penalties over the answer start after them
    top_logprobs: int = -1  # -1: no log-probabilities at all; 0: of the drawn token; k: of the k best as well
    allowed: bytes | None = None  # bit i (low bit first) set: token i may be drawn; for all offsets
    score: tuple[Continuation, ...] = ()  # whose log-probabilities are asked for, by the raw logits


@dataclass(frozen=True, slots=True)
class Sampled:
    """One drawn token; `logprob` and `top` are of the raw logits, filled only when asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


# --- what travels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence's part in a step. The position is the truth: a shard that holds more truncates to it."""

    sequence: int
    position: int  # tokens of the sequence that must be cached already
    token_ids: tuple[int, ...]
    sample: SampleRequest | None = None
    positions: tuple[tuple[int, ...], ...] = ()  # for each axis, one per token; (): `position` and those after it
    adapter: str = ""  # the name of the adapter that its tokens go through; "": none
    pictures: tuple[Picture, ...] = ()  # that some of its tokens are parts of, in order; for the first stage alone


@dataclass(frozen=True, slots=True)
class Fork:
    """Make `target` a copy of the first `length` cached tokens of `source`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Orders:
    """Cache orders, applied before the rows of the same frame: forks first, then drops; both idempotent."""

    drops: tuple[int, ...] = ()
    forks: tuple[Fork, ...] = ()
    trim: bool = False  # then give the system what is free of the caches' memory


@dataclass(frozen=True, slots=True)
class Batch:
    """All rows of one step, packed in this order, and the orders that come with them."""

    rows: tuple[Row, ...] = ()
    orders: Orders = Orders()

    @property
    def tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)

    @property
    def onwards(self) -> Batch:
        """As it goes on behind a first stage: its pictures are in the hidden states."""
        if not any(row.pictures for row in self.rows):
            return self
        return Batch(tuple(replace(row, pictures=()) for row in self.rows), self.orders)


HIDDEN = "hidden"  # the name of an activation's first tensor; it never travels


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """What a stage needs beside hidden states: `[tokens, width]` of the tokens of its activation, in the same form."""

    name: str
    dtype: Dtype
    width: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads compute a step of few tokens, as when they are made, and one of many, as in a prompt."""

    few: int
    many: int


@dataclass(frozen=True, slots=True)
class Activation:
    """Hidden states, packed: `[tokens, width]` row-major little-endian elements of `dtype` in `data`; and `others`.

    Raises ValueError for bytes that are not a shape's, and for a name that is empty or taken."""

    dtype: Dtype
    tokens: int
    width: int
    data: bytes | memoryview
    others: tuple[NamedTensor, ...] = ()

    def __post_init__(self) -> None:
        _check_size("an activation", self.tokens, self.width, self.dtype, len(self.data))
        names = {HIDDEN, ""}
        for other in self.others:
            if other.name in names:
                raise ValueError(f"an activation cannot have a tensor with the name {other.name[:40]!r} here")
            _check_size(f"the tensor {other.name[:40]!r}", self.tokens, other.width, other.dtype, len(other.data))
            names.add(other.name)

    @property
    def nbytes(self) -> int:
        return self.tokens * self.width * DTYPE_BYTES[self.dtype]


def _check_size(what: str, tokens: int, width: int, dtype: Dtype, size: int) -> None:
    if tokens < 0 or width <= 0 or size != tokens * width * DTYPE_BYTES[dtype]:
        raise ValueError(f"{what} [{tokens}, {width}] of {dtype} does not have {size} bytes")


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row's end: what was sampled and scored at its offsets, or why one stage left it out."""

    sequence: int
    position: int
    sampled: tuple[Sampled, ...] = ()
    refusal: str | None = None
    scores: tuple[float, ...] = ()  # natural logarithms in fp32, one for each `Continuation` that was asked for


@dataclass(frozen=True, slots=True)
class StageTiming:
    """One stage's share of a step, in milliseconds: on its compute thread, and waiting for it."""

    compute_ms: float
    wait_ms: float
    sequences: int = 0  # whose tokens it holds after the step; the head's own books say how many it should be


class Fault(StrEnum):
    """What kind of trouble a stage has. Decisions read this; the cause is text for users."""

    OTHER = ""
    OUT_OF_MEMORY = "out_of_memory"  # the stage caught it, or the kernel says it killed this very process for it
    KILLED = "killed"  # ended by a signal that came from outside
    NODE_LOST = "node_lost"  # its node is silent or gone, or does not hold the stage any more
    OUT_OF_STEP = "out_of_step"  # its epoch is none that its ring can go on from
    SLOW = "slow"  # nothing moved for as long as a load may stand still


@dataclass(frozen=True, slots=True)
class Failure:
    """A step that failed: on which node and stage, and why, in words for a person."""

    node: str
    stage: int
    cause: str
    fault: Fault = Fault.OTHER


@dataclass(frozen=True, slots=True)
class Frame:
    """What travels on a link: one step's batch with an activation, and results or a failure gathered on the way."""

    step: int
    batch: Batch
    activation: Activation | None = None
    results: tuple[RowResult, ...] = ()
    failure: Failure | None = None
    timings: tuple[StageTiming, ...] = ()  # one entry per stage passed
    shares: tuple[int, ...] = ()  # percent of its processors that each stage may use; (): all, for every stage


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Names one link's stream; frames of another ring, epoch or sender are refused. The head's index is -1."""

    ring: str
    epoch: int
    sender: int


HEAD = -1  # the head's index as a sender


@dataclass(frozen=True, slots=True)
class Limits:
    """What a ring can take, in tokens except for `stages`."""

    stages: int
    capacity: int  # KV tokens of all sequences together, in whole blocks
    block: int  # tokens per KV block
    context: int  # prompt and answer of one sequence
    chunk: int  # most tokens in one frame
    rewind: int | None = None  # last tokens of a sequence that every stage can undo; None: all of them
    shares: bool = False  # whether every stage's forks share their whole blocks with their sources
    per_sequence: int = 0  # tokens that each sequence counts for beside its own, in whole blocks

    @property
    def longest(self) -> int:
        """Tokens that one sequence can have while it is alone in the ring."""
        return min(self.context, (self.capacity - self.per_sequence) // self.block * self.block)

    def blocks(self, tokens: int) -> int:
        """Tokens that a stage reserves for a sequence of `tokens`: whole blocks, and what each sequence takes."""
        return -(-tokens // self.block) * self.block + self.per_sequence

    def rewind_floor(self, sent: int) -> int:
        """The lowest position, apart from 0, that a sequence with `sent` cached tokens can go back to."""
        return 0 if self.rewind is None else max(0, sent - self.rewind)


# --- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of a plan: who runs which layers on what."""

    node: str  # node id
    backend: str  # "torch", "mlx", "checksum"
    device: str  # "cpu", "cuda:0", "mps", "gpu"
    layers: LayerRange
    memory_bytes: int  # for its process, weights and KV cache together; the node grants exactly this
    stretched: bool = False  # whether rope turns by its factors for long sequences, where it has two sets


@dataclass(frozen=True, slots=True)
class Plan:
    """A model and its stages in ring order, and what it was sized for."""

    model: ModelRef
    stages: tuple[StagePlan, ...]
    context: int
    users: int
    dtype: Dtype
    exact: bool = False  # as in StageOrder
