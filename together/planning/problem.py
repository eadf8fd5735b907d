"""What a planner is asked: a model's sizes, what each node can do, the links, and for whom.

Times are milliseconds, sizes bytes. Values may be measured or made up: one can also ask for machines not bought yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from together.cluster_types import DeviceProfile
from together.types import Dtype, LayerRange

HOP_MS = 25.0  # of a pair that nobody measured: slow, never free
CONTEXT = 4096
TOLERANCE = 0.1  # accept a plan this much slower than the best if it uses fewer machines
EXACT_NODES = 8  # up to here every subset of the nodes is tried


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Bytes of each layer's weights, of the embedding (first stage), of norm and LM head (last stage), and of KV.

    `tied_bytes` of the head are the embedding matrix again: a stage that is first and last holds them once.
    """

    layer_bytes: tuple[float, ...]
    embed_bytes: float = 0
    head_bytes: float = 0
    kv_bytes_per_token_per_layer: float = 0
    tied_bytes: float = 0

    @property
    def layers(self) -> int:
        return len(self.layer_bytes)


@dataclass(frozen=True, slots=True)
class NodeProfile:
    """What one node can do. Exactly one of `max_layers` and `free_bytes` says how much it holds.

    `ms_per_head` is for norm, LM head and drawing a token: the last stage takes so much longer. Nodes that name one
    `processor` share it: their stages take turns.
    """

    name: str
    ms_per_layer: float
    ms_per_stage: float = 0.0
    max_layers: int | None = None
    free_bytes: float | None = None
    reserve_bytes: float = 0
    ms_per_head: float = 0.0
    processor: str = ""  # empty: one of its own

    @classmethod
    def of(cls, name: str, device: DeviceProfile, free_bytes: float, workspace_bytes: int) -> NodeProfile:
        """A measured device, of whose free memory a stage leaves `workspace_bytes` and the framework's own alone."""
        return cls(
            name,
            device.ms_per_layer,
            device.ms_per_stage,
            ms_per_head=device.ms_per_head,
            free_bytes=free_bytes,
            reserve_bytes=workspace_bytes + device.overhead_bytes,
        )

    @property
    def room_bytes(self) -> float:
        """Bytes a stage may take; unbounded where only layers are counted."""
        return inf if self.free_bytes is None else max(self.free_bytes - self.reserve_bytes, 0)


@dataclass(frozen=True, slots=True)
class Link:
    """A pair of nodes and the milliseconds of one way, in both directions; None: it cannot be used."""

    a: str
    b: str
    ms: float | None


@dataclass(frozen=True, slots=True)
class Sizing:
    """What a plan is sized for: tokens of context, users at once, and the dtype of compute and cache."""

    context: int
    users: int
    dtype: Dtype


@dataclass(frozen=True, slots=True)
class Problem:
    """An instance. Names of nodes are unique; links and `head` name nodes (`parse_cluster` checks a file)."""

    model: ModelSize
    nodes: tuple[NodeProfile, ...]
    links: tuple[Link, ...] = ()
    hop_ms: float = HOP_MS
    head: str | None = None  # None: no hop to it is counted
    users: int = 1
    context: int = CONTEXT
    tolerance: float = TOLERANCE

    @property
    def all_layers(self) -> LayerRange:
        return LayerRange(0, self.model.layers)

    @property
    def kv_bytes_per_layer(self) -> float:
        return self.users * self.context * self.model.kv_bytes_per_token_per_layer

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

    def stage_bytes(self, layers: LayerRange) -> float:
        """Bytes of a stage: its layers with the KV cache of all users, embedding if first, norm and head if last.

        Where it is both, a matrix that embedding and head share counts once.
        """
        size = sum(self.model.layer_bytes[layers.start : layers.stop]) + len(layers) * self.kv_bytes_per_layer
        if layers.start == 0:
            size += self.model.embed_bytes
        if layers.stop == self.model.layers:
            size += self.model.head_bytes - (self.model.tied_bytes if layers.start == 0 else 0)
        return size

    def stage_ms(self, node: NodeProfile, layers: LayerRange) -> float:
        """Milliseconds of a stage for one token, with norm, LM head and drawing if it is the last."""
        fixed = node.ms_per_stage + (node.ms_per_head if layers.stop == self.model.layers else 0)
        return fixed + len(layers) * node.ms_per_layer


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
