"""What a monitor reads at `/metrics`: requests, and the state of head and engine at that moment.

Every app has its own registry. Times are in seconds; the engine's counters restart with every loaded model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from together.cluster_types import NodeState, NodeStatus
from together.engine.stats import EngineStats
from together.head.head import Head
from together.types import Plan
from together.view import Serving, ServingState

_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_EACH = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics:
    """Counters of requests over HTTP, and what the head itself reports."""

    def __init__(self, head: Head) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "together_requests", "Requests that ended, by route and result.", ("route", "result"), registry=registry
        )
        self.first_token = Histogram(
            "together_time_to_first_token_seconds",
            "From a request's arrival to its first text.",
            registry=registry,
            buckets=_FIRST,
        )
        self.each_token = Histogram(
            "together_time_per_output_token_seconds",
            "Between an answer's tokens after its first, on average over the answer.",
            registry=registry,
            buckets=_EACH,
        )
        self.whole = Histogram(
            "together_request_seconds", "From a request's arrival to its end.", registry=registry, buckets=_WHOLE
        )
        registry.register(_HeadCollector(head))

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class _HeadCollector(Collector):
    """Reads the head whenever the metrics are read."""

    def __init__(self, head: Head) -> None:
        self._head = head

    def collect(self) -> Iterable[Metric]:
        view = self._head.view()
        yield from _serving(view.serving)
        yield from _nodes(view.nodes)
        stats = self._head.stats()
        if stats is not None:
            yield from _load(stats)
            yield from _tokens(stats)
            yield from _steps(stats, view.serving.plan, {node.id: node.name for node in view.nodes})

    def describe(self) -> Iterable[Metric]:
        return ()


def _serving(serving: Serving) -> Iterator[Metric]:
    state = GaugeMetricFamily("together_serving_state", "1 for the state that the model is in.", labels=("state",))
    for each in ServingState:
        state.add_metric((each.value,), float(serving.state is each))
    yield state
    yield _gauge("together_load_progress", "How much of what is being loaded is there, 0 to 1.", serving.progress)


def _nodes(nodes: tuple[NodeStatus, ...]) -> Iterator[Metric]:
    up = GaugeMetricFamily("together_node_up", "1 while the node answers.", labels=("node", "name"))
    free = GaugeMetricFamily("together_node_free_bytes", "What a node may still grant.", labels=("node", "name"))
    for node in nodes:
        up.add_metric((node.id, node.name), float(node.state is not NodeState.FAILED))
        free.add_metric((node.id, node.name), node.free_bytes)
    yield up
    yield free


def _load(stats: EngineStats) -> Iterator[Metric]:
    yield _gauge("together_queue_length", "Sequences that wait for room.", stats.waiting)
    yield _gauge("together_running_sequences", "Sequences in the ring's caches.", stats.running)
    yield _gauge("together_kv_capacity_tokens", "Tokens that the smallest stage can cache.", stats.capacity)
    yield _gauge("together_kv_used_tokens", "Cached tokens of running sequences.", stats.used_tokens)
    yield _gauge("together_kv_prefix_tokens", "Cached tokens of prefixes that nobody uses now.", stats.cached_tokens)
    used = (stats.used_tokens + stats.cached_tokens) / max(stats.capacity, 1)
    yield _gauge("together_kv_use_ratio", "Share of the caches in use, prefixes among them.", used)


def _tokens(stats: EngineStats) -> Iterator[Metric]:
    yield CounterMetricFamily("together_prompt_tokens", "Tokens of prompts.", value=stats.prompt_tokens)
    yield CounterMetricFamily(
        "together_prompt_reused_tokens", "Of those, tokens that were in the caches already.", value=stats.reused_tokens
    )
    yield CounterMetricFamily(
        "together_evaluated_tokens", "Tokens of prompts and replays that were computed.", value=stats.prefilled_tokens
    )
    yield CounterMetricFamily("together_generated_tokens", "Tokens of answers.", value=stats.generated_tokens)
    yield CounterMetricFamily("together_set_back", "Sequences that gave up their place for a while.", stats.preempted)


def _steps(stats: EngineStats, plan: Plan | None, names: dict[str, str]) -> Iterator[Metric]:
    """A step's times are medians over the last decode steps."""
    yield CounterMetricFamily("together_steps", "Frames that went round the ring.", value=stats.steps)
    yield _gauge("together_step_seconds", "A decode step, from push to answer.", stats.step_ms / 1e3)
    stage_times = GaugeMetricFamily(
        "together_stage_step_seconds", "A stage's computing in a decode step.", labels=("stage", "node", "name")
    )
    nodes = [stage.node for stage in plan.stages] if plan else []
    for index, (milliseconds, node) in enumerate(zip(stats.stage_ms, nodes, strict=False)):
        stage_times.add_metric((str(index), node, names.get(node, "")), milliseconds / 1e3)
    yield stage_times
    yield _gauge("together_links_step_seconds", "All links' part of a decode step.", stats.link_ms / 1e3)
    links = max(len(nodes) - 1, 0)
    link_bytes = CounterMetricFamily(
        "together_link_bytes", "Hidden states over a link between stages.", labels=("link",)
    )
    for index in range(links):  # every link carries the same hidden states
        link_bytes.add_metric((f"{index}-{index + 1}",), stats.link_bytes / links)
    yield link_bytes


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)
