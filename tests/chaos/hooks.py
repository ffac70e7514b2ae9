"""Who is called when a job is over? A receiver that is as bad as they come, and remembers what it took."""

import json
import random
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

from service.job import JobState

SECRET = "whsec_" + "Y2hhb3MgaXMgYSBsYWRkZXIgb2Yga2V5cw=="
TIMEOUT_S = 1.0  # of a try, as the senders are told
_TOO_LATE_S = 1.5
# What it does, and how often: takes it, breaks, hangs up without a word, answers when nobody waits for it any more,
# takes it and hangs up before it has said so.
_MOODS = (("take", 45), ("fail", 25), ("hang up", 10), ("dawdle", 10), ("forget to say", 10))


@dataclass(frozen=True, slots=True)
class Call:
    """One that was signed rightly, whatever was answered."""

    message: str
    type: str
    job_id: str
    state: str
    sha256: str | None  # of the result that it tells of
    taken: bool  # answered 204, or would have been


@dataclass(slots=True)
class Receiver:
    """Serves on loopback from its making until `close`."""

    seed: int
    calls: list[Call] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _rng: random.Random = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _kind: bool = False
    _server: ThreadingHTTPServer = field(init=False)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._hear(self)

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Who is killed while he calls hangs up."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, name="receiver", daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/done"

    def be_kind(self) -> None:
        """From now on everything is taken at once."""
        with self._lock:
            self._kind = True

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _hear(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        with self._lock:
            names, weights = zip(*_MOODS, strict=True)
            mood = "take" if self._kind else self._rng.choices(names, weights)[0]
        taken = mood in {"take", "forget to say"}
        try:
            Webhook(SECRET).verify(body, dict(request.headers))
            said = json.loads(body)
            job = said["data"]
            result = job["result"]["sha256"] if job["result"] else None
            call = Call(request.headers["webhook-id"], said["type"], job["id"], job["state"], result, taken)
        except (WebhookVerificationError, KeyError, TypeError, ValueError) as err:
            with self._lock:
                self.wrong.append(f"a webhook is none: {err!r}")
        else:
            with self._lock:
                self.calls.append(call)
        if mood == "dawdle":
            self._closing.wait(_TOO_LATE_S)
        if mood in {"hang up", "forget to say"}:
            request.close_connection = True
            return
        request.send_response(503 if mood == "fail" else 204)
        request.end_headers()


def wrong_with_calls(
    receiver: Receiver, documents: Mapping[str, dict[str, Any]], records: Mapping[str, dict[str, Any]]
) -> Iterator[str]:
    """Every job that is over was told of, as it ended, under one name; and nothing else was told."""
    yield from receiver.wrong
    told: defaultdict[str, list[Call]] = defaultdict(list)
    for call in receiver.calls:
        told[call.job_id].append(call)
    for job_id, record in records.items():
        calls = told[job_id]
        if not record["job"].get("webhook"):
            if calls:
                yield f"job {job_id} asked for no webhook and was told of {len(calls)} times"
            continue
        document = documents[job_id]
        state = document["state"]
        if not any(call.taken for call in calls):
            yield f"job {job_id} is {state}, and its receiver has never been told ({len(calls)} tries came)"
        ends = {(call.type, call.state) for call in calls}
        if ends - {(f"job.{state}", state)}:
            yield f"job {job_id} is {state}, and was told to be {sorted(ends)}"
        if len({call.message for call in calls}) > 1:
            yield f"job {job_id} ended once, and has {len({call.message for call in calls})} messages"
        result = document["result"]["sha256"] if state == JobState.SUCCEEDED else None
        if any(call.sha256 != result for call in calls):
            yield f"job {job_id} was told to have another result than it has"
