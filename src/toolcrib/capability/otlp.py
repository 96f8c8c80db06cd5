"""Export of a capability's spans over OTLP/HTTP; needs the `otel` extra, so it is imported only for an endpoint.

One provider per capability: its label is the service, its share is sampled, and nothing else of the process is touched.
"""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased


def span_provider(endpoint: str, service: str, sampling: float) -> TracerProvider:
    """A provider that sends a capability's spans in batches; `shutdown()` sends the rest.

    Args:
        endpoint: base URL of the collector, or the URL of its traces.
        service: value of `service.name`.
        sampling: share of traces that begin here, 0 to 1.
    """
    url = endpoint.rstrip("/")
    if not url.endswith("/v1/traces"):
        url += "/v1/traces"
    resource = Resource.create({"service.name": service})
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sampling)))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return provider
