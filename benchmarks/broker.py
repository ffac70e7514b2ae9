"""What the queue costs: its speed beside a plain queue library's, its latency, and both with a long queue behind.

No work is done and no pixel moves. Ours puts, leases and acknowledges with everything that a denoising job has (record,
indexes, events, lease, fence); RQ runs `time.time` in the worker's own process, results kept. Rounds
are interleaved, and medians over rounds are printed.

    python benchmarks/broker.py [--rounds 5] [--jobs 500] [--most 100000]
"""

import argparse
import asyncio
import tempfile
import threading
import time
from pathlib import Path

from redis import Redis
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from support import job_of_no_pixels, median, outcome_of_no_pixels, percentile

from service.broker.embedded import EmbeddedServer
from service.broker.lease import LeaseClient
from service.broker.queue import QueueClient
from service.job import Lane
from service.settings import Settings


def put_ours(queue: QueueClient, loop: asyncio.AbstractEventLoop, count: int) -> float:
    """Jobs put per second, one after the other."""

    async def put() -> None:
        for _ in range(count):
            await queue.put(job_of_no_pixels())

    started = time.perf_counter()
    asyncio.run_coroutine_threadsafe(put(), loop).result()
    return count / (time.perf_counter() - started)


def do_ours(worker: LeaseClient, count: int) -> float:
    """Jobs leased and acknowledged per second."""
    started = time.perf_counter()
    for _ in range(count):
        lease = worker.lease((Lane.IMAGE_BATCH,), 10)
        assert lease is not None
        worker.ack(lease, outcome_of_no_pixels())
    return count / (time.perf_counter() - started)


def put_rq(queue: Queue, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        queue.enqueue("time.time")  # as near to nothing as a function by name can be
    return count / (time.perf_counter() - started)


def do_rq(worker: SimpleWorker, count: int) -> float:
    started = time.perf_counter()
    worker.work(burst=True, logging_level="ERROR")
    return count / (time.perf_counter() - started)


def latencies(queue: QueueClient, loop: asyncio.AbstractEventLoop, worker: LeaseClient, count: int) -> list[float]:
    """Seconds from a put to the end of its acknowledgement, by a worker that waits for it."""
    begun: dict[str, float] = {}
    took = []

    def work() -> None:
        for _ in range(count):
            lease = worker.lease((Lane.IMAGE_INTERACTIVE,), 10)
            assert lease is not None
            worker.ack(lease, outcome_of_no_pixels())
            took.append(time.perf_counter() - begun[lease.job.id])

    thread = threading.Thread(target=work)
    thread.start()
    for number in range(count):
        job = job_of_no_pixels(Lane.IMAGE_INTERACTIVE)
        begun[job.id] = time.perf_counter()
        asyncio.run_coroutine_threadsafe(queue.put(job), loop).result()
        while len(took) <= number and thread.is_alive():
            time.sleep(0.0002)
    thread.join()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--most", type=int, default=100_000, help="longest queue to measure behind")
    arguments = parser.parse_args()

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    settings = Settings(max_queued_jobs=10**9)
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        queue = QueueClient(server.url, settings)
        asyncio.run_coroutine_threadsafe(queue.connect(), loop).result()
        with LeaseClient(server.url, settings, "bench") as worker, Redis.from_url(server.url) as plain:
            rq_queue = Queue("bench", connection=plain, serializer=JSONSerializer)
            rq_worker = SimpleWorker([rq_queue], connection=plain, serializer=JSONSerializer)
            puts: list[float] = []
            rq_puts: list[float] = []
            done: list[float] = []
            rq_done: list[float] = []
            for _ in range(arguments.rounds):
                puts.append(put_ours(queue, loop, arguments.jobs))
                rq_puts.append(put_rq(rq_queue, arguments.jobs))
                done.append(do_ours(worker, arguments.jobs))
                rq_done.append(do_rq(rq_worker, arguments.jobs))
            print(f"{arguments.jobs} jobs that do nothing, {arguments.rounds} rounds, one client, one worker")
            print(f"{'':>22}  Quietframe/s      RQ/s  ratio")
            for name, ours, theirs in (("put", puts, rq_puts), ("lease and ack", done, rq_done)):
                ratio = median([a / b for a, b in zip(ours, theirs, strict=True)])
                print(f"{name:>22}  {median(ours):12.0f}  {median(theirs):8.0f}  {ratio:5.2f}")
            took = latencies(queue, loop, worker, arguments.jobs)
            p50, p95 = percentile(took, 50), percentile(took, 95)
            print(f"put to lease to ack, worker idle: p50 {p50:.2f} ms, p95 {p95:.2f} ms")

            print(f"\n{'jobs queued':>22}  put/s  lease and ack/s  put to ack p50 ms  server MiB")
            depth = 0
            for wanted in (10, 1_000, arguments.most):
                put_ours(queue, loop, wanted - depth)
                depth = wanted
                put_rate = put_ours(queue, loop, arguments.jobs)
                do_rate = do_ours(worker, arguments.jobs)
                took = latencies(queue, loop, worker, arguments.jobs)
                used = int(plain.info("memory")["used_memory"]) / 2**20
                print(f"{wanted:>22}  {put_rate:5.0f}  {do_rate:15.0f}  {percentile(took, 50):17.2f}  {used:10.0f}")
        asyncio.run_coroutine_threadsafe(queue.aclose(), loop).result()


if __name__ == "__main__":
    main()
