"""Does every job stand where it should after the trouble, once and no more, and is nothing left behind?"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from media_samples import Pixels, packets_of, planes_of, timestamps

from chaos.cluster import Cluster, Shape, record_of
from chaos.work import Clients, Door, End, Order
from service.blobs import FileStore
from service.broker import keys
from service.broker.janitor import Janitor
from service.job import JobState, Lane

_PARTS = f"{keys.PREFIX}job:*.*"
# Given the same planes, x264 does not always make the same bytes of them: measured 2026-11-21 with PyAV 18.1 on clips
# of 80x64, one in four came out a little otherwise; never without its macroblock tree, nor without assembler code.
_ENCODER_DB = 40.0
_FINAL = {state.value for state in JobState if state.is_final}


@dataclass(slots=True)
class Tally:
    """What came of a run."""

    seed: int
    rows: list[tuple[str, object]] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    def table(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)


@dataclass(slots=True)
class Found:
    """The jobs as they stand, by the API's word and by the queue's."""

    documents: dict[str, dict[str, Any]]
    records: dict[str, dict[str, Any]]
    violations: list[str]

    def of_name(self, name: str) -> list[str]:
        return [job_id for job_id, record in self.records.items() if record["job"]["name"] == name]


def look_at(cluster: Cluster, orders: Sequence[Order], clients: Clients) -> Found:
    """Ask API and queue for all they know, and hold it against what the clients were told."""
    with cluster.client() as client:
        listed = list(_listed(client))
        found = Found(
            documents={document["id"]: document for document in listed},
            records={
                job_id: record_of(cluster.redis, job_id) for job_id in cluster.redis.zrange(keys.jobs(None), 0, -1)
            },
            violations=[f"{text} ({times} times)" for text, times in clients.complaints.items()],
        )
        wrong = found.violations
        wrong += [f"{job_id} is listed {n} times" for job_id, n in Counter(d["id"] for d in listed).items() if n > 1]
        if found.documents.keys() != found.records.keys():
            wrong.append(f"listed and indexed jobs differ: {sorted(found.documents.keys() ^ found.records.keys())}")
        for order in orders:
            wrong += _wrong_with(order, found, cluster.shape)
        for order in orders:
            if order.key and order.job_id in found.documents:
                before = order.job_id
                clients.ask(client, order)
                if order.job_id != before:
                    wrong.append(f"{order.name}: its key gave job {before}, and now {order.job_id}")
    for job_id, document in found.documents.items():
        wrong += _wrong_with_end(cluster, job_id, document["state"])
    wrong += _wrong_with_queue(cluster, found)
    return found


def _listed(client: httpx.Client) -> Iterator[dict[str, Any]]:
    cursor: str | None = None
    while True:
        page = client.get("/jobs", params={"limit": 50} | ({"cursor": cursor} if cursor else {})).raise_for_status()
        yield from page.json()["jobs"]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            return


def _wrong_with(order: Order, found: Found, shape: Shape) -> Iterator[str]:
    """One order, one job, in the state that it had to come to."""
    if order.job_id is None:
        yield f"{order.name}: was never answered"
        return
    made = found.of_name(order.name)
    most = 1 if order.key else order.tries
    if len(made) > most:
        yield f"{order.name}: asked {order.tries} times, it is {len(made)} jobs: {made}"
    document = found.documents.get(order.job_id)
    if document is None:
        # Its own client may have removed it: told twice, the second time it was over. Or Redis was killed before it had
        # written what it had answered, where it is set so that it may.
        if order.end is not End.UNWANTED and shape.fsync == "always":
            yield f"{order.name}: job {order.job_id} was accepted and is missing"
        return
    state, error = document["state"], document["error"] or {}
    ends = {End.DONE: {"succeeded"}, End.BROKEN: {"failed"}, End.UNWANTED: {"cancelled", "succeeded"}}[order.end]
    ran_out = state == "failed" and document["attempts"] >= shape.max_attempts
    if state not in ends and not ran_out:
        reason = f" ({error.get('code')}: {error.get('detail')}) after {document['attempts']} attempts"
        yield f"{order.name}: job {order.job_id} is {state}{reason if error else ''}, not {order.end}"
    if state == "failed" and not ran_out and error.get("code") != "bad_input":
        yield f"{order.name}: job {order.job_id} failed for {error.get('code')}, and its input is at fault"


def _wrong_with_end(cluster: Cluster, job_id: str, state: str) -> Iterator[str]:
    if state not in _FINAL:
        yield f"job {job_id} is {state} after all is over"
    told = [
        json.loads(fields["data"])["state"]
        for _, fields in cluster.redis.xrange(f"{keys.PREFIX}events:{job_id}")
        if fields["event"] == "state"
    ]
    ends = [one for one in told if one in _FINAL]
    if ends != [state] or told[-1] != state:
        yield f"job {job_id} is {state}, and its events tell {told}"


def _wrong_with_queue(cluster: Cluster, found: Found) -> Iterator[str]:
    """Streams empty, indexes true, sums right, and nothing of parts left."""
    redis = cluster.redis
    for lane in Lane:
        left, void = redis.xlen(keys.work(lane)), redis.scard(f"{keys.PREFIX}void:{lane}")
        pending = redis.xpending(keys.work(lane), keys.GROUP)["pending"] if redis.exists(keys.work(lane)) else 0
        if left or void or pending:
            yield f"lane {lane} has {left} entries, {pending} pending and {void} void after all is over"
        if load := int(redis.hget(f"{keys.PREFIX}load", lane) or 0):
            yield f"lane {lane} is said to have {load} pixels to do, and has none"
    # Those of a failed video that are done are kept for its replay.
    parts = [key for key in redis.scan_iter(_PARTS, count=1000) if not _is_kept(found, key)]
    if parts:
        yield f"{len(parts)} keys of parts are left: {sorted(parts)[:5]}"
    for state in JobState:
        index = set(redis.zrange(keys.jobs(state), 0, -1))
        true = {job_id for job_id, record in found.records.items() if record.get("state") == state}
        if index != true:
            yield f"the index of {state} jobs is wrong in {sorted(index ^ true)}"
    failed = Counter(job_id for job_id, record in found.records.items() if record.get("state") == "failed")
    letters = Counter(fields["job"] for _, fields in redis.xrange(keys.DEAD))
    if failed != letters:
        yield f"failed jobs and dead letters differ: {sorted((failed - letters) + (letters - failed))}"
    counted = counters_of(cluster)
    for lane in set(Lane) - {Lane.VIDEO_PART}:
        ended = sum(counted[f"{name}:{lane}"] for name in ("succeeded", "failed", "cancelled"))
        if counted[f"accepted:{lane}"] != ended:
            yield f"lane {lane}: {counted[f'accepted:{lane}']:.0f} jobs were accepted, and {ended:.0f} ended"


def _is_kept(found: Found, key: str) -> bool:
    video = found.records.get(key.removeprefix(keys.job("")).partition(".")[0], {})
    return video.get("state") == "failed" and "parts" in video


def counters_of(cluster: Cluster) -> Counter[str]:
    return Counter({name: round(float(value), 3) for name, value in cluster.redis.hgetall(keys.COUNTER_HASH).items()})


def leftovers(cluster: Cluster, queue_url: str) -> Iterator[str]:
    """After a sweep of the janitor: files that no job needs, and blobs that a job needs and has not."""
    janitor = Janitor(queue_url, cluster.settings(), FileStore(cluster.data_dir / "blobs"), grace_s=0.0)
    janitor.sweep()
    janitor.close()
    redis = cluster.redis
    needed: set[str] = set()
    for key in redis.scan_iter(f"{keys.PREFIX}blob:*", count=1000):
        users = redis.smembers(key)
        if gone := [job_id for job_id in users if not redis.exists(keys.job(job_id))]:
            yield f"{key} is kept for jobs that are gone: {gone}"
        needed.add(key.removeprefix(keys.blob("")))
    kept = {path.name for path in (cluster.data_dir / "blobs").glob("??/*")}
    if kept - needed:
        yield f"{len(kept - needed)} blobs are kept for nobody"
    if needed - kept:
        yield f"{len(needed - kept)} blobs are needed and gone: {sorted(needed - kept)[:3]}"
    blobs = cluster.data_dir / "blobs"
    for path in cluster.data_dir.rglob("*"):
        kept_for_good = path.parent.parent == blobs or path.parent == cluster.data_dir / "engines"
        if path.is_file() and not kept_for_good and path.name != "lock":
            yield f"a file is left over: {path.relative_to(cluster.data_dir)}"
    for folder in (cluster.data_dir / "spool").iterdir():
        yield f"a folder is left over: {folder.relative_to(cluster.data_dir)}"


def fetch(client: httpx.Client, job_id: str, document: Mapping[str, Any]) -> tuple[bytes, list[str]]:
    """A result, and what is wrong with how it is told."""
    content = client.get(f"/jobs/{job_id}/result").raise_for_status().content
    told = (document["result"]["sha256"], document["result"]["bytes"])
    wrong = (
        []
        if told == (hashlib.sha256(content).hexdigest(), len(content))
        else [f"job {job_id}: result and its hash differ"]
    )
    return content, wrong


def differences(order: Order, content: bytes, quiet: bytes, folder: Path) -> Iterator[str]:
    """Between a result and that of a quiet run: images by their bytes, videos by what they show and sound."""
    if content == quiet:
        return
    if order.door is not Door.VIDEO:
        yield f"{order.name}: the result is not that of a quiet run"
        return
    one, other = folder / f"chaos-{order.file_name}", folder / f"quiet-{order.file_name}"
    one.write_bytes(content)
    other.write_bytes(quiet)
    if timestamps(one) != timestamps(other):
        yield f"{order.name}: {len(timestamps(one))} frames, in a quiet run {len(timestamps(other))}, or at other times"
    if packets_of(one, "audio") != packets_of(other, "audio"):
        yield f"{order.name}: the sound is not that of a quiet run"
    frames, quiet_frames = planes_of(one), planes_of(other)
    lossless = order.fields.get("codec") == "ffv1"
    unlike = [
        number
        for number, (planes, quiet_planes) in enumerate(zip(frames, quiet_frames, strict=False))
        if not all(_alike(*pair, lossless=lossless) for pair in zip(planes, quiet_planes, strict=True))
    ]
    if unlike or len(frames) != len(quiet_frames):
        yield f"{order.name}: frames {unlike[:10]} are not those of a quiet run ({len(frames)} of {len(quiet_frames)})"


def _alike(plane: Pixels, quiet: Pixels, *, lossless: bool) -> bool:
    if lossless or plane.shape != quiet.shape:
        return np.array_equal(plane, quiet)
    power = float(np.mean((plane.astype(np.float64) - quiet) ** 2))
    return power <= 255**2 * 10 ** (-_ENCODER_DB / 10)
