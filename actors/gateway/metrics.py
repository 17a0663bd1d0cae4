"""What the gateway counts, for /metrics (Prometheus) and for GetStats."""

from collections.abc import Generator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from actors.protocol import Finished

MEDIA_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "gateway_requests", "HTTP requests answered", ("endpoint", "status"), registry=self._registry
        )
        self._in_flight = Gauge(
            "gateway_requests_in_flight", "HTTP requests being answered", registry=self._registry
        )
        self._seconds = Histogram(
            "gateway_request_seconds",
            "From a request's head to the end of its answer",
            ("endpoint",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._first_token_seconds = Histogram(
            "gateway_first_token_seconds",
            "From a request to its first text, loading included",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._prompt_tokens = Counter(
            "gateway_prompt_tokens", "Prompt tokens, cached included", registry=self._registry
        )
        self._cached_tokens = Counter(
            "gateway_cached_tokens", "Prompt tokens found in a cache", registry=self._registry
        )
        self._predicted_tokens = Counter(
            "gateway_predicted_tokens", "Tokens generated", registry=self._registry
        )
        self._answers = Counter(
            "gateway_answers", "Generations that came to their end", ("reason",), registry=self._registry
        )
        self._resumed = Counter(
            "gateway_streams_resumed", "Streams carried to another runner", registry=self._registry
        )
        self.n_requests = 0
        self.n_in_flight = 0
        self.n_resumed = 0

    @contextmanager
    def in_flight(self) -> Generator[None]:
        """A request is being answered."""
        self.n_in_flight += 1
        self._in_flight.inc()
        try:
            yield
        finally:
            self.n_in_flight -= 1
            self._in_flight.dec()

    def answered(self, endpoint: str, status: int, took_s: float) -> None:
        """A request has been answered; `endpoint` is a route, never a path that a client made up."""
        self.n_requests += 1
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(took_s)

    def first_token(self, after_s: float) -> None:
        """The first text of an answer was there."""
        self._first_token_seconds.observe(after_s)

    def finished(self, finished: Finished) -> None:
        """A generation came to its end."""
        self._answers.labels(finished.reason.value).inc()
        self._prompt_tokens.inc(finished.prompt_tokens)
        self._cached_tokens.inc(finished.cached_tokens)
        self._predicted_tokens.inc(finished.predicted_tokens)

    def resumed(self) -> None:
        """A stream goes on with another runner."""
        self.n_resumed += 1
        self._resumed.inc()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def gauges(self) -> dict[str, float]:
        """For GetStats."""
        return {
            "requests_total": self.n_requests,
            "requests_in_flight": self.n_in_flight,
            "streams_resumed_total": self.n_resumed,
        }
