"""Are blobs kept whole, kept once, and kept in: in a directory as in a bucket?"""

import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import httpx
import obstore
import pytest
from obstore.store import MemoryStore, S3Store
from s3_server import S3Server

from models.errors import NeedsExtra
from service.blobs import Blob, BlobStore, FileStore, UnusableBlobUrl, open_store
from service.blobs.copies import LocalCopies
from service.blobs.objects import BucketStore
from service.errors import NotReady, ResultGone
from service.settings import Settings

if TYPE_CHECKING:
    from obstore.store import ObjectStore  # exists for type checkers only

HELLO = b"hello"
HELLO_NAME = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256 of it, from coreutils
LONG = bytes(range(256)) * (
    40 << 10
)  # 10 MiB: more than one part of an upload, and more than one stretch of a download
AMPLE = 1 << 30
PATIENCE_S = 120.0  # a bound on waiting, never a claim about speed
ROOT = Path(__file__).parent.parent


class Clock:
    """Tells the time that the test says."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Place(Protocol):
    """A store, and what a test must know of where it keeps things."""

    @property
    def store(self) -> BlobStore: ...
    def age(self, seconds: float) -> None:
        """Let all blobs be older."""

    def kept(self) -> int:
        """How many times bytes are kept, finished or not."""

    def unfinished(self) -> Path:
        """Where writers leave what they did not finish."""


class Directory:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.store: BlobStore = FileStore(root)

    def age(self, seconds: float) -> None:
        for path in self._root.glob("??/*"):
            then = path.stat().st_mtime - seconds
            os.utime(path, (then, then))

    def kept(self) -> int:
        return sum(path.is_file() and path.name != "lock" for path in self._root.rglob("*"))

    def unfinished(self) -> Path:
        return self._root / "unfinished"


class Bucket:
    def __init__(self, bucket: "ObjectStore", root: Path) -> None:
        self.clock = Clock()
        self.bucket = bucket
        self._root = root
        self.store: BlobStore = self.another()

    def another(self, clock: Callable[[], float] | None = None, *, copies: str = "copies") -> BucketStore:
        """The store as another process has it, or with other copies as another machine."""
        return BucketStore(self.bucket, LocalCopies(self._root / copies, AMPLE), clock=clock or self.clock)

    def age(self, seconds: float) -> None:
        self.clock.now += seconds

    def keys(self, what: str) -> list[str]:
        return sorted(one["path"] for found in obstore.list(self.bucket) for one in found if f"/{what}-" in one["path"])

    def kept(self) -> int:
        return len(self.keys("data")) + len(list(self.unfinished().iterdir()))

    def unfinished(self) -> Path:
        return self._root / "copies" / "unfinished"


def s3_bucket(s3: S3Server) -> S3Store:
    # Path and endpoint as `open_store` gives them, without its patience.
    return S3Store.from_url(s3.new_prefix(), client_options={"allow_http": True})


@pytest.fixture(params=["files", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "files":
        return Directory(tmp_path / "blobs")
    if request.param == "memory":
        return Bucket(MemoryStore(), tmp_path)
    return Bucket(s3_bucket(request.getfixturevalue("s3")), tmp_path)


@pytest.fixture
def store(place: Place) -> BlobStore:
    return place.store


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    return Bucket(s3_bucket(s3), tmp_path)


# --- what every store does


def test_a_blob_is_named_by_its_bytes_and_comes_back_whole(store: BlobStore) -> None:
    assert store.put(io.BytesIO(HELLO)) == Blob(name=HELLO_NAME, bytes=5, sha256=HELLO_NAME)
    with store.open(HELLO_NAME) as source:
        assert source.read() == HELLO
    with store.fetch(HELLO_NAME) as path:
        assert path.read_bytes() == HELLO


@pytest.mark.parametrize("content", [b"", b"x", LONG])
def test_a_blob_may_have_any_size(store: BlobStore, content: bytes) -> None:
    name = store.put(io.BytesIO(content)).name
    assert name == hashlib.sha256(content).hexdigest()
    with store.open(name) as source:
        assert source.read() == content
    with store.fetch(name) as path:
        assert path.read_bytes() == content


def test_a_blob_is_read_from_where_one_likes(store: BlobStore) -> None:
    name = store.put(io.BytesIO(LONG)).name
    with store.open(name) as source:
        assert source.seek(-3, io.SEEK_END) == len(LONG) - 3
        assert source.read() == LONG[-3:]
        assert source.read(1) == b""
        source.seek(9_000_001)
        assert source.read(1_000_000) == LONG[9_000_001:10_000_001]
        source.seek(5)
        assert source.read(2) == LONG[5:7]
        source.seek(2, io.SEEK_CUR)
        assert source.tell() == 9
        assert source.read(1) == LONG[9:10]
        source.seek(len(LONG) + 5)
        assert source.read() == b""


def test_a_long_blob_is_streamed(store: BlobStore) -> None:
    chunk = bytes(range(256)) * 4096

    class Endless(io.BytesIO):
        """Gives three chunks, and shows how much was asked for at once."""

        left = 3
        largest = 0

        def read(self, size: int | None = -1, /) -> bytes:
            assert size is not None
            assert size > 0, "asked for all at once"
            self.largest = max(self.largest, size)
            self.left -= 1
            return chunk[:size] if self.left >= 0 else b""

    source = Endless()
    assert store.put(source).bytes == 3 * min(len(chunk), source.largest)


def test_the_same_bytes_are_stored_once_and_count_as_fresh_again(store: BlobStore, place: Place) -> None:
    store.put(io.BytesIO(HELLO))
    place.age(1000)
    assert list(store.names_older_than(500)) == [HELLO_NAME]
    store.put(io.BytesIO(HELLO))
    assert list(store.names_older_than(500)) == []
    assert place.kept() == 1


def test_a_file_is_moved_in_and_is_fresh_however_old_it_was(store: BlobStore, place: Place, tmp_path: Path) -> None:
    made = tmp_path / "made.bin"
    made.write_bytes(HELLO)
    os.utime(made, (1, 1))
    assert store.put_file(made).name == HELLO_NAME
    assert not made.exists()
    assert list(store.names_older_than(500)) == []
    made.write_bytes(HELLO)
    assert store.put_file(made).name == HELLO_NAME
    assert not made.exists()
    assert place.kept() == 1
    with store.fetch(HELLO_NAME) as path:
        assert path.read_bytes() == HELLO


def test_a_deleted_blob_is_gone_and_may_be_deleted_again(store: BlobStore) -> None:
    store.put(io.BytesIO(HELLO))
    assert store.delete(HELLO_NAME)
    assert not store.delete(HELLO_NAME)
    assert list(store.names_older_than(0)) == []
    with pytest.raises(ResultGone):
        store.open(HELLO_NAME)
    with pytest.raises(ResultGone), store.fetch(HELLO_NAME):
        pass
    with pytest.raises(ResultGone):
        store.link(HELLO_NAME, method="GET", ttl_s=1, content_type="image/png", disposition="attachment")


def test_a_deleter_who_counted_references_spares_what_was_put_again(store: BlobStore, place: Place) -> None:
    store.put(io.BytesIO(HELLO))
    place.age(1000)
    store.put(io.BytesIO(HELLO))
    assert not store.delete(HELLO_NAME, unused_for_s=500)
    place.age(1000)
    assert store.delete(HELLO_NAME, unused_for_s=500)
    assert list(store.names_older_than(0)) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../etc/passwd",
        "/etc/passwd",
        HELLO_NAME[:-1],
        HELLO_NAME + "\n",
        HELLO_NAME.upper(),
        f"../{HELLO_NAME}",
        f"{HELLO_NAME}/../{HELLO_NAME}",
        "٢" * 64,  # digits elsewhere
    ],
)
def test_a_name_that_no_blob_can_have_reaches_nothing(store: BlobStore, name: str) -> None:
    store.put(io.BytesIO(HELLO))
    with pytest.raises(ResultGone):
        store.open(name)
    with pytest.raises(ResultGone), store.fetch(name):
        pass
    with pytest.raises(ResultGone):
        store.delete(name)
    with pytest.raises(ResultGone):
        store.link(name, method="GET", ttl_s=1, content_type="image/png", disposition="attachment")


def test_a_source_that_breaks_off_leaves_nothing_behind(store: BlobStore, place: Place) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise ConnectionResetError
            return super().read(2)

    with pytest.raises(ConnectionResetError):
        store.put(Broken(HELLO))
    assert place.kept() == 0


def test_what_a_killed_writer_left_is_cleaned_once_it_is_old(store: BlobStore, place: Place) -> None:
    left = place.unfinished() / "left.part"
    left.write_bytes(HELLO)
    assert store.clean_unfinished(500) == 0
    os.utime(left, (1, 1))
    assert store.clean_unfinished(500) == 1
    assert place.kept() == 0
    assert list(store.names_older_than(0)) == []


def all_at_once(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own; the first failure is this test's."""
    failures: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_many_may_put_and_delete_the_same_bytes_at_once(store: BlobStore) -> None:
    def put_and_delete() -> None:
        for _ in range(10):
            store.put(io.BytesIO(HELLO))
            store.delete(HELLO_NAME)

    all_at_once(*[put_and_delete] * 4)
    assert store.put(io.BytesIO(HELLO)).name == HELLO_NAME


def test_many_write_and_read_at_once(store: BlobStore) -> None:
    def write_and_read(seed: int) -> None:
        for number in range(4):
            content = f"{seed if number % 2 else 'all'}-{number}".encode() * 5000
            name = store.put(io.BytesIO(content)).name
            with store.fetch(name) as path:
                assert path.read_bytes() == content
            with store.open(name) as source:
                source.seek(7)
                assert source.read(11) == content[7:18]

    all_at_once(*[lambda seed=seed: write_and_read(seed) for seed in range(6)])


MEASURE = """
import resource, sys
from service.blobs import open_store
from service.settings import Settings

class Zeros:
    def __init__(self, left):
        self.left = left
    def read(self, size):
        self.left -= (taken := min(size, self.left))
        return bytes(taken)

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def round_trip(megabytes):
    name = store.put(Zeros(megabytes << 20)).name
    with other.fetch(name) as path:
        assert path.stat().st_size == megabytes << 20
    with store.open(name) as source:
        while source.read(256 << 10):
            pass

store, other = (open_store(Settings(blob_allow_http=True, data_dir=folder)) for folder in sys.argv[1:])
round_trip(9)
before = peak_mib()
round_trip(200)
print(peak_mib() - before)
"""


@pytest.mark.parametrize("where", ["files", "s3"])
def test_memory_does_not_grow_with_a_blob(s3: S3Server, tmp_path: Path, where: str) -> None:
    url = (tmp_path / "blobs").as_uri() if where == "files" else s3.new_prefix()
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "one"), str(tmp_path / "other")]
    environment = os.environ | {"QUIETFRAME_BLOB_URL": url}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stderr
    # 4 parts of 8 MiB on their way up, twice where TLS or HTTP copy them; the blob has 200 MiB.
    assert float(done.stdout) < 100


def test_a_reader_of_a_long_blob_in_a_bucket_keeps_little_of_it_in_memory(tmp_path: Path) -> None:
    store = Bucket(MemoryStore(), tmp_path).store  # which holds its own bytes where they are not counted here
    name = store.put(io.BytesIO(LONG)).name
    tracemalloc.start()
    readers = [store.open(name) for _ in range(4)]
    for reader in readers:
        while reader.read(256 << 10):
            pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for reader in readers:
        reader.close()
    assert peak_bytes < len(readers) * (2 << 20)  # 1 MiB each, and what the one that reads takes on its way


# --- the bucket: who deletes and who puts, without a lock between them


class Meanwhile(Clock):
    """A clock that lets something else happen before it tells the time, the n-th time it is asked."""

    def __init__(self, clock: Clock, nth: int, happens: Callable[[], object]) -> None:
        self.now = clock.now
        self._left = nth
        self._happens = happens

    def __call__(self) -> float:
        self._left -= 1
        if self._left == 0:
            self._happens()
        return super().__call__()


@pytest.mark.parametrize(
    ("nth", "deleted"),
    [
        (1, False),  # after the first look, before the data is doomed: the second look finds it put again
        (2, True),  # after the second look: the writer sees the mark, and sends the bytes again
    ],
)
def test_who_puts_while_a_deleter_is_at_work_has_the_blob_afterwards(bucket: Bucket, nth: int, deleted: bool) -> None:
    bucket.store.put(io.BytesIO(HELLO))
    bucket.age(1000)
    # The clock is read after each of the deleter's two looks.
    deleter = bucket.another(Meanwhile(bucket.clock, nth, lambda: bucket.store.put(io.BytesIO(HELLO))))
    assert deleter.delete(HELLO_NAME, unused_for_s=500) is deleted
    assert bucket.keys("doomed") == []
    assert len(bucket.keys("data")) == 1
    with bucket.another(copies="elsewhere").fetch(HELLO_NAME) as path:
        assert path.read_bytes() == HELLO


@pytest.mark.parametrize(("where", "rounds"), [("memory", 200), ("s3", 5)])
def test_who_puts_has_the_blob_however_many_deleters_are_about(
    request: pytest.FixtureRequest, tmp_path: Path, where: str, rounds: int
) -> None:
    bucket = Bucket(MemoryStore() if where == "memory" else s3_bucket(request.getfixturevalue("s3")), tmp_path)
    for _ in range(rounds):
        bucket.age(1000)  # whatever is there is old enough to be deleted

        def put() -> None:
            bucket.store.put(io.BytesIO(HELLO))
            with bucket.store.open(HELLO_NAME) as source:
                assert source.read() == HELLO

        def delete() -> None:
            bucket.store.delete(HELLO_NAME, unused_for_s=500)

        all_at_once(delete, put, delete, put)
        with bucket.store.open(HELLO_NAME) as source:
            assert source.read() == HELLO


def test_what_a_deleter_has_doomed_is_sent_again_and_a_late_deletion_hits_only_the_old(bucket: Bucket) -> None:
    bucket.store.put(io.BytesIO(HELLO))
    (old,) = bucket.keys("data")
    # As a deleter leaves it that was stopped just before its deletion, for however long.
    obstore.put(bucket.bucket, f"{HELLO_NAME}/doomed-{old[-16:]}-{'0' * 16}", b"")
    bucket.store.put(io.BytesIO(HELLO))
    assert len(bucket.keys("data")) == 2
    obstore.delete(bucket.bucket, old)
    with bucket.store.open(HELLO_NAME) as source:
        assert source.read() == HELLO
    bucket.store.put(io.BytesIO(HELLO))
    assert len(bucket.keys("data")) == 1  # what is there now is not doomed
    bucket.age(1000)
    assert bucket.store.delete(HELLO_NAME, unused_for_s=500)
    assert [one for found in obstore.list(bucket.bucket) for one in found] == []


def test_an_upload_that_takes_long_is_fresh_when_it_is_done(bucket: Bucket) -> None:
    class Slow(Clock):
        """Every look at it takes ten minutes."""

        def __call__(self) -> float:
            self.now += 600
            return self.now

    slow = Slow()
    bucket.another(slow).put(io.BytesIO(HELLO))
    bucket.clock.now = slow.now
    assert list(bucket.store.names_older_than(900)) == []
    assert not bucket.store.delete(HELLO_NAME, unused_for_s=900)
    assert len(bucket.keys("data")) == 1


def test_a_blob_put_again_and_again_leaves_few_notes(bucket: Bucket) -> None:
    for _ in range(30):
        bucket.store.put(io.BytesIO(HELLO))
        bucket.age(1)
    assert len(bucket.keys("put")) < 12
    assert len(bucket.keys("data")) == 1


def test_a_reader_goes_on_where_its_object_is_replaced(bucket: Bucket) -> None:
    name = bucket.store.put(io.BytesIO(LONG)).name
    (old,) = bucket.keys("data")
    with bucket.store.open(name) as source:
        assert source.read(10) == LONG[:10]
        obstore.copy(bucket.bucket, old, f"{name}/data-1-{'f' * 16}")
        obstore.delete(bucket.bucket, old)
        assert source.read() == LONG[10:]


def test_a_blob_deleted_under_a_reader_is_gone(bucket: Bucket) -> None:
    name = bucket.store.put(io.BytesIO(LONG)).name
    with bucket.store.open(name) as source:
        source.read(10)
        bucket.store.delete(name)
        with pytest.raises(ResultGone):
            source.read()


def test_other_peoples_objects_in_the_bucket_are_left_alone(bucket: Bucket) -> None:
    theirs = [HELLO_NAME, f"{HELLO_NAME}/notes.txt", f"{HELLO_NAME}/data-zz", "holiday/data-1-0123456789abcdef"]
    for key in theirs[1:]:  # a name cannot be a file and a folder where a directory is behind it
        obstore.put(bucket.bucket, key, b"theirs")
    assert list(bucket.store.names_older_than(0)) == []
    with pytest.raises(ResultGone):
        bucket.store.open(HELLO_NAME)
    assert not bucket.store.delete(HELLO_NAME)
    assert sorted(one["path"] for found in obstore.list(bucket.bucket) for one in found) == sorted(theirs[1:])


def test_bytes_that_rotted_in_the_bucket_are_not_given_out_as_the_blob(bucket: Bucket) -> None:
    bucket.store.put(io.BytesIO(HELLO))
    (key,) = bucket.keys("data")
    obstore.put(bucket.bucket, key, b"jello")
    elsewhere = bucket.another(copies="elsewhere")
    with pytest.raises(OSError, match="damaged"), elsewhere.fetch(HELLO_NAME):
        pass
    obstore.put(bucket.bucket, key, HELLO)
    with elsewhere.fetch(HELLO_NAME) as path:
        assert path.read_bytes() == HELLO


# --- the bucket: copies on this disk


def blob_of(size: int, seed: int) -> bytes:
    return seed.to_bytes(4, "big") * (size // 4)


def taken(root: Path) -> int:
    return sum(path.stat().st_size for path in root.iterdir() if path.is_file())


def test_a_blob_is_brought_once_for_all_its_parts(bucket: Bucket) -> None:
    name = bucket.store.put(io.BytesIO(LONG)).name
    # As several processes of one machine: each with descriptors, so with locks, of its own.
    workers = [bucket.another(copies="elsewhere") for _ in range(4)]
    files = []

    def fetch(worker: BucketStore) -> None:
        with worker.fetch(name) as path:
            files.append(path.stat().st_ino)
            assert path.read_bytes() == LONG

    all_at_once(*[lambda worker=worker: fetch(worker) for worker in workers])
    fetch(workers[0])
    assert len(set(files)) == 1


def test_copies_stay_within_their_bound_and_the_longest_unused_goes_first(bucket: Bucket, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    store = BucketStore(bucket.bucket, LocalCopies(root, 2500))
    names = [bucket.store.put(io.BytesIO(blob_of(1000, seed))).name for seed in range(4)]
    for name in (names[0], names[1], names[0], names[2], names[3], names[0]):
        with store.fetch(name):
            pass
        for number, path in enumerate(sorted(root.glob("?" * 64), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (number, number))  # the order stays, whatever the clock's grain
        assert taken(root) <= 2500
    assert {path.name for path in root.glob("?" * 64)} == {names[3], names[0]}


def test_a_copy_in_use_stays_and_one_larger_than_the_bound_goes_after_use(bucket: Bucket, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    first, second = (BucketStore(bucket.bucket, LocalCopies(root, 1500)) for _ in range(2))
    contents = [blob_of(size, 7) for size in (1000, 1200, 5000)]
    names = [bucket.store.put(io.BytesIO(content)).name for content in contents]
    with first.fetch(names[0]) as path, second.fetch(names[2]) as large, second.fetch(names[1]) as another:
        assert path.read_bytes() == contents[0]
        assert another.read_bytes() == contents[1]
        assert large.read_bytes() == contents[2]
    assert not large.exists()
    assert taken(root) <= 1500


def bring(copies: LocalCopies, content: bytes) -> str:
    """Have a copy, for a moment."""
    name = hashlib.sha256(content).hexdigest()

    def write(file: IO[bytes]) -> None:
        file.write(content)

    with copies.hold(name, len(content), write) as path:
        assert path.read_bytes() == content
    return name


def test_processes_that_share_a_directory_share_its_bound(tmp_path: Path) -> None:
    processes = [LocalCopies(tmp_path, 10_000) for _ in range(3)]
    for number in range(40):
        bring(processes[number % 3], blob_of(1000, number))
        assert taken(tmp_path) <= 10_000 + 100  # and the total itself
    # Whoever made room made some to spare, and no more than that.
    assert len(list(tmp_path.glob("?" * 64))) >= 8


def test_all_copies_are_looked_at_only_when_they_may_be_too_many(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, 10_000)
    first = bring(copies, blob_of(1000, 0))
    stray = tmp_path / ("f" * 64)  # of which nothing was told
    stray.write_bytes(bytes(20_000))
    os.utime(stray, (1, 1))
    for _ in range(3):
        assert bring(copies, blob_of(1000, 0)) == first
        bring(copies, blob_of(1000, 1))
    assert stray.exists()
    # A process that is new does not trust what others counted: they may have been killed in the middle.
    bring(LocalCopies(tmp_path, 10_000), blob_of(1000, 2))
    assert not stray.exists()
    assert taken(tmp_path) <= 10_000


def test_what_was_uploaded_here_is_at_hand_already(bucket: Bucket, s3: S3Server) -> None:
    name = bucket.store.put(io.BytesIO(LONG)).name
    (key,) = bucket.keys("data")
    obstore.put(bucket.bucket, key, b"not read at all")
    with bucket.store.fetch(name) as path:
        assert path.read_bytes() == LONG


def test_a_part_in_use_is_not_taken_for_a_dead_writers(tmp_path: Path) -> None:
    copies = LocalCopies(tmp_path, AMPLE)
    with copies.part() as part:
        os.utime(part.name, (1, 1))
        assert copies.clean_unfinished(500) == 0
    assert list((tmp_path / "unfinished").iterdir()) == []


# --- the bucket: when it fails


@pytest.fixture
def frail(tmp_path: Path) -> Iterator[S3Server]:
    """A server of this test's own, to be stopped."""
    with S3Server(tmp_path / "frail") as server:
        yield server


def opened(url: str, data_dir: Path, **more: Any) -> BlobStore:
    said: dict[str, Any] = {"blob_url": url, "blob_allow_http": True, "blob_patience_s": 0.3, "data_dir": data_dir}
    return open_store(Settings(**said | more))


def test_a_server_that_is_away_is_waited_for_and_back_when_it_is(
    frail: S3Server, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in frail.environment.items():
        monkeypatch.setenv(name, value)
    store = opened(frail.new_prefix(), data_dir)
    store.put(io.BytesIO(HELLO))
    made = tmp_path / "made.bin"
    made.write_bytes(LONG)
    frail.stop()

    def fetch() -> None:
        with store.fetch(HELLO_NAME):
            pass

    for ask in (
        lambda: store.put(io.BytesIO(HELLO)),
        lambda: store.put_file(made),
        lambda: store.open(HELLO_NAME),
        fetch,
        lambda: store.delete(HELLO_NAME),
        lambda: list(store.names_older_than(0)),
    ):
        with pytest.raises(NotReady) as told:
            ask()
        assert told.value.__suppress_context__, "a trace would show what the store answered"
        assert frail.secret not in str(told.value) + caplog.text
    assert "Connect" in caplog.text
    frail.start()
    assert made.exists(), "it may be put again"
    assert store.put_file(made).bytes == len(LONG)
    with store.open(HELLO_NAME) as source:
        assert source.read() == HELLO


def test_a_server_lost_while_a_blob_is_read_is_told(
    frail: S3Server, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in frail.environment.items():
        monkeypatch.setenv(name, value)
    store = opened(frail.new_prefix(), data_dir)
    name = store.put(io.BytesIO(LONG)).name
    with store.open(name) as source:
        source.read(10)
        frail.stop()
        with pytest.raises(NotReady):
            source.read()
        frail.start()
        source.seek(10)
        assert source.read() == LONG[10:]


@pytest.mark.parametrize(
    ("url", "variables", "told"),
    [
        ("s3://nobody-made-this/blobs", {}, "NoSuchBucket"),
        ("s3://bucket/blobs", {"AWS_SECRET_ACCESS_KEY": "mistaken"}, "SignatureDoesNotMatch"),
        ("s3://bucket/blobs", {"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, "Connect"),
    ],
)
def test_a_store_that_refuses_is_not_ready_and_the_log_says_why(
    s3: S3Server,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    url: str,
    variables: dict[str, str],
    told: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    store = opened(url, data_dir)
    with pytest.raises(NotReady):
        store.put(io.BytesIO(HELLO))
    with pytest.raises(NotReady):
        store.open(HELLO_NAME)
    assert told in caplog.text
    assert "mistaken" not in caplog.text
    assert "quietframe-tests" not in caplog.text


# --- the bucket: addresses for strangers


def test_a_stranger_with_a_signed_address_reads_the_blob_until_it_runs_out(s3: S3Server, data_dir: Path) -> None:
    url = s3.new_prefix()
    store = opened(url, data_dir, result_redirect=True)
    store.put(io.BytesIO(HELLO))
    said = {
        "content_type": "image/png",
        "disposition": "attachment; filename=\"na-ve.png\"; filename*=UTF-8''na%C3%AFve.png",
    }
    address, fleeting = (store.link(HELLO_NAME, method="GET", ttl_s=ttl_s, **said) for ttl_s in (60, 1))
    assert address
    assert fleeting
    assert s3.secret not in address
    whole = httpx.get(address)
    assert (whole.status_code, whole.content) == (200, HELLO)
    assert whole.headers["content-type"] == "image/png"
    assert whole.headers["content-disposition"] == said["disposition"]
    part = httpx.get(address, headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.content) == (206, HELLO[1:3])
    assert part.headers["content-range"] == "bytes 1-2/5"
    head = store.link(HELLO_NAME, method="HEAD", ttl_s=60, **said)
    assert head
    assert httpx.head(head).headers["content-length"] == "5"
    for refused in (
        httpx.head(address),  # signed for GET
        httpx.get(address.replace("image%2Fpng", "text%2Fhtml")),
        httpx.get(address.partition("?")[0]),
        httpx.put(address, content=b"mine"),
    ):
        assert refused.status_code in (400, 403)
    deadline = time.monotonic() + PATIENCE_S
    while httpx.get(fleeting).status_code == 200:
        assert time.monotonic() < deadline, "it was to hold for a second"
    assert httpx.get(fleeting).status_code in (400, 403)  # Amazon says 403


def test_a_store_that_signs_nothing_gives_out_no_address(place: Place) -> None:
    place.store.put(io.BytesIO(HELLO))
    asked = {"content_type": "image/png", "disposition": "attachment"}
    assert place.store.link(HELLO_NAME, method="GET", ttl_s=1, **asked) is None


@pytest.fixture
def home_of_somebody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with credentials and a server in it that are not the service's."""
    keys = "aws_access_key_id = somebody-elses\naws_secret_access_key = swordfish\n"
    files = {
        ".aws/credentials": f"[default]\n{keys}[work]\n{keys}",
        ".aws/config": f"[default]\n{keys}endpoint_url = http://elsewhere.invalid\n[profile work]\n"
        "services = all\n[services all]\ns3 =\n  endpoint_url = http://elsewhere.invalid\n",
        ".boto": f"[Credentials]\n{keys}",
    }
    for name, text in files.items():
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_PROFILE", "work")
    return tmp_path / "home"


@pytest.mark.parametrize("named", [False, True])
def test_addresses_are_signed_with_what_the_bytes_are_sent_with_and_nothing_from_files(
    s3: S3Server, home_of_somebody: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    from service.blobs.links import BucketLinks

    if named:
        monkeypatch.setenv("AWS_CONFIG_FILE", str(home_of_somebody / ".aws/config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home_of_somebody / ".aws/credentials"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    asked: dict[str, Any] = {"method": "GET", "ttl_s": 60, "content_type": "image/png", "disposition": "attachment"}
    address = BucketLinks("s3://bucket/blobs", endpoint=None, region="us-east-1").sign("key", **asked)
    assert address.startswith("https://s3.")
    assert ".amazonaws.com/bucket/blobs/key?" in address
    assert "quietframe-tests" in address
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    links = BucketLinks("s3://bucket/blobs", endpoint=s3.url, region="us-east-1")
    with pytest.raises(NotReady, match="NoCredentialsError"):
        links.sign("key", **asked)


# --- which store is opened


def test_blobs_are_in_the_data_directory_where_nothing_else_is_said(data_dir: Path) -> None:
    open_store(Settings(data_dir=data_dir)).put(io.BytesIO(HELLO))
    assert (data_dir / "blobs" / HELLO_NAME[:2] / HELLO_NAME).exists()


def test_blobs_may_be_in_another_directory(data_dir: Path, tmp_path: Path) -> None:
    opened((tmp_path / "shared place").as_uri(), data_dir).put(io.BytesIO(HELLO))
    assert (tmp_path / "shared place" / HELLO_NAME[:2] / HELLO_NAME).exists()


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:swordfish@bucket/blobs",
        "s3://bucket/blobs?secret_access_key=swordfish",
        "s3://bucket/blobs#swordfish",
        "s3:///swordfish",
        "ftp://swordfish/blobs",
        "file://swordfish/blobs",
        "file:///",
        "swordfish",
        "s3://user:swordfish\u2100@bucket/blobs",  # a sign that becomes "a/c" where hosts are compared
        "s3://[swordfish/blobs",
        "s3://bucket/a//swordfish",
        "s3://bucket/../swordfish",
        "s3://bucket/./swordfish",
        "s3://bucket:99/swordfish",
        "s3://bucket:swordfish/blobs",
        "s3://sword fish/swordfish",
        "gs://bucket:99/swordfish",
        "az://container/swordfish//a",
    ],
)
def test_a_url_that_names_no_store_or_holds_a_secret_is_refused_unrepeated(data_dir: Path, url: str) -> None:
    with pytest.raises(UnusableBlobUrl) as told:
        opened(url, data_dir)
    assert "swordfish" not in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.__suppress_context__ or told.value.__context__ is None
    assert "swordfish" not in repr(Settings(blob_url=url, blob_endpoint=url))


def test_an_azure_container_without_its_account_is_told_so(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(UnusableBlobUrl, match="AZURE_STORAGE_ACCOUNT_NAME"):
        opened("az://container/blobs", data_dir)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://user:swordfish@127.0.0.1:9000",
        "swordfish",
        "ftp://swordfish",
        "https://[swordfish",
        "https://swordfish:bad",
        "https://swordfish:99999",
        "https://sword fish",
        "https://h#swordfish",
    ],
)
def test_an_endpoint_that_is_none_is_refused_unrepeated(data_dir: Path, endpoint: str) -> None:
    with pytest.raises(UnusableBlobUrl) as told:
        opened("s3://bucket/blobs", data_dir, blob_endpoint=endpoint)
    assert "swordfish" not in str(told.value)


def test_a_server_without_tls_must_be_allowed(s3: S3Server, data_dir: Path) -> None:
    with pytest.raises(UnusableBlobUrl, match="QUIETFRAME_BLOB_ALLOW_HTTP"):
        opened("s3://bucket/blobs", data_dir, blob_allow_http=False)
    opened("s3://bucket/blobs", data_dir)


def test_the_setting_goes_before_the_environment(s3: S3Server, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, "http://nowhere.invalid")
    assert opened(s3.new_prefix(), data_dir, blob_endpoint=s3.url).put(io.BytesIO(HELLO)).name == HELLO_NAME


def test_who_keeps_blobs_in_files_needs_nothing_more_and_who_does_not_is_told_what(data_dir: Path) -> None:
    code = """
import sys
sys.modules.update({sys.argv[1]: None})
from service.blobs import open_store
from service.settings import Settings
open_store(Settings(data_dir=sys.argv[2]))
assert not {"obstore", "botocore"} & {name for name, module in sys.modules.items() if module}
try:
    open_store(Settings(data_dir=sys.argv[2], blob_url="s3://bucket/blobs", result_redirect=True))
except Exception as err:
    print(type(err).__name__, err)
"""
    for missing in ("obstore", "botocore"):
        command = [sys.executable, "-c", code, missing, str(data_dir)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        assert done.stdout.startswith(f"{NeedsExtra.__name__} {missing} is not installed")
        assert "pip install 'quietframe[s3]'" in done.stdout
