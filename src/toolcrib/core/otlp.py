"""Export of OpenTelemetry spans; needs the `otel` extra, so only `wiring` imports it, when an endpoint is set."""

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def install(endpoint: str) -> None:
    """Send spans in batches to an OTLP/HTTP endpoint."""
    provider = TracerProvider(resource=Resource.create({"service.name": "toolcrib"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
