"""How log lines look, and which job and which trace each is about."""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from service.job import Job
from service.telemetry import tracing

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039 - never changed in place
# Lines from where no job is at hand name theirs in the text; a message's number is none of a part.
_NAMED = re.compile(r"\b(?:job ([0-9a-f]{32})(?:\.([0-9]+))?|webhook ([0-9a-f]{32})\.[0-9]+)\b")


@contextmanager
def about(**facts: Any) -> Iterator[None]:
    """Lines that are logged meanwhile, in this thread or task, are about this: `job`, `part`, `attempt`, `fence`."""
    token = _about.set({**_about.get(), **{name: value for name, value in facts.items() if value is not None}})
    try:
        yield
    finally:
        _about.reset(token)


def of(job: Job) -> dict[str, Any]:
    """The `extra` of a line about a job, logged from where that job is not what is being done."""
    trace = tracing.Trace.parse(job.trace)
    return {"about": {"job": job.id, **({"trace_id": trace.trace_id} if trace else {})}}


def take_up(job: Job) -> None:
    """All that the thread does from now on, to its end, is about this job."""
    _about.set({"job": job.id})
    tracing.go_to(job.trace)


def set_up(level: str, form: Literal["text", "json"]) -> None:
    """Log to stderr, in one form or the other."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class JsonLines(logging.Formatter):
    """One JSON object a line, in ASCII: whatever a message holds, it breaks neither the line nor the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            "process": record.process,
            "thread": record.threadName,
            **_concerns(record, message),
        }
        if record.exc_info and record.exc_info[0]:
            kind, err, _ = record.exc_info
            line["error"] = {
                "type": f"{kind.__module__}.{kind.__qualname__}",
                "message": str(err),
                "stack": self.formatException(record.exc_info),
            }
        return json.dumps(line, default=str)


def _concerns(record: logging.LogRecord, message: str) -> dict[str, Any]:
    """What the line says for itself goes before what is being done where it is logged."""
    found = _NAMED.search(message)
    named = {"job": found[1] or found[3], **({"part": int(found[2])} if found[2] else {})} if found else {}
    told: Mapping[str, Any] = getattr(record, "about", None) or {}
    around = _about.get()
    if (own := {**named, **told}).get("job", around.get("job")) != around.get("job"):
        return own  # of another job than the one at hand, so nothing at hand is about it
    trace = tracing.here()
    at_hand = {"trace_id": trace.trace_id, "span_id": trace.span_id} if trace else {}
    return {**at_hand, **around, **own}
