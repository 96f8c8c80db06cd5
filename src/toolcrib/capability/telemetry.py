"""What one capability counts and traces: its own metrics, named as the format names them, and its spans.

Counting is plain dictionaries in the event loop; Prometheus families are made when somebody scrapes. Label values come
from the file, methods and statuses; a family that outgrows its limit counts the rest under `other`. A capability with
no control server, or with observability switched off, gets hooks that do nothing.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from opentelemetry import trace as otel
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from toolcrib.capability.spec import ControlServer
from toolcrib.capability.tracing import Propagation, Recorder

METRICS_MEDIA: Final = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_SERIES: Final = 5_000  # of one family
_OTHER: Final = "other"

ObserveRequest = Callable[[str, str, int | str, float, str | None], None]
ObserveStep = Callable[[str, str, float], None]
ObserveHttpClient = Callable[[str, str, int, float], None]


@dataclass(frozen=True, slots=True)
class Observability:
    """The `observability` settings; `otlp_endpoint` is a text as written, perhaps a template."""

    enabled: bool = True
    metrics: bool = True
    traces: bool = True
    sampling: float = 1.0
    propagation: Propagation = "w3c"
    buffer_size: int = 100
    otlp_endpoint: str | None = None

    @classmethod
    def read(cls, control: ControlServer | None) -> "Observability":
        """The settings of a control server; nothing is counted or kept without one, because nobody could look.

        Raises:
            ValueError: a value that is not understood.
        """
        if control is None:
            return cls(metrics=False, traces=False)
        written = control.observability
        traces = _map(written, "traces")
        local = _map(traces, "local")
        sampling = traces.get("sampling", 1.0)
        if isinstance(sampling, bool) or not isinstance(sampling, int | float) or not 0 <= sampling <= 1:
            raise ValueError("observability: traces.sampling is a number from 0 to 1")
        propagation = str(traces.get("propagation") or "w3c").lower()
        if propagation not in {"w3c", "b3"}:
            raise ValueError(f"observability: traces.propagation is w3c or b3, not {propagation!r}")
        size = local.get("buffer-size", local.get("bufferSize", 100))
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 10_000:
            raise ValueError("observability: traces.local.buffer-size is a whole number from 1 to 10000")
        endpoint = _map(_map(written, "exporters"), "otlp").get("endpoint")
        enabled = _flag(written, "enabled")
        return cls(
            enabled=enabled,
            metrics=enabled and _flag(_map(_map(written, "metrics"), "local"), "enabled"),
            traces=enabled and _flag(local, "enabled"),
            sampling=float(sampling),
            propagation="b3" if propagation == "b3" else "w3c",
            buffer_size=size,
            otlp_endpoint=str(endpoint) if enabled and endpoint else None,
        )


class Telemetry:
    """The hooks of one capability; `metrics` is None when nothing is counted.

    Args:
        label: name of the capability.
        settings: what is wanted.
        tracer_provider: of OpenTelemetry; spans go there as well, and by it when it is the process's own.
    """

    def __init__(self, label: str, settings: Observability, tracer_provider: otel.TracerProvider | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics(label) if settings.metrics else None
        provider = (tracer_provider or _installed_provider()) if settings.enabled else None
        tracer = None if provider is None else provider.get_tracer("toolcrib.capability")
        self.exports_spans = tracer is not None
        self.recorder = Recorder(
            active=settings.traces or tracer is not None,
            sampling=settings.sampling,
            propagation=settings.propagation,
            buffer_size=settings.buffer_size if settings.traces else 0,
            tracer=tracer,
        )
        metrics = self.metrics
        self.observe_request: ObserveRequest = _no_request if metrics is None else metrics.observe_request
        self.observe_step: ObserveStep = _no_step if metrics is None else metrics.observe_step
        self.observe_http_client: ObserveHttpClient = _no_http if metrics is None else metrics.observe_http_client

    def started(self) -> None:
        """The capability serves from now on."""
        if self.metrics is not None:
            self.metrics.active += 1

    def stopped(self) -> None:
        """The capability serves no longer."""
        if self.metrics is not None:
            self.metrics.active -= 1


class Metrics(Collector):
    """The metrics of one capability, used from one event loop."""

    def __init__(self, label: str) -> None:
        self.active = 0
        self._label = label
        self._requests: dict[tuple[str, ...], _Timing] = {}
        self._errors: dict[tuple[str, ...], int] = {}
        self._steps: dict[tuple[str, ...], _Timing] = {}
        self._http: dict[tuple[str, ...], _Timing] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def observe_request(
        self, adapter_type: str, operation_id: str, status: int | str, seconds: float, error_type: str | None = None
    ) -> None:
        """Count a request that a face answered; `operation_id` is `<path> <METHOD>`, a tool name, or a skill path."""
        _time(self._requests, (adapter_type, operation_id, str(status)), seconds)
        if error_type is not None:
            key = _bounded(self._errors, (adapter_type, operation_id, error_type))
            self._errors[key] = self._errors.get(key, 0) + 1

    def observe_step(self, step_type: str, namespace: str, seconds: float) -> None:
        """Count a step of an orchestration; type is call, lookup or script."""
        _time(self._steps, (step_type, namespace or "unknown"), seconds)

    def observe_http_client(self, method: str, host: str, status: int, seconds: float) -> None:
        """Count a request to an upstream; status 0 when there was no answer."""
        _time(self._http, (method, host, str(status)), seconds)

    def text(self) -> bytes:
        """Everything in the text format of Prometheus."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """The families, for the registry."""
        operation = ("naftiko_adapter_type", "naftiko_operation_id")
        names = (*operation, "status")
        yield _counter("naftiko_request", "Requests handled", names, self._requests)
        yield _histogram("naftiko_request_duration_seconds", "Seconds to handle a request", names, self._requests)
        # Named as the format names it, so without the suffix that this text format wants of a counter.
        errors = Metric("naftiko_request_errors", "Requests that failed", "unknown")
        for key, count in self._errors.items():
            labels = dict(zip((*operation, "error_type"), key, strict=True))
            errors.add_sample("naftiko_request_errors", labels, float(count))
        yield errors
        steps = ("step_type", "naftiko_namespace")
        yield _histogram("naftiko_step_duration_seconds", "Seconds to execute a step", steps, self._steps)
        http = ("http_request_method", "server_address", "http_response_status_code")
        yield _counter("naftiko_http_client", "Requests to upstreams", http, self._http)
        seconds = "naftiko_http_client_duration_seconds"
        yield _histogram(seconds, "Seconds until an upstream has answered", http, self._http)
        active = Metric("naftiko_capability_active", "Capabilities that serve", "gauge")
        active.add_sample("naftiko_capability_active", {"naftiko_capability": self._label}, float(self.active))
        yield active


class _Timing:
    """How often and how long, by bucket."""

    __slots__ = ("buckets", "count", "sum_s")

    def __init__(self) -> None:
        self.count = 0
        self.sum_s = 0.0
        self.buckets = [0] * (len(_BUCKETS_S) + 1)


def _time(series: dict[tuple[str, ...], _Timing], key: tuple[str, ...], seconds: float) -> None:
    timing = series.get(key)
    if timing is None:
        timing = series.setdefault(_bounded(series, key), _Timing())
    timing.count += 1
    timing.sum_s += seconds
    timing.buckets[bisect_left(_BUCKETS_S, seconds)] += 1


def _bounded(series: Mapping[tuple[str, ...], Any], key: tuple[str, ...]) -> tuple[str, ...]:
    return key if len(series) < _SERIES or key in series else (_OTHER,) * len(key)


def _labels(names: tuple[str, ...], key: tuple[str, ...]) -> dict[str, str]:
    labels = dict(zip(names, key, strict=True))
    if labels.get("http_response_status_code") == "0":  # no answer, so no status of HTTP
        del labels["http_response_status_code"]
        labels["error_type"] = "transport"
    return labels


def _counter(name: str, text: str, names: tuple[str, ...], series: Mapping[tuple[str, ...], _Timing]) -> Metric:
    family = Metric(name, text, "counter")
    for key, timing in series.items():
        family.add_sample(f"{name}_total", _labels(names, key), float(timing.count))
    return family


def _histogram(name: str, text: str, names: tuple[str, ...], series: Mapping[tuple[str, ...], _Timing]) -> Metric:
    family = Metric(name, text, "histogram")
    for key, timing in series.items():
        labels = _labels(names, key)
        total = 0
        for edge, count in zip((*map(str, map(float, _BUCKETS_S)), "+Inf"), timing.buckets, strict=True):
            total += count
            family.add_sample(f"{name}_bucket", {**labels, "le": edge}, float(total))
        family.add_sample(f"{name}_sum", labels, timing.sum_s)
        family.add_sample(f"{name}_count", labels, float(timing.count))
    return family


def _installed_provider() -> otel.TracerProvider | None:
    """The provider of this process, if somebody installed one."""
    provider = otel.get_tracer_provider()
    return None if isinstance(provider, otel.ProxyTracerProvider) else provider


def _map(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = settings.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"observability: {key} holds settings")  # noqa: TRY004 - the file is wrong, not the program
    return value


def _flag(settings: Mapping[str, Any], key: str) -> bool:
    value = settings.get(key, True)
    if not isinstance(value, bool):
        raise ValueError(f"observability: {key} is true or false")  # noqa: TRY004
    return value


def _no_request(_adapter: str, _operation: str, _status: int | str, _seconds: float, _error: str | None = None) -> None:
    """Nothing."""


def _no_step(_type: str, _namespace: str, _seconds: float) -> None:
    """Nothing."""


def _no_http(_method: str, _host: str, _status: int, _seconds: float) -> None:
    """Nothing."""
