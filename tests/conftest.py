"""What do many tests need? A real queue server for the session, empty for each test."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from redis import Redis
from s3_server import S3Server
from watched_service import Watched, watched_service

from service.broker.embedded import EmbeddedServer, bundled_binary


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """`pytest.mark.anyio` runs coroutine tests, as the service runs: on asyncio."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def no_proxy_to_ourselves() -> Iterator[None]:
    """Where the environment names a proxy, clients of servers on this machine would ask it for them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session", autouse=True)
def grpc_on_a_free_port() -> Iterator[None]:
    """Whatever a test serves, it shall not need the one port that is the default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUIETFRAME_GRPC_PORT", "0")
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where all workers of one run find what any of them has made, see `seeded_networks.graph_of`."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUIETFRAME_TEST_SHARED", str(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own))
        yield


@pytest.fixture(autouse=True)
def no_real_time() -> Iterator[None]:
    """A sample of AV1 leaves this process, where it may, with real-time priority, and those started from it as well.

    Two of those that wait for each other by spinning then stop the whole machine.
    """
    take_back_real_time()
    yield
    take_back_real_time()


def take_back_real_time() -> None:
    tasks = Path("/proc/self/task")
    for task in tasks.iterdir() if tasks.exists() else ():
        with suppress(ProcessLookupError, PermissionError):
            if os.sched_getscheduler(int(task.name)) == os.SCHED_FIFO:
                os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bundled Valkey, in a directory of its own."""
    with EmbeddedServer(tmp_path_factory.mktemp("queue"), binary=bundled_binary()) as server:
        yield server.url


@pytest.fixture
def fresh_redis_url(redis_url: str) -> str:
    """The same server, with nothing in it."""
    return _emptied(redis_url)


@pytest.fixture(scope="module")
def modules_redis_url(redis_url: str) -> str:
    """The same server, with nothing in it of earlier modules, whose jobs have their files elsewhere."""
    return _emptied(redis_url)


def _emptied(url: str) -> str:
    with Redis.from_url(url) as link:
        link.flushall()
    return url


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3, its bucket in a directory of its own, and the environment that its clients need."""
    with S3Server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A service of real processes, and all that it tells of itself."""
    with watched_service(tmp_path_factory.mktemp("watched")) as service:
        yield service


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"
