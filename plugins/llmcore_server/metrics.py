"""Prometheus metrics under vLLM's names, with our prefix."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

if TYPE_CHECKING:
    from llmcore_server.service import Service

PREFIX = "llmcore:"
SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)


class Metrics:
    """Counts what was asked and answered; what the engine knows is read when somebody looks."""

    def __init__(self, model: str, service: Service) -> None:
        """A registry of its own: several servers may live in one process."""
        self.registry = CollectorRegistry()
        self._service = service
        self._model = model

        def histogram(name: str, text: str) -> Any:
            made = Histogram(PREFIX + name, text, ["model_name"], buckets=SECONDS, registry=self.registry)
            return made.labels(model)

        self.first = histogram("time_to_first_token_seconds", "From a request to its first token.")
        self.between = histogram("inter_token_latency_seconds", "From a token to the next.")
        self.whole = histogram("e2e_request_latency_seconds", "From a request to its end.")
        self._ended = Counter(
            PREFIX + "request_success",
            "Answers by what ended them.",
            ["model_name", "finished_reason"],
            registry=self.registry,
        )
        self._refused = Counter(
            PREFIX + "requests_refused", "Refused, too many waiting.", ["model_name"], registry=self.registry
        )
        self.registry.register(self)

    def ended(self, reason: str) -> None:
        """An answer has ended."""
        self._ended.labels(self._model, reason).inc()

    def refused(self) -> None:
        """A request came while too many were waiting."""
        self._refused.labels(self._model).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' format."""
        found: bytes = generate_latest(self.registry)
        return found

    def collect(self) -> Iterator[Any]:
        """What the engine knows."""
        loaded = self._service.loaded
        if loaded is None:
            return
        stats = loaded.llm.engine.stats()
        gauges = {
            "num_requests_running": ("Sequences in the batch.", stats.running),
            "num_requests_waiting": ("Requests that wait for room in the batch.", stats.waiting),
            "kv_cache_usage_perc": (
                "Share of the KV pages that are held, 0 to 1.",
                1 - stats.pages_free / stats.pages_total,
            ),
        }
        counters = {
            "generation_tokens": ("Tokens generated.", stats.generated),
            "computed_tokens": ("Tokens that went through the model, some perhaps again.", stats.computed),
            "iterations": ("Steps.", stats.steps),
            "num_preemptions": ("Sequences that gave their pages back.", stats.preemptions),
            "prefix_cache_queries": ("Prompt tokens that were looked for in the prefix cache.", stats.prefix_queried),
            "prefix_cache_hits": ("Prompt tokens that were found there.", stats.prefix_hit),
            "request_failures": ("Requests that failed on the way.", stats.failed),
        }
        for kind, values in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, value) in values.items():
                family = kind(PREFIX + name, text, labels=["model_name"])
                family.add_metric([self._model], value)
                yield family


class Clock:
    """The times of one answer, as its metrics want them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self._last = 0.0

    def token(self) -> None:
        """A token has come."""
        now = time.perf_counter()
        if self._last:
            self._metrics.between.observe(now - self._last)
        else:
            self._metrics.first.observe(now - self._started)
        self._last = now

    def end(self, reason: str) -> None:
        """The answer has ended."""
        self._metrics.whole.observe(time.perf_counter() - self._started)
        self._metrics.ended(reason)
