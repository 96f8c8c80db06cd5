"""Spans of one capability: kept in a ring of recent traces, and handed on to OpenTelemetry where that is installed.

The trace context comes in and goes out as W3C `traceparent` or as B3. A span knows names, times, a status and a few
attributes; never a body, a secret or the text of an error. Switched off, a span is one shared object that does nothing.
"""

import random
import re
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, Self

from opentelemetry import context as otel_context
from opentelemetry import trace as otel

Kind = Literal["SERVER", "CLIENT", "INTERNAL"]
Propagation = Literal["w3c", "b3"]
Attributes = Mapping[str, str | int | float | bool]

_SPANS_PER_TRACE: Final = 512
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_B3: Final = re.compile(r"([0-9a-f]{16}|[0-9a-f]{32})-([0-9a-f]{16})(?:-([01d]))?(?:-[0-9a-f]{16})?")
_HEX: Final = re.compile(r"[0-9a-f]+")
_OTEL_KINDS: Final = {
    "SERVER": otel.SpanKind.SERVER,
    "CLIENT": otel.SpanKind.CLIENT,
    "INTERNAL": otel.SpanKind.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class SpanContext:
    """What identifies a span to others: ids in lower-case hex; `state` is the `tracestate` that came with it."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""


class Span:
    """A span under way; a context manager. An exception that passes makes it an error, under the exception's name."""

    __slots__ = (
        *("attributes", "before", "context", "error", "kind", "name", "otel_span", "otel_token", "parent"),
        *("recorder", "started", "trace"),
    )
    context: SpanContext  # from its begin on, as are the following
    trace: "_Trace"
    before: "Span | None"
    started: float

    def __init__(
        self, recorder: "Recorder", name: str, kind: Kind, attributes: Attributes | None, parent: SpanContext | None
    ) -> None:
        self.recorder = recorder
        self.name = name
        self.kind = kind
        self.attributes: dict[str, Any] = dict(attributes) if attributes else {}
        self.parent = parent
        self.error: str | None = None
        self.otel_span: otel.Span | None = None
        self.otel_token: Token[otel_context.Context] | None = None

    def set(self, name: str, value: str | float | bool) -> None:  # noqa: FBT001 - an attribute may be one
        """Add an attribute."""
        self.attributes[name] = value

    def fail(self, error_type: str) -> None:
        """Mark it as an error of this type: a status or a code, not a message."""
        self.error = error_type

    def __enter__(self) -> Self:
        self.recorder.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.error is None:
            self.error = str(getattr(error, "code", type(error).__name__))
        self.recorder.end(self)


class _NoSpan:
    """What stands for a span that is not recorded."""

    __slots__ = ()

    def set(self, name: str, value: str | float | bool) -> None:  # noqa: FBT001
        """Nothing."""

    def fail(self, error_type: str) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing."""


NO_SPAN: Final = _NoSpan()
AnySpan = Span | _NoSpan


class _Trace:
    """The spans of one trace that this process has seen so far."""

    __slots__ = ("at", "dropped", "root", "spans")

    def __init__(self, root: Span) -> None:
        self.root = root
        self.at = time.time()
        self.spans: list[dict[str, Any]] = []
        self.dropped = 0


_CURRENT: ContextVar[Span | None] = ContextVar("toolcrib_capability_span", default=None)


class Recorder:
    """Makes the spans of one capability and keeps its last traces.

    Args:
        active: False for one that records nothing.
        sampling: share of traces that are recorded, 0 to 1, unless the caller's context decides.
        propagation: form of the trace context in headers.
        buffer_size: how many traces are kept; 0 for none.
        tracer: of an OpenTelemetry provider, which then makes the ids and decides on sampling.
    """

    def __init__(
        self,
        *,
        active: bool = True,
        sampling: float = 1.0,
        propagation: Propagation = "w3c",
        buffer_size: int = 100,
        tracer: otel.Tracer | None = None,
    ) -> None:
        self.active = active
        self.buffer_size = buffer_size
        self._sampling = sampling
        self._w3c = propagation == "w3c"
        self._tracer = tracer
        self._random = random.Random()  # noqa: S311 - ids need to differ, not to be secret
        self._buffer: deque[dict[str, Any]] = deque(maxlen=buffer_size)

    def span(self, name: str, kind: Kind = "INTERNAL", attributes: Attributes | None = None) -> AnySpan:
        """A span below the current one, or the first of a trace; to be entered at once."""
        if not self.active:
            return NO_SPAN
        current = _CURRENT.get()
        if current is not None and not current.context.sampled and current.recorder is self:
            return NO_SPAN
        return Span(self, name, kind, attributes, None)

    def request_span(
        self, name: str, headers: Iterable[tuple[bytes, bytes]], attributes: Attributes | None = None
    ) -> AnySpan:
        """The span of a request that came in, below the caller's span if its headers (ASGI) name one."""
        if not self.active:
            return NO_SPAN
        remote = self._extract(headers)
        return Span(self, name, "SERVER" if remote is None else "INTERNAL", attributes, remote)

    def outgoing(self) -> tuple[tuple[str, str], ...]:
        """The headers that tell an upstream which span calls it; none outside of a span."""
        if not self.active:
            return ()
        current = _CURRENT.get()
        if current is None:
            return ()
        context = current.context
        flag = "1" if context.sampled else "0"
        if not self._w3c:
            return (("b3", f"{context.trace_id}-{context.span_id}-{flag}"),)
        parent = ("traceparent", f"00-{context.trace_id}-{context.span_id}-0{flag}")
        return (parent, ("tracestate", context.state)) if context.state else (parent,)

    def traces(self) -> list[dict[str, Any]]:
        """The last traces, the newest first; each with its spans, the first begun first."""
        return list(reversed(self._buffer))

    def find(self, trace_id: str) -> dict[str, Any] | None:
        """The newest kept trace of an id."""
        return next((kept for kept in reversed(self._buffer) if kept["traceId"] == trace_id), None)

    def begin(self, span: Span) -> None:
        """Make a span the current one; called by the span."""
        above = _CURRENT.get()
        if above is not None:
            span.parent = above.context
        tracer = self._tracer
        span.context = self._new_context(span.parent) if tracer is None else _begin_otel(tracer, span, above)
        span.trace = above.trace if above is not None and above.recorder is self else _Trace(span)
        span.before = above
        _CURRENT.set(span)
        span.started = time.perf_counter()

    def end(self, span: Span) -> None:
        """Finish a span and, with the first one of this process, its trace; called by the span."""
        seconds = time.perf_counter() - span.started
        _CURRENT.set(span.before)
        if span.otel_span is not None:
            _end_otel(span)
        if not span.context.sampled or not self.buffer_size:
            return
        trace = span.trace
        if len(trace.spans) < _SPANS_PER_TRACE or trace.root is span:
            trace.spans.append(_summary(span, seconds))
        else:
            trace.dropped += 1
        if trace.root is span:
            self._buffer.append(_finished(trace))

    def _new_context(self, parent: SpanContext | None) -> SpanContext:
        span_id = f"{self._random.getrandbits(64) | 1:016x}"
        if parent is not None:
            return SpanContext(parent.trace_id, span_id, parent.sampled, parent.state)
        sampled = self._sampling >= 1 or self._random.random() < self._sampling
        return SpanContext(f"{self._random.getrandbits(128) | 1:032x}", span_id, sampled)

    def _extract(self, headers: Iterable[tuple[bytes, bytes]]) -> SpanContext | None:
        return _from_w3c(headers) if self._w3c else _from_b3(headers)


def _from_w3c(headers: Iterable[tuple[bytes, bytes]]) -> SpanContext | None:
    parent = state = ""
    for name, value in headers:
        if name == b"traceparent":
            parent = value.decode("latin-1")
        elif name == b"tracestate":
            state = f"{state},{value.decode('latin-1')}" if state else value.decode("latin-1")
    match = _TRACEPARENT.fullmatch(parent)
    if match is None or match[1] == "ff" or (match[1] == "00" and match[5]):
        return None
    return _valid(SpanContext(match[2], match[3], bool(int(match[4], 16) & 1), state[:512]))


def _from_b3(headers: Iterable[tuple[bytes, bytes]]) -> SpanContext | None:
    found = {name: value.decode("latin-1").lower() for name, value in headers if name == b"b3" or name[:5] == b"x-b3-"}
    match = _B3.fullmatch(found.get(b"b3", ""))
    if match is not None:
        return _valid(SpanContext(match[1].zfill(32), match[2], match[3] != "0"))
    trace_id, span_id = found.get(b"x-b3-traceid", ""), found.get(b"x-b3-spanid", "")
    if len(trace_id) not in {16, 32} or len(span_id) != 16 or not _HEX.fullmatch(trace_id + span_id):
        return None
    sampled = found.get(b"x-b3-flags") == "1" or found.get(b"x-b3-sampled", "1") in {"1", "true"}
    return _valid(SpanContext(trace_id.zfill(32), span_id, sampled))


def _valid(context: SpanContext) -> SpanContext | None:
    return context if context.trace_id.strip("0") and context.span_id.strip("0") else None


def _remote_span(parent: SpanContext) -> otel.Span:
    flags = otel.TraceFlags(otel.TraceFlags.SAMPLED if parent.sampled else otel.TraceFlags.DEFAULT)
    state = otel.TraceState.from_header([parent.state]) if parent.state else None
    return otel.NonRecordingSpan(
        otel.SpanContext(
            int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags, trace_state=state
        )
    )


def _begin_otel(tracer: otel.Tracer, span: Span, above: Span | None) -> SpanContext:
    """Start the same span in OpenTelemetry, which knows the one above unless that one is not its own."""
    foreign = span.parent if above is None or above.otel_span is None else None
    within = None if foreign is None else otel.set_span_in_context(_remote_span(foreign))
    started = tracer.start_span(span.name, within, _OTEL_KINDS[span.kind], span.attributes)
    span.otel_span = started
    span.otel_token = otel_context.attach(otel.set_span_in_context(started))
    made = started.get_span_context()
    flags, state = made.trace_flags, made.trace_state
    return SpanContext(f"{made.trace_id:032x}", f"{made.span_id:016x}", flags.sampled, state.to_header())


def _end_otel(span: Span) -> None:
    started, token = span.otel_span, span.otel_token
    if started is None or token is None:
        return
    for name, value in span.attributes.items():
        started.set_attribute(name, value)
    if span.error is not None:
        started.set_attribute("error.type", span.error)
        started.set_status(otel.StatusCode.ERROR)
    started.end()
    otel_context.detach(token)


def _summary(span: Span, seconds: float) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "spanId": span.context.span_id,
        "parentSpanId": None if span.parent is None else span.parent.span_id,
        "name": span.name,
        "kind": span.kind,
        "durationMs": round(seconds * 1000, 3),
        "status": "OK" if span.error is None else "ERROR",
        "attributes": span.attributes,
        "at": span.started,
    }
    if span.error is not None:
        summary["attributes"] = {**summary["attributes"], "error.type": span.error}
    return summary


def _finished(trace: _Trace) -> dict[str, Any]:
    root = trace.spans[-1]
    spans = sorted(trace.spans, key=lambda kept: float(kept["at"]))
    began = float(root["at"])
    for kept in spans:
        kept["offsetMs"] = round((float(kept.pop("at")) - began) * 1000, 3)
    finished: dict[str, Any] = {
        "traceId": trace.root.context.trace_id,
        "operation": root["name"],
        "durationMs": root["durationMs"],
        "status": root["status"],
        "spanCount": len(spans) + trace.dropped,
        "timestamp": datetime.fromtimestamp(trace.at, UTC).isoformat().replace("+00:00", "Z"),
        "spans": spans,
    }
    return finished
