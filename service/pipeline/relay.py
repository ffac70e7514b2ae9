"""Lets the codec work while the network does: an iterable read ahead, and a consumer fed, each in its own thread.

Queues are bounded, so a slow stage holds the ones before it back and memory stays flat however long the clip.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class _Stopped(Exception):
    """The other end has left. Never leaves this file."""


class _Pipe(Generic[T]):
    """A bounded queue whose two ends learn of each other's end."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._closed = False  # nothing more will be put
        self._stopped = False  # nothing more will be taken

    def put(self, item: T) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._depth or self._stopped)
            if self._stopped:
                raise _Stopped
            self._items.append(item)
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._items or self._closed or self._stopped)
                if self._stopped or not self._items:
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()


@contextmanager
def read_ahead(items: Iterable[T], depth: int, *, waits: bool = True) -> Iterator[Iterator[T]]:
    """Read `items` in a thread, at most `depth` ahead. What reading raises is raised to who takes the next item.

    Args:
        items: what to read.
        depth: how many may wait.
        waits: whether leaving waits for the reading of the item in hand; without, its thread ends behind it.
    """
    pipe: _Pipe[T] = _Pipe(depth)
    failure: list[BaseException] = []

    def read() -> None:
        try:
            for item in items:
                pipe.put(item)
        except _Stopped:
            pass
        except BaseException as err:
            failure.append(err)
        finally:
            pipe.close()

    def take() -> Iterator[T]:
        yield from pipe
        if failure:
            raise failure[0]

    # In the context of who reads: what is logged there is about the same job.
    thread = Thread(target=copy_context().run, args=(read,), name="read-ahead", daemon=True)
    thread.start()
    try:
        yield take()
    finally:
        pipe.stop()
        if waits:
            thread.join()


@contextmanager
def write_behind(consume: Callable[[T], None], depth: int) -> Iterator[Callable[[T], None]]:
    """Give items to `consume` in a thread, at most `depth` waiting.

    What it raises is raised to who puts the next item, or at the end. Leaving without an error waits for the last item;
    leaving with one drops what waits.
    """
    pipe: _Pipe[T] = _Pipe(depth)
    failure: list[BaseException] = []

    def work() -> None:
        try:
            for item in pipe:
                consume(item)
        except BaseException as err:
            failure.append(err)
            pipe.stop()

    def put(item: T) -> None:
        try:
            pipe.put(item)
        except _Stopped:
            raise failure[0] from None

    thread = Thread(target=copy_context().run, args=(work,), name="write-behind", daemon=True)
    thread.start()
    try:
        yield put
    except BaseException:
        pipe.stop()
        raise
    finally:
        pipe.close()
        thread.join()
    if failure:
        raise failure[0]
