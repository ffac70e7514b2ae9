"""What can befall a service, and in which order does it?"""

import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from chaos.cluster import Cluster

Heal = Callable[[], None]
Strike = Callable[[Cluster, random.Random], Heal]

_BUSY_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One trouble of a schedule."""

    name: str
    strike: Strike
    before_s: float  # after work was handed in
    lasts_s: float  # beyond what the trouble takes by itself
    overlaps: bool  # it is healed only after the next one has struck


def schedule(rng: random.Random, rounds: int, pause_s: float = 0.6) -> list[Step]:
    """Every trouble `rounds` times, in an order by chance."""
    names = [name for name in TROUBLES for _ in range(rounds)]
    rng.shuffle(names)
    return [
        Step(
            name=name,
            strike=TROUBLES[name],
            before_s=rng.uniform(0, pause_s),
            lasts_s=rng.uniform(0, pause_s),
            overlaps=rng.random() < 0.25,
        )
        for name in names
    ]


def _kill_worker(cluster: Cluster, rng: random.Random) -> Heal:
    with _victim(cluster, rng) as worker:
        worker.send(signal.SIGKILL)
    return _nothing  # its pool starts another


def _kill_pool(cluster: Cluster, rng: random.Random) -> Heal:
    rng.choice(cluster.pools).signal(signal.SIGKILL)
    return _nothing  # the kernel tells its workers to stop, the orchestrator starts another


def _kill_api(cluster: Cluster, rng: random.Random) -> Heal:
    rng.choice(cluster.apis).signal(signal.SIGKILL)
    return _nothing


def _pause_worker(cluster: Cluster, rng: random.Random) -> Heal:
    worker = _victim(cluster, rng)
    worker.send(signal.SIGSTOP)
    held = cluster.holders().get(worker.pid, set())
    ttl_s = cluster.shape.lease_ttl_s
    cluster.pause(ttl_s * 1.1)
    # Then others take over what it held, if there are any.
    cluster.waited_for(lambda: not held & cluster.holders().get(worker.pid, set()), ttl_s * 4)

    def wake() -> None:
        with worker:
            worker.send(signal.SIGCONT)

    return wake


def _drain_pool(cluster: Cluster, rng: random.Random) -> Heal:
    rng.choice(cluster.pools).signal(signal.SIGTERM)
    return _nothing


def _restart_queue(cluster: Cluster, rng: random.Random) -> Heal:
    cluster.stop_queue(signal.SIGTERM)
    return cluster.start_queue


def _kill_queue(cluster: Cluster, rng: random.Random) -> Heal:
    cluster.stop_queue(signal.SIGKILL)
    return cluster.start_queue


def _drop_network(cluster: Cluster, rng: random.Random) -> Heal:
    cluster.network.cut()
    cluster.pause(rng.uniform(0.2, cluster.shape.lease_ttl_s))
    cluster.network.stall()
    cluster.pause(rng.uniform(0.5, 2.0) * cluster.shape.lease_ttl_s)
    return cluster.network.heal


def _fill_disk(cluster: Cluster, rng: random.Random) -> Heal:
    cluster.fill_disk()
    cluster.pause(rng.uniform(0.5, 1.5))
    return cluster.free_disk


TROUBLES: dict[str, Strike] = {
    "kill -9 a worker": _kill_worker,
    "kill -9 a pool of workers": _kill_pool,
    "kill -9 an API": _kill_api,
    "stop a worker past its lease": _pause_worker,
    "SIGTERM a pool of workers": _drain_pool,
    "shut Redis down": _restart_queue,
    "kill -9 Redis": _kill_queue,
    "drop the network to Redis": _drop_network,
    "fill the disk": _fill_disk,
}


class _Victim:
    """A process that is meant, even if it ends and its number is given to another."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def __enter__(self) -> "_Victim":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)


def _victim(cluster: Cluster, rng: random.Random) -> _Victim:
    """A worker, best one that is at work."""
    while True:
        cluster.waited_for(lambda: set(cluster.holders()) & set(cluster.workers()), _BUSY_WITHIN_S)
        cluster.wait_until(cluster.workers, "a worker to be there")
        alive = cluster.workers()
        busy = sorted(set(cluster.holders()) & set(alive))
        with suppress(ProcessLookupError):  # it ended in this moment
            return _Victim(rng.choice(busy or sorted(alive)))


def _nothing() -> None:
    """It heals by itself."""


def told(steps: Sequence[Step]) -> dict[str, int]:
    """How often each trouble is in a schedule."""
    return {name: sum(step.name == name for step in steps) for name in TROUBLES}
