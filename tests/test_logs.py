"""Log lines as JSON, and the job and the trace that each is about."""

import json
import logging
import subprocess
import sys
import threading

import pytest
from api_support import noisy_png
from watched_service import ROOT, Watched

from service.job import InputFacts, Job, Lane, Options, new_job_id
from service.pipeline.relay import read_ahead, write_behind
from service.telemetry import logs, tracing
from service.telemetry.tracing import Trace

ABOVE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=True)
ID, OTHER = new_job_id(), new_job_id()


class Lines(logging.Handler):
    """What is logged, as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.JsonLines())
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    @property
    def last(self) -> dict:
        return json.loads(self.texts[-1])


@pytest.fixture
def lines():
    handler = Lines()
    log = logging.getLogger("test_logs")
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)


@pytest.fixture
def log(lines):
    return logging.getLogger("test_logs")


def a_job(trace: str | None) -> Job:
    return Job(
        id=OTHER,
        kind="image",
        lane=Lane.IMAGE_BATCH,
        model="nlm",
        options=Options(),
        input_blob="b",
        input=InputFacts(content_type="image/png", bytes=1, width=1, height=1),
        name="n",
        created_at=0.0,
        trace=trace,
    )


def test_a_line_says_when_who_and_what(log, lines):
    log.warning("%d of %d", 1, 2)
    line = lines.last
    assert (line["level"], line["logger"], line["message"]) == ("warning", "test_logs", "1 of 2")
    assert line["time"].endswith("+00:00")
    assert "job" not in line
    assert "trace_id" not in line


def test_whatever_a_message_holds_stays_on_its_line(log, lines):
    log.info("name is %s", 'a\n{"level": "error"}\r\x1b[2J\u2028"')
    (text,) = lines.texts
    assert text.isascii()
    assert text.isprintable()
    assert json.loads(text)["message"].endswith('\x1b[2J\u2028"')


def test_an_error_brings_its_kind_its_words_and_its_stack(log, lines):
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.exception("it failed")
    error = lines.last["error"]
    assert (error["type"], error["message"]) == ("builtins.ValueError", "no such thing")
    assert "test_an_error_brings" in error["stack"]


def test_what_is_logged_while_a_job_is_worked_on_is_about_it(log, lines):
    with tracing.span("process", under=str(ABOVE)), logs.about(job=ID, part=3, attempt=2, fence=5):
        log.info("decoded")
        told = {name: lines.last[name] for name in ("job", "part", "attempt", "fence", "trace_id")}
        assert told == {"job": ID, "part": 3, "attempt": 2, "fence": 5, "trace_id": ABOVE.trace_id}
    log.info("idle")
    assert "job" not in lines.last


def test_the_threads_of_a_video_log_about_its_job(log, lines):
    def items():
        log.info("read")
        yield 1

    with logs.about(job=ID), read_ahead(items(), 2) as ahead, write_behind(lambda _: log.info("written"), 2) as put:
        for item in ahead:
            put(item)
    told = [json.loads(text) for text in lines.texts]
    assert {line["message"]: line["job"] for line in told} == {"read": ID, "written": ID}
    assert all(line["thread"] != threading.current_thread().name for line in told)


def test_a_line_about_another_job_than_the_one_at_hand_is_about_that_one(log, lines):
    with tracing.span("process", under=str(ABOVE)), logs.about(job=ID, attempt=2):
        log.warning("job %s: lease lost", OTHER, extra=logs.of(a_job(str(Trace("a" * 32, "b" * 16)))))
        assert (lines.last["job"], lines.last["trace_id"]) == (OTHER, "a" * 32)
        assert "attempt" not in lines.last
        log.warning("job %s: lease lost", OTHER, extra=logs.of(a_job(None)))
        assert lines.last["job"] == OTHER
        assert "trace_id" not in lines.last


def test_a_job_that_is_named_in_the_text_alone_is_told_too(log, lines):
    log.info("job %s.12: handed back", ID)
    assert (lines.last["job"], lines.last["part"]) == (ID, 12)
    log.info("webhook %s.1 delivered", ID)
    assert lines.last["job"] == ID
    assert "part" not in lines.last


def test_a_thread_that_takes_a_job_up_logs_about_it_to_its_end(log, lines):
    def send():
        logs.take_up(a_job(str(ABOVE)))
        log.info("sent")

    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    assert (lines.last["job"], lines.last["trace_id"]) == (OTHER, ABOVE.trace_id)
    log.info("here")
    assert "job" not in lines.last


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_form_is_as_it_was_set(form):
    code = f"import logging; from service.telemetry import logs; logs.set_up('info', {form!r}); logging.info('hello')"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout == ""
    if form == "json":
        assert json.loads(shown.stderr)["message"] == "hello"
    else:
        assert shown.stderr.endswith("INFO root: hello\n")


def test_the_worker_logs_about_a_job_in_the_trace_of_its_request(watched: Watched) -> None:
    with watched.client() as client:
        files = {"file": ("noisy.png", noisy_png(seed=21))}
        header = {"traceparent": str(ABOVE)}
        answer = client.post("/denoise/image", files=files, data={"model": "nlm"}, headers=header)
    job_id = answer.headers["Quietframe-Job"]
    line = watched.line(lambda line: line["logger"] == "service.worker" and line.get("job") == job_id)
    assert line["trace_id"] == ABOVE.trace_id
    assert (line["attempt"], line["fence"]) == (1, 1)
    about = [line for line in watched.lines if job_id in line["message"]]
    assert all(line["job"] == job_id and line["trace_id"] == ABOVE.trace_id for line in about)
    assert {line["process"] for line in watched.lines} > {line["process"] for line in about}
