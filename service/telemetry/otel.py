"""Spans by OpenTelemetry's SDK. Loaded only where its variables ask for it."""

import os
import time
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from models.errors import QuietframeError
from service.telemetry.tracing import Kind, Teller, Told, Trace, Value

_KINDS = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_PROTOCOL = "http/protobuf"


class UnusableExporter(QuietframeError):
    """The variables ask for a way of telling spans that is not here."""


def open_teller(process: str) -> Teller:
    """A teller as the environment has it: exporter, endpoint, headers, sampler and batches by `OTEL_*`.

    Raises:
        UnusableExporter
    """
    resource = Resource.create()
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": process}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # that would wait without a bound
    provider.add_span_processor(BatchSpanProcessor(_exporter()))
    # Not made the process's global one: the web framework would then tell spans of its own beside ours.
    return _Teller(provider)


def _exporter() -> SpanExporter:
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if wanted == "console":
        return ConsoleSpanExporter()
    if wanted != "otlp":
        raise UnusableExporter(f"OTEL_TRACES_EXPORTER is {wanted!r}; there are otlp, console, none")
    protocol = next(
        (
            said
            for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
            if (said := os.environ.get(name, "").strip())
        ),
        _PROTOCOL,
    )
    if protocol != _PROTOCOL:
        raise UnusableExporter(f"the OTLP protocol is {protocol!r}; traces are told by {_PROTOCOL}")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class _Teller:
    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("quietframe")

    def close(self) -> None:
        self._provider.shutdown()

    def begin(
        self, name: str, kind: Kind, under: Trace | None, attributes: Mapping[str, Value], began_s_ago: float
    ) -> Told:
        began = time.time_ns() - int(began_s_ago * 1e9)
        made = self._tracer.start_span(
            name, _context_of(under), kind=_KINDS[kind], attributes=dict(attributes), start_time=began
        )
        return _Told(made)


class _Told:
    def __init__(self, made: OtelSpan) -> None:
        self._made = made

    @property
    def trace(self) -> Trace:
        context = self._made.get_span_context()
        return Trace(f"{context.trace_id:032x}", f"{context.span_id:016x}", context.trace_flags.sampled)

    def set(self, attributes: Mapping[str, Value]) -> None:
        self._made.set_attributes(dict(attributes))

    def rename(self, name: str) -> None:
        self._made.update_name(name)

    def fail(self, why: str) -> None:
        self._made.set_status(Status(StatusCode.ERROR, why))

    def end(self) -> None:
        self._made.end()


def _context_of(trace: Trace | None) -> Context:
    """A context of its own: what else is current in this thread is none of ours."""
    if trace is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
    above = SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(above), Context())
