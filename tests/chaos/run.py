"""One run: work under trouble, then peace, then the reckoning, and the same work again in quiet to compare with."""

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from chaos import tally as reckoning
from chaos.cluster import Cluster, Shape
from chaos.hooks import wrong_with_calls
from chaos.tally import Found, Tally
from chaos.trouble import Heal, Step, schedule, told
from chaos.work import Clients, Door, End, Order, make_orders
from service.job import Lane

Say = Callable[[str], None]

_SAMPLES = 100  # of the time that a picture takes while videos run
_BUSY_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large a run is, and which."""

    images: int
    videos: int
    seed: int
    rounds: int = 1  # of every trouble
    shape: Shape = field(default_factory=Shape)


def run(plan: Plan, root: Path, say: Say) -> Tally:
    """
    Args:
        root: an empty directory; logs and results that differ stay in it.

    Raises:
        Stuck: what must happen did not; the logs tell more.
    """
    started = time.monotonic()

    def tell(text: str) -> None:
        say(f"{time.monotonic() - started:6.1f} s  {text}")

    inputs = root / "inputs"
    inputs.mkdir(parents=True)
    orders = make_orders(plan.images, plan.videos, plan.seed, inputs)
    for order in orders:
        order.key = None if order.door is Door.SYNC else f"{plan.seed}-{order.name}"
    rng = random.Random(plan.seed)
    steps = schedule(rng, plan.rounds)
    with Cluster(root, plan.shape, plan.seed) as cluster:
        for order in orders:
            if order.door is not Door.SYNC:
                order.fields["webhook_url"] = cluster.receiver.url
        tell(f"{sum(plan.shape.pools)} workers are ready, over {plan.shape.server}, data on {cluster.disk}")
        clients = Clients(cluster)
        try:
            _trouble(cluster, clients, orders, steps, rng, tell)
            cluster.wait_until(clients.are_done, "every client to be answered")
            tell("all is healed, and every client answered")
            cluster.wait_until(cluster.is_drained, "the queue to be empty")
            cluster.wait_until(cluster.is_ready, "all workers to be back")
            tell("the queue is empty")
            cluster.receiver.be_kind()
            cluster.wait_until(cluster.has_told, "every webhook to be delivered")
            tell("every receiver is told")
            found = reckoning.look_at(cluster, orders, clients)
            tally = Tally(plan.seed, violations=found.violations)
            tally.violations += wrong_with_calls(cluster.receiver, found.documents, found.records)
            tally.violations += reckoning.leftovers(cluster, f"unix://{cluster.queue_socket}")
            tally.rows += _rows(cluster, plan, orders, steps, clients, found)
            tell("once more, in quiet")
            tally.rows += _compare(cluster, clients, orders, found, root, tally)
        finally:
            clients.close()
    tally.rows += [
        ("seed", plan.seed),
        ("wall time", f"{time.monotonic() - started:.0f} s"),
        ("violations", len(tally.violations)),
    ]
    return tally


def _trouble(
    cluster: Cluster, clients: Clients, orders: Sequence[Order], steps: Sequence[Step], rng: random.Random, tell: Say
) -> None:
    """Hand the work in bit by bit, so that every trouble meets some."""
    open_ends: list[Heal] = []
    for step, ration in zip(steps, _rations(orders, len(steps)), strict=True):
        clients.send(ration)
        cluster.waited_for(cluster.holders, _BUSY_WITHIN_S)
        cluster.pause(step.before_s)
        held = sum(map(len, cluster.holders().values()))
        tell(f"{step.name}, {held} leases held" + (", until after the next" if step.overlaps else ""))
        heal = step.strike(cluster, rng)
        cluster.pause(step.lasts_s)
        while open_ends:
            open_ends.pop()()
        if step.overlaps:
            open_ends.append(heal)
        else:
            heal()
    while open_ends:
        open_ends.pop()()


def _rations(orders: Sequence[Order], count: int) -> list[list[Order]]:
    """Videos spread evenly, as they are what keeps workers at work, and pictures between them."""
    videos = [order for order in orders if order.door is Door.VIDEO]
    images = [order for order in orders if order.door is not Door.VIDEO]
    rations = [images[number::count] for number in range(count)]
    for number, video in enumerate(videos):
        rations[number * count // len(videos)].insert(0, video)
    return rations


def _rows(
    cluster: Cluster, plan: Plan, orders: Sequence[Order], steps: Sequence[Step], clients: Clients, found: Found
) -> list[tuple[str, object]]:
    counted: Counter[str] = Counter()
    for name, value in reckoning.counters_of(cluster).items():
        counted[name.partition(":")[0]] += value
    states = Counter(document["state"] for document in found.documents.values())
    reasons = Counter(d["error"]["code"] for d in found.documents.values() if d["state"] == "failed")
    lossless = "nothing may be lost" if plan.shape.fsync == "always" else "kill -9 of Redis may lose its last 2 s"
    return [
        ("orders", f"{len(orders)} ({plan.images} images, {plan.videos} videos)"),
        ("accepted", sum(order.job_id is not None for order in orders)),
        ("jobs", f"{len(found.documents)} (a sync try that was cut off leaves one too)"),
        ("accepted, and missing", sum(order.job_id not in found.documents for order in orders if not order.removals)),
        ("succeeded", states["succeeded"]),
        *((f"failed: {reason}", number) for reason, number in sorted(reasons.items())),
        ("dead-lettered", int(counted["dead_lettered"])),
        ("cancelled", states["cancelled"]),
        ("parts of videos done", int(reckoning.counters_of(cluster)[f"succeeded:{Lane.VIDEO_PART}"])),
        ("redelivered", int(counted["redelivered"])),
        ("retried", int(counted["retried"])),
        ("released", int(counted["released"])),
        ("lease_lost (refused by the broker)", int(counted["lease_lost"])),
        ("webhooks", _told_of(cluster)),
        ("leases that workers gave up as lost", _logged(cluster, "was given to another worker")),
        ("most attempts", max((document["attempts"] for document in found.documents.values()), default=0)),
        *((f"tries answered {why}", number) for why, number in sorted(clients.refusals.items())),
        *((name, number) for name, number in told(steps).items()),
        ("appendfsync", f"{plan.shape.fsync}: {lossless}"),
        ("disk", cluster.disk),
    ]


def _told_of(cluster: Cluster) -> str:
    calls = cluster.receiver.calls
    messages = {call.message for call in calls}
    again = sum(call.taken for call in calls) - len({call.message for call in calls if call.taken})
    return f"{len(messages)} messages in {len(calls)} calls, {again} of them taken once more"


def _logged(cluster: Cluster, words: str) -> int:
    return sum(log.read_text(errors="replace").count(words) for log in cluster.logs.iterdir())


def _compare(
    cluster: Cluster, clients: Clients, orders: Sequence[Order], found: Found, root: Path, tally: Tally
) -> list[tuple[str, object]]:
    """Have the same done by a service that nobody troubles; meanwhile measure how long pictures wait beside videos."""
    done = [
        order
        for order in orders
        if order.end is End.DONE and found.documents.get(order.job_id or "", {}).get("state") == "succeeded"
    ]
    quiet = [
        replace(order, key=order.key and f"quiet-{order.key}", tries=0, job_id=None, answer=None) for order in done
    ]
    before = reckoning.counters_of(cluster)
    videos = [order for order in quiet if order.door is Door.VIDEO]
    clients.send(videos)
    cluster.wait_until(clients.are_done, "the videos to be accepted")
    with cluster.client() as client:
        waits = _time_pictures(cluster, client, clients, quiet, videos)
        clients.send(order for order in quiet if order.job_id is None)
        cluster.wait_until(lambda: clients.are_done() and cluster.is_drained(), "the quiet run to end")
        folder = root / "results"
        folder.mkdir()
        for order, again in zip(done, quiet, strict=True):
            assert order.job_id
            assert again.job_id
            content, wrong = reckoning.fetch(client, order.job_id, found.documents[order.job_id])
            tally.violations += wrong
            document = client.get(f"/jobs/{again.job_id}").raise_for_status().json()
            if document["state"] != "succeeded":
                tally.violations.append(f"{order.name}: in quiet it is {document['state']}: {document['error']}")
                continue
            quiet_content, wrong = reckoning.fetch(client, again.job_id, document)
            tally.violations += wrong
            tally.violations += reckoning.differences(order, content, quiet_content, folder)
            if order.answer not in (None, document["result"]["sha256"]):
                tally.violations.append(f"{order.name}: what was answered on the line is not the quiet run's")
    spent = Counter(reckoning.counters_of(cluster))
    spent.subtract(before)
    rows: list[tuple[str, object]] = [("results compared with a quiet run's", len(done))]
    if parts := spent[f"succeeded:{Lane.VIDEO_PART}"]:
        rows.append(("a part of a video, mean", f"{spent[f'run_seconds:{Lane.VIDEO_PART}'] / parts * 1000:.0f} ms"))
    if len(waits) > 1:
        p50, p95 = statistics.median(waits), statistics.quantiles(waits, n=20)[-1]
        rows.append((f"POST /denoise/image beside videos, {len(waits)} times", f"p50 {p50:.0f} ms, p95 {p95:.0f} ms"))
    return rows


def _time_pictures(
    cluster: Cluster, client: httpx.Client, clients: Clients, quiet: Sequence[Order], videos: Sequence[Order]
) -> list[float]:
    """Milliseconds that pictures took on the line while videos ran."""
    pictures = [order for order in quiet if order.door is Door.SYNC]
    if not pictures or not videos:
        return []
    cluster.waited_for(cluster.holders, _BUSY_WITHIN_S)
    waits: list[float] = []
    while len(waits) < _SAMPLES and not all(_is_over(client, order.job_id) for order in videos):
        picture = pictures[len(waits) % len(pictures)]
        clients.ask(client, picture)
        waits.append(picture.seconds * 1000)
        cluster.look()
    return waits


def _is_over(client: httpx.Client, job_id: str | None) -> bool:
    document: dict[str, Any] = client.get(f"/jobs/{job_id}").raise_for_status().json()
    return document["state"] in ("succeeded", "failed", "cancelled", "expired")
