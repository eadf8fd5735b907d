"""What a planner is asked: a model's sizes, what each node can do, the links, and for whom.

Times are milliseconds, sizes bytes. Values may be measured or made up: one can also ask for machines not bought yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf
from operator import add

from together.cluster_types import DeviceProfile
from together.types import Dtype, LayerRange

HOP_MS = 25.0  # of a pair that nobody measured: slow, never free
CONTEXT = 4096
TOLERANCE = 0.1  # accept a plan this much slower than the best if it uses fewer machines
STATES = 2  # sequences of a user that exist at once: the one that runs, and the one that its next turn starts with
EXACT_NODES = 8  # up to here every subset of the nodes is tried


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Bytes of each layer's weights, of the embedding (first stage), of norm and LM head (last stage), and of caches.

    A sequence takes `bytes_per_sequence_per_layer` whatever its length, where layers keep states of a fixed size.
    Where layers keep more or less than others, both are the largest, and `caches` has both of each layer.
    `tied_bytes` of the head are the embedding matrix again: a stage that is first and last holds them once.
    No stage may begin with a layer of `joined`: it, or one behind it, reads what a layer before it keeps.
    """

    layer_bytes: tuple[float, ...]
    embed_bytes: float = 0
    head_bytes: float = 0
    kv_bytes_per_token_per_layer: float = 0
    tied_bytes: float = 0
    bytes_per_sequence_per_layer: float = 0
    joined: tuple[int, ...] = ()
    caches: tuple[tuple[float, float], ...] = ()

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)

    @property
    def most_stages(self) -> int:
        return self.layers - len(self.joined)

    @property
    def cuts(self) -> tuple[int, ...]:
        """The layers that a stage behind the first one may begin with."""
        return tuple(layer for layer in range(1, self.layers) if layer not in self.joined)

    @property
    def runs(self) -> tuple[LayerRange, ...]:
        """Layers that no cut divides, where there are several."""
        ends = (0, *self.cuts, self.layers)
        return tuple(LayerRange(a, b) for a, b in pairwise(ends) if b - a > 1) if self.joined else ()

    @property
    def weight_bytes(self) -> float:
        return sum(self.layer_bytes) + self.embed_bytes + self.head_bytes - self.tied_bytes

    def part(self, layers: LayerRange) -> ModelSize:
        """A range of the model as a model of its own; only the ends have an embedding and a head."""
        first, last = layers.start == 0, layers.stop == self.layers
        return replace(
            self,
            layer_bytes=self.layer_bytes[layers.start : layers.stop],
            caches=self.caches[layers.start : layers.stop],
            embed_bytes=self.embed_bytes if first else 0,
            head_bytes=self.head_bytes if last else 0,
            tied_bytes=self.tied_bytes if first and last else 0,
            joined=tuple(cut - layers.start for cut in self.joined if layers.start < cut < layers.stop),
        )


@dataclass(frozen=True, slots=True)
class Smaller:
    """A model's sizes once its weights are quantized to `bits`; `option` is what asks for it."""

    bits: int
    size: ModelSize
    option: str = "--quantize"


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """What one node can do. Exactly one of `max_layers` and `free_bytes` says how much it holds.

    `ms_per_head` is for norm, LM head and drawing a token: the last stage takes so much longer. Nodes that name one
    `processor` share it: their stages take turns. `layer_ms` is of each layer, where kinds of layers differ, and
    `ms_per_layer` their mean then. `size` is the model as this node's backend holds it, if that is not the problem's.
    `ms_per_step` is what a stage's process does for a message: takes it, reads it, writes the next. `shared` is the
    part of all these times, 0 to 1, that the rows of one step share; 0: each takes as long as a step of its own.
    """

    name: str
    ms_per_layer: float
    ms_per_stage: float = 0.0
    max_layers: int | None = None
    free_bytes: float | None = None
    reserve_bytes: float = 0
    ms_per_head: float = 0.0
    processor: str = ""  # empty: one of its own
    layer_ms: tuple[float, ...] = ()
    size: ModelSize | None = None
    ms_per_step: float = 0.0
    shared: float = 0.0

    @classmethod
    def of(
        cls, name: str, device: DeviceProfile, free_bytes: float, workspace_bytes: int, process_bytes: int = 0
    ) -> NodeProfile:
        """A device, of whose free memory a stage leaves `workspace_bytes` alone, and what its process takes: as much as
        is granted for it (`process_bytes`), or as was measured.
        """
        return cls(
            name,
            device.ms_per_layer,
            device.ms_per_stage,
            ms_per_head=device.ms_per_head,
            free_bytes=free_bytes,
            reserve_bytes=workspace_bytes + max(process_bytes, device.overhead_bytes),
            ms_per_step=device.ms_per_step,
            shared=device.shared,
        )

    @property
    def room_bytes(self) -> float:
        """Bytes a stage may take; unbounded where only layers are counted."""
        return inf if self.free_bytes is None else max(self.free_bytes - self.reserve_bytes, 0)

    def slowed(self, factor: float) -> NodeProfile:
        """The same node where computing takes `factor` times as long; what it does for a message stays the same."""
        return replace(
            self,
            ms_per_layer=self.ms_per_layer * factor,
            ms_per_stage=self.ms_per_stage * factor,
            ms_per_head=self.ms_per_head * factor,
            layer_ms=tuple(ms * factor for ms in self.layer_ms),
        )

    def with_rows(self, rows: int) -> NodeProfile:
        """The same node with the times of steps of so many rows."""
        factor = rows - (rows - 1) * self.shared
        return self if rows == 1 else replace(self.slowed(factor), ms_per_step=self.ms_per_step * factor)

    def part(self, layers: LayerRange, *, last: bool) -> NodeProfile:
        """The same node for a range of the model as a model of its own; only that which is the last has a head."""
        return replace(
            self,
            ms_per_head=self.ms_per_head if last else 0.0,
            layer_ms=self.layer_ms[layers.start : layers.stop],
            size=None if self.size is None else self.size.part(layers),
        )


@dataclass(frozen=True, slots=True)
class Link:
    """A pair of nodes and the milliseconds of one way, in both directions; None: it cannot be used."""

    a: str
    b: str
    ms: float | None


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a plan is sized for: tokens of context, users at once, the dtype of compute and cache, how exact it is."""

    context: int
    users: int
    dtype: Dtype
    exact: bool = False  # as in StageOrder


@dataclass(frozen=True, slots=True)
class Problem:
    """An instance. Names of nodes are unique; links and `head` name nodes (`parse_cluster` checks a file).

    `smaller` are the quantizations that the model could have instead, the largest first. `head_step_ms` and
    `head_row_ms` are the head's own time between two frames: for a frame, and for each row in it.
    """

    model: ModelSize
    nodes: tuple[NodeProfile, ...]
    links: tuple[Link, ...] = ()
    hop_ms: float = HOP_MS
    head: str | None = None  # None: no hop to it is counted
    users: int = 1
    context: int = CONTEXT
    tolerance: float = TOLERANCE
    smaller: tuple[Smaller, ...] = ()
    head_step_ms: float = 0.0
    head_row_ms: float = 0.0

    @property
    def all_layers(self) -> LayerRange:
        return LayerRange(0, self.model.layers)

    @property
    def cached(self) -> tuple[float, ...]:
        """Bytes of each layer's caches, of all users."""
        model, users, context = self.model, self.users, self.context
        if not model.caches:
            alike = context * model.kv_bytes_per_token_per_layer + STATES * model.bytes_per_sequence_per_layer
            return (users * alike,) * len(model.layer_bytes)
        return tuple(users * (context * token + STATES * sequence) for token, sequence in model.caches)

    def held_layers(self, node: NodeProfile | None = None) -> tuple[float, ...]:
        """Bytes of each layer with its caches; `node` is as in `size_on`."""
        return tuple(map(add, self.size_on(node).layer_bytes, self.cached))

    @property
    def frames(self) -> tuple[int, ...]:
        """Into how many frames the rows of all users may be divided; each user in one of its own comes first.

        Fewer gain something only where rows of a step share time, and no more than there are nodes travel at once.
        """
        most = min(self.users - 1, len(self.nodes)) if any(node.shared for node in self.nodes) else 0
        return (self.users, *(2**power for power in range(most.bit_length())))

    def in_frames(self, frames: int) -> Problem:
        """The same problem with the times of frames that carry the rows of all users, as many in each."""
        rows = -(-self.users // frames)
        head = self.head_ms(rows)
        return replace(
            self, nodes=tuple(node.with_rows(rows) for node in self.nodes), head_step_ms=head, head_row_ms=0.0
        )

    def head_ms(self, rows: int = 1) -> float:
        """Milliseconds of the head's own for a frame of so many rows."""
        return self.head_step_ms + rows * self.head_row_ms

    def node(self, name: str) -> NodeProfile:
        return next(node for node in self.nodes if node.name == name)

    def hop(self, a: str, b: str) -> float:
        """Milliseconds from one node to another: 0 to itself, infinite over an unusable link."""
        if a == b:
            return 0.0
        for link in self.links:
            if {link.a, link.b} == {a, b}:
                return inf if link.ms is None else link.ms
        return self.hop_ms

    def size_on(self, node: NodeProfile | None) -> ModelSize:
        """The model as a node holds it; None: as most do."""
        return self.model if node is None or node.size is None else node.size

    def stage_bytes(self, layers: LayerRange, node: NodeProfile | None = None) -> float:
        """Bytes of a stage: its layers with the KV cache of all users, embedding if first, norm and head if last.

        Where it is both, a matrix that embedding and head share counts once. `node` is as in `size_on`.
        """
        model = self.size_on(node)
        size = sum(model.layer_bytes[layers.start : layers.stop]) + sum(self.cached[layers.start : layers.stop])
        if layers.start == 0:
            size += model.embed_bytes
        if layers.stop == model.layers:
            size += model.head_bytes - (model.tied_bytes if layers.start == 0 else 0)
        return size

    def stage_ms(self, node: NodeProfile, layers: LayerRange) -> float:
        """Milliseconds of a stage for one token, with its message, and norm, LM head and drawing if it is the last."""
        fixed = node.ms_per_step + node.ms_per_stage + (node.ms_per_head if layers.stop == self.model.layers else 0)
        if node.layer_ms:
            return fixed + sum(node.layer_ms[layers.start : layers.stop])
        return fixed + len(layers) * node.ms_per_layer

    def part(self, layers: LayerRange) -> Problem:
        """The same question for a range of the model as a model of its own."""
        last = layers.stop == self.model.layers
        nodes = tuple(node.part(layers, last=last) for node in self.nodes)
        return replace(self, model=self.model.part(layers), nodes=nodes)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A node's layers in a split."""

    node: str
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Split:
    """The assignments of all layers, in ring order."""

    shares: tuple[Assignment, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(share.node for share in self.shares)
