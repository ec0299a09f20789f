"""Prometheus metrics under vLLM's names, with our prefix."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from llmcore.errors import InternalError

if TYPE_CHECKING:
    from llmcore.async_llm import AsyncLLM
    from llmcore.engine.request import Delta
    from llmcore_server.service import Service

LOG = logging.getLogger("llmcore.server")
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
        self._refused = Counter(
            PREFIX + "requests_refused", "Refused, too many waiting.", ["model_name"], registry=self.registry
        )
        self._mismatched = 0
        self.registry.register(self)

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
            "kv_pages": ("KV pages.", stats.pages_total),
            "kv_pages_free": ("KV pages that nobody holds.", stats.pages_free),
            "kv_pages_mismatched": (
                "1 if pages and their holders did not agree when last looked at: while nothing was under way.",
                self._looked_at(loaded),
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
        by_reason = {
            "request_success": ("Answers by what ended them.", stats.ended),
            "answer_tokens": ("Tokens of answers that have ended, by what ended them.", stats.ended_tokens),
        }
        for name, (text, ended) in by_reason.items():
            family = CounterMetricFamily(PREFIX + name, text, labels=["model_name", "finished_reason"])
            for reason, count in ended.items():
                family.add_metric([self._model, reason], count)
            yield family

    def _looked_at(self, loaded: AsyncLLM) -> int:
        """Whether the books of the KV pages are wrong; looks only where that holds nobody up."""
        engine = loaded.llm.engine
        if not loaded.unfinished and engine.lock.acquire(blocking=False):
            try:
                if not loaded.unfinished:  # nor will there be, as long as the lock is ours
                    engine.verify()
                    self._mismatched = 0
            except InternalError:
                LOG.exception("the books of the KV pages are wrong")
                self._mismatched = 1
            finally:
                engine.lock.release()
        return self._mismatched


class Clock:
    """The times of one answer, as its metrics want them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started = time.perf_counter()
        self._last = 0.0

    def note(self, delta: Delta) -> None:
        """A delta has come."""
        if not delta.token_ids:
            return
        now = time.perf_counter()
        if self._last:
            self._metrics.between.observe(now - self._last)
        else:
            self._metrics.first.observe(now - self._started)
        self._last = now

    def end(self) -> None:
        """The answer has ended."""
        self._metrics.whole.observe(time.perf_counter() - self._started)
