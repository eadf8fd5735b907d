"""What a monitor reads at `/metrics`: requests, and the state of head and engine at that moment.

Every app has its own registry. Times are in seconds; the engine's counters restart with every loaded model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from together.cluster_types import NodeState, NodeStatus
from together.engine.stats import EngineStats
from together.head.head import Head
from together.view import Serving, ServingState

_FIRST = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_EACH = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_WHOLE = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics:
    """Counters of requests over HTTP, and what the head itself reports."""

    def __init__(self, head: Head) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "together_requests",
            "Requests that ended, by route, result and model.",
            ("route", "result", "model"),
            registry=registry,
        )
        self.first_token = Histogram(
            "together_time_to_first_token_seconds",
            "From a request's arrival to its first text.",
            ("model",),
            registry=registry,
            buckets=_FIRST,
        )
        self.each_token = Histogram(
            "together_time_per_output_token_seconds",
            "Between an answer's tokens after its first, on average over the answer.",
            ("model",),
            registry=registry,
            buckets=_EACH,
        )
        self.whole = Histogram(
            "together_request_seconds",
            "From a request's arrival to its end.",
            ("model",),
            registry=registry,
            buckets=_WHOLE,
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
        models = [shown.serving for shown in view.services] or [view.serving]
        names = {node.id: node.name for node in view.nodes}
        metrics = _Families()
        for serving in models:
            _serving(metrics, serving)
            stats = self._head.stats(serving.model) if serving.model else None
            if stats is not None:
                _load(metrics, serving.model, stats)
                _tokens(metrics, serving.model, stats)
                _steps(metrics, serving, stats, names)
        _nodes(metrics, view.nodes)
        return metrics.all.values()

    def describe(self) -> Iterable[Metric]:
        return ()


@dataclass(slots=True)
class _Families:
    """Metrics by name: each has a sample for each of its labels' values."""

    all: dict[str, GaugeMetricFamily | CounterMetricFamily] = field(default_factory=dict)

    def gauge(self, name: str, words: str, value: float, /, **labels: str) -> None:
        self._add(GaugeMetricFamily, name, words, value, labels)

    def counter(self, name: str, words: str, value: float, /, **labels: str) -> None:
        self._add(CounterMetricFamily, name, words, value, labels)

    def _add(
        self,
        kind: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        words: str,
        value: float,
        labels: dict[str, str],
    ) -> None:
        family = self.all.get(name)
        if family is None:
            family = self.all[name] = kind(name, words, labels=tuple(labels))
        family.add_metric(tuple(labels.values()), value)


def _serving(found: _Families, serving: Serving) -> None:
    words = "1 for the state that the model is in."
    for each in ServingState:
        is_it = float(serving.state is each)
        found.gauge("together_serving_state", words, is_it, model=serving.model, state=each.value)
    words = "How much of what is being loaded is there, 0 to 1."
    found.gauge("together_load_progress", words, serving.progress, model=serving.model)


def _nodes(found: _Families, nodes: tuple[NodeStatus, ...]) -> None:
    for node in nodes:
        labels = {"node": node.id, "name": node.name}
        up = float(node.state is not NodeState.FAILED)
        found.gauge("together_node_up", "1 while the node answers.", up, **labels)
        found.gauge("together_node_free_bytes", "What a node may still grant.", node.free_bytes, **labels)


def _load(found: _Families, model: str, stats: EngineStats) -> None:
    used = (stats.used_tokens + stats.cached_tokens) / max(stats.capacity, 1)
    for name, words, value in (
        ("queue_length", "Sequences that wait for room.", stats.waiting),
        ("running_sequences", "Sequences in the ring's caches.", stats.running),
        ("kv_capacity_tokens", "Tokens that the smallest stage can cache.", stats.capacity),
        ("kv_used_tokens", "Cached tokens of running sequences.", stats.used_tokens),
        ("kv_prefix_tokens", "Cached tokens of prefixes that nobody uses now.", stats.cached_tokens),
        ("kv_use_ratio", "Share of the caches in use, prefixes among them.", used),
    ):
        found.gauge(f"together_{name}", words, value, model=model)


def _tokens(found: _Families, model: str, stats: EngineStats) -> None:
    for name, words, value in (
        ("prompt_tokens", "Tokens of prompts.", stats.prompt_tokens),
        ("prompt_reused_tokens", "Of those, tokens that were in the caches already.", stats.reused_tokens),
        ("evaluated_tokens", "Tokens of prompts and replays that were computed.", stats.prefilled_tokens),
        ("generated_tokens", "Tokens of answers.", stats.generated_tokens),
        ("set_back", "Sequences that gave up their place for a while.", stats.preempted),
    ):
        found.counter(f"together_{name}", words, value, model=model)


def _steps(found: _Families, serving: Serving, stats: EngineStats, names: dict[str, str]) -> None:
    """A step's times are medians over the last decode steps."""
    model, plan = serving.model, serving.plan
    found.counter("together_steps", "Frames that went round the ring.", stats.steps, model=model)
    found.gauge("together_step_seconds", "A decode step, from push to answer.", stats.step_ms / 1e3, model=model)
    nodes = [stage.node for stage in plan.stages] if plan else []
    for index, (milliseconds, node) in enumerate(zip(stats.stage_ms, nodes, strict=False)):
        labels = {"model": model, "stage": str(index), "node": node, "name": names.get(node, "")}
        words = "A stage's computing in a decode step."
        found.gauge("together_stage_step_seconds", words, milliseconds / 1e3, **labels)
    words = "All links' part of a decode step."
    found.gauge("together_links_step_seconds", words, stats.link_ms / 1e3, model=model)
    links = max(len(nodes) - 1, 0)
    for index in range(links):  # every link carries the same hidden states
        words, each = "Hidden states over a link between stages.", stats.link_bytes / links
        found.counter("together_link_bytes", words, each, model=model, link=f"{index}-{index + 1}")
