"""A whole service to be hard on: Redis, the network to it, APIs and pools of workers, a disk, and an orchestrator."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from redis import Redis
from redis.exceptions import RedisError

from chaos.disk import Disk, small_disk
from chaos.hooks import SECRET, TIMEOUT_S, Receiver
from chaos.network import Relay
from service.broker import keys
from service.broker.embedded import bundled_binary
from service.job import Lane
from service.processes import dies_with_parent
from service.serve import LISTEN_FD
from service.settings import Settings

PATIENCE_S = 240.0  # a bound on waiting, never a claim about speed
_LOOK_EVERY_S = 0.02
_HERE = "127.0.0.1"
_ROOT = Path(__file__).parents[2]


class Stuck(AssertionError):
    """What must happen in the end did not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How the service is set up."""

    apis: int = 1
    pools: tuple[int, ...] = (2, 1)  # workers of each `quietframe worker`
    lease_ttl_s: float = 1.5
    part_frames: int = 8
    max_attempts: int = 20  # kills alone must not use them up
    drain_s: float = 4.0
    disk_bytes: int = 32 << 20
    fsync: str = "always"  # what Redis answered is then on its disk, so not even kill -9 takes it back

    @property
    def server(self) -> Path:
        """Debian's Redis where it is installed, else the bundled Valkey."""
        installed = shutil.which("redis-server")
        binary = Path(installed) if installed else bundled_binary()
        assert binary, "there is neither a redis-server nor a bundled one"
        return binary


@dataclass(slots=True)
class Member:
    """A process that the orchestrator starts again whenever it has ended."""

    name: str
    command: Sequence[str]
    environment: dict[str, str] = field(repr=False)
    log: Path
    inherited: tuple[int, ...] = ()
    wanted: bool = True
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return self.process.pid if self.process and self.process.poll() is None else None

    def start(self) -> None:
        self.starts += 1
        with self.log.open("ab") as output:
            output.write(f"--- start {self.starts}\n".encode())
            output.flush()
            self.process = subprocess.Popen(
                self.command,
                cwd=_ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=self.inherited,
                start_new_session=True,
                preexec_fn=dies_with_parent(),
            )

    def signal(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def end(self) -> None:
        """At once, with all that it has started."""
        for child in children_of(self.pid) if self.pid else ():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.signal(signal.SIGKILL)
        if self.process:
            self.process.wait()


class Cluster:
    """To be used from the main thread, which is also the orchestrator: processes are started again while it waits."""

    def __init__(self, root: Path, shape: Shape, seed: int = 0) -> None:
        """
        Args:
            root: an empty directory.
            seed: what the receiver of webhooks is in the mood for.
        """
        self.shape = shape
        self._seed = seed
        self._root = root
        self._stack = ExitStack()
        self._disk: Disk | None = None
        self._disk_is_full = False
        self.data_dir = root / "data"
        self.logs = root / "logs"

    def __enter__(self) -> Self:
        with self._stack:
            self._set_up()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _set_up(self) -> None:
        queue_dir = self._root / "queue"
        for folder in (self.data_dir, self.logs, queue_dir):
            folder.mkdir(parents=True)
        self._disk = small_disk(self.data_dir, self.shape.disk_bytes)
        self._stack.callback(self._disk.close)
        # A socket's path must be short, and `root` may not be.
        sockets = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="qf-chaos-")))
        self.queue_socket = sockets / "redis.sock"
        self.queue = self._server(queue_dir)
        self.network = Relay(self.queue_socket)
        self._stack.callback(self.network.close)
        self.redis: Any = Redis(unix_socket_path=str(self.queue_socket), decode_responses=True, protocol=2)
        self._stack.callback(self.redis.close)
        listener = self._stack.enter_context(socket.create_server((_HERE, 0), backlog=1024))
        self.base_url = f"http://{_HERE}:{listener.getsockname()[1]}"
        self.receiver = Receiver(self._seed)
        self._stack.callback(self.receiver.close)
        said = {
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_ALLOW_HTTP": True,
            "WEBHOOK_ALLOW_PRIVATE": True,
            "WEBHOOK_TIMEOUT_S": TIMEOUT_S,
            "WEBHOOK_RETRY_S": 0.2,
            "WEBHOOK_MAX_ATTEMPTS": 30,
            "DATA_DIR": self.data_dir,
            "REDIS_URL": f"redis://{_HERE}:{self.network.port}",
            "LEASE_TTL_S": self.shape.lease_ttl_s,
            "PART_FRAMES": self.shape.part_frames,
            "MAX_ATTEMPTS": self.shape.max_attempts,
            "DRAIN_S": self.shape.drain_s,
            "GRPC_PORT": 0,  # there are several of them
            "THREADS": 1,
        }
        environment = os.environ | {f"QUIETFRAME_{name}": str(value) for name, value in said.items()}
        service = (sys.executable, "-m", "service")
        self.apis = [
            Member(
                f"api-{number}",
                [*service, "api"],
                environment | {LISTEN_FD: str(listener.fileno())},
                self.logs / f"api-{number}.log",
                inherited=(listener.fileno(),),
            )
            for number in range(self.shape.apis)
        ]
        self.pools = [
            Member(
                f"workers-{number}",
                [*service, "worker", "--workers", str(count)],
                environment,
                self.logs / f"workers-{number}.log",
            )
            for number, count in enumerate(self.shape.pools)
        ]
        for member in (self.queue, *self.apis, *self.pools):
            self._stack.callback(member.end)
            member.start()
        self.wait_until(self.is_ready, "the service to be ready")

    def _server(self, queue_dir: Path) -> Member:
        options = {
            "port": "0",
            "unixsocket": str(self.queue_socket),
            "dir": str(queue_dir),
            "appendonly": "yes",
            "appendfsync": self.shape.fsync,
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        words = (word for name, value in options.items() for word in (f"--{name}", value))
        return Member("redis", [str(self.shape.server), *words], dict(os.environ), self.logs / "redis.log")

    @property
    def disk(self) -> str:
        """What the data directory lies on, in words."""
        assert self._disk
        return self._disk.name

    def settings(self) -> Settings:
        """Those of the services, for what this process does in their place."""
        return Settings(data_dir=self.data_dir, lease_ttl_s=self.shape.lease_ttl_s)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, timeout=30.0, trust_env=False)

    def look(self) -> None:
        """Start again what has ended and is wanted, as an orchestrator does."""
        for member in (self.queue, *self.apis, *self.pools):
            if member.wanted and member.pid is None:
                member.start()
        if self._disk_is_full and self._disk:
            self._disk.fill(self._service_pids())

    def wait_until(self, holds: Callable[[], object], what: str, within_s: float = PATIENCE_S) -> None:
        """
        Raises:
            Stuck: it does not come true.
        """
        if not self.waited_for(holds, within_s):
            raise Stuck(f"waited {within_s:.0f} s in vain for {what}")

    def waited_for(self, holds: Callable[[], object], within_s: float) -> bool:
        deadline = time.monotonic() + within_s
        while True:
            self.look()
            with suppress(RedisError, httpx.TransportError):
                if holds():
                    return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_EVERY_S)

    def pause(self, seconds: float) -> None:
        self.waited_for(lambda: False, seconds)

    def is_ready(self) -> bool:
        """Whether all workers that should be there show their cards."""
        cards = self.redis.zrange(keys.WORKERS, 0, -1)
        ready = sum(bool(self.redis.exists(keys.worker(name))) for name in cards)
        with self.client() as client:
            return ready >= sum(self.shape.pools) and client.get("/readyz").status_code == 200

    def workers(self) -> list[int]:
        """Processes that work, whichever pool they are of."""
        return [child for pool in self.pools if pool.pid for child in children_of(pool.pid)]

    def holders(self) -> dict[int, set[str]]:
        """The processes that hold leases now, and the entries they hold; of nobody if Redis is away."""
        held: dict[int, set[str]] = {}
        with suppress(RedisError):
            for lane in Lane:
                if self.redis.exists(keys.work(lane)):
                    for pending in self.redis.xpending_range(keys.work(lane), keys.GROUP, "-", "+", 1000):
                        # A consumer is called host-process-chance-slot.
                        pid = int(pending["consumer"].rsplit("-", 3)[1])
                        held.setdefault(pid, set()).add(f"{lane} {pending['message_id']}")
        return held

    def is_drained(self) -> bool:
        """Whether nothing waits, runs, or is yet to be skipped.

        All lanes at one moment: between two looks, a video's last part may leave its lane and the video enter another.
        """
        with self.redis.pipeline(transaction=True) as looks:
            for lane in Lane:
                looks.xlen(keys.work(lane))
            return not any(looks.execute())

    def has_told(self) -> bool:
        """Whether no webhook is yet to be sent."""
        with self.redis.pipeline(transaction=True) as looks:
            looks.xlen(keys.HOOKS)
            looks.zcard(f"{keys.HOOKS}:due")
            return not any(looks.execute())

    def stop_queue(self, how: int) -> None:
        self.queue.wanted = False
        self.queue.signal(how)  # SIGTERM does what SHUTDOWN does
        assert self.queue.process
        self.queue.process.wait()

    def start_queue(self) -> None:
        self.queue.wanted = True
        self.look()

    def fill_disk(self) -> None:
        self._disk_is_full = True
        self.look()

    def free_disk(self) -> None:
        self._disk_is_full = False
        assert self._disk
        self._disk.free(self._service_pids())

    def _service_pids(self) -> Iterable[int]:
        yield from (api.pid for api in self.apis if api.pid)
        yield from self.workers()


def children_of(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def record_of(redis: Any, job_id: str) -> dict[str, Any]:
    """A job's hash, with what is JSON in it read."""
    fields: dict[str, Any] = redis.hgetall(keys.job(job_id))
    return {**fields, "job": json.loads(fields["job"])} if fields else {}
