"""Are blobs kept whole, kept once, and kept in?"""

import io
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.blobs import Blob, BlobStore, FileStore
from service.errors import ResultGone

HELLO = b"hello"
HELLO_NAME = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"  # sha256 of it, from coreutils


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "blobs"


@pytest.fixture(params=[FileStore])
def store(request: pytest.FixtureRequest, root: Path) -> BlobStore:
    make: Callable[[Path], BlobStore] = request.param
    return make(root)


def age(root: Path, name: str, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(root / name[:2] / name, (then, then))


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and path.name != "lock"]


def test_a_blob_is_named_by_its_bytes_and_comes_back_whole(store: BlobStore) -> None:
    assert store.put(io.BytesIO(HELLO)) == Blob(name=HELLO_NAME, bytes=5, sha256=HELLO_NAME)
    with store.open(HELLO_NAME) as source:
        assert source.read() == HELLO
    with store.fetch(HELLO_NAME) as path:
        assert path.read_bytes() == HELLO


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


def test_the_same_bytes_are_stored_once_and_count_as_fresh_again(store: BlobStore, root: Path) -> None:
    store.put(io.BytesIO(HELLO))
    age(root, HELLO_NAME, 1000)
    assert list(store.names_older_than(500)) == [HELLO_NAME]
    store.put(io.BytesIO(HELLO))
    assert list(store.names_older_than(500)) == []
    assert len(files(root)) == 1


def test_a_file_is_moved_in_and_is_fresh_however_old_it_was(store: BlobStore, root: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.bin"
    made.write_bytes(HELLO)
    os.utime(made, (1, 1))
    assert store.put_file(made).name == HELLO_NAME
    assert not made.exists()
    assert list(store.names_older_than(500)) == []
    made.write_bytes(HELLO)
    assert store.put_file(made).name == HELLO_NAME
    assert not made.exists()
    assert len(files(root)) == 1


def test_a_deleted_blob_is_gone_and_may_be_deleted_again(store: BlobStore) -> None:
    store.put(io.BytesIO(HELLO))
    assert store.delete(HELLO_NAME)
    assert not store.delete(HELLO_NAME)
    with pytest.raises(ResultGone):
        store.open(HELLO_NAME)
    with pytest.raises(ResultGone), store.fetch(HELLO_NAME):
        pass


def test_a_deleter_who_counted_references_spares_what_was_put_again(store: BlobStore, root: Path) -> None:
    store.put(io.BytesIO(HELLO))
    age(root, HELLO_NAME, 1000)
    store.put(io.BytesIO(HELLO))
    assert not store.delete(HELLO_NAME, unused_for_s=500)
    age(root, HELLO_NAME, 1000)
    assert store.delete(HELLO_NAME, unused_for_s=500)


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
        "٢" * 64,  # digits elsewhere
    ],
)
def test_a_name_that_no_blob_can_have_reaches_nothing(store: BlobStore, name: str) -> None:
    with pytest.raises(ResultGone):
        store.open(name)
    with pytest.raises(ResultGone), store.fetch(name):
        pass
    with pytest.raises(ResultGone):
        store.delete(name)


def test_a_source_that_breaks_off_leaves_nothing_behind(store: BlobStore, root: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                raise ConnectionResetError
            return super().read(2)

    with pytest.raises(ConnectionResetError):
        store.put(Broken(HELLO))
    assert files(root) == []


def test_what_a_killed_writer_left_is_cleaned_once_it_is_old(store: BlobStore, root: Path) -> None:
    left = root / "unfinished" / "left.part"
    left.write_bytes(HELLO)
    assert store.clean_unfinished(500) == 0
    os.utime(left, (1, 1))
    assert store.clean_unfinished(500) == 1
    assert files(root) == []
    assert list(store.names_older_than(0)) == []


def test_many_may_put_and_delete_the_same_bytes_at_once(store: BlobStore) -> None:
    failures: list[BaseException] = []

    def put_and_delete() -> None:
        try:
            for _ in range(20):
                store.put(io.BytesIO(HELLO))
                store.delete(HELLO_NAME)
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=put_and_delete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.put(io.BytesIO(HELLO)).name == HELLO_NAME
