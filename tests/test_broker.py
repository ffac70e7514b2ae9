"""Does a job end in exactly one way, whatever happens to those who carry it?

The stories run over every server there is: the bundled Valkey, and Redis where one is installed.
"""

import asyncio
import contextlib
import functools
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from service.blobs import FileStore
from service.broker import keys
from service.broker.card import ModelReady, WorkerCard
from service.broker.embedded import DataDirBusy, EmbeddedServer, bundled_binary
from service.broker.janitor import Janitor
from service.broker.lease import Lease, LeaseClient
from service.broker.queue import QueueClient
from service.errors import (
    BadInput,
    IdempotencyConflict,
    JobCancelled,
    JobNotFound,
    JobNotReady,
    LeaseLost,
    NotReady,
    QueueFull,
    ResultGone,
    problem,
)
from service.job import (
    FrameTableBlob,
    InputFacts,
    Job,
    JobState,
    Lane,
    Metrics,
    Options,
    Outcome,
    Part,
    PartOutcome,
    Preview,
    Progress,
    Result,
    StageSeconds,
    new_job_id,
)
from service.settings import Settings

pytestmark = pytest.mark.anyio

PATIENCE_S = 20.0  # a bound on waiting, never a claim about speed
SHORT_LEASE_S = 0.15
IMAGES = (Lane.IMAGE_INTERACTIVE, Lane.IMAGE_BATCH)
INSTALLED = shutil.which("redis-server")
SERVERS = {"valkey": bundled_binary(), "redis": Path(INSTALLED) if INSTALLED else None}

NOISY, CLEAN, RESTORED = "a" * 64, "b" * 64, "c" * 64
BORN = itertools.count()


@pytest.fixture(scope="module", params=[name for name, binary in SERVERS.items() if binary])
def binary(request: pytest.FixtureRequest) -> Path:
    found = SERVERS[request.param]
    assert found is not None
    return found


@pytest.fixture(scope="module")
def server(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("broker"), binary=binary) as running:
        yield running


@pytest.fixture
def url(server: EmbeddedServer) -> str:
    with Redis.from_url(server.url) as link:
        link.flushall()
    return server.url


@pytest.fixture
def settings() -> Settings:
    return Settings(lease_ttl_s=30, max_attempts=3, max_queued_jobs=50)


@pytest.fixture
async def queue(url: str, settings: Settings) -> AsyncIterator[QueueClient]:
    async with QueueClient(url, settings) as client:
        yield client


Hire = Callable[..., LeaseClient]


@pytest.fixture
def hire(url: str, settings: Settings) -> Iterator[Hire]:
    """Brings workers, and sends them home after the test."""
    with contextlib.ExitStack() as stack:

        def hire(name: str = "worker", *, heartbeat: bool = True, **changes: float) -> LeaseClient:
            own = settings.model_copy(update=changes)
            return stack.enter_context(LeaseClient(url, own, name, heartbeat=heartbeat))

        yield hire


def a_job(
    lane: Lane = Lane.IMAGE_INTERACTIVE,
    input_blob: str = NOISY,
    reference_blob: str | None = None,
    options: Options | None = None,
) -> Job:
    return Job(
        id=f"{next(BORN):012x}{new_job_id()[12:]}",  # ids sort by birth, also within a millisecond
        kind="video" if lane is Lane.VIDEO else "image",
        lane=lane,
        model="dncnn",
        options=options or Options(),
        input_blob=input_blob,
        reference_blob=reference_blob,
        input=InputFacts(content_type="image/png", bytes=1, width=1, height=1),
        name="picture",
        created_at=time.time(),
    )


def an_outcome(blob: str = RESTORED) -> Outcome:
    result = Result(blob=blob, content_type="image/png", bytes=1, sha256=blob, file_name="picture.png")
    return Outcome(result=result, metrics=Metrics(psnr_db=30.0), backend="torch", precision="fp32")


def taken(worker: LeaseClient, lanes: tuple[Lane, ...] = tuple(Lane)) -> Lease:
    lease = worker.lease(lanes, PATIENCE_S)
    assert lease is not None
    return lease


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def stream_length(url: str, lane: Lane) -> int:
    with Redis.from_url(url) as link:
        return int(link.xlen(keys.work(lane)))


async def test_a_job_is_put_leased_and_acknowledged(queue: QueueClient, hire: Hire, url: str) -> None:
    job, worker = a_job(), hire()
    assert await queue.put(job) == (job.id, True)
    assert (await queue.get(job.id)).state is JobState.QUEUED

    lease = taken(worker)
    assert (lease.job, lease.attempt, lease.lane) == (job, 1, Lane.IMAGE_INTERACTIVE)
    running = await queue.get(job.id)
    assert (running.state, running.attempts) == (JobState.RUNNING, 1)
    assert running.started_at is not None
    worker.report(lease, Progress(done=1, total=2, unit="tiles"))
    assert (await queue.get(job.id)).progress.done == 1

    worker.ack(lease, an_outcome())
    done = await queue.get(job.id)
    assert (done.state, done.outcome) == (JobState.SUCCEEDED, an_outcome())
    assert done.finished_at is not None
    assert done.expires_at == pytest.approx(done.finished_at + 24 * 3600)
    assert stream_length(url, job.lane) == 0
    assert worker.lease(list(Lane), 0) is None


async def test_an_idle_worker_is_woken_by_a_put(queue: QueueClient, hire: Hire, url: str) -> None:
    job, worker = a_job(Lane.VIDEO), hire()
    with Redis.from_url(url) as link:
        link.config_resetstat()
        waiting = asyncio.create_task(asyncio.to_thread(taken, worker, (Lane.VIDEO,)))
        await asyncio.to_thread(until, lambda: link.info("clients")["blocked_clients"] == 1)
        for _ in range(100):  # a worker that polls would ask again meanwhile
            await queue.ping()
        await queue.put(job)
        assert (await waiting).job == job
        # One read that found nothing, and one that was blocked before the put and brought the job.
        assert link.info("commandstats")["cmdstat_xreadgroup"]["calls"] == 2


async def test_a_worker_outlives_the_loss_of_all_data(queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    with Redis.from_url(url) as link:
        assert worker.lease(list(Lane), 0) is None
        link.flushall()
        assert worker.lease(list(Lane), 0) is None
        waiting = asyncio.create_task(asyncio.to_thread(taken, worker))
        await asyncio.to_thread(until, lambda: link.info("clients")["blocked_clients"] == 1)
        link.flushall()
    job = a_job()
    await queue.put(job)
    assert (await waiting).job == job


async def test_lanes_are_drained_in_the_order_asked_for(queue: QueueClient, hire: Hire) -> None:
    video, batch, urgent = a_job(Lane.VIDEO), a_job(Lane.IMAGE_BATCH), a_job(Lane.IMAGE_INTERACTIVE)
    for job in (video, batch, urgent):
        await queue.put(job)
    worker = hire()
    assert [taken(worker).job for _ in range(3)] == [urgent, batch, video]


async def test_an_expired_lease_passes_to_the_next_worker(queue: QueueClient, hire: Hire) -> None:
    job = a_job()
    await queue.put(job)
    hung = hire("hung", heartbeat=False, lease_ttl_s=SHORT_LEASE_S)
    first = taken(hung)
    healthy = hire("healthy", lease_ttl_s=SHORT_LEASE_S)
    second = taken(healthy)
    assert (second.job, second.attempt) == (job, 2)

    bad = problem(422, "bad_input", "Bad", "late")
    too_late: list[Callable[[], None]] = [
        lambda: hung.report(first, Progress(done=1)),
        lambda: hung.ack(first, an_outcome("d" * 64)),
        lambda: hung.retry(first, OSError("late")),
        lambda: hung.bury(first, bad),
        lambda: hung.cancelled(first),
        lambda: hung.release(first),
    ]
    for attempt in too_late:
        with pytest.raises(LeaseLost):
            attempt()
    assert first.lost.is_set()
    assert (await queue.get(job.id)).state is JobState.RUNNING

    healthy.ack(second, an_outcome())
    done = await queue.get(job.id)
    assert done.outcome == an_outcome()
    assert (await queue.counters())["lease_lost:image.interactive"] == 6


async def test_of_two_workers_of_one_name_only_the_later_lease_counts(queue: QueueClient, hire: Hire) -> None:
    job = a_job()
    await queue.put(job)
    hung = hire("worker", heartbeat=False, lease_ttl_s=SHORT_LEASE_S)
    first = taken(hung)
    restarted = hire("worker", lease_ttl_s=SHORT_LEASE_S)
    second = taken(restarted)
    assert (second.job, second.attempt) == (job, 2)
    with pytest.raises(LeaseLost):  # the owner's name is the same: it is the fence that tells them apart
        hung.report(first, Progress(done=1))
    with pytest.raises(LeaseLost):
        hung.ack(first, an_outcome("d" * 64))
    restarted.ack(second, an_outcome())
    assert (await queue.get(job.id)).outcome == an_outcome()


async def test_a_heartbeat_keeps_a_lease_longer_than_its_length(queue: QueueClient, hire: Hire) -> None:
    await queue.put(a_job())
    worker = hire(lease_ttl_s=SHORT_LEASE_S)
    lease = taken(worker)
    other = hire("other", lease_ttl_s=SHORT_LEASE_S)
    assert await asyncio.to_thread(other.lease, list(Lane), 4 * SHORT_LEASE_S) is None
    assert not lease.lost.is_set()
    worker.ack(lease, an_outcome())


async def test_a_worker_that_comes_back_before_anybody_claimed_goes_on(queue: QueueClient, hire: Hire) -> None:
    job = a_job()
    await queue.put(job)
    slow = hire("slow", heartbeat=False, lease_ttl_s=SHORT_LEASE_S)
    lease = taken(slow)
    slow.ack(lease, an_outcome())
    assert (await queue.get(job.id)).attempts == 1


async def test_a_job_abandoned_in_an_outage_is_taken_up_again(binary: Path, settings: Settings, data_dir: Path) -> None:
    job, brief = a_job(), settings.model_copy(update={"lease_ttl_s": SHORT_LEASE_S})
    with EmbeddedServer(data_dir, binary=binary) as server:
        async with QueueClient(server.url, settings) as queue:
            with LeaseClient(server.url, brief, "worker") as worker:
                await queue.put(job)
                first = taken(worker)
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                assert await asyncio.to_thread(first.lost.wait, PATIENCE_S)
                until(lambda: server.pid is None)
                server.start()
                second = await asyncio.to_thread(taken, worker)
                assert (second.job, second.attempt) == (job, 2)
                worker.ack(second, an_outcome())


async def test_the_heartbeat_tells_that_the_lease_was_lost(queue: QueueClient, hire: Hire, url: str) -> None:
    job = a_job()
    await queue.put(job)
    worker = hire(lease_ttl_s=SHORT_LEASE_S)
    lease = taken(worker)
    with Redis.from_url(url) as link:
        link.hset(keys.job(job.id), "owner", "somebody else")
    assert await asyncio.to_thread(lease.lost.wait, PATIENCE_S)
    with pytest.raises(LeaseLost):
        worker.report(lease, Progress(done=1))


async def test_a_failing_job_is_tried_again_and_then_buried(queue: QueueClient, hire: Hire, url: str) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    for attempt in (1, 2, 3):
        lease = taken(worker)
        assert lease.attempt == attempt
        worker.retry(lease, RuntimeError(f"try {attempt}"))
        if attempt < 3:
            assert (await queue.get(job.id)).state is JobState.QUEUED
            assert stream_length(url, job.lane) == 1
    failed = await queue.get(job.id)
    assert (failed.state, failed.attempts) == (JobState.FAILED, 3)
    assert failed.error is not None
    assert failed.error["code"] == "failed"
    assert "try 3" not in failed.error["detail"]  # a stranger's words are for operators
    [letter] = await queue.dead_letters(10)
    assert (letter.job_id, letter.reason, letter.attempts) == (job.id, "RuntimeError: try 3", 3)
    assert stream_length(url, job.lane) == 0


async def test_a_job_that_kills_its_workers_is_buried(queue: QueueClient, hire: Hire) -> None:
    job = a_job()
    await queue.put(job)
    for attempt in (1, 2):
        doomed = hire(f"doomed {attempt}", heartbeat=False, lease_ttl_s=SHORT_LEASE_S, max_attempts=2)
        assert taken(doomed).attempt == attempt
    survivor = hire("survivor", lease_ttl_s=SHORT_LEASE_S, max_attempts=2)
    finding = asyncio.create_task(asyncio.to_thread(survivor.lease, list(Lane), PATIENCE_S))
    failed = await queue.wait(job.id, PATIENCE_S)
    assert (failed.state, failed.attempts) == (JobState.FAILED, 2)
    after = a_job()
    await queue.put(after)
    lease = await finding
    assert lease is not None
    assert lease.job == after


async def test_a_buried_job_can_be_replayed(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    lease = taken(worker)
    worker.bury(lease, problem(422, "bad_input", "Bad", "no picture"))
    failed = await queue.get(job.id)
    assert failed.error is not None
    assert failed.error["detail"] == "no picture"

    again = await queue.replay(job.id)
    assert (again.state, again.attempts, again.error, again.expires_at) == (JobState.QUEUED, 0, None, None)
    assert await queue.dead_letters(10) == []
    with pytest.raises(BadInput):
        await queue.replay(job.id)
    waiting = asyncio.create_task(queue.wait(job.id, PATIENCE_S))
    lease = await asyncio.to_thread(taken, worker)
    assert lease.attempt == 1
    worker.ack(lease, an_outcome())
    assert (await waiting).state is JobState.SUCCEEDED


async def test_a_job_handed_back_keeps_its_attempts_and_wakes_another(queue: QueueClient, hire: Hire) -> None:
    job, leaving, staying = a_job(), hire("leaving"), hire("staying")
    await queue.put(job)
    lease = taken(leaving)
    waiting = asyncio.create_task(asyncio.to_thread(taken, staying))
    leaving.release(lease)
    again = await waiting
    assert (again.job, again.attempt) == (job, 1)
    assert again.fence > lease.fence
    with pytest.raises(LeaseLost):
        leaving.ack(lease, an_outcome())


async def test_a_worker_that_leaves_hands_back_what_it_never_claimed(queue: QueueClient, hire: Hire, url: str) -> None:
    for lane in (*IMAGES, Lane.VIDEO):
        await queue.put(a_job(lane))
    leaving = hire("leaving")
    leaving._ensure_groups(tuple(Lane))
    leaving._read(tuple(Lane), 1)  # as when all three are put between its looking and its waiting
    leaving.close()
    staying = hire("staying")
    assert {taken(staying).attempt for _ in range(3)} == {1}
    with Redis.from_url(url) as link:
        assert [one["name"] for one in link.xinfo_consumers(keys.work(Lane.VIDEO), keys.GROUP)] == [b"staying"]


async def test_a_worker_keeps_nothing_back_from_the_idle_while_it_works(queue: QueueClient, hire: Hire) -> None:
    for lane in (*IMAGES, Lane.VIDEO):
        await queue.put(a_job(lane))
    busy, idle = hire("busy"), hire("idle")
    busy._ensure_groups(tuple(Lane))
    busy._read(tuple(Lane), 1)  # as when all three are put between its looking and its waiting
    assert taken(busy).lane is Lane.IMAGE_INTERACTIVE
    assert [taken(idle).lane for _ in range(2)] == [Lane.IMAGE_BATCH, Lane.VIDEO]


async def test_a_job_with_a_field_of_a_later_version_is_done(queue: QueueClient, hire: Hire, url: str) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    with Redis.from_url(url) as link:
        link.hset(keys.job(job.id), "job", json.dumps({**job.model_dump(mode="json"), "urgency": "high"}))
    assert (await queue.get(job.id)).job == job
    lease = taken(worker)
    assert lease.job == job
    worker.ack(lease, an_outcome())


async def test_a_job_that_cannot_be_read_is_buried_and_hides_no_other(queue: QueueClient, hire: Hire, url: str) -> None:
    strange, plain, worker = a_job(), a_job(), hire()
    for job in (strange, plain):
        await queue.put(job)
    with Redis.from_url(url) as link:
        link.hset(keys.job(strange.id), "job", json.dumps({**strange.model_dump(mode="json"), "kind": "hologram"}))
        assert taken(worker).job == plain
        assert [record.job for record in (await queue.list(None, 10, None))[0]] == [plain]
        assert link.hget(keys.job(strange.id), "state") == b"failed"
        assert json.loads(link.hget(keys.job(strange.id), "error"))["detail"].startswith("the job was put by a version")
    [letter] = await queue.dead_letters(10)
    assert letter.job_id == strange.id
    assert "hologram" in letter.reason


async def test_a_settling_sent_twice_counts_once(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    lease = taken(worker)
    for _ in range(2):
        worker.retry(lease, OSError("flaky"))
    lease = taken(worker)
    for _ in range(2):
        worker.ack(lease, an_outcome())
    assert (await queue.get(job.id)).attempts == 2
    assert worker.lease(list(Lane), 0) is None
    counted = await queue.counters()
    assert (counted["retried:image.interactive"], counted["succeeded:image.interactive"]) == (1, 1)


def parts_of(count: int, frames: int = 10) -> list[Part]:
    return [
        Part(
            index=i, frames=frames, lead=2 * (i > 0), trail=2 * (i < count - 1), begin=i * frames, end=(i + 1) * frames
        )
        for i in range(count)
    ]


def a_part_outcome(blob: str, frames: int = 10) -> PartOutcome:
    return PartOutcome(
        blob=blob,
        frames=frames,
        removed_power=1.0,
        values=100,
        seconds=StageSeconds(infer=0.5),
        backend="openvino",
        precision="bf16",
    )


async def divided(queue: QueueClient, worker: LeaseClient, count: int) -> Job:
    """A video whose parts wait."""
    job = a_job(Lane.VIDEO)
    await queue.put(job)
    lease = taken(worker, (Lane.VIDEO,))
    assert lease.part is None
    assert lease.parts == 0
    worker.divide(lease, parts_of(count))
    return job


async def test_a_video_is_done_in_parts_by_several_workers_and_joined(queue: QueueClient, hire: Hire, url: str) -> None:
    first, second = hire("first"), hire("second")
    job = await divided(queue, first, 3)
    record = await queue.get(job.id)
    assert record.state is JobState.RUNNING
    leases = [taken(first), taken(second), taken(first)]
    assert [lease.part.index for lease in leases if lease.part] == [0, 1, 2]
    assert all(lease.job == job for lease in leases)
    second.report(leases[1], Progress(done=4, total=10))
    assert (await queue.get(job.id)).progress.done == 4
    for number, (worker, lease) in enumerate(zip((first, second, first), leases, strict=True)):
        assert (await queue.get(job.id)).state is JobState.RUNNING
        worker.part_done(lease, a_part_outcome(f"{number}" * 64))
    assert first.lease((Lane.VIDEO_PART,), 0) is None
    join = taken(second)
    assert join.part is None
    assert join.parts == 3
    assert join.attempt == 1
    assert [one.blob for one in second.parts_of(join)] == ["0" * 64, "1" * 64, "2" * 64]
    second.ack(join, an_outcome())
    record = await queue.get(job.id)
    assert record.state is JobState.SUCCEEDED
    assert record.attempts == 1
    # Nothing of the parts is left, nor in any index.
    with Redis.from_url(url, decode_responses=True) as link:
        assert not list(link.scan_iter(f"{keys.PREFIX}job:{job.id}.*"))
        assert not link.exists(keys.blob("0" * 64))
        assert link.hget(f"{keys.PREFIX}load", Lane.VIDEO) == "0"
    assert stream_length(url, Lane.VIDEO) == stream_length(url, Lane.VIDEO_PART) == 0
    assert [record.job.id for record in (await queue.list(None, 10, None))[0]] == [job.id]


async def test_of_a_long_video_only_a_few_parts_wait_so_that_others_get_their_turn(
    queue: QueueClient, hire: Hire, url: str
) -> None:
    worker = hire()
    long = await divided(queue, worker, 50)
    short = await divided(queue, worker, 2)
    assert stream_length(url, Lane.VIDEO_PART) < 10
    order = []
    for _ in range(12):
        lease = taken(worker, (Lane.VIDEO_PART,))
        order.append(lease.job.id)
        worker.part_done(lease, a_part_outcome("0" * 64))
    assert order.count(short.id) == 2
    assert order.count(long.id) == 10


async def test_a_part_whose_worker_died_is_done_again_and_alone(queue: QueueClient, hire: Hire) -> None:
    job = await divided(queue, hire("planner"), 3)
    steady, dying = hire("steady"), hire("dying", heartbeat=False, lease_ttl_s=SHORT_LEASE_S)
    lost = taken(dying)
    dying.report(lost, Progress(done=7, total=10))
    steady_lease = taken(steady)
    steady.report(steady_lease, Progress(done=5, total=10))
    assert (await queue.get(job.id)).progress.done == 12
    rescuer = hire("rescuer", lease_ttl_s=SHORT_LEASE_S)
    taken(rescuer, (Lane.VIDEO_PART,))  # the third
    again = taken(rescuer, (Lane.VIDEO_PART,))
    assert again.part == lost.part
    assert again.attempt == 2
    record = await queue.get(job.id)
    assert record.attempts == 2
    with pytest.raises(LeaseLost):
        dying.part_done(lost, a_part_outcome("f" * 64))
    rescuer.report(again, Progress(done=1, total=10))
    assert (await queue.get(job.id)).progress.done == 6  # what the dead one had done is done again
    steady.part_done(steady_lease, a_part_outcome("1" * 64))


async def test_a_part_that_fails_for_good_fails_the_video_and_stops_the_others(
    queue: QueueClient, hire: Hire, url: str
) -> None:
    first, second = hire("first"), hire("second")
    job = await divided(queue, first, 3)
    bad, good = taken(first), taken(second)
    first.bury(bad, problem(422, "bad_input", "The input cannot be denoised", "frame 7 cannot be decoded"))
    record = await queue.get(job.id)
    assert record.state is JobState.FAILED
    assert record.error is not None
    assert record.error["detail"] == "frame 7 cannot be decoded"
    with pytest.raises(LeaseLost):
        second.report(good, Progress(done=1, total=10))
    with pytest.raises(LeaseLost):
        second.part_done(good, a_part_outcome("1" * 64))
    assert second.lease(tuple(Lane), 0) is None
    assert stream_length(url, Lane.VIDEO_PART) == 0
    [letter] = await queue.dead_letters(5)
    assert letter.job_id == job.id
    assert letter.reason.startswith("part 0: ")
    # Nothing of it is done. Replayed, it begins anew: with a plan.
    await queue.replay(job.id)
    lease = taken(second)
    assert (lease.part, lease.parts, lease.attempt) == (None, 0, 1)


async def failed_with_parts_done(queue: QueueClient, first: LeaseClient, second: LeaseClient) -> Job:
    """A video of five parts: 0 and 2 are done, 3 was with a worker when 1 failed, 4 waited."""
    job = await divided(queue, first, 5)
    leases = [taken(first), taken(first), taken(second), taken(second)]
    first.part_done(leases[0], a_part_outcome("0" * 64))
    second.part_done(leases[2], a_part_outcome("2" * 64))
    second.report(leases[3], Progress(done=7, total=10))
    first.bury(leases[1], problem(500, "failed", "Denoising failed", "no memory"))
    with pytest.raises(LeaseLost):
        second.part_done(leases[3], a_part_outcome("f" * 64))
    assert (await queue.get(job.id)).state is JobState.FAILED
    return job


async def test_a_failed_video_that_is_replayed_keeps_the_parts_that_are_done(
    queue: QueueClient, hire: Hire, url: str
) -> None:
    first, second = hire("first"), hire("second")
    job = await failed_with_parts_done(queue, first, second)
    assert first.lease(tuple(Lane), 0) is None
    with Redis.from_url(url, decode_responses=True) as link:
        assert link.hget(f"{keys.PREFIX}load", Lane.VIDEO) == "0"
        assert not link.exists(f"{keys.PREFIX}divided:{Lane.VIDEO}")
    record = await queue.replay(job.id)
    assert (record.state, record.error, record.attempts) == (JobState.RUNNING, None, 1)
    assert (record.progress.done, record.progress.total) == (20, 50)
    with Redis.from_url(url, decode_responses=True) as link:
        assert link.hget(f"{keys.PREFIX}load", Lane.VIDEO) == "30"
    leases = [taken(first), taken(second), taken(first)]
    assert [(lease.part.index, lease.attempt) for lease in leases if lease.part] == [(1, 1), (3, 1), (4, 1)]
    first.report(leases[0], Progress(done=5, total=10))
    assert (await queue.get(job.id)).progress.done == 25
    for worker, lease in zip((first, second, first), leases, strict=True):
        assert lease.part
        worker.part_done(lease, a_part_outcome(f"{lease.part.index}" * 64))
    join = taken(second)
    assert [one.blob for one in second.parts_of(join)] == [f"{number}" * 64 for number in range(5)]
    second.ack(join, an_outcome())
    assert (await queue.get(job.id)).state is JobState.SUCCEEDED
    told = [event["state"] async for _, event in queue.events(job.id, None) if event["event"] == "state"]
    assert told == ["queued", "running", "running", "succeeded"]  # the parts, then the join
    assert await nothing_of_parts_is_left(job, url)


async def test_a_join_that_failed_is_replayed_as_a_join(queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    job = await divided(queue, worker, 2)
    for number in range(2):
        worker.part_done(taken(worker), a_part_outcome(f"{number}" * 64))
    worker.bury(taken(worker), problem(500, "failed", "Denoising failed", "no memory"))
    await queue.replay(job.id)
    join = taken(worker)
    assert (join.part, join.parts, join.attempt) == (None, 2, 1)
    worker.ack(join, an_outcome())
    assert await nothing_of_parts_is_left(job, url)


@pytest.mark.parametrize("how", ["removed", "cancelled after a replay", "failed again", "expired"])
async def test_parts_that_are_kept_go_with_their_video(
    how: str, queue: QueueClient, settings: Settings, hire: Hire, url: str
) -> None:
    first, second = hire("first", result_ttl_s=0.05), hire("second")
    job = await failed_with_parts_done(queue, first, second)
    if how == "expired":
        await asyncio.sleep(0.1)
        store = FileStore(settings.data_dir / "blobs")
        with contextlib.closing(Janitor(url, settings, store, grace_s=0.0)) as janitor:
            janitor.sweep()
        with pytest.raises(ResultGone):
            await queue.replay(job.id)
    elif how != "removed":
        await queue.replay(job.id)
        lease = taken(first)
        if how == "failed again":
            first.bury(lease, problem(500, "failed", "Denoising failed", "no memory"))
            assert (await queue.replay(job.id)).progress.done == 20
        await queue.cancel(job.id)
        assert (await queue.get(job.id)).state is JobState.CANCELLED
    else:
        await queue.remove(job.id)
    assert first.lease(tuple(Lane), 0) is None  # what waited is skipped
    assert await nothing_of_parts_is_left(job, url)


async def nothing_of_parts_is_left(job: Job, url: str) -> bool:
    with Redis.from_url(url, decode_responses=True) as link:
        assert not list(link.scan_iter(f"{keys.PREFIX}job:{job.id}.*"))
        assert not [blob for number in range(5) if link.exists(blob := keys.blob(f"{number}" * 64))]
        assert not link.exists(f"{keys.PREFIX}divided:{Lane.VIDEO}")
        assert link.hget(f"{keys.PREFIX}load", Lane.VIDEO) == "0"
    assert stream_length(url, Lane.VIDEO) == stream_length(url, Lane.VIDEO_PART) == 0
    return True


async def test_a_video_in_parts_is_cancelled_at_once(queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    job = await divided(queue, worker, 3)
    lease = taken(worker)
    assert (await queue.cancel(job.id)).state is JobState.CANCELLED
    with pytest.raises(LeaseLost):
        worker.report(lease, Progress(done=1, total=10))
    assert worker.lease(tuple(Lane), 0) is None
    assert stream_length(url, Lane.VIDEO_PART) == stream_length(url, Lane.VIDEO) == 0


async def test_a_video_waiting_to_be_joined_is_cancelled_too(queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    job = await divided(queue, worker, 2)
    for _ in range(2):
        worker.part_done(taken(worker), a_part_outcome("0" * 64))
    assert (await queue.cancel(job.id)).state is JobState.CANCELLED
    assert worker.lease(tuple(Lane), 0) is None
    assert stream_length(url, Lane.VIDEO) == 0


async def test_a_video_cancelled_while_it_is_planned_is_not_divided(queue: QueueClient, hire: Hire) -> None:
    worker = hire()
    job = a_job(Lane.VIDEO)
    await queue.put(job)
    lease = taken(worker)
    await queue.cancel(job.id)
    with pytest.raises(JobCancelled):
        worker.divide(lease, parts_of(3))
    worker.cancelled(lease)
    assert (await queue.get(job.id)).state is JobState.CANCELLED


@pytest.mark.parametrize("step", ["part", "join"])
async def test_a_video_whose_parts_do_not_fit_is_done_as_one(
    step: str, queue: QueueClient, hire: Hire, url: str
) -> None:
    worker = hire()
    job = await divided(queue, worker, 2)
    if step == "join":
        for _ in range(2):
            worker.part_done(taken(worker), a_part_outcome("0" * 64))
    worker.undivide(taken(worker))
    lease = taken(worker, (Lane.VIDEO_PART, Lane.VIDEO))  # what is left of the parts is skipped
    assert (lease.part, lease.parts, lease.whole) == (None, 0, True)
    assert stream_length(url, Lane.VIDEO_PART) == 0
    worker.ack(lease, an_outcome())
    assert (await queue.get(job.id)).state is JobState.SUCCEEDED
    with Redis.from_url(url, decode_responses=True) as link:
        assert link.hget(f"{keys.PREFIX}load", Lane.VIDEO) == "0"


async def test_a_video_cancelled_while_it_is_joined_is_not_begun_again(
    queue: QueueClient, hire: Hire, url: str
) -> None:
    worker = hire()
    job = await divided(queue, worker, 2)
    for _ in range(2):
        worker.part_done(taken(worker), a_part_outcome("0" * 64))
    join = taken(worker)
    assert (await queue.cancel(job.id)).state is JobState.CANCELLING
    worker.undivide(join)
    assert (await queue.get(job.id)).state is JobState.CANCELLED
    assert worker.lease(tuple(Lane), 0) is None
    with Redis.from_url(url, decode_responses=True) as link:
        assert not list(link.scan_iter(f"{keys.PREFIX}job:{job.id}.*"))


async def test_a_video_is_joined_before_another_is_begun(queue: QueueClient, hire: Hire) -> None:
    worker = hire()
    first = await divided(queue, worker, 2)
    for _ in range(3):
        await queue.put(a_job(Lane.VIDEO))
    for _ in range(2):
        worker.part_done(taken(worker, (Lane.VIDEO_PART,)), a_part_outcome("0" * 64))
    join = taken(worker, (Lane.VIDEO_JOIN, Lane.VIDEO, Lane.VIDEO_PART))
    assert (join.job.id, join.parts) == (first.id, 2)
    worker.retry(join, OSError("the disk is full"))
    again = taken(worker, (Lane.VIDEO_JOIN, Lane.VIDEO))
    assert (again.job.id, again.parts, again.attempt) == (first.id, 2, 2)


async def test_a_lease_on_a_join_is_kept_alive(queue: QueueClient, hire: Hire) -> None:
    steady = hire("steady", lease_ttl_s=SHORT_LEASE_S)
    job = await divided(queue, steady, 2)
    for _ in range(2):
        steady.part_done(taken(steady), a_part_outcome("0" * 64))
    join = taken(steady)
    before = join.renewed_at
    await asyncio.to_thread(until, lambda: join.renewed_at > before + 2 * SHORT_LEASE_S)
    assert hire("idle", lease_ttl_s=SHORT_LEASE_S).lease(tuple(Lane), 0) is None
    steady.ack(join, an_outcome())
    assert (await queue.get(job.id)).state is JobState.SUCCEEDED


async def test_videos_done_in_parts_count_as_accepted_until_they_are_done(
    url: str, settings: Settings, hire: Hire
) -> None:
    async with QueueClient(url, settings.model_copy(update={"max_queued_jobs": 2})) as queue:
        worker = hire()
        jobs = [await divided(queue, worker, 2) for _ in range(2)]
        with pytest.raises(QueueFull):
            await queue.put(a_job(Lane.VIDEO))
        await queue.cancel(jobs[0].id)
        await queue.put(a_job(Lane.VIDEO))
        with pytest.raises(QueueFull):
            await queue.put(a_job(Lane.VIDEO))


async def test_a_join_whose_parts_are_lost_is_let_go(queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    job = await divided(queue, worker, 2)
    for _ in range(2):
        worker.part_done(taken(worker), a_part_outcome("0" * 64))
    join = taken(worker)
    with Redis.from_url(url) as link:
        link.hdel(f"{keys.job(job.id)}.1", "outcome")
    with pytest.raises(LeaseLost):
        worker.parts_of(join)
    assert join.lost.is_set()


@pytest.mark.parametrize("settle", ["part_done", "divide"])
async def test_a_step_of_a_video_told_twice_counts_once(settle: str, queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    job = a_job(Lane.VIDEO, options=Options(ensemble=2))
    await queue.put(job)
    lease = taken(worker)
    worker.divide(lease, parts_of(3))
    if settle == "divide":
        worker.divide(lease, parts_of(3))
        assert stream_length(url, Lane.VIDEO_PART) == 3
        with Redis.from_url(url, decode_responses=True) as link:
            assert link.hget(keys.job(job.id), "parts_queued") == "3"
            load = link.hget(f"{keys.PREFIX}load", Lane.VIDEO)
            assert load == "60"  # two passes over 3 parts of 10 frames of a pixel
        return
    part = taken(worker)
    worker.part_done(part, a_part_outcome("0" * 64))
    worker.part_done(part, a_part_outcome("0" * 64))
    with Redis.from_url(url, decode_responses=True) as link:
        assert link.hget(keys.job(job.id), "parts_done") == "1"


async def test_a_preview_is_shown_once_and_told_of(queue: QueueClient, hire: Hire) -> None:
    worker = hire()
    job = a_job(Lane.VIDEO)
    await queue.put(job)
    lease = taken(worker)
    still = Preview(blob="5" * 64, content_type="image/jpeg", bytes=7, sha256="5" * 64)
    worker.preview(lease, still)
    worker.preview(lease, still.model_copy(update={"blob": "6" * 64}))
    worker.ack(lease, an_outcome())
    assert (await queue.get(job.id)).preview == still
    told = [event async for _, event in queue.events(job.id, None) if event["event"] == "preview"]
    assert told == [{"event": "preview", "url": f"/jobs/{job.id}/preview"}]
    assert "5" * 64 in await queue.remove(job.id)


async def test_a_full_lane_says_when_it_will_be_clear(url: str, settings: Settings, hire: Hire) -> None:
    async with QueueClient(url, settings.model_copy(update={"max_queued_jobs": 3})) as queue:
        worker = hire()
        await queue.put(a_job())
        assert await queue.seconds_to_clear(Lane.IMAGE_INTERACTIVE) is None  # nothing was measured yet
        lease = taken(worker)
        until(lambda: time.time() > job_claimed_at(url, lease.job.id) + 0.05)
        worker.ack(lease, an_outcome())
        worker.announce(
            WorkerCard(id="w", pid=1, host="here", started_at=0, ready=True, slots={Lane.IMAGE_INTERACTIVE: 2})
        )
        for _ in range(3):
            await queue.put(a_job())
        with pytest.raises(QueueFull) as refused:
            await queue.put(a_job())
        with Redis.from_url(url, decode_responses=True) as link:
            speed = float(link.hget(f"{keys.PREFIX}speed", Lane.IMAGE_INTERACTIVE))
            load = int(link.hget(f"{keys.PREFIX}load", Lane.IMAGE_INTERACTIVE))
        assert load == 3  # of one pixel each
        assert refused.value.retry_after_s == pytest.approx(load / (2 * speed))


def job_claimed_at(url: str, job_id: str) -> float:
    with Redis.from_url(url, decode_responses=True) as link:
        return float(link.hget(keys.job(job_id), "claimed_at"))


async def test_a_waiting_job_is_cancelled_at_once_and_its_entry_skipped(
    queue: QueueClient, hire: Hire, url: str
) -> None:
    unwanted, wanted = a_job(), a_job()
    await queue.put(unwanted)
    await queue.put(wanted)
    assert (await queue.cancel(unwanted.id)).state is JobState.CANCELLED
    assert (await queue.cancel(unwanted.id)).state is JobState.CANCELLED
    assert stream_length(url, unwanted.lane) == 2
    worker = hire()
    assert taken(worker).job == wanted
    assert stream_length(url, unwanted.lane) == 1


async def test_a_running_job_stops_at_its_next_report(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    lease = taken(worker)
    assert (await queue.cancel(job.id)).state is JobState.CANCELLING
    assert (await queue.cancel(job.id)).state is JobState.CANCELLING
    with pytest.raises(JobCancelled):
        worker.report(lease, Progress(done=1))
    assert lease.cancelled.is_set()
    worker.cancelled(lease)
    stopped = await queue.wait(job.id, PATIENCE_S)
    assert stopped.state is JobState.CANCELLED


async def test_the_heartbeat_tells_of_a_cancel_too(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire(lease_ttl_s=SHORT_LEASE_S)
    await queue.put(job)
    lease = taken(worker)
    await queue.cancel(job.id)
    assert await asyncio.to_thread(lease.cancelled.wait, PATIENCE_S)


@pytest.mark.parametrize("settle", ["retry", "release"])
async def test_a_job_that_nobody_wants_is_not_queued_again(queue: QueueClient, hire: Hire, settle: str) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    lease = taken(worker)
    await queue.cancel(job.id)
    if settle == "retry":
        worker.retry(lease, OSError("flaky"))
    else:
        worker.release(lease)
    assert (await queue.get(job.id)).state is JobState.CANCELLED
    assert worker.lease(list(Lane), 0) is None


async def test_a_cancel_is_honoured_when_the_worker_died_of_it(queue: QueueClient, hire: Hire) -> None:
    job = a_job()
    await queue.put(job)
    taken(hire("dying", heartbeat=False, lease_ttl_s=SHORT_LEASE_S))
    await queue.cancel(job.id)
    survivor = hire("survivor", lease_ttl_s=SHORT_LEASE_S)
    looking = asyncio.create_task(asyncio.to_thread(survivor.lease, IMAGES, 4 * SHORT_LEASE_S))
    assert (await queue.wait(job.id, PATIENCE_S)).state is JobState.CANCELLED
    assert await looking is None


async def test_a_finished_job_is_not_cancelled(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    worker.ack(taken(worker), an_outcome())
    assert (await queue.cancel(job.id)).state is JobState.SUCCEEDED
    with pytest.raises(JobNotFound):
        await queue.cancel(new_job_id())
    with pytest.raises(JobNotFound):
        await queue.get("../../x")


async def test_the_same_request_put_twice_is_one_job(queue: QueueClient, url: str) -> None:
    first, second, third = a_job(), a_job(), a_job()
    assert await queue.put(first, idempotency=("key", "print")) == (first.id, True)
    assert await queue.put(first, idempotency=("key", "print")) == (first.id, True)  # sent again after a lost answer
    assert await queue.put(second, idempotency=("key", "print")) == (first.id, False)
    with pytest.raises(IdempotencyConflict):
        await queue.put(third, idempotency=("key", "another print"))
    assert stream_length(url, first.lane) == 1
    with pytest.raises(JobNotFound):
        await queue.get(second.id)


async def test_a_put_whose_answer_was_lost_may_be_sent_again(queue: QueueClient, hire: Hire, url: str) -> None:
    job = a_job()
    await queue.put(job)
    await queue.put(job)
    assert stream_length(url, job.lane) == 1
    worker = hire()
    lease = taken(worker)
    await queue.put(job)
    worker.ack(lease, an_outcome())
    assert (await queue.get(job.id)).outcome == an_outcome()
    assert stream_length(url, job.lane) == 0


async def test_a_full_lane_takes_no_more_and_the_others_do(url: str, settings: Settings) -> None:
    async with QueueClient(url, settings.model_copy(update={"max_queued_jobs": 2})) as queue:
        await queue.put(a_job())
        kept = a_job()
        await queue.put(kept, idempotency=("key", "print"))
        with pytest.raises(QueueFull, match="at most 2"):
            await queue.put(a_job())
        assert await queue.put(a_job(), idempotency=("key", "print")) == (kept.id, False)
        await queue.put(a_job(Lane.VIDEO))


async def test_jobs_cancelled_while_they_waited_take_no_room(url: str, settings: Settings, hire: Hire) -> None:
    lane, worker = Lane.IMAGE_INTERACTIVE, hire()
    async with QueueClient(url, settings.model_copy(update={"max_queued_jobs": 1})) as queue:
        for _ in range(2):
            unwanted = a_job()
            await queue.put(unwanted)
            await queue.cancel(unwanted.id)
        await queue.remove(unwanted.id)
        depth = (await queue.depths())[lane]
        assert (depth.queued, depth.in_flight, depth.oldest_age_s) == (0, 0, 0)

        wanted = a_job()
        await queue.put(wanted)
        with pytest.raises(QueueFull):
            await queue.put(a_job())
        assert (await queue.depths())[lane].queued == 1

        worker.bury(taken(worker), problem(422, "bad_input", "Bad", "no picture"))
        assert stream_length(url, lane) == 0
        with Redis.from_url(url) as link:
            assert link.exists(f"{keys.PREFIX}void:{lane}") == 0
        unwanted = a_job()
        await queue.put(unwanted)
        await queue.cancel(unwanted.id)
        assert (await queue.replay(wanted.id)).state is JobState.QUEUED


async def test_wait_wakes_on_the_end_and_gives_up_in_time(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    assert (await queue.wait(job.id, 0.01)).state is JobState.QUEUED
    waiting = [asyncio.create_task(queue.wait(job.id, PATIENCE_S)) for _ in range(5)]
    worker.ack(await asyncio.to_thread(taken, worker), an_outcome())
    assert {record.state for record in await asyncio.gather(*waiting)} == {JobState.SUCCEEDED}
    assert (await queue.wait(job.id, PATIENCE_S)).state is JobState.SUCCEEDED
    with pytest.raises(JobNotFound):
        await queue.wait(new_job_id(), PATIENCE_S)


async def test_many_may_wait_and_ask_at_once(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    lease = taken(worker)
    waiting = [asyncio.create_task(queue.wait(job.id, PATIENCE_S)) for _ in range(200)]
    assert {record.state for record in await asyncio.gather(*(queue.get(job.id) for _ in range(200)))} == {
        JobState.RUNNING
    }
    worker.ack(lease, an_outcome())
    assert {record.state for record in await asyncio.gather(*waiting)} == {JobState.SUCCEEDED}


async def test_a_wait_that_is_cut_off_spoils_nothing(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    for turns in range(40):  # of the event loop, so that the cut falls into the connecting, the asking, the waiting
        cut = asyncio.create_task(queue.wait(job.id, PATIENCE_S))
        for _ in range(turns):
            await asyncio.sleep(0)
        cut.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cut
    lease = taken(worker)
    waiting = asyncio.create_task(queue.wait(job.id, PATIENCE_S))
    worker.ack(lease, an_outcome())
    assert (await waiting).state is JobState.SUCCEEDED


async def test_events_tell_the_whole_story_and_can_be_resumed(queue: QueueClient, hire: Hire) -> None:
    job, worker = a_job(), hire()
    await queue.put(job)
    lease = taken(worker)
    worker.report(lease, Progress(done=1, total=2, unit="tiles"))
    worker.report(lease, Progress(done=2, total=2, unit="tiles"))
    worker.ack(lease, an_outcome())
    story = [event async for event in queue.events(job.id, None)]
    told = [(event["event"], event.get("state") or event.get("done")) for _, event in story]
    assert told == [
        ("state", "queued"),
        ("state", "running"),
        ("progress", 1),
        ("progress", 2),
        ("state", "succeeded"),
    ]
    assert [event async for event in queue.events(job.id, story[2][0])] == story[3:]
    assert [event async for event in queue.events(job.id, story[-1][0])] == []
    assert [event async for event in queue.events(job.id, "not ours")] == story


async def test_jobs_are_listed_newest_first_by_state_and_page(queue: QueueClient, hire: Hire) -> None:
    jobs = [a_job() for _ in range(5)]
    for job in jobs:
        await queue.put(job)
    worker = hire()
    for _ in range(2):
        worker.ack(taken(worker), an_outcome())
    newest_first = [job.id for job in reversed(jobs)]

    page, cursor = await queue.list(None, 3, None)
    assert [record.job.id for record in page] == newest_first[:3]
    page, cursor = await queue.list(None, 3, cursor)
    assert [record.job.id for record in page] == newest_first[3:]
    assert cursor is None

    page, cursor = await queue.list(JobState.QUEUED, 2, None)
    assert [record.job.id for record in page] == newest_first[:2]
    page, cursor = await queue.list(JobState.QUEUED, 2, cursor)
    assert [record.job.id for record in page] == newest_first[2:3]
    assert cursor is None
    page, _ = await queue.list(JobState.SUCCEEDED, 10, None)
    assert [record.job.id for record in page] == newest_first[3:]
    assert await queue.list(JobState.FAILED, 10, None) == ([], None)
    with pytest.raises(BadInput):
        await queue.list(None, 10, "[x")


async def test_removing_a_job_gives_only_blobs_that_no_other_job_uses(queue: QueueClient, hire: Hire) -> None:
    first, second, worker = a_job(reference_blob=CLEAN), a_job(), hire()
    for job in (first, second):
        await queue.put(job)
    with pytest.raises(JobNotReady):
        await queue.remove(first.id)
    worker.ack(taken(worker), an_outcome())
    assert sorted(await queue.remove(first.id)) == [CLEAN, RESTORED]
    with pytest.raises(JobNotFound):
        await queue.remove(first.id)
    assert [record.job for record in (await queue.list(None, 10, None))[0]] == [second]
    await queue.cancel(second.id)
    assert await queue.remove(second.id) == [NOISY]


async def test_the_figures_of_a_videos_frames_are_kept_and_removed_with_it(queue: QueueClient, hire: Hire) -> None:
    worker, table = hire(), "7" * 64
    job = await divided(queue, worker, 1)
    part = taken(worker, (Lane.VIDEO_PART,))
    worker.part_done(part, a_part_outcome("8" * 64).model_copy(update={"frame_table": "9" * 64}))
    lease = taken(worker)
    assert [made.blobs for made in worker.parts_of(lease)] == [["8" * 64, "9" * 64]]
    kept = FrameTableBlob(blob=table, bytes=7, sha256=table)
    worker.ack(lease, an_outcome().model_copy(update={"per_frame": kept}))
    assert (await queue.get(job.id)).outcome.per_frame == kept
    assert sorted(await queue.remove(job.id)) == sorted([NOISY, RESTORED, table])


async def test_the_stream_is_as_long_as_what_waits_and_runs(queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    for _ in range(3):
        await queue.put(a_job())
    lease = taken(worker)
    depth = (await queue.depths())[Lane.IMAGE_INTERACTIVE]
    assert (depth.queued, depth.in_flight) == (2, 1)
    assert depth.oldest_age_s >= 0
    assert stream_length(url, Lane.IMAGE_INTERACTIVE) == 3
    worker.ack(lease, an_outcome())
    depth = (await queue.depths())[Lane.IMAGE_INTERACTIVE]
    assert (depth.queued, depth.in_flight) == (2, 0)
    assert (await queue.depths())[Lane.VIDEO].oldest_age_s == 0
    counted = await queue.counters()
    assert (counted["accepted:image.interactive"], counted["claimed:image.interactive"]) == (3, 1)
    assert {name.partition(":")[0] for name in counted} <= set(keys.COUNTERS)


async def test_a_worker_is_listed_while_it_lives(queue: QueueClient, hire: Hire) -> None:
    card = WorkerCard(
        id="worker",
        pid=os.getpid(),
        host="here",
        started_at=1.0,
        models={"dncnn": ModelReady(backend="torch", precision="fp32")},
        ready=True,
    )
    worker = hire("worker", lease_ttl_s=SHORT_LEASE_S)
    silent = hire("silent", heartbeat=False, lease_ttl_s=SHORT_LEASE_S)
    worker.announce(card)
    silent.announce(card.model_copy(update={"id": "silent"}))
    deadline = time.monotonic() + PATIENCE_S
    while [one.id for one in await queue.workers()] != ["worker"]:
        assert time.monotonic() < deadline
    assert await queue.workers() == [card]
    worker.retire()
    assert await queue.workers() == []


async def test_a_server_that_is_away_is_said_to_be(tmp_path: Path, settings: Settings) -> None:
    url = f"unix://{tmp_path}/nobody.sock"
    async with QueueClient(url, settings) as queue:
        for call in (queue.ping, functools.partial(queue.put, a_job()), functools.partial(queue.list, None, 1, None)):
            with pytest.raises(NotReady):
                await call()
        with pytest.raises(NotReady):
            await queue.wait(new_job_id(), 1)
    worker = LeaseClient(url, settings, "worker", heartbeat=False)
    with pytest.raises(NotReady):
        worker.lease(list(Lane), 1)
    worker.close()


async def test_a_server_that_may_not_write_is_as_good_as_away(queue: QueueClient, hire: Hire, url: str) -> None:
    worker = hire()
    card = WorkerCard(id="worker", pid=os.getpid(), host="here", started_at=1.0)
    with Redis.from_url(url) as link:
        link.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(NotReady):
                await queue.put(a_job())
            with pytest.raises(NotReady):
                worker.announce(card)
        finally:
            link.config_set("min-replicas-to-write", 0)


async def test_results_expire_then_records_and_their_blobs_go(
    queue: QueueClient, hire: Hire, url: str, settings: Settings, tmp_path: Path
) -> None:
    blobs = FileStore(tmp_path / "blobs")
    noisy, restored, orphan = (blobs.put(io.BytesIO(bytes([one]))).name for one in range(3))
    first, second = a_job(input_blob=noisy), a_job(input_blob=noisy)
    await queue.put(first)
    await queue.put(second)
    brief = settings.model_copy(update={"record_ttl_s": 0.3})
    janitor = Janitor(url, brief, blobs, grace_s=0.001)
    worker = hire(result_ttl_s=0.01)
    worker.ack(taken(worker), an_outcome(restored))

    def swept(name: str) -> bool:
        janitor.sweep()
        return name not in set(blobs.names_older_than(0))

    until(lambda: swept(restored))
    until(lambda: swept(orphan))
    janitor.sweep()
    with blobs.fetch(noisy):  # the second job still needs it
        pass
    with Redis.from_url(url) as link:
        until(lambda: not link.exists(keys.job(first.id)))
        until(lambda: swept(orphan) and not link.zscore(keys.jobs(None), first.id) is not None)
        assert link.exists(keys.events(first.id)) == 0
    assert [record.job for record in (await queue.list(None, 10, None))[0]] == [second]
    with pytest.raises(JobNotFound):
        await queue.get(first.id)
    janitor.close()


async def test_an_expired_job_is_remembered_for_a_while(
    queue: QueueClient, hire: Hire, url: str, settings: Settings, tmp_path: Path
) -> None:
    job, worker = a_job(), hire(result_ttl_s=0.01)
    await queue.put(job)
    worker.ack(taken(worker), an_outcome())
    janitor = Janitor(url, settings, FileStore(tmp_path / "blobs"))
    stop = threading.Event()
    keeper = threading.Thread(target=janitor.run_forever, args=(stop, 0.02))
    keeper.start()
    deadline = time.monotonic() + PATIENCE_S
    while (await queue.get(job.id)).state is not JobState.EXPIRED:
        assert time.monotonic() < deadline
    stop.set()
    keeper.join()
    assert [record.job for record in (await queue.list(JobState.EXPIRED, 10, None))[0]] == [job]
    assert (await queue.cancel(job.id)).state is JobState.EXPIRED
    assert await queue.remove(job.id) == []
    janitor.close()


async def test_a_job_without_a_result_keeps_its_state_until_it_is_forgotten(
    queue: QueueClient, hire: Hire, url: str, settings: Settings, tmp_path: Path
) -> None:
    failed, cancelled, worker = a_job(), a_job(), hire(result_ttl_s=0.01)
    await queue.put(failed)
    worker.bury(taken(worker), problem(422, "bad_input", "Bad", "no picture"))
    async with QueueClient(url, settings.model_copy(update={"result_ttl_s": 0.01})) as brief:
        await brief.put(cancelled)
        await brief.cancel(cancelled.id)
    store = FileStore(tmp_path / "blobs")
    janitor = Janitor(url, settings.model_copy(update={"record_ttl_s": 3600}), store)
    with Redis.from_url(url) as link:

        def dropped() -> bool:
            janitor.sweep()
            return not link.exists(keys.blob(NOISY))

        await asyncio.to_thread(until, dropped)
        janitor.sweep()
        for job, state in ((failed, JobState.FAILED), (cancelled, JobState.CANCELLED)):
            assert [record.job for record in (await queue.list(state, 10, None))[0]] == [job]
            assert link.pttl(keys.job(job.id)) > 0
        with pytest.raises(ResultGone, match="send it anew"):
            await queue.replay(failed.id)
        assert await queue.dead_letters(10) == []
        assert not any(name.startswith("expired:") for name in await queue.counters())

        past = {job.id: 0 for job in (failed, cancelled)}
        link.zadd(f"{keys.PREFIX}expiring", past)  # the record's time is over as well
    janitor.sweep()
    assert await queue.list(None, 10, None) == ([], None)
    janitor.close()


async def test_a_killed_server_comes_back_with_all_it_had(binary: Path, settings: Settings, data_dir: Path) -> None:
    waiting, running = a_job(Lane.VIDEO), a_job()
    with EmbeddedServer(data_dir, binary=binary) as server:
        async with QueueClient(server.url, settings) as queue:
            with LeaseClient(server.url, settings, "worker") as worker:
                await queue.put(waiting)
                await queue.put(running)
                lease = taken(worker, (Lane.IMAGE_INTERACTIVE,))
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                until(lambda: server.pid is None)
                with pytest.raises(NotReady):
                    await queue.ping()
                server.start()
                await queue.ping()
                worker.ack(lease, an_outcome())
                assert (await queue.get(running.id)).state is JobState.SUCCEEDED
                assert taken(worker).job == waiting


async def test_work_done_outlasts_a_short_outage(
    binary: Path, settings: Settings, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = a_job()
    with EmbeddedServer(data_dir, binary=binary) as server:
        async with QueueClient(server.url, settings) as queue:
            with LeaseClient(server.url, settings, "worker") as worker:
                await queue.put(job)
                lease = taken(worker)
                assert server.pid is not None
                os.kill(server.pid, signal.SIGKILL)
                until(lambda: server.pid is None)
                worker.report(lease, Progress(done=1))
                settling = asyncio.create_task(asyncio.to_thread(worker.ack, lease, an_outcome()))
                await asyncio.to_thread(until, lambda: f"job {job.id}: not settled yet" in caplog.text)
                server.start()
                await settling
                assert (await queue.get(job.id)).state is JobState.SUCCEEDED


def test_a_second_service_over_the_same_directory_is_refused(data_dir: Path) -> None:
    with EmbeddedServer(data_dir, binary=bundled_binary()), pytest.raises(DataDirBusy, match=str(os.getpid())):
        EmbeddedServer(data_dir, binary=bundled_binary()).start()
    with EmbeddedServer(data_dir, binary=bundled_binary()) as server:
        assert server.pid is not None


def test_a_directory_too_long_for_a_socket_will_do(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    with EmbeddedServer(deep, binary=bundled_binary()) as server, Redis.from_url(server.url) as link:
        link.set("kept", 1)
    with EmbeddedServer(deep, binary=bundled_binary()) as server, Redis.from_url(server.url) as link:
        assert link.get("kept") == b"1"
        path = Path(link.connection_pool.connection_kwargs["path"])
        assert path.stat().st_mode & 0o077 == 0


def test_a_directory_written_by_a_newer_server_is_served_by_it(data_dir: Path) -> None:
    with EmbeddedServer(data_dir, binary=bundled_binary()) as server, Redis.from_url(server.url) as link:
        link.set("kept", 1)
    with EmbeddedServer(data_dir) as server, Redis.from_url(server.url) as link:
        assert link.get("kept") == b"1"


def test_a_server_program_that_does_not_run_is_passed_over(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("valkey-server", "redis-server"):
        foreign = tmp_path / name
        foreign.write_bytes(b"\x00 for another machine")
        foreign.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with EmbeddedServer(data_dir) as server:
        assert server.pid is not None


SERVE = """
import os, sys, threading
from pathlib import Path
from redis import Redis
from service.broker.embedded import EmbeddedServer, bundled_binary

server = EmbeddedServer(Path(sys.argv[1]), binary=bundled_binary())
if sys.argv[2] == "stale":
    # Started from another thread than the main one, the server is not tied to this process.
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
else:
    server.start()
with Redis.from_url(server.url) as link:
    link.set("kept", 1)
print(server.pid, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def serving(data_dir: Path, how: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-c", SERVE, str(data_dir), how]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def answers(url: str) -> bool:
    with contextlib.suppress(Exception), Redis.from_url(url) as link:
        return bool(link.ping())
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_server_ends_with_a_killed_service(data_dir: Path) -> None:
    url = EmbeddedServer(data_dir).url
    with serving(data_dir, "tied") as (process, _):
        assert answers(url)
        process.kill()
        process.wait()
        until(lambda: not answers(url))


@pytest.mark.parametrize("hung", [False, True])
def test_a_server_left_by_a_killed_service_is_ended_and_its_data_kept(data_dir: Path, hung: bool) -> None:
    if hung and sys.platform != "linux":
        pytest.skip("the system does not tell whose socket it is")
    with serving(data_dir, "stale") as (process, pid):
        process.kill()
        process.wait()
        if hung:
            os.kill(pid, signal.SIGSTOP)
        with EmbeddedServer(data_dir, binary=bundled_binary()) as server, Redis.from_url(server.url) as link:
            assert server.pid != pid
            assert link.get("kept") == b"1"
