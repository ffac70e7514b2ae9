"""Does every caller who asked for it hear of the end, from nobody but us, and nobody else anything at all?

Receivers are real servers on this machine, queue servers are real too; only names are answered by the tests themselves.
"""

import asyncio
import base64
import contextlib
import io
import ipaddress
import itertools
import json
import logging
import queue
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import trustme
from api_support import PATIENCE_S, PlayedWorker, noisy_png, served
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from redis import Redis
from standardwebhooks import Webhook, WebhookVerificationError

from service.broker import keys
from service.broker.embedded import EmbeddedServer, bundled_binary
from service.broker.lease import Lease, LeaseClient
from service.broker.outbox import Delivery, Outbox
from service.broker.queue import QueueClient
from service.errors import BadInput, problem
from service.job import InputFacts, Job, Lane, Metrics, Options, Outcome, Record, Result, document_of, new_job_id
from service.settings import Settings
from service.supervise import environment_of
from service.webhooks.delivery import AT_ONCE, AT_ONCE_PER_HOST, Courier, pause_after
from service.webhooks.egress import AT_ONCE_PER_ADDRESS, Answer, CallFailed, Egress, Resolve, look_up
from service.webhooks.target import Target, target_of, why_forbidden
from service.webhooks.turns import LONGEST_PAUSE_S, SHORTEST_PAUSE_S, TurnedAway, Turns

ROOT = Path(__file__).parent.parent
SECRET = f"whsec_{base64.b64encode(bytes(range(24))).decode()}"
NEXT_SECRET = f"whsec_{base64.b64encode(bytes(range(100, 164))).decode()}"
INSTALLED = shutil.which("redis-server")
SERVERS = {"valkey": bundled_binary(), "redis": Path(INSTALLED) if INSTALLED else None}
BORN = itertools.count()
SOON_S = 0.001  # the pause before another try, where a test wants it at once

Answered = TypeVar("Answered")


# --- a receiver


@dataclass
class Heard:
    """A request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.body)
        return told


@dataclass
class Receiver:
    """A server that keeps what it hears, and answers as told: one line of `answers` each, then 204 for ever."""

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)  # while clear, nobody gets an answer
    heard: "queue.Queue[Heard]" = field(default_factory=queue.Queue)
    port: int = 0
    secure: bool = False

    def url(self, host: str = "127.0.0.1", path: str = "/hook?for=me") -> str:
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{path}"

    def next(self) -> Heard:
        return self.heard.get(timeout=PATIENCE_S)

    @contextlib.contextmanager
    def serving(self, trust: ssl.SSLContext | None = None) -> Iterator["Receiver"]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.heard.put(Heard(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                assert receiver.go.wait(PATIENCE_S)
                status, headers = receiver.answers.pop(0) if receiver.answers else (204, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A caller that hangs up is no error here."""

        server = Server(("127.0.0.1", 0), Handler)
        if trust:
            server.socket = trust.wrap_socket(server.socket, server_side=True)
            self.secure = True
        self.port = server.server_address[1]
        self.go.set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.go.set()
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver().serving() as running:
        yield running


@pytest.fixture
def another() -> Iterator[Receiver]:
    with Receiver().serving() as running:
        yield running


@contextlib.contextmanager
def talking(say: Callable[[Any], None]) -> Iterator[int]:
    """A server that reads a request and then says what it likes, on the bare connection. Gives its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):
                say(self.wfile)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A caller that hangs up is what these stories are about."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# --- a queue, jobs, and those who carry the news


@pytest.fixture(scope="module", params=[name for name, binary in SERVERS.items() if binary])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("outbox"), binary=SERVERS[request.param]) as running:
        yield running


@pytest.fixture
def url(server: EmbeddedServer) -> str:
    with Redis.from_url(server.url) as link:
        link.flushall()
    return server.url


def settings_of(**changes: Any) -> Settings:
    closed_network = {"webhook_secret": SECRET, "webhook_allow_http": True, "webhook_allow_private": True}
    return Settings(**{**closed_network, "webhook_retry_s": SOON_S, **changes})


def a_job(webhook: str | None) -> Job:
    return Job(
        id=f"{next(BORN):012x}{new_job_id()[12:]}",
        kind="image",
        lane=Lane.IMAGE_BATCH,
        model="dncnn",
        options=Options(),
        input_blob="a" * 64,
        input=InputFacts(content_type="image/png", bytes=1, width=1, height=1),
        name="picture",
        created_at=time.time(),
        webhook=webhook,
    )


def an_outcome() -> Outcome:
    result = Result(blob="c" * 64, content_type="image/png", bytes=1, sha256="c" * 64, file_name="picture.png")
    return Outcome(result=result, metrics=Metrics(psnr_db=30.0), backend="torch", precision="fp32")


def ask(url: str, question: Callable[[QueueClient], Any]) -> Any:
    async def asked() -> Any:
        async with QueueClient(url, Settings()) as client:
            return await question(client)

    return asyncio.run(asked())


def put(url: str, webhook: str | None) -> Job:
    job = a_job(webhook)
    ask(url, lambda client: client.put(job))
    return job


def record_in(url: str, job: Job) -> Record:
    record = ask(url, lambda client: client.get(job.id))
    assert isinstance(record, Record)
    return record


def work(url: str, end: Callable[[LeaseClient, Lease], None]) -> None:
    """Lease the one job there is, and end it so."""
    with LeaseClient(url, Settings(), "worker") as worker:
        lease = worker.lease(list(Lane), PATIENCE_S)
        assert lease is not None
        end(worker, lease)


def done(worker: LeaseClient, lease: Lease) -> None:
    worker.ack(lease, an_outcome())


def failed(worker: LeaseClient, lease: Lease) -> None:
    worker.bury(lease, problem(422, "bad_input", "The input cannot be denoised", "it ends too soon"))


@contextlib.contextmanager
def courier(url: str, settings: Settings, resolve: Resolve = look_up) -> Iterator[None]:
    stop, carrier = threading.Event(), Courier(url, settings, resolve=resolve, look_every_s=0.05)
    thread = threading.Thread(target=carrier.run_forever, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def outbox(url: str, sender: str = "sender", **changes: Any) -> Iterator[Outbox]:
    opened = Outbox(url, settings_of(**changes), sender)
    try:
        yield opened
    finally:
        opened.close()


def taken(box: Outbox) -> Delivery:
    delivery = box.take(PATIENCE_S)
    assert delivery is not None
    return delivery


def counted(url: str, name: str) -> float:
    counters: dict[str, float] = ask(url, lambda client: client.counters())
    return counters.get(f"{name}:{Lane.IMAGE_BATCH}", 0.0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def left_over(url: str) -> set[str]:
    """Keys of the outbox, beside the stream itself."""
    with Redis.from_url(url, decode_responses=True) as link:
        assert link.xlen(keys.HOOKS) == 0
        return {name for name in link.scan_iter(f"{keys.PREFIX}hook*") if name != keys.HOOKS}


# --- what is told


def test_a_job_that_is_done_is_told_with_its_document_and_our_signature(url: str, receiver: Receiver) -> None:
    job = put(url, receiver.url())
    work(url, done)
    with courier(url, settings_of(webhook_secret=f"{SECRET} {NEXT_SECRET}")):
        heard = receiver.next()
        until(lambda: counted(url, "webhooks_delivered") == 1)
    document = document_of(record_in(url, job)).model_dump(mode="json")
    assert heard.event == {"type": "job.succeeded", "timestamp": document["finished_at"], "data": document}
    assert heard.path == "/hook?for=me"
    assert heard.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert heard.headers["content-type"] == "application/json"
    assert "webhook" not in heard.event["data"]
    for secret in (SECRET, NEXT_SECRET):  # while one replaces the other, either will do
        assert Webhook(secret).verify(heard.body, heard.headers) == heard.event
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(heard.body.replace(b"succeeded", b"cancelled"), heard.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{base64.b64encode(bytes(32)).decode()}").verify(heard.body, heard.headers)
    assert left_over(url) == set()


def test_a_job_that_failed_is_told_with_its_reason(url: str, receiver: Receiver) -> None:
    put(url, receiver.url())
    work(url, failed)
    with courier(url, settings_of()):
        event = receiver.next().event
    assert (event["type"], event["data"]["error"]["detail"]) == ("job.failed", "it ends too soon")


def test_a_job_cancelled_while_it_waits_or_runs_is_told(url: str, receiver: Receiver) -> None:
    waiting = put(url, receiver.url())
    ask(url, lambda client: client.cancel(waiting.id))

    def cancel(worker: LeaseClient, lease: Lease) -> None:
        ask(url, lambda client: client.cancel(lease.job.id))
        worker.cancelled(lease)

    running = put(url, receiver.url())
    work(url, cancel)
    with courier(url, settings_of()):
        events = [receiver.next().event for _ in range(2)]
    assert {event["type"] for event in events} == {"job.cancelled"}
    assert {event["data"]["id"] for event in events} == {waiting.id, running.id}


def test_a_job_without_a_webhook_leaves_nothing_in_the_outbox(url: str) -> None:
    put(url, None)
    work(url, done)
    assert counted(url, "webhooks_posted") == 0
    assert left_over(url) == set()


def test_a_replayed_job_is_told_anew(url: str, receiver: Receiver) -> None:
    job = put(url, receiver.url())
    work(url, failed)
    with courier(url, settings_of()):
        first = receiver.next()
        ask(url, lambda client: client.replay(job.id))
        work(url, done)
        second = receiver.next()
    assert [one.event["type"] for one in (first, second)] == ["job.failed", "job.succeeded"]
    assert first.id != second.id


def test_news_is_of_the_end_even_when_the_job_is_removed_before_it_is_told(url: str, receiver: Receiver) -> None:
    job = put(url, receiver.url())
    work(url, done)
    document = document_of(record_in(url, job)).model_dump(mode="json")
    ask(url, lambda client: client.remove(job.id))
    with courier(url, settings_of()):
        assert receiver.next().event["data"] == document


# --- at least once


def test_a_receiver_that_fails_twice_gets_the_same_message_a_third_time(url: str, receiver: Receiver) -> None:
    receiver.answers = [(500, {}), (404, {})]
    put(url, receiver.url())
    work(url, done)
    with courier(url, settings_of()):
        tries = [receiver.next() for _ in range(3)]
        until(lambda: counted(url, "webhooks_delivered") == 1)
    assert len({(one.id, one.body) for one in tries}) == 1
    for one in tries:
        Webhook(SECRET).verify(one.body, one.headers)
    assert counted(url, "webhooks_retried") == 2
    assert left_over(url) == set()


def test_a_receiver_is_left_alone_for_as_long_as_it_asks(url: str, receiver: Receiver) -> None:
    receiver.answers = [(503, {"Retry-After": "3600"})]
    put(url, receiver.url())
    work(url, done)
    with courier(url, settings_of()):
        receiver.next()
        until(lambda: counted(url, "webhooks_retried") == 1)
    with Redis.from_url(url) as link:
        [(_, due)] = link.zrange(f"{keys.PREFIX}hooks:due", 0, -1, withscores=True)
        assert due - link.time()[0] > 3500


def test_pauses_grow_threefold_to_six_hours_and_reach_over_a_day() -> None:
    pauses = [pause_after(attempt, 5.0) for attempt in range(1, 12)]
    for attempt, pause in enumerate(pauses):
        middle = min(5.0 * 3**attempt, 6 * 3600.0)
        assert 0.8 * middle <= pause <= 1.2 * middle
    assert sum(pauses) > 20 * 3600
    assert pause_after(100, 5.0) <= 1.2 * 6 * 3600


def test_a_receiver_that_is_gone_is_not_asked_again(url: str, receiver: Receiver) -> None:
    receiver.answers = [(410, {})]
    job = put(url, receiver.url())
    work(url, done)
    with courier(url, settings_of()):
        heard = receiver.next()
        until(lambda: counted(url, "webhooks_dead") == 1)
    with outbox(url) as box:
        [dead] = box.dead_letters(10)
    assert (dead.id, dead.job_id, dead.attempts) == (heard.id, job.id, 1)
    assert "410" in dead.reason
    assert left_over(url) == {keys.HOOKS_DEAD}


def test_a_message_is_given_up_after_its_last_attempt_with_the_reason(
    url: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [(500, {}), (502, {})]
    put(url, receiver.url(path="/hook?token=hidden"))
    work(url, done)
    with caplog.at_level(logging.DEBUG), courier(url, settings_of(webhook_max_attempts=2)):
        until(lambda: counted(url, "webhooks_dead") == 1)
    with outbox(url) as box:
        [dead] = box.dead_letters(10)
    assert (dead.attempts, dead.reason) == (2, f"127.0.0.1:{receiver.port} answered 502")
    assert counted(url, "webhooks_retried") == 1
    assert "given up" in caplog.text
    assert "hidden" not in caplog.text
    assert SECRET.removeprefix("whsec_") not in caplog.text


def test_a_sender_killed_in_the_middle_is_replaced_by_another(url: str, receiver: Receiver) -> None:
    put(url, receiver.url())
    work(url, done)
    receiver.go.clear()
    program = (
        "import sys, threading; from service.settings import Settings; from service.webhooks.delivery import Courier\n"
        "settings = Settings(webhook_secret=sys.argv[2], webhook_allow_http=True, webhook_allow_private=True)\n"
        "Courier(sys.argv[1], settings).run_forever(threading.Event())"
    )
    with subprocess.Popen([sys.executable, "-c", program, url, SECRET], cwd=ROOT) as doomed:
        first = receiver.next()
        doomed.send_signal(signal.SIGKILL)
    receiver.go.set()
    with courier(url, settings_of(webhook_timeout_s=0.1)):
        second = receiver.next()
        until(lambda: counted(url, "webhooks_delivered") == 1)
    assert (first.id, first.body) == (second.id, second.body)


def test_a_sender_that_wakes_too_late_has_nothing_more_to_say(url: str) -> None:
    put(url, "http://127.0.0.1:8000/")
    work(url, done)
    with outbox(url, "slow") as slow, outbox(url, "quick", webhook_timeout_s=0.05) as quick:
        first = taken(slow)
        second = taken(quick)
        assert (second.id, first.attempt, second.attempt) == (first.id, 1, 2)
        assert not slow.retry(first, 0.0, "late")
        assert not slow.delivered(first)
        assert quick.delivered(second)
        assert not quick.delivered(second)
        assert quick.take(0) is None
    assert left_over(url) == set()


def test_a_message_that_kills_its_senders_is_given_up(url: str) -> None:
    put(url, "http://127.0.0.1:8000/")
    work(url, done)
    with outbox(url, "one", webhook_max_attempts=2, webhook_timeout_s=0.05) as box:
        assert [taken(box).attempt for _ in range(2)] == [1, 2]  # each time it falls silent
        until(lambda: box.take(0) is None and counted(url, "webhooks_dead") == 1)
        assert box.dead_letters(1)[0].reason == "its sender was lost at every attempt"
    assert left_over(url) == {keys.HOOKS_DEAD}


def test_news_that_cannot_be_read_ends_among_the_dead_and_the_next_is_sent(url: str, receiver: Receiver) -> None:
    for _ in range(2):
        job = put(url, receiver.url())
        work(url, done)
    with Redis.from_url(url) as link:
        link.hset(f"{keys.PREFIX}hook:{job.id}.1", "record", '{"job": "of another version"}')
    with courier(url, settings_of()):
        assert receiver.next().id != f"{job.id}.1"
        until(lambda: counted(url, "webhooks_dead") == 1)
    with outbox(url) as box:
        assert "cannot be read" in box.dead_letters(1)[0].reason


def test_a_postponed_message_has_lost_no_attempt(url: str) -> None:
    put(url, "http://127.0.0.1:8000/")
    work(url, done)
    with outbox(url) as box:
        for _ in range(3):
            delivery = taken(box)
            assert delivery.attempt == 1
            assert box.postpone(delivery, 0.0)


def test_a_sender_outlives_the_loss_of_all_data(url: str, receiver: Receiver) -> None:
    with courier(url, settings_of()), Redis.from_url(url) as link:
        until(lambda: link.info("clients")["blocked_clients"] == 1)
        link.flushall()
        put(url, receiver.url())
        work(url, done)
        assert receiver.next().event["type"] == "job.succeeded"


# --- in nobody's way


def test_a_slow_receiver_holds_up_no_other(url: str, receiver: Receiver, another: Receiver) -> None:
    receiver.go.clear()
    names = {"slow.example.com": receiver, "quick.example.com": another}
    for _ in range(AT_ONCE_PER_HOST + 3):
        put(url, receiver.url("slow.example.com"))
        work(url, done)
    put(url, another.url("quick.example.com"))
    work(url, done)
    with courier(url, settings_of(), lambda name, port: ["127.0.0.1"] if name in names else []):
        assert another.next().event["type"] == "job.succeeded"
        assert receiver.heard.qsize() <= AT_ONCE_PER_HOST
        receiver.go.set()


def test_many_names_of_one_slow_receiver_leave_room_for_others(url: str, receiver: Receiver) -> None:
    receiver.go.clear()
    names = [f"slow-{number}.example.com" for number in range(AT_ONCE + 2)]
    for name in names:
        put(url, receiver.url(name))
        work(url, done)
    with courier(url, settings_of(), here), Redis.from_url(url, decode_responses=True) as link:
        waiting = len(names) - AT_ONCE_PER_ADDRESS
        until(lambda: link.zcard(f"{keys.PREFIX}hooks:due") == waiting)
        until(lambda: receiver.heard.qsize() == AT_ONCE_PER_ADDRESS)
        attempts = [
            link.hget(f"{keys.PREFIX}hook:{one}", "attempts") for one in link.zrange("quietframe:hooks:due", 0, -1)
        ]
        assert attempts == ["0"] * waiting
        receiver.go.set()


class Clock:
    """Tells the time that the test says."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def pause_before(turns: Turns, key: str) -> float:
    with pytest.raises(TurnedAway) as told:
        turns.enter(key)
    return told.value.pause_s


def test_the_more_wait_for_a_slow_receiver_the_later_each_comes_again() -> None:
    clock = Clock()
    turns = Turns(2, clock)
    both = [turns.enter("slow") for _ in range(2)]
    assert pause_before(turns, "slow") <= 1.5 * SHORTEST_PAUSE_S  # nothing is known of it yet
    clock.now += 10
    for waiting in range(2, 200):
        pause_s = min(waiting * 10 / 2, LONGEST_PAUSE_S)
        assert 0.5 * pause_s <= pause_before(turns, "slow") <= 1.5 * pause_s
    turns.enter("quick").leave()
    for turn in both:
        turn.leave()
    both = [turns.enter("slow") for _ in range(2)]
    assert 0.5 * 5 <= pause_before(turns, "slow") <= 1.5 * 5  # it took 10 s the last time


def test_a_crowd_before_a_quick_receiver_comes_again_soon() -> None:
    clock = Clock()
    turns = Turns(2, clock)
    for _ in range(100):
        both = [turns.enter("quick") for _ in range(2)]
        clock.now += 0.02
        assert all(pause_before(turns, "quick") <= 1.5 * SHORTEST_PAUSE_S for _ in range(50))
        for turn in both:
            turn.leave()


def test_receivers_that_nobody_waits_for_are_forgotten_and_the_others_are_not() -> None:
    turns = Turns(1)
    turn = turns.enter("slow")
    for number in range(3000):
        turns.enter(f"quick-{number}").leave()
    pause_before(turns, "slow")
    turn.leave()
    turns.enter("slow").leave()


def test_a_message_taken_while_the_worker_stops_loses_no_attempt(url: str, receiver: Receiver) -> None:
    settings, stop = settings_of(webhook_max_attempts=1), threading.Event()
    stopping = threading.Thread(
        target=Courier(url, settings, look_every_s=PATIENCE_S).run_forever, args=(stop,), daemon=True
    )
    stopping.start()
    with Redis.from_url(url) as link:
        until(lambda: link.info("clients")["blocked_clients"] == 1)
    stop.set()
    put(url, receiver.url())  # the last job of this worker
    work(url, done)
    stopping.join(PATIENCE_S)
    assert receiver.heard.empty()
    with courier(url, settings):  # of another
        until(lambda: counted(url, "webhooks_delivered") == 1)
    assert counted(url, "webhooks_dead") == 0


def test_a_worker_that_stops_does_not_wait_for_a_receiver(url: str, receiver: Receiver) -> None:
    put(url, receiver.url())
    work(url, done)
    receiver.go.clear()
    with courier(url, settings_of()):
        receiver.next()
    # The courier is gone, and the receiver has still not answered.
    assert not receiver.go.is_set()
    assert counted(url, "webhooks_delivered") == 0


def test_where_webhooks_are_off_nothing_is_sent_and_nothing_lost(url: str, receiver: Receiver) -> None:
    put(url, receiver.url())
    work(url, done)
    Courier(url, Settings()).run_forever(threading.Event())  # comes back by itself
    with courier(url, settings_of()):
        assert receiver.next().event["type"] == "job.succeeded"


# --- where it may go


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://example.com/", "begins with ftp://"),
        ("http://example.com/", "begins with http://"),
        ("javascript:alert(1)", "must be https://"),
        ("//example.com/", "must be https://"),
        ("https://example.com/#top", "without a fragment"),
        ("https:///path", "no host"),
        ("https://me:pass@example.com/", "user name or password"),
        ("https://example.com@127.0.0.1/", "user name or password"),
        ("https://example.com\\@127.0.0.1/", "user name or password"),
        ("https://example.com\\.evil.com/", "no domain name"),
        ("https://exa mple.com/", "blanks"),
        ("https://example.com/\r\nHost:x", "blanks"),
        ("https://bücher.example/", "xn--"),
        ("https://127。0。0。1/", "xn--"),
        ("https://example.com/ä", "ASCII"),
        ("https://example.com/{a}", "as %XX"),
        ("https://example.com/%zz", "as %XX"),
        ("https://example.com:22/", "port 22"),
        ("https://example.com:80/", "port 80"),
        ("https://example.com:0/", "port 0"),
        ("https://example.com:65536/", "port 65536"),
        ("https://example.com:/", "no host"),
        ("https://example.com:443:443/", "no host"),
        ("https://example.com./", "without the dot"),
        ("https://localhost/", "without a dot"),
        ("https://-x.example/", "no domain name"),
        ("https://a..example/", "no domain name"),
        ("https://a%2eexample/", "no domain name"),
        (f"https://{'a' * 64}.example/", "no domain name"),
        (f"https://example.com/{'a' * 1024}", "at most 1024"),
        ("https://127.0.0.1/", "a private network"),
        ("https://127.0.0.1./", "four decimal numbers"),
        ("https://127.1/", "four decimal numbers"),
        ("https://0x7f.1/", "four decimal numbers"),
        ("https://0x7f000001/", "four decimal numbers"),
        ("https://2130706433/", "four decimal numbers"),
        ("https://0177.0.0.1/", "four decimal numbers"),
        ("https://127.0.0.0x1/", "four decimal numbers"),
        ("https://169.254.169.254/latest/meta-data/", "link-local"),
        ("https://[::1]/", "a private network"),
        ("https://[::]/", "set apart"),
        ("https://[::ffff:127.0.0.1]/", "not an address of the internet"),
        ("https://[64:ff9b::7f00:1]/", "a private network"),
        ("https://[2002:7f00:1::]/", "set apart"),
        ("https://[fe80::1%25eth0]/", "without a zone"),
        ("https://[fd00:ec2::254]/", "link-local"),
        ("https://[1.2.3.4]/", "IPv6 in brackets"),
        ("https://168.63.129.16/", "credentials"),
    ],
)
def test_a_url_that_is_not_to_be_called_is_refused_in_words(url: str, why: str) -> None:
    with pytest.raises(BadInput, match=r"^webhook_url ") as refused:
        target_of(url, allow_http=False, allow_private=False)
    assert why in str(refused.value)
    assert "pass" not in str(refused.value).replace("password", "")


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("https://example.com", ("example.com", 443, "/"), "example.com"),
        ("HTTPS://Hooks.Example.COM:443/a/b?c=d/e", ("hooks.example.com", 443, "/a/b?c=d/e"), "hooks.example.com"),
        ("https://example.com:8443?x", ("example.com", 8443, "/?x"), "example.com:8443"),
        ("https://xn--bcher-kva.example/%C3%A4", ("xn--bcher-kva.example", 443, "/%C3%A4"), "xn--bcher-kva.example"),
        ("https://8.8.8.8/", ("8.8.8.8", 443, "/"), "8.8.8.8"),
        ("https://[2606:4700::1111]:8443/", ("2606:4700::1111", 8443, "/"), "[2606:4700::1111]:8443"),
        ("https://[64:ff9b::8.8.8.8]/", ("64:ff9b::808:808", 443, "/"), "[64:ff9b::808:808]"),
    ],
)
def test_a_url_that_may_be_called_is_taken_apart(url: str, target: tuple[str, int, str], authority: str) -> None:
    found = target_of(url, allow_http=False, allow_private=False)
    assert found == Target(secure=True, host=target[0], port=target[1], path=target[2])
    assert found.authority == authority


def test_a_closed_network_may_be_called_but_never_the_clouds_keys() -> None:
    for url in ("http://localhost:8080/", "https://10.1.2.3/", "http://[fd12::1]/", "https://receiver/"):
        target_of(url, allow_http=True, allow_private=True)
    for url in ("http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://0.0.0.0/", "http://224.0.0.1/"):
        with pytest.raises(BadInput):
            target_of(url, allow_http=True, allow_private=True)


NOT_OF_THE_INTERNET = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
]


@st.composite
def inner_addresses(draw: st.DrawFn) -> ipaddress.IPv4Address:
    network = ipaddress.IPv4Network(draw(st.sampled_from(NOT_OF_THE_INTERNET)))
    return network[draw(st.integers(0, network.num_addresses - 1))]


IPV4_FORMS: list[Callable[[ipaddress.IPv4Address], str]] = [
    str,
    lambda a: f"{a}.",
    lambda a: str(int(a)),
    lambda a: hex(int(a)),
    lambda a: f"0{int(a):o}",
    lambda a: ".".join(hex(byte) for byte in a.packed),
    lambda a: ".".join(f"0{byte:o}" for byte in a.packed),
    lambda a: f"{a.packed[0]}.{int(a) & 0xFFFFFF}",
    lambda a: f"0x{a.packed[0]:X}.{a.packed[1]}.{int(a) & 0xFFFF}",
    lambda a: f"[{a}]",
]
IPV6_FORMS: list[Callable[[ipaddress.IPv4Address], ipaddress.IPv6Address]] = [
    lambda a: ipaddress.IPv6Address(f"::ffff:{a}"),
    lambda a: ipaddress.IPv6Address(f"::{a}"),
    lambda a: ipaddress.IPv6Address(f"::ffff:0:{a}"),
    lambda a: ipaddress.IPv6Address(f"64:ff9b::{a}"),
    lambda a: ipaddress.IPv6Address(f"64:ff9b:1::{a}"),
    lambda a: ipaddress.IPv6Address(0x2002 << 112 | int(a) << 80 | 1),  # 6to4
    lambda a: ipaddress.IPv6Address(0x2001_0000 << 96 | int(a) << 64),  # Teredo, the server
    lambda a: ipaddress.IPv6Address(0x2001_0000 << 96 | int(a) ^ 0xFFFF_FFFF),  # Teredo, the client
]


@given(address=inner_addresses(), form=st.sampled_from(IPV4_FORMS))
def test_no_way_to_write_an_inner_address_gets_through(
    address: ipaddress.IPv4Address, form: Callable[[ipaddress.IPv4Address], str]
) -> None:
    assert why_forbidden(address, allow_private=False)
    with pytest.raises(BadInput):
        target_of(f"https://{form(address)}/", allow_http=False, allow_private=False)


@given(address=inner_addresses(), wrap=st.sampled_from(IPV6_FORMS))
def test_no_ipv6_address_around_an_inner_one_gets_through(
    address: ipaddress.IPv4Address, wrap: Callable[[ipaddress.IPv4Address], ipaddress.IPv6Address]
) -> None:
    wrapped = wrap(address)
    assert why_forbidden(wrapped, allow_private=False)
    for written in (str(wrapped), wrapped.exploded, wrapped.exploded.upper()):
        with pytest.raises(BadInput):
            target_of(f"https://[{written}]/", allow_http=False, allow_private=False)


@given(number=st.integers(0, 2**128 - 1))
@example(number=int(ipaddress.IPv6Address("fd20:ce::254")))
@example(number=int(ipaddress.IPv6Address("3fff::1")))
@example(number=int(ipaddress.IPv6Address("5f00::1")))
@example(number=int(ipaddress.IPv6Address("2001:db8::1")))
@example(number=int(ipaddress.IPv6Address("100::1")))
def test_of_ipv6_only_what_is_given_out_for_the_internet_is_called(number: int) -> None:
    address = ipaddress.IPv6Address(number)
    if why_forbidden(address, allow_private=False) is None:
        assert address.is_global
        assert not address.is_multicast
        assert number >> 125 == 1
    if why_forbidden(address, allow_private=True) is None:
        assert number >> 125 == 1 or number >> 121 == 0xFC >> 1 or number == 1


URLISH = st.text(st.sampled_from("htps:/@.#?%[]\\0123456789abcdefx-_~ é\t\n"), max_size=40)


@given(rest=URLISH)
@example(rest="a.b:80@c.d/")
@example(rest="a.b#@c.d/")
@example(rest="a.b\\c.d/")
@example(rest="[::1]@a.b/")
def test_whatever_is_accepted_has_one_reading(rest: str) -> None:
    url = f"https://{rest}"
    try:
        target = target_of(url, allow_http=False, allow_private=False)
    except BadInput:
        return
    other = urlsplit(url)
    if ":" in target.host:
        assert ipaddress.ip_address(other.hostname or "") == ipaddress.ip_address(target.host)
    else:
        assert other.hostname == target.host
    assert (other.port or 443) == target.port
    assert other.username is None


# --- how it gets there


def call(target: str, resolve: Resolve = look_up, **changes: Any) -> Answer:
    settings = settings_of(**changes)
    judged = target_of(target, allow_http=settings.webhook_allow_http, allow_private=settings.webhook_allow_private)
    return Egress(settings, resolve).post(judged, b"{}", {})


def test_a_name_that_leads_inside_is_not_called(url: str, receiver: Receiver) -> None:
    asked = []

    def inside(name: str, port: int) -> list[str]:
        asked.append((name, port))
        return ["127.0.0.1"]

    put(url, receiver.url("hooks.example.com"))
    work(url, done)
    with courier(url, settings_of(webhook_allow_private=False, webhook_max_attempts=2), inside):
        until(lambda: counted(url, "webhooks_dead") == 1)
    with outbox(url) as box:
        [dead] = box.dead_letters(10)
    assert "its address 127.0.0.1 is not called: a private network" in dead.reason
    # Looked up at every attempt, as a whole name: a search list would try it inside first.
    assert asked == [("hooks.example.com.", receiver.port)] * 2
    assert receiver.heard.empty()


def test_a_name_with_one_address_inside_is_not_called_at_all(receiver: Receiver) -> None:
    with pytest.raises(CallFailed, match=r"its address 10\.0\.0\.1 is not called"):
        call(receiver.url("hooks.example.com"), lambda *_: ["8.8.8.8", "10.0.0.1"], webhook_allow_private=False)


def test_a_name_is_looked_up_once_and_what_was_checked_is_called(receiver: Receiver) -> None:
    answers = iter([["127.0.0.1"]])  # a second question would find nothing
    assert call(receiver.url("hooks.example.com"), lambda *_: next(answers)).status == 204
    assert receiver.next().headers["host"] == f"hooks.example.com:{receiver.port}"


def test_of_several_addresses_the_first_that_answers_is_taken(receiver: Receiver) -> None:
    assert call(receiver.url("hooks.example.com"), lambda *_: ["::1", "127.0.0.1"]).status == 204


@pytest.mark.parametrize(
    ("error", "why"), [(OSError("no such name"), "no such name"), (UnicodeError("too long"), "too long")]
)
def test_a_name_that_cannot_be_looked_up_is_said_so(error: Exception, why: str) -> None:
    def fail(name: str, port: int) -> list[str]:
        raise error

    with pytest.raises(CallFailed, match=rf"hooks\.example\.com: it cannot be looked up \({why}\)"):
        call("https://hooks.example.com/", fail)
    with pytest.raises(CallFailed, match="it has no address"):
        call("https://hooks.example.com/", lambda *_: [])


def test_a_name_server_that_never_answers_costs_no_more_than_the_time_limit() -> None:
    never = threading.Event()

    def wait(name: str, port: int) -> list[str]:
        never.wait(PATIENCE_S)
        return []

    with pytest.raises(CallFailed, match=r"did not answer within 0\.05 s"):
        call("https://hooks.example.com/", wait, webhook_timeout_s=0.05)
    never.set()


def test_a_redirect_is_not_followed(url: str, receiver: Receiver, another: Receiver) -> None:
    receiver.answers = [(307, {"Location": another.url()})]
    put(url, receiver.url())
    work(url, done)
    with courier(url, settings_of(webhook_max_attempts=1)):
        until(lambda: counted(url, "webhooks_dead") == 1)
    with outbox(url) as box:
        assert box.dead_letters(1)[0].reason.endswith("answered 307, and redirects are not followed")
    assert another.heard.empty()


def test_proxies_of_the_environment_are_not_asked(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver().serving() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url(path=""))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
        assert call(receiver.url()).status == 204
    assert proxy.heard.empty()


def test_an_answer_that_trickles_for_ever_ends_with_the_time_limit() -> None:
    enough = threading.Event()

    def trickle(out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not enough.wait(0.005):
            out.write(b"x")

    with talking(trickle) as port:
        with pytest.raises(CallFailed, match=r"did not answer within 0\.2 s"):
            call(f"http://127.0.0.1:{port}/", webhook_timeout_s=0.2)
        enough.set()


def test_of_an_endless_answer_only_the_beginning_is_read() -> None:
    sent = io.BytesIO()

    def flood(out: Any) -> None:
        out.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:  # until the other side hangs up
            sent.write(b"x")
            out.write(bytes(65536))

    with talking(flood) as port:
        assert call(f"http://127.0.0.1:{port}/").status == 200
    assert len(sent.getvalue()) * 65536 < 1_000_000_000


@pytest.mark.parametrize("garbage", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 two hundred\r\n\r\n"])
def test_what_is_no_http_is_no_answer(garbage: bytes) -> None:
    with talking(lambda out: out.write(garbage)) as port, pytest.raises(CallFailed, match=r"^127\.0\.0\.1:"):
        call(f"http://127.0.0.1:{port}/")


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("120", 120, 120),
        ("0", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10),
        ("9" * 40, 1e8, 1e9),
    ],
)
def test_a_wish_to_wait_is_read_in_both_forms(receiver: Receiver, header: str, least: float, most: float) -> None:
    receiver.answers = [(503, {"Retry-After": header})]
    wish_s = call(receiver.url()).retry_after_s
    assert wish_s is not None
    assert least <= wish_s <= most


@pytest.mark.parametrize(
    "header", ["soon", "-1", "", "1.5", "Wed", f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", f"1 Jan 2024 00:00 +{'9' * 20}"]
)
def test_a_wish_that_cannot_be_read_is_none(receiver: Receiver, header: str) -> None:
    receiver.answers = [(503, {"Retry-After": header})]
    assert call(receiver.url()).retry_after_s is None


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[Receiver]:
    """A receiver that has the papers of hooks.example.com."""
    papers = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example.com").configure_cert(papers)
    with Receiver().serving(papers) as running:
        yield running


def here(name: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def test_a_certificate_is_held_against_the_name_not_the_address(secure: Receiver, authority_file: Path) -> None:
    assert call(secure.url("hooks.example.com"), here, webhook_ca_file=authority_file).status == 204
    assert secure.next().headers["host"] == f"hooks.example.com:{secure.port}"
    for host in ("other.example.com", "127.0.0.1"):
        with pytest.raises(CallFailed, match="certificate verify failed"):
            call(secure.url(host), here, webhook_ca_file=authority_file)


def test_a_certificate_that_nobody_vouches_for_is_refused(secure: Receiver) -> None:
    with pytest.raises(CallFailed, match="certificate verify failed"):
        call(secure.url("hooks.example.com"), here)
    assert secure.heard.empty()


def test_authorities_that_cannot_be_read_stop_the_sender_and_not_the_worker(
    url: str, authority_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(webhook_ca_file=authority_file)
    authority_file.unlink()  # it could be read when the worker was started
    Courier(url, settings).run_forever(threading.Event())
    assert "authority.pem cannot be read" in caplog.text


# --- what an operator sets, and what a caller asks


@pytest.mark.parametrize("wrong", ["open sesame", "whsec_", "whsec_c2hvcnQ=", "whsec_!!!", SECRET[6:], SECRET + ", x"])
def test_a_secret_of_the_wrong_form_is_refused_without_being_shown(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIETFRAME_WEBHOOK_SECRET", wrong)
    with pytest.raises(ValidationError) as refused:
        Settings()
    [error] = refused.value.errors()
    assert error["loc"] == ("webhook_secret",)
    assert "is not whsec_ followed by 24 to 64 bytes in base64" in error["msg"]
    told = f"{refused.value} {refused.value.errors()} {refused.value!r}"
    assert not any(part in told for part in wrong.replace("whsec_", "").replace(",", " ").split() if len(part) > 3)


def test_a_worker_does_not_start_with_a_wrong_secret_and_does_not_print_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIETFRAME_WEBHOOK_SECRET", f"{SECRET}, open-sesame")
    started = subprocess.run(
        [sys.executable, "-m", "service", "worker", "--redis-url", "redis://127.0.0.1:1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE_S,
        check=False,
    )
    assert started.returncode == 2
    assert "webhook_secret" in started.stderr
    assert "Traceback" not in started.stderr
    assert SECRET[6:] not in started.stderr
    assert "sesame" not in started.stderr


@pytest.mark.parametrize("blank", ["", " ", ", "])
def test_a_blank_secret_is_none(blank: str) -> None:
    assert Settings(webhook_secret=blank).webhook_keys == ()


def test_the_secret_is_in_no_dump_and_reaches_children_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIETFRAME_WEBHOOK_SECRET", f" {SECRET},{NEXT_SECRET} ")
    settings = Settings()
    assert settings.webhook_keys == (bytes(range(24)), bytes(range(100, 164)))
    assert SECRET[6:] not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    environment = environment_of(settings, "redis://127.0.0.1:1")
    assert Settings(webhook_secret=environment["QUIETFRAME_WEBHOOK_SECRET"]).webhook_keys == settings.webhook_keys


@pytest.mark.parametrize("door", ["image", "video"])
def test_a_caller_may_not_ask_for_a_webhook_where_they_are_off(tmp_path: Path, fresh_redis_url: str, door: str) -> None:
    with served(Settings(data_dir=tmp_path, redis_url=fresh_redis_url, port=0)) as (api, _):
        answer = api.post(
            f"/jobs/{door}", files={"file": noisy_png()}, data={"webhook_url": "https://hooks.example.com/"}
        )
        assert answer.status_code == 422
        assert "sends no webhooks" in answer.json()["detail"]
        assert api.get("/jobs").json()["jobs"] == []


def test_a_caller_is_told_what_is_wrong_with_a_url_and_never_the_secret(tmp_path: Path, fresh_redis_url: str) -> None:
    settings = Settings(data_dir=tmp_path, redis_url=fresh_redis_url, port=0, webhook_secret=SECRET)
    with served(settings) as (api, _):

        def submit(url: str, key: str | None = None) -> Any:
            headers = {"Idempotency-Key": key} if key else {}
            return api.post("/jobs/image", files={"file": noisy_png()}, data={"webhook_url": url}, headers=headers)

        refused = submit("https://10.0.0.1/hook")
        assert refused.status_code == 422
        assert refused.json()["detail"] == "webhook_url names 10.0.0.1, which is not called: a private network"
        assert submit("").status_code == 202  # a field left empty in a browser
        # The waiting door has no use for one.
        waited = api.post(
            "/denoise/image", files={"file": noisy_png()}, data={"webhook_url": "https://hooks.example.com/"}
        )
        assert waited.status_code == 422

        accepted = submit("https://hooks.example.com/a", "one key")
        assert accepted.status_code == 422  # a key has no blanks
        accepted = submit("https://hooks.example.com/a", "one-key")
        assert accepted.status_code == 202
        assert "hooks.example.com" not in accepted.text
        assert submit("https://hooks.example.com/a", "one-key").json()["id"] == accepted.json()["id"]
        assert submit("https://hooks.example.com/b", "one-key").status_code == 422

        page = api.get("/openapi.json")
        assert SECRET[6:] not in page.text
        assert set(page.json()["webhooks"]) == {"job.succeeded", "job.failed", "job.cancelled"}
        references = {part.split('"')[0] for part in page.text.split('"#/components/schemas/')[1:]}
        assert references <= set(page.json()["components"]["schemas"])


def test_an_image_handed_in_is_told_of_when_it_is_done(
    tmp_path: Path, fresh_redis_url: str, receiver: Receiver
) -> None:
    settings = settings_of(data_dir=tmp_path, redis_url=fresh_redis_url, port=0)
    with served(settings) as (api, _), PlayedWorker(settings), courier(fresh_redis_url, settings):
        answer = api.post("/jobs/image", files={"file": noisy_png()}, data={"webhook_url": receiver.url()})
        heard = receiver.next()
        Webhook(SECRET).verify(heard.body, heard.headers)
        assert heard.event["data"] == api.get(answer.headers["location"]).json()
        assert api.get(heard.event["data"]["result"]["url"]).status_code == 200
