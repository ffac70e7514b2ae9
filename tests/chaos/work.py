"""What is the service asked to do, and who asks until there is an answer?"""

import hashlib
import queue
import random
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx
from media_samples import bgr, encoded, make_video, moments, photo

from chaos.cluster import Cluster

_CLIENTS = 4
_PAUSE_S = 0.25  # between two tries; what Retry-After says is meant for the many
_STARTED_WITHIN_S = 10.0


class Door(StrEnum):
    SYNC = "/denoise/image"
    IMAGE = "/jobs/image"
    VIDEO = "/jobs/video"


class End(StrEnum):
    """How an order is to end, whatever happens on the way."""

    DONE = "succeeded"
    BROKEN = "failed"  # its pixels cannot be read, which only a worker finds out
    UNWANTED = "cancelled"  # its client changes its mind


@dataclass(slots=True)
class Order:
    """What a client wants, and what it was told."""

    name: str  # stem of the file sent: a job made of it is known by that
    door: Door
    file_name: str
    content: bytes = field(repr=False)
    fields: dict[str, str]
    end: End = End.DONE
    key: str | None = None  # for Idempotency-Key; who waits on the line has none
    tries: int = 0
    job_id: str | None = None  # once the answer was 202 or 200
    answer: str | None = None  # hash of the bytes that came on the line
    removals: int = 0  # times that a removal was answered
    seconds: float = 0.0  # of the try that was answered


def make_orders(images: int, videos: int, seed: int, folder: Path) -> list[Order]:
    """The work, every kind of it mixed: the same for the same arguments."""
    rng = random.Random(seed)
    orders = [_image(number, rng) for number in range(images)] + [_video(number, folder) for number in range(videos)]
    rng.shuffle(orders)
    return orders


def _image(number: int, rng: random.Random) -> Order:
    height, width = rng.choice(((48, 48), (48, 64), (64, 96)))
    content = encoded(".png", bgr(photo(height, width, seed=number, moment=number)))
    order = Order(
        name=f"image-{number:03}",
        door=Door.SYNC if number % 3 == 2 else Door.IMAGE,
        file_name=f"image-{number:03}.png",
        content=content,
        fields={"model": rng.choice(("dncnn", "fitvnet-spatial"))},
    )
    if number % 12 == 4:
        order.end, order.content = End.BROKEN, _spoilt(content)
    elif number % 12 == 9:
        order.end = End.UNWANTED
    return order


def _spoilt(png: bytes) -> bytes:
    """The header is whole, so it is taken in; the pixels are not."""
    start = png.index(b"IDAT") + 4
    return png[:start] + bytes(len(png) - start)


def _video(number: int, folder: Path) -> Order:
    frames = 40 + 8 * (number % 4)
    suffix, encoder, pixel_format, audio = (
        ("mp4", "libx264", "yuv420p", "aac"),
        ("mkv", "ffv1", "yuv444p", "aac"),
        ("mkv", "ffv1", "yuv420p", None),
    )[number % 3]
    path = make_video(
        folder / f"video-{number:02}.{suffix}",
        muxer="matroska" if suffix == "mkv" else suffix,
        encoder=encoder,
        pixel_format=pixel_format,
        size=(96, 64) if number % 2 else (80, 64),
        pts=moments(frames + number),  # so that no two are equal
        options={"g": "12"} if encoder == "libx264" else None,
        audio=audio,
    )
    model = {"model": "dncnn"} if number % 4 == 2 else {}
    return Order(
        name=path.stem,
        door=Door.VIDEO,
        file_name=path.name,
        content=path.read_bytes(),
        fields=model | ({"codec": "ffv1"} if encoder == "ffv1" else {}),  # or it would come out as H.264
        end=End.UNWANTED if number % 5 == 3 else End.DONE,
    )


class Clients:
    """A few clients that ask one by one, each until it is answered, and keep what struck them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._waiting: queue.Queue[Order | None] = queue.Queue()
        self._threads = [threading.Thread(target=self._ask_all, name=f"client-{n}") for n in range(_CLIENTS)]
        self._unanswered = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.complaints: dict[str, int] = {}  # answers that no client should get, and how often they came
        self.refusals: dict[str, int] = {}  # tries that were not answered 200 or 202, and how often
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._closing.set()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def send(self, orders: Iterable[Order]) -> None:
        for order in orders:
            with self._lock:
                self._unanswered += 1
            self._waiting.put(order)

    def are_done(self) -> bool:
        with self._lock:
            return self._unanswered == 0

    def _ask_all(self) -> None:
        with self._cluster.client() as client:
            while order := self._waiting.get():
                try:
                    self.ask(client, order)
                    if order.end is End.UNWANTED and order.job_id:
                        self._change_mind(client, order, order.job_id)
                except Exception as err:
                    self._complain(f"{order.name}: the client failed: {err!r}")
                finally:
                    with self._lock:
                        self._unanswered -= 1

    def ask(self, client: httpx.Client, order: Order) -> None:
        """Send it, with the same key, until it is taken."""
        headers = {"Idempotency-Key": order.key} if order.key else {}
        while not self._closing.is_set():
            order.tries += 1
            started = time.monotonic()
            try:
                answer = client.post(
                    order.door,
                    files={"file": (order.file_name, order.content)},
                    data=order.fields,
                    headers=headers,
                )
            except httpx.TransportError as err:
                self._refused(type(err).__name__)
                self._closing.wait(_PAUSE_S)
                continue
            order.seconds = time.monotonic() - started
            if answer.status_code == 202:
                order.job_id = answer.json()["id"]
                return
            if order.door is Door.SYNC and self._took_on_the_line(answer, order):
                return
            self._judge(answer, order.name)
            self._closing.wait(_PAUSE_S)

    def _took_on_the_line(self, answer: httpx.Response, order: Order) -> bool:
        if answer.status_code == 200:
            order.job_id = answer.headers["Quietframe-Job"]
            order.answer = hashlib.sha256(answer.content).hexdigest()
        elif order.end is End.BROKEN and answer.status_code == 422 and "Quietframe-Job" in answer.headers:
            order.job_id = answer.headers["Quietframe-Job"]
        return order.job_id is not None

    def _change_mind(self, client: httpx.Client, order: Order, job_id: str) -> None:
        """Videos once they run, so that there is something to stop."""
        until = time.monotonic() + _STARTED_WITHIN_S
        while order.door is Door.VIDEO and time.monotonic() < until and not self._closing.wait(0.05):
            document = self._try(client, "GET", f"/jobs/{job_id}")
            if document is not None and document["state"] != "queued":
                break
        while not self._closing.is_set():
            answered = self._try(client, "DELETE", f"/jobs/{job_id}")
            if answered is not None:
                order.removals += 1
                return
            self._closing.wait(_PAUSE_S)

    def _try(self, client: httpx.Client, method: str, url: str) -> Any:
        """The document answered, {} where there is none, None where nobody could answer."""
        try:
            answer = client.request(method, url)
        except httpx.TransportError as err:
            self._refused(type(err).__name__)
            return None
        if answer.status_code in (200, 202):
            return answer.json()
        if answer.status_code in (204, 404):  # 404: a try before this one has removed it, and its answer was lost
            return {}
        self._judge(answer, f"{method} {url}")
        return None

    def _judge(self, answer: httpx.Response, what: str) -> None:
        self._refused(str(answer.status_code))
        problem = answer.text[:300]
        if answer.status_code != 503:
            self._complain(f"{what}: answered {answer.status_code}: {problem}")
        elif "Retry-After" not in answer.headers:
            self._complain(f"{what}: answered 503 without Retry-After: {problem}")

    def _refused(self, why: str) -> None:
        with self._lock:
            self.refusals[why] = self.refusals.get(why, 0) + 1

    def _complain(self, text: str) -> None:
        with self._lock:
            self.complaints[text] = self.complaints.get(text, 0) + 1
