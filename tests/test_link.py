"""Is the queue's server found by every URL that names one, and found again when another takes its place?"""

import contextlib
import functools
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme
from ports import free_port
from redis import Redis
from redis.exceptions import RedisError

from service.broker.embedded import bundled_binary
from service.broker.lease import LeaseClient
from service.broker.link import BadRedisUrl, check_url, open_link, reachable
from service.broker.queue import QueueClient
from service.errors import NotReady
from service.job import InputFacts, Job, JobState, Lane, Metrics, Options, Outcome, Result, new_job_id
from service.settings import Settings

ROOT = Path(__file__).parent.parent
PATIENCE_S = 120.0  # a bound on waiting, never a claim about speed
PASSWORD = "s3cret/with?signs#@:"
WRITTEN = "s3cret%2Fwith%3Fsigns%23%40%3A"  # the same in a URL
INSTALLED = shutil.which("redis-server")
LANES = (Lane.IMAGE_INTERACTIVE, Lane.IMAGE_BATCH)
OUTCOME = Outcome(
    result=Result(blob="c" * 64, content_type="image/png", bytes=1, sha256="c" * 64, file_name="a-denoised.png"),
    metrics=Metrics(),
    backend="openvino",
    precision="fp32",
)


def a_job() -> Job:
    return Job(
        id=new_job_id(),
        kind="image",
        lane=Lane.IMAGE_BATCH,
        model="dncnn",
        options=Options(),
        input_blob="a" * 64,
        input=InputFacts(content_type="image/png", bytes=1, width=1, height=1),
        name="a",
        created_at=time.time(),
    )


@functools.cache
def has_tls(binary: Path) -> bool:
    """Whether the server was built with it: one that was not gives up over the option."""
    tried = subprocess.run(
        [binary, "--port", "0", "--tls-port", "1", "--tls-cert-file", "none"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    return "configure TLS" in tried.stdout  # it lacks a certificate, not the skill


@pytest.fixture(scope="module")
def binary() -> Path:
    """Redis where it is installed, for it has TLS; else the bundled Valkey."""
    found = Path(INSTALLED) if INSTALLED else bundled_binary()
    if found is None:
        pytest.skip("there is no Redis here, and no Valkey for this machine")
    return found


@dataclass(frozen=True)
class Papers:
    """An authority of our own, and what it signed, as files."""

    authority: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    folder = tmp_path_factory.mktemp("papers")
    made = Papers(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")
    authority = trustme.CA()
    signed = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(made.authority)
    signed.private_key_pem.write_to_path(made.key)
    for part in signed.cert_chain_pems:
        part.write_to_path(made.certificate, append=True)
    return made


@dataclass
class Server:
    """A running Redis or sentinel, and how to start it anew."""

    command: list[str]
    folder: Path
    port: int
    admin: Redis = field(repr=False)
    process: subprocess.Popen[bytes] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as output:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=output, stderr=output)
        until(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        with contextlib.suppress(RedisError):
            return bool(self.admin.ping())
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Park:
    """Starts servers, and ends them after the test."""

    binary: Path
    root: Path
    cleanup: contextlib.ExitStack
    papers: Papers | None = None  # then all of them speak TLS only
    count: int = 0

    def server(self, **options: str) -> Server:
        """One that holds data, under the password."""
        port = free_port()
        said = (
            self._base(port) | {"requirepass": PASSWORD, "masterauth": PASSWORD, "save": "", "databases": "8"} | options
        )
        words = [word for name, value in (said | options).items() for word in (f"--{name.replace('_', '-')}", value)]
        return self._run([str(self.binary), *words], port)

    def replica(self, primary: Server) -> Server:
        copy = self.server(replicaof=f"127.0.0.1 {primary.port}", repl_diskless_sync_delay="0")
        until(lambda: copy.admin.info("replication")["master_link_status"] == "up")
        return copy

    def sentinel(self, primary: Server) -> Server:
        port = free_port()
        lines = [f"{name.replace('_', '-')} {value}" for name, value in self._base(port).items()]
        lines += [
            f'requirepass "{PASSWORD}"',
            f"sentinel monitor main 127.0.0.1 {primary.port} 1",
            f'sentinel auth-pass main "{PASSWORD}"',
            "sentinel down-after-milliseconds main 300",
            "sentinel failover-timeout main 2000",
        ]
        path = self.root / f"sentinel-{port}.conf"
        path.write_text("\n".join(lines))
        return self._run([str(self.binary), str(path), "--sentinel"], port)

    def _base(self, port: int) -> dict[str, str]:
        said = {"port": str(port), "bind": "127.0.0.1", "repl_diskless_sync_delay": "0"}
        if self.papers is None:
            return said
        return said | {
            "port": "0",
            "tls_port": str(port),
            "tls_replication": "yes",
            "tls_ca_cert_file": str(self.papers.authority),
            "tls_cert_file": str(self.papers.certificate),
            "tls_key_file": str(self.papers.key),
        }

    def _run(self, command: list[str], port: int) -> Server:
        self.count += 1
        folder = self.root / str(self.count)
        folder.mkdir()
        tls: dict[str, Any] = {}
        if self.papers:
            tls = {
                "ssl": True,
                "ssl_ca_certs": str(self.papers.authority),
                "ssl_certfile": str(self.papers.certificate),
                "ssl_keyfile": str(self.papers.key),
            }
        admin = Redis(port=port, password=PASSWORD, decode_responses=True, protocol=2, **tls)
        self.cleanup.callback(admin.close)
        server = Server(command, folder, port, admin)
        self.cleanup.callback(server.kill)
        return server


@pytest.fixture
def park(binary: Path, tmp_path: Path) -> Iterator[Park]:
    with contextlib.ExitStack() as cleanup:
        yield Park(binary, tmp_path, cleanup)


@pytest.fixture
def secret_park(binary: Path, tmp_path: Path, papers: Papers) -> Iterator[Park]:
    if not has_tls(binary):
        pytest.skip(f"{binary.name} was built without TLS")
    with contextlib.ExitStack() as cleanup:
        yield Park(binary, tmp_path, cleanup, papers)


@pytest.fixture
def settings() -> Settings:
    return Settings(lease_ttl_s=30)


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def once_it_is_back(ask: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, after as many refusals as it takes; each must be the one that callers know."""
    with anyio.fail_after(PATIENCE_S):
        while True:
            try:
                return await ask()
            except NotReady:
                await anyio.sleep(0.01)


async def does_a_job(url: str, settings: Settings) -> None:
    """A job goes in at the API's side and comes out at the worker's."""
    async with QueueClient(url, settings) as queue:
        job = a_job()
        await queue.put(job)
        with LeaseClient(url, settings, "worker") as worker:
            lease = worker.lease(LANES, wait_s=PATIENCE_S)
            assert lease is not None
            worker.ack(lease, OUTCOME)
        assert (await queue.get(job.id)).state is JobState.SUCCEEDED


@pytest.mark.anyio
async def test_a_password_and_a_database_number_are_taken_from_the_url(park, settings):
    server = park.server()
    await does_a_job(f"redis://:{WRITTEN}@127.0.0.1:{server.port}/5", settings)
    assert server.admin.info("keyspace").keys() == {"db5"}


@pytest.mark.anyio
async def test_a_user_of_the_server_is_taken_from_the_url(park, settings):
    server = park.server()
    server.admin.acl_setuser("quiet", enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+@all"])
    server.admin.config_set("requirepass", "another")
    await does_a_job(f"redis://quiet:{WRITTEN}@localhost:{server.port}?db=3", settings)


@pytest.mark.anyio
async def test_a_socket_file_is_found_with_its_password_and_database(park, settings):
    path = park.root / "r.sock"
    server = park.server(unixsocket=str(path))
    await does_a_job(f"unix://:{WRITTEN}@{path}?db=2", settings)
    assert server.admin.info("keyspace").keys() == {"db2"}


@pytest.mark.anyio
async def test_a_wrong_password_is_said_without_saying_the_password(park, settings, caplog):
    caplog.set_level(logging.DEBUG)
    url = f"redis://:wr0ng-secret@127.0.0.1:{park.server().port}"
    async with QueueClient(url, settings) as queue:
        with pytest.raises(NotReady, match="refuses the user or the password") as refused:
            await queue.ping()
    with LeaseClient(url, settings, "worker") as worker, pytest.raises(NotReady, match="refuses"):
        worker.lease(LANES, wait_s=0)
    told = "".join(str(one) for one in (refused.value, refused.value.__cause__, caplog.text, worker.__dict__))
    assert "wr0ng-secret" not in told


@pytest.mark.anyio
async def test_over_tls_both_sides_show_their_papers(secret_park, settings):
    server, papers = secret_park.server(), secret_park.papers
    base = f"rediss://:{WRITTEN}@127.0.0.1:{server.port}/1"
    shown = f"ssl_certfile={papers.certificate}&ssl_keyfile={papers.key}"
    await does_a_job(f"{base}?ssl_ca_certs={papers.authority}&{shown}", settings)
    for lacking in (f"{base}?{shown}", f"{base}?ssl_ca_certs={papers.authority}", base.replace("rediss", "redis")):
        async with QueueClient(lacking, settings) as queue:
            with pytest.raises(NotReady):
                await queue.ping()
        with pytest.raises(NotReady), reachable():
            open_link(lacking).execute_command("PING")


def sentinel_url(park: Park, sentinel: Server) -> str:
    """Of two sentinels, the first of which is not there."""
    said = f"sentinel://:{WRITTEN}@127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/main/4?sentinel_password={WRITTEN}"
    if park.papers is None:
        return f"redis+{said}"
    papers = park.papers
    files = f"ssl_ca_certs={papers.authority}&ssl_certfile={papers.certificate}&ssl_keyfile={papers.key}"
    return f"rediss+{said}&{files}"


@pytest.fixture(params=["park", "secret_park"])
def watched(request: pytest.FixtureRequest) -> tuple[Park, Server, Server, Server]:
    """A primary, its replica and their sentinel; in clear, and over TLS."""
    park = request.getfixturevalue(request.param)
    primary = park.server()
    replica = park.replica(primary)
    sentinel = park.sentinel(primary)
    # It promotes only what it has heard of lately as a replica in good health.
    until(lambda: [one["flags"] for one in sentinel.admin.sentinel_slaves("main")] == ["slave"])
    until(lambda: sentinel.admin.sentinel_slaves("main")[0]["master-link-status"] == "ok")
    return park, primary, replica, sentinel


@pytest.fixture
async def clients(watched, settings) -> AsyncIterator[tuple[QueueClient, LeaseClient]]:
    park, _, _, sentinel = watched
    url = sentinel_url(park, sentinel)
    async with QueueClient(url, settings) as queue:
        with LeaseClient(url, settings, "worker") as worker:
            yield queue, worker


@pytest.mark.anyio
async def test_when_the_primary_is_killed_work_goes_on_at_its_replica(watched, clients):
    _, primary, replica, _ = watched
    queue, worker = clients
    before, after = a_job(), a_job()
    await queue.put(before)
    lease = worker.lease(LANES, wait_s=PATIENCE_S)
    assert lease is not None
    # Replication follows behind; this is not its test. WAIT asks for what its own connection wrote, and all before it.
    with primary.admin.client() as link:
        link.set("mark", 1)
        assert link.wait(1, 60_000) == 1
    primary.kill()
    worker.ack(lease, OUTCOME)
    await once_it_is_back(lambda: queue.put(after))
    assert (await queue.get(before.id)).state is JobState.SUCCEEDED
    again = worker.lease(LANES, wait_s=PATIENCE_S)
    assert again is not None
    assert again.job.id == after.id
    assert replica.admin.role()[0] == "master"


@pytest.mark.anyio
async def test_when_the_primary_steps_down_and_lives_on_the_clients_leave_it(watched, clients):
    _, primary, replica, sentinel = watched
    queue, worker = clients
    await queue.put(a_job())
    assert worker.lease(LANES, wait_s=PATIENCE_S)
    sentinel.admin.execute_command("SENTINEL FAILOVER", "main")
    until(lambda: replica.admin.role()[0] == "master")
    primary.admin.replicaof("127.0.0.1", str(replica.port))  # as the sentinel does by itself, 8 s later
    job = a_job()
    await once_it_is_back(lambda: queue.put(job))
    lease = None
    with anyio.fail_after(PATIENCE_S):
        while lease is None:
            with contextlib.suppress(NotReady):
                lease = worker.lease(LANES, wait_s=0)
    worker.ack(lease, OUTCOME)
    assert (await queue.get(job.id)).state is JobState.SUCCEEDED


@pytest.mark.anyio
async def test_without_a_primary_callers_hear_not_ready_until_there_is_one(park, settings):
    primary = park.server()
    sentinel = park.sentinel(primary)
    url = sentinel_url(park, sentinel)
    async with QueueClient(url, settings) as queue:
        with LeaseClient(url, settings, "worker") as worker:
            await queue.ping()
            primary.kill()
            for _ in range(2):
                with pytest.raises(NotReady):
                    await queue.put(a_job())
                with pytest.raises(NotReady):
                    worker.lease(LANES, wait_s=0)
            primary.start()
            await once_it_is_back(lambda: queue.put(a_job()))
            assert worker.lease(LANES, wait_s=PATIENCE_S)


@pytest.mark.anyio
async def test_a_server_that_turns_replica_is_looked_up_anew(park, settings):
    """One name, behind which the primary changes: what a DNS record is elsewhere is a link to a socket here."""
    old, new = (park.server(unixsocket=str(park.root / name)) for name in ("old.sock", "new.sock"))
    name = park.root / "current.sock"
    name.symlink_to("old.sock")
    url = f"unix://:{WRITTEN}@{name}"
    async with QueueClient(url, settings) as queue:
        with LeaseClient(url, settings, "worker") as worker:
            await queue.put(a_job())
            old.admin.replicaof("127.0.0.1", str(new.port))
            with pytest.raises(NotReady):
                await queue.put(a_job())
            with pytest.raises(NotReady):
                worker.lease(LANES, wait_s=0)
            name.unlink()
            name.symlink_to("new.sock")
            job = a_job()
            await queue.put(job)
            lease = worker.lease(LANES, wait_s=PATIENCE_S)
            assert lease is not None
            assert lease.job.id == job.id


@pytest.mark.anyio
async def test_who_waits_at_a_server_that_turns_replica_hears_not_ready(park, settings):
    server = park.server()
    url = f"redis://:{WRITTEN}@127.0.0.1:{server.port}"
    heard: list[Any] = []

    async def wait_as_a_client() -> None:
        with pytest.raises(NotReady) as refused:
            await queue.wait(job.id, PATIENCE_S)
        heard.append(refused)

    def wait_as_a_worker() -> None:
        with pytest.raises(NotReady) as refused:
            worker.lease([Lane.VIDEO], wait_s=PATIENCE_S)
        heard.append(refused)

    async with QueueClient(url, settings) as queue:
        with LeaseClient(url, settings, "worker") as worker:
            job = a_job()
            await queue.put(job)
            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(wait_as_a_client)
                    waiting.start_soon(anyio.to_thread.run_sync, wait_as_a_worker)
                    while server.admin.info("clients")["blocked_clients"] < 2:
                        await anyio.sleep(0.01)
                    server.admin.replicaof("127.0.0.1", str(free_port()))
    assert len(heard) == 2


BAD_URLS = {
    "": "must begin with",
    "http://h/0": "redis://, rediss://, unix://",
    "redis:///pw-secret@h": "%2F",
    "redis://:pw/secret@h:1/0": "%2F",
    "redis://:pw#secret@h:1/0": "%23",
    "redis://:pw[secret@h:1/0": "%5B",
    "redis://:pw-secret@h:99999": "port",
    "redis://:pw-secret@h:1x": "port",
    "redis://:pw-secret@h:1,g:2/0": "host:port",
    "redis://:pw-secret@h/first": "whole number",
    "redis://:pw-secret@h?db=-1": "whole number",
    "redis://:pw-secret@h?speed=9": "'speed'; known are client_name, db",
    "redis://:pw-secret@h?ssl_ca_certs=/x": "needs rediss://",
    "rediss://:pw-secret@h?ssl_ca_certs=/no/such.pem": "no file",
    "rediss://:pw-secret@h?ssl_check_hostname=maybe": "true or false",
    "rediss://:pw-secret@h?ssl_cert_reqs=CERT_NONE": "none, optional or required",
    "unix://:pw-secret@run/redis.sock": "three slashes",
    "redis+sentinel://:pw-secret@h:1,g:2": "mymaster",
    "redis+sentinel://:pw-secret@h:1,g:2/main/x": "whole number",
    "redis://:pw-secret@h?sentinel_password=pw-secret": "redis+sentinel://",
}


@pytest.mark.parametrize(("url", "words"), BAD_URLS.items(), ids=range(len(BAD_URLS)))
def test_a_url_that_names_no_server_is_told_what_is_wrong_and_keeps_its_password(url, words):
    with pytest.raises(BadRedisUrl) as refused:
        check_url(url)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    "command", [["worker"], ["api"], ["serve", "--port", "0"], ["jobs", "list"], ["worker", "--workers", "2"]], ids=str
)
def test_a_bad_url_ends_a_command_in_one_line(command, tmp_path):
    words = [
        sys.executable,
        "-m",
        "service",
        *command,
        "--data-dir",
        str(tmp_path),
        "--redis-url",
        "redis://:pw/secret@h",
    ]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ran.returncode == 1
    assert ran.stderr.startswith("quietframe: ")
    assert ran.stderr.count("\n") == 1
    assert "secret" not in ran.stderr
