"""An order's way through the services as OpenTelemetry's spans, sent by OTLP; needs the extra ``traces``.

A publisher's span begins a trace, whose number goes with the event in the header ``traceparent``; a worker and a read
model that get an event with it add a span of their own. What is sent where, and how many orders are followed, is
OpenTelemetry's own to say: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER`` and its further variables. Where no
sampler is chosen, one order in a hundred is followed: following each takes longer than the work on it.
"""

import os
import random

from nats.aio.msg import Msg
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_TRACES_SAMPLER
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

HEADER = "traceparent"
SHARE = 0.01
"""Share of the orders that are followed where nobody chose a sampler."""
_propagator = TraceContextTextMapPropagator()


class OrderTracer:
    """Makes the spans of one service.

    Spans wait in memory and are sent in the background. Of more than fit (``OTEL_BSP_MAX_QUEUE_SIZE``, 2,048), the rest
    are dropped with a warning.
    """

    def __init__(self, service: str) -> None:
        self._share = 1.0 if os.environ.get(OTEL_TRACES_SAMPLER) else SHARE
        self._provider = TracerProvider(resource=Resource.create({"service.name": service}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("mesh_lab.orders")

    def place(self, subject: str) -> Span | None:
        """Begin the span of an event that is published; ``None`` where the sampler leaves this order out."""
        if self._share < random.random():  # a sampler of OpenTelemetry takes 10 µs to leave an order out
            return None
        return self._begin("publish", subject, SpanKind.PRODUCER)

    def follow(self, step: str, msg: Msg) -> Span | None:
        """Begin the span of what is done with an event; ``None`` for one that nobody follows."""
        return self._begin(step, msg.subject, SpanKind.CONSUMER, msg.headers) if HEADER in (msg.headers or {}) else None

    def headers(self, span: Span) -> dict[str, str]:
        """Return the header that joins what follows from a message to its span."""
        headers: dict[str, str] = {}
        _propagator.inject(headers, set_span_in_context(span))
        return headers

    def _begin(self, step: str, subject: str, kind: SpanKind, headers: dict[str, str] | None = None) -> Span | None:
        about = {"messaging.system": "nats", "messaging.destination.name": subject, "messaging.operation.name": step}
        # An empty context in place of none: no span of whoever calls this is the parent.
        context = _propagator.extract(headers or {}, Context())
        span = self._tracer.start_span(f"{step} {subject.rpartition('.')[2]}", context, kind, about)
        return span if span.is_recording() else None

    def close(self) -> None:
        """Send what waits, for as long as ``OTEL_EXPORTER_OTLP_TIMEOUT`` allows; blocks."""
        self._provider.shutdown()
