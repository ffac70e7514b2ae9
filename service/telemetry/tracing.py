"""Which trace does what is done now belong to, and who is told of it?

Every request and every job belongs to a trace (W3C Trace Context, "traceparent"): log lines bear its name, and a job
carries it through the queue to whatever process takes it. Spans are told to a collector where OpenTelemetry is
installed (`quietframe[otel]`) and its `OTEL_*` variables name one; otherwise only names are passed on.
"""

import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

log = logging.getLogger(__name__)

Kind = Literal["internal", "server", "producer", "consumer"]
Value = str | bool | int | float

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_SAMPLED = 0x01
LAST_WORDS_S = 2.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Trace:
    """A place in a trace: the span that whatever comes next belongs under."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16 of them
    sampled: bool = False  # whether spans are told of it

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"

    @classmethod
    def new(cls) -> "Trace":
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @classmethod
    def parse(cls, header: str | None) -> "Trace | None":
        """What a `traceparent` says; None where it says nothing that can be relied on."""
        found = _TRACEPARENT.fullmatch(header.strip()) if header else None
        if found is None:
            return None
        version, trace_id, span_id, flags, more = found.groups()
        # Later versions may say more behind what this one says; no version may be ff, and no name all zeros.
        if version == "ff" or (version == "00" and more) or not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))


class Told(Protocol):
    """A span as the collector's side has it."""

    @property
    def trace(self) -> Trace: ...
    def set(self, attributes: Mapping[str, Value]) -> None: ...
    def rename(self, name: str) -> None: ...
    def fail(self, why: str) -> None: ...
    def end(self) -> None: ...


class Teller(Protocol):
    """Where spans go."""

    def begin(
        self, name: str, kind: Kind, under: Trace | None, attributes: Mapping[str, Value], began_s_ago: float
    ) -> Told: ...

    def close(self) -> None:
        """Send what is still to be sent; returns when that is over, whatever came of it."""


class Span:
    """What is being done now."""

    def __init__(self, trace: Trace, told: Told | None) -> None:
        self.trace = trace
        self._told = told

    def tell(self, standard: Mapping[str, Value] | None = None, **attributes: Value) -> None:
        """Add what has become known; `lane` is told as `quietframe.lane`, what is standard by its name."""
        if self._told:
            self._told.set({**(standard or {}), **_ours(attributes)})

    def rename(self, name: str) -> None:
        """What it is called is known only now."""
        if self._told:
            self._told.rename(name)

    def fail(self, why: str) -> None:
        """It did not go well."""
        if self._told:
            self._told.fail(why)


_here: ContextVar[Trace | None] = ContextVar("trace", default=None)
_teller: Teller | None = None


def here() -> Trace | None:
    """Where in which trace the code that asks is; None outside of all requests and jobs."""
    return _here.get()


def go_to(under: str | None) -> None:
    """For a thread of its own: all that it does goes under this `traceparent`."""
    _here.set(Trace.parse(under))


def exemplar() -> dict[str, str] | None:
    """What a histogram notes beside a figure, so that one can look at a trace of it."""
    trace = _here.get()
    return {"trace_id": trace.trace_id} if trace and trace.sampled else None


@contextmanager
def span(
    name: str, kind: Kind = "internal", *, under: str | None = None, quiet: bool = False, **attributes: Value
) -> Iterator[Span]:
    """Do something as a span of the trace at hand.

    Args:
        name: few of them; what there is no end of (a job's id) goes into attributes.
        kind: as OpenTelemetry has it.
        under: a `traceparent` from elsewhere; one that cannot be relied on counts as none. Without it, what is at hand,
            or else a new trace.
        quiet: whether nobody is to be told.
        attributes: what is known at the beginning.
    """
    above = Trace.parse(under) or _here.get()
    told = _teller.begin(name, kind, above, _ours(attributes), 0.0) if _teller and not quiet else None
    trace = told.trace if told else above or Trace.new()
    token = _here.set(trace)
    try:
        yield Span(trace, told)
    finally:
        with suppress(ValueError):  # a stream that its caller left is closed from elsewhere, where nothing was set
            _here.reset(token)
        if told:
            told.end()


def told(name: str, seconds: float, kind: Kind = "internal", *, under: str | None = None, **attributes: Value) -> None:
    """Tell of something that has just ended and took so long."""
    if _teller and (above := Trace.parse(under) or _here.get()) and above.sampled:
        _teller.begin(name, kind, above, _ours(attributes), seconds).end()


def start(process: str) -> None:
    """Tell spans from now on, where `OTEL_*` variables ask for it; to be called once a process.

    Args:
        process: what `service.name` is, unless the variables say.
    """
    global _teller
    if not is_wanted(os.environ):
        return
    try:
        from service.telemetry.otel import open_teller
    except ModuleNotFoundError as err:
        log.warning("no traces are told: %s is not installed; it comes with: pip install 'quietframe[otel]'", err.name)
        return
    _teller = open_teller(process)


def stop(within_s: float = LAST_WORDS_S) -> None:
    """Tell what was not told yet, and no more. A collector that is away keeps no process from ending."""
    global _teller
    closing, _teller = _teller, None
    if closing is not None:
        # In a thread that may be left behind: the exporter tries again and again, each time for ten seconds.
        thread = threading.Thread(target=closing.close, name="last spans", daemon=True)
        thread.start()
        thread.join(within_s)
        if thread.is_alive():
            log.warning("the last spans are dropped: the collector did not take them within %g s", within_s)


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether the variables name a collector or an exporter. None of them set means no: nobody listens by chance."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter:
        return exporter != "none"
    return any(environment.get(name, "").strip() for name in _ENDPOINTS)


def _ours(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"quietframe.{name}": value for name, value in attributes.items()}
