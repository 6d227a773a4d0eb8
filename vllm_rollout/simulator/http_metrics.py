"""The metrics of the HTTP instrumentator that vLLM mounts, by its names, labels and buckets."""

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

# fmt: off
_HIGHR_SECONDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5,
    5.0, 7.5, 10.0, 30.0, 60.0,
)
# fmt: on


class HttpMetrics:
    """Requests by handler, method and status class (`2xx`); no model label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests",
            "Requests by handler, method and status class",
            ["method", "status", "handler"],
            registry=registry,
        )
        self._request_size = Summary(
            "http_request_size_bytes", "Request bodies", ["handler"], registry=registry
        )
        self._response_size = Summary(
            "http_response_size_bytes",
            "Response bodies of stated length",
            ["handler"],
            registry=registry,
        )
        self._highr = Histogram(
            "http_request_duration_highr_seconds",
            "Durations of all requests, finely",
            buckets=_HIGHR_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "http_request_duration_seconds",
            "Durations by handler, coarsely",
            ["method", "handler"],
            buckets=(0.1, 0.5, 1.0),
            registry=registry,
        )

    def observe(
        self,
        *,
        handler: str,
        method: str,
        status: int,
        seconds: float,
        request_bytes: int,
        response_bytes: int,
    ) -> None:
        """One request has ended, after `seconds`; a stream's length is not stated and counts 0."""
        status_class = f"{status // 100}xx"
        self._requests.labels(method=method, status=status_class, handler=handler).inc()
        self._request_size.labels(handler=handler).observe(request_bytes)
        self._response_size.labels(handler=handler).observe(response_bytes)
        self._highr.observe(seconds)
        self._duration.labels(method=method, handler=handler).observe(seconds)
