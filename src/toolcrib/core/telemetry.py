"""What can be observed from outside: Prometheus metrics, and OpenTelemetry spans where a provider is installed.

Label values come from small fixed sets (never from a caller's text), so that metrics cannot grow without bound.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

from opentelemetry import trace
from prometheus_client import Counter, Gauge, Histogram

_tracer = trace.get_tracer("toolcrib")

HTTP_REQUESTS = Counter("toolcrib_http_requests_total", "Requests answered", ["dialect", "status"])
TOOL_CALLS = Counter("toolcrib_tool_calls_total", "Tool calls, by door and outcome", ["door", "outcome"])
TOOL_CALL_SECONDS = Histogram(
    "toolcrib_tool_call_seconds",
    "Seconds from request to result of a tool call",
    ["door"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
SYNCS = Counter("toolcrib_tool_set_syncs_total", "Syncs of MCP tool sets", ["outcome"])
JOBS = Gauge("toolcrib_jobs", "Jobs in the queue", ["queue", "state"])
UPSTREAM_SESSIONS = Gauge("toolcrib_upstream_sessions", "Warm sessions to MCP servers")

# A series is looked up once: on every request that would cost more than counting.
http_requests = functools.cache(HTTP_REQUESTS.labels)
tool_calls = functools.cache(TOOL_CALLS.labels)
tool_call_seconds = functools.cache(TOOL_CALL_SECONDS.labels)


def spans() -> Callable[[str], AbstractContextManager[trace.Span]]:
    """What opens a span of a name; while no provider is installed, one that records nothing and costs nothing."""
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return lambda _name: trace.INVALID_SPAN
    return _tracer.start_as_current_span
