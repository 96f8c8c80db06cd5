"""What a capability counts and traces: names of the format, trace context in and out, and nothing when switched off."""

import asyncio
import logging
import time
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from toolcrib.capability import telemetry as telemetry_module
from toolcrib.capability.logs import LogBuffer
from toolcrib.capability.otlp import span_provider
from toolcrib.capability.spec import ControlServer, Mark
from toolcrib.capability.telemetry import Observability, Telemetry
from toolcrib.capability.tracing import NO_SPAN, Recorder
from toolcrib.errors import Unavailable

AT = Mark("naftiko.yaml", 1, 1)
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


def control(**observability: Any) -> ControlServer:
    return ControlServer(AT, observability=observability)


def lines(telemetry: Telemetry) -> list[str]:
    assert telemetry.metrics
    return telemetry.metrics.text().decode().splitlines()


# -- metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_have_the_names_and_labels_of_the_format():
    telemetry = Telemetry("ops", Observability.read(control()))
    telemetry.started()
    telemetry.observe_request("rest", "/v1/x GET", 200, 0.02, None)
    telemetry.observe_request("rest", "/v1/x GET", 502, 0.5, "upstream.down")
    telemetry.observe_step("call", "api", 0.003)
    telemetry.observe_http_client("GET", "api.test", 200, 0.3)
    telemetry.observe_http_client("GET", "api.test", 0, 3.0)
    text = lines(telemetry)
    labels = 'naftiko_adapter_type="rest",naftiko_operation_id="/v1/x GET"'
    for line in [
        f'naftiko_request_total{{{labels},status="200"}} 1.0',
        f'naftiko_request_duration_seconds_bucket{{le="0.025",{labels},status="200"}} 1.0',
        f'naftiko_request_duration_seconds_count{{{labels},status="502"}} 1.0',
        f'naftiko_request_errors{{error_type="upstream.down",{labels}}} 1.0',
        'naftiko_step_duration_seconds_count{naftiko_namespace="api",step_type="call"} 1.0',
        'naftiko_http_client_total{http_request_method="GET",http_response_status_code="200",server_address="api.test"} 1.0',
        'naftiko_http_client_total{error_type="transport",http_request_method="GET",server_address="api.test"} 1.0',
        'naftiko_capability_active{naftiko_capability="ops"} 1.0',
        "# TYPE naftiko_request_total counter",
        "# TYPE naftiko_request_duration_seconds histogram",
    ]:
        assert sorted(line) in [sorted(known) for known in text], line
    telemetry.stopped()
    assert 'naftiko_capability_active{naftiko_capability="ops"} 0.0' in lines(telemetry)


def test_two_capabilities_count_apart():
    one, two = Telemetry("one", Observability.read(control())), Telemetry("two", Observability.read(control()))
    one.observe_step("call", "x", 1)
    assert not any(line.startswith("naftiko_step_duration_seconds_count") for line in lines(two))


def test_a_family_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telemetry_module, "_SERIES", 3)
    telemetry = Telemetry("ops", Observability.read(control()))
    for number in range(10):
        telemetry.observe_http_client("GET", f"host-{number}", 200, 0.1)
    counted = [line for line in lines(telemetry) if line.startswith("naftiko_http_client_total")]
    assert len(counted) == 4
    assert any('server_address="other"' in line and line.endswith(" 7.0") for line in counted)


@pytest.mark.parametrize("settings", [Observability.read(None), Observability.read(control(enabled=False))])
def test_what_is_switched_off_records_nothing(settings: Observability):
    telemetry = Telemetry("ops", settings)
    telemetry.observe_request("rest", "x", 200, 0.1, None)
    telemetry.observe_step("call", "x", 0.1)
    telemetry.observe_http_client("GET", "x", 200, 0.1)
    telemetry.started()
    assert telemetry.metrics is None
    with telemetry.recorder.request_span(
        "rest.request", [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]
    ) as span:
        assert span is NO_SPAN
        assert telemetry.recorder.outgoing() == ()


@pytest.mark.parametrize(
    "observability",
    [
        {"traces": {"sampling": 2}},
        {"traces": {"sampling": "1"}},
        {"traces": {"propagation": "jaeger"}},
        {"traces": {"local": {"buffer-size": 0}}},
        {"traces": "yes"},
        {"enabled": "no"},
    ],
)
def test_settings_that_mean_nothing_are_refused(observability: dict[str, Any]):
    with pytest.raises(ValueError, match="observability"):
        Observability.read(control(**observability))


def test_settings_are_read_as_the_format_writes_them():
    traces = {"sampling": 0.5, "propagation": "b3", "local": {"buffer-size": 7}}
    settings = Observability.read(control(traces=traces, exporters={"otlp": {"endpoint": "{{OTEL}}"}}))
    assert settings == Observability(True, True, True, 0.5, "b3", 7, "{{OTEL}}")
    assert Observability.read(control(metrics={"local": {"enabled": False}})).metrics is False


# -- spans ------------------------------------------------------------------------------------------------------------


def test_a_trace_holds_the_spans_below_its_request():
    recorder = Recorder()
    with recorder.request_span("rest.request", [], {"naftiko.operation.id": "/x GET"}) as root:
        with recorder.span("step.call") as step:
            step.set("step.name", "a")
            with recorder.span("http.client.GET", "CLIENT") as http:
                http.fail("502")
        with recorder.span("step.lookup"):
            pass
        assert recorder.traces() == []
    (trace,) = recorder.traces()
    assert trace["operation"] == "rest.request"
    assert (trace["status"], trace["spanCount"]) == ("OK", 4)
    kept = {span["name"]: span for span in trace["spans"]}
    assert [span["name"] for span in trace["spans"]] == ["rest.request", "step.call", "http.client.GET", "step.lookup"]
    assert kept["rest.request"]["kind"] == "SERVER"
    assert kept["rest.request"]["parentSpanId"] is None
    assert kept["http.client.GET"]["parentSpanId"] == kept["step.call"]["spanId"]
    assert kept["step.lookup"]["parentSpanId"] == root.context.span_id
    assert kept["http.client.GET"]["status"] == "ERROR"
    assert kept["http.client.GET"]["attributes"] == {"error.type": "502"}
    assert kept["step.call"]["attributes"] == {"step.name": "a"}
    assert recorder.find(trace["traceId"]) is trace
    assert recorder.find("0" * 32) is None


def test_an_exception_makes_an_error_of_its_code_and_never_of_its_message():
    recorder = Recorder()
    with pytest.raises(Unavailable), recorder.span("mcp.request", "SERVER"):
        raise Unavailable("bind.unresolved", "hunter2")
    (trace,) = recorder.traces()
    assert trace["status"] == "ERROR"
    assert trace["spans"][0]["attributes"] == {"error.type": "bind.unresolved"}
    assert "hunter2" not in str(trace)


async def test_requests_at_the_same_time_do_not_mix_their_spans():
    recorder = Recorder()

    async def one(name: str, gate: asyncio.Event) -> None:
        with recorder.request_span(name, []):
            await gate.wait()
            with recorder.span(f"{name}.inner"):
                pass

    gate = asyncio.Event()
    tasks = [asyncio.create_task(one(f"r{number}", gate)) for number in range(5)]
    gate.set()
    await asyncio.gather(*tasks)
    for trace in recorder.traces():
        assert {span["name"] for span in trace["spans"]} == {trace["operation"], f"{trace['operation']}.inner"}


def test_the_buffer_keeps_the_newest_traces_and_a_trace_a_bounded_number_of_spans():
    recorder = Recorder(buffer_size=2)
    for name in ["a", "b", "c"]:
        with recorder.span(name):
            pass
    assert [trace["operation"] for trace in recorder.traces()] == ["c", "b"]
    with recorder.span("big"):
        for _ in range(1000):
            with recorder.span("small"):
                pass
    assert recorder.traces()[0]["spanCount"] == 1001
    assert len(recorder.traces()[0]["spans"]) < 600


def test_w3c_context_goes_through():
    recorder = Recorder()
    headers = [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
    with recorder.request_span("rest.request", headers) as root, recorder.span("http.client.GET", "CLIENT") as client:
        assert recorder.outgoing() == (
            ("traceparent", f"00-{TRACE}-{client.context.span_id}-01"),
            ("tracestate", "a=1,b=2"),
        )
        assert root.parent.span_id == PARENT
    assert recorder.traces()[0]["traceId"] == TRACE
    assert recorder.traces()[0]["spans"][0]["kind"] == "INTERNAL"  # as the format has it under a remote parent
    assert recorder.outgoing() == ()


@pytest.mark.parametrize(
    "value",
    [
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-x",
        "x",
        "",
    ],
)
def test_a_context_that_is_none_begins_a_trace_of_its_own(value: str):
    recorder = Recorder()
    with recorder.request_span("r", [(b"traceparent", value.encode())]) as span:
        assert span.parent is None
        assert span.context.trace_id != TRACE


@pytest.mark.parametrize(
    "headers",
    [
        [(b"b3", f"{TRACE}-{PARENT}-1".encode())],
        [(b"b3", f"{TRACE}-{PARENT}-1-{PARENT}".encode())],
        [(b"x-b3-traceid", TRACE.upper().encode()), (b"x-b3-spanid", PARENT.encode()), (b"x-b3-sampled", b"1")],
    ],
)
def test_b3_context_goes_through(headers: list[tuple[bytes, bytes]]):
    recorder = Recorder(propagation="b3")
    with recorder.request_span("r", headers) as span:
        assert recorder.outgoing() == (("b3", f"{TRACE}-{span.context.span_id}-1"),)
        assert span.parent.span_id == PARENT


def test_what_the_caller_or_chance_does_not_sample_is_passed_on_and_not_kept():
    never = Recorder(sampling=0)
    with never.span("r"):
        assert never.span("inner") is NO_SPAN
        assert never.outgoing()[0][1].endswith("-00")
    assert never.traces() == []
    with never.request_span("r", [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())]):
        pass
    assert len(never.traces()) == 1  # the caller decides
    always = Recorder()
    with always.request_span("r", [(b"traceparent", f"00-{TRACE}-{PARENT}-00".encode())]):
        assert always.outgoing()[0][1].startswith(f"00-{TRACE}-")
        assert always.outgoing()[0][1].endswith("-00")
    assert always.traces() == []


def test_spans_go_to_opentelemetry_under_the_same_ids():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = Telemetry("ops", Observability.read(control()), provider)
    recorder = telemetry.recorder
    with (
        recorder.request_span("rest.request", [(b"traceparent", f"00-{TRACE}-{PARENT}-01".encode())], {"a": 1}) as root,
        recorder.span("http.client.GET", "CLIENT") as inner,
    ):
        inner.fail("500")
        assert TRACE in recorder.outgoing()[0][1]
    exported = {span.name: span for span in exporter.get_finished_spans()}
    assert f"{exported['rest.request'].context.span_id:016x}" == root.context.span_id
    assert f"{exported['rest.request'].parent.span_id:016x}" == PARENT
    assert exported["http.client.GET"].parent.span_id == exported["rest.request"].context.span_id
    assert exported["http.client.GET"].status.status_code.name == "ERROR"
    assert recorder.traces()[0]["traceId"] == TRACE
    provider.shutdown()


def test_an_endpoint_gets_its_own_provider():
    provider = span_provider("http://127.0.0.1:9/", "ops", 0.5)
    assert provider.resource.attributes["service.name"] == "ops"
    provider.shutdown()


def test_a_span_that_is_off_costs_next_to_nothing():
    recorder = Recorder(active=False)
    started = time.perf_counter()
    for _ in range(10_000):
        with recorder.span("x"):
            pass
    assert (time.perf_counter() - started) / 10_000 < 20e-6  # about 0.15 µs where nothing else runs


# -- logs -------------------------------------------------------------------------------------------------------------


def record(level: int, message: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("toolcrib.x", level, "x.py", 1, message, (), None)
    made.__dict__.update(fields)
    return made


def test_the_log_keeps_the_last_records_without_secrets():
    buffer = LogBuffer(3)
    for number in range(5):
        buffer.handle(record(logging.INFO, f"n{number}"))
    assert [entry["event"] for entry in buffer.last(10)] == ["n2", "n3", "n4"]
    assert [entry["event"] for entry in buffer.last(1)] == ["n4"]
    assert buffer.last(0) == []
    try:
        raise ValueError("Bearer hunter2hunter2")
    except ValueError as error:
        info = (ValueError, error, None)
    buffer.handle(
        record(
            logging.ERROR,
            {"event": "it.failed", "api_key": "hunter2", "n": {1: object}, "url": "http://u:hunter2@h/"},
            exc_info=info,
        )
    )
    buffer.handle(record(logging.DEBUG, "Authorization: Bearer hunter2hunter2"))
    (entry,) = buffer.last(10, "error")
    assert entry["event"] == "it.failed"
    assert entry["level"] == "error"
    assert "ValueError" in entry["exception"]
    assert "hunter2" not in str(buffer.last(10))


async def test_a_follower_that_is_slow_loses_the_oldest_records_and_is_told():
    buffer = LogBuffer()
    with buffer.follow("warning") as follower:
        assert buffer.followers == 1
        buffer.handle(record(logging.INFO, "quiet"))
        for number in range(600):
            await asyncio.to_thread(
                buffer.handle, record(logging.WARNING, f"n{number}")
            ) if number < 2 else buffer.handle(record(logging.WARNING, f"n{number}"))
        ran = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(ran.set_result, None)
        await ran  # all that was offered before has been taken
        batch, lost = await anext(follower.batches())
        assert (len(batch), lost) == (500, 100)
        assert batch[-1]["event"] == "n599"
    assert buffer.followers == 0
