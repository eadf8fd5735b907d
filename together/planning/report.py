"""A plan for programs and users: the documented JSON, the text, and what it asks of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from together.planning.explain import Infeasible
from together.planning.problem import Assignment, NodeProfile, Problem, Split
from together.planning.score import Score, StageCost, score_of
from together.sentences import Sentence, say
from together.types import DTYPE_BYTES, Dtype
from together.wording import cells, ms_text, padded, size_text

COMMUNICATION_SHARE = 0.2  # of a token's time may pass on the links: communication to computation is 1 : 4


@dataclass(frozen=True, slots=True)
class NetworkTarget:
    """The target: tokens per second in the answer, and seconds from the prompt to the first token."""

    tokens_per_second: float = 20.0
    prompt_tokens: int = 1000
    first_token_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Network:
    """What each link needs, one way: speed and ms per hop for the tokens per second, and speed for the prompt."""

    hops: int
    bytes_per_token_and_hop: int
    tokens_per_second: float
    mbit_per_s: float
    ms: float
    prompt_tokens: int
    first_token_s: float
    prompt_mbit_per_s: float


def network_of(hidden_size: int, dtype: Dtype, hops: int, target: NetworkTarget) -> Network:
    """All hops of a token may take 1/5 of its time, one after another, and all hops of the prompt `first_token_s`."""
    size = hidden_size * DTYPE_BYTES[dtype]
    hop_s = COMMUNICATION_SHARE / target.tokens_per_second / hops if hops else 0.0
    speed = 8 * size / hop_s / 1e6 if hops else 0.0
    prompt_speed = 8 * size * target.prompt_tokens * hops / target.first_token_s / 1e6
    prompt = (target.prompt_tokens, target.first_token_s, prompt_speed)
    return Network(hops, size, target.tokens_per_second, speed, hop_s * 1e3, *prompt)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A split with its figures and reasons. `network` is None where the model's hidden size is not known."""

    problem: Problem
    split: Split
    why: tuple[Sentence, ...] = ()
    left_out: Mapping[str, Sentence] = field(default_factory=dict)  # by node
    network: Network | None = None

    @property
    def score(self) -> Score:
        return score_of(self.problem, self.split)


def answer_json(answer: PlanReport) -> dict[str, Any]:
    score = answer.score
    costs = zip(answer.split.shares, score.stages, strict=True)
    return {
        "stages": [_stage_json(answer.problem.node(share.node), share, cost) for share, cost in costs],
        "token_ms": float(score.token_ms),
        "slowest_stage_ms": float(score.slowest_stage_ms),
        "score_ms": float(score.score_ms),
        "tokens_per_second": score.tokens_per_second,
        "tokens_per_second_each": score.tokens_per_second_each,
        "network": None if answer.network is None else asdict(answer.network),
        "left_out": [{"node": node, "why": str(why)} for node, why in answer.left_out.items()],
        "why": list(map(str, answer.why)),
    }


def _stage_json(node: NodeProfile, share: Assignment, cost: StageCost) -> dict[str, Any]:
    """`room_bytes` is what the node may use, null where only layers are counted; `hop_ms` to what comes next."""
    return {
        "node": share.node,
        "start": share.layers.start,
        "stop": share.layers.stop,
        "ms": float(cost.ms),
        "bytes": _whole(cost.bytes),
        "room_bytes": None if node.free_bytes is None else _whole(node.room_bytes),
        "hop_ms": float(cost.hop_ms),
    }


def missing_json(missing: Infeasible) -> dict[str, Any]:
    return {
        "error": str(missing.error),
        "missing_layers": missing.layers,
        "missing_bytes": _whole(missing.bytes),
        "suggestions": list(map(str, missing.suggestions)),
    }


def _whole(size: float) -> float:
    return int(size) if size == int(size) else size


def answer_text(answer: PlanReport) -> str:
    """A table of the stages, the figures, and the sentences, a line each."""
    score, users = answer.score, answer.problem.users
    rows = [("node", "layers", "ms", "memory", "hop ms")]
    for share, cost in zip(answer.split.shares, score.stages, strict=True):
        layers = f"{share.layers} ({len(share.layers)})"
        ms, hop = (f"{value:.1f}" if value else "-" for value in (cost.ms, cost.hop_ms))
        rows.append((share.node, layers, ms, size_text(cost.bytes) if cost.bytes else "-", hop))
    widths = [max(map(cells, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    each = f", {score.tokens_per_second_each:.1f} for each of {users} users" if users > 1 else ""
    if score.token_ms > 0:  # else nobody has measured anything
        lines += ["", f"{score.tokens_per_second:.1f} tokens/s{each}; {ms_text(score.token_ms)} per token"]
    network = [say("network", **asdict(answer.network))] if answer.network and answer.network.hops else []
    return "\n".join([*lines, *map(str, answer.why), *map(str, network)])
