"""A plan for programs and people: the documented JSON, the text, and what it asks of the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from together.planning.explain import Infeasible, LeftOut
from together.planning.problem import Assignment, NodeProfile, Problem, Split
from together.planning.score import Score, StageCost, score_of
from together.types import DTYPE_BYTES, Dtype
from together.wording import layers_text, ms_text, size_text

COMMUNICATION_SHARE = 0.2  # of a token's time may pass on the links: communication to computation is 1 : 4


@dataclass(frozen=True, slots=True)
class NetworkTarget:
    """What a person would like: tokens per second in the answer, and a prompt's first token after so many seconds."""

    tokens_per_second: float = 20.0
    prompt_tokens: int = 1000
    first_token_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Network:
    """Needs of each link, one way: for the wished tokens/s its speed and ms per hop, and its speed for the prompt."""

    hops: int
    bytes_per_token_and_hop: int
    mbit_per_s: float
    ms: float
    prompt_mbit_per_s: float


def network_of(hidden_size: int, dtype: Dtype, hops: int, wish: NetworkTarget) -> Network:
    """One after another, all hops of a token may take 1/5 of its time, and all hops of the prompt the wished time."""
    size = hidden_size * DTYPE_BYTES[dtype]
    if hops == 0:
        return Network(0, size, 0.0, 0.0, 0.0)
    hop_s = COMMUNICATION_SHARE / wish.tokens_per_second / hops
    prompt_bits = 8 * size * wish.prompt_tokens * hops
    return Network(hops, size, 8 * size / hop_s / 1e6, hop_s * 1e3, prompt_bits / wish.first_token_s / 1e6)


@dataclass(frozen=True, slots=True)
class PlanReport:
    """A split with its figures and sentences. `network` is None where the model's hidden size is not known."""

    problem: Problem
    split: Split
    why: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    network: Callable[[int], Network] | None
    wish: NetworkTarget

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
        "network": _network_json(answer),
        "left_out": [{"node": item.node, "why": item.why} for item in answer.left_out],
        "why": list(answer.why),
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


def _network_json(answer: PlanReport) -> dict[str, Any] | None:
    if answer.network is None:
        return None
    network, wish = answer.network(answer.score.hops), answer.wish
    return {
        "hops": network.hops,
        "bytes_per_token_and_hop": network.bytes_per_token_and_hop,
        "tokens_per_second": wish.tokens_per_second,
        "mbit_per_s": network.mbit_per_s,
        "ms": network.ms,
        "prompt_tokens": wish.prompt_tokens,
        "first_token_s": wish.first_token_s,
        "prompt_mbit_per_s": network.prompt_mbit_per_s,
    }


def missing_json(missing: Infeasible) -> dict[str, Any]:
    return {
        "error": missing.error,
        "missing_layers": missing.layers,
        "missing_bytes": _whole(missing.bytes),
        "suggestions": list(missing.suggestions),
    }


def _whole(size: float) -> float:
    return int(size) if size == int(size) else size


# --- for a person -----------------------------------------------------------------------------------------------------


def answer_text(answer: PlanReport) -> str:
    """A table of the stages, the figures, and the sentences, a line each."""
    score, problem = answer.score, answer.problem
    rows = [("node", "layers", "ms", "memory", "hop ms")]
    for share, cost in zip(answer.split.shares, score.stages, strict=True):
        layers = f"{layers_text(share.layers)} ({len(share.layers)})"
        rows.append((share.node, layers, f"{cost.ms:.1f}", size_text(cost.bytes), f"{cost.hop_ms:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    each = f", {score.tokens_per_second_each:.1f} for each of {problem.users} people" if problem.users > 1 else ""
    lines += ["", f"{score.tokens_per_second:.1f} tokens/s{each}; {ms_text(score.token_ms)} per token"]
    lines += [*answer.why, *_network_text(answer)]
    return "\n".join(lines)


def _network_text(answer: PlanReport) -> list[str]:
    if answer.network is None or answer.score.hops == 0:
        return []
    network, wish = answer.network(answer.score.hops), answer.wish
    return [
        f"for {wish.tokens_per_second:g} tokens/s each of the {network.hops} hops needs {network.mbit_per_s:.0f} "
        f"Mbit/s and at most {ms_text(network.ms)}; for a first token {wish.first_token_s:g} s after "
        f"{wish.prompt_tokens} tokens of prompt, {network.prompt_mbit_per_s:.0f} Mbit/s"
    ]


def missing_text(missing: Infeasible) -> str:
    return "\n".join([missing.error, *(f"- {suggestion}" for suggestion in missing.suggestions)])
