"""Who is at work beside whom? Stories told by threads, one step at a time."""

from collections.abc import Callable
from threading import Event, Semaphore, Thread

import pytest

from service.isolation import Isolation, Occupied

PATIENCE_S = 30.0  # a bound on waiting, never a claim about speed


class Job:
    """One that is at work in a thread of its own until it is told to end."""

    def __init__(self, isolation: Isolation, *, alone: bool = False, heed: Callable[[], None] = lambda: None) -> None:
        self.began, self.outcome, self._end = Event(), "", Event()
        self._isolation, self._alone, self._heed = isolation, alone, heed
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._isolation.entered(alone=self._alone, heed=self._heed):
                self.began.set()
                self._end.wait(PATIENCE_S)
            self.outcome = "done"
        except (Occupied, InterruptedError) as err:
            self.outcome = type(err).__name__

    def end(self) -> str:
        self._end.set()
        self._thread.join(PATIENCE_S)
        return self.outcome


@pytest.fixture
def isolation() -> Isolation:
    return Isolation()


def test_jobs_are_at_work_beside_each_other(isolation):
    jobs = [Job(isolation) for _ in range(3)]
    assert all(job.began.wait(PATIENCE_S) for job in jobs)
    assert isolation.is_open(0)
    assert [job.end() for job in jobs] == ["done"] * 3


def test_a_last_attempt_waits_until_the_others_are_done_and_lets_nobody_in_meanwhile(isolation):
    first = Job(isolation)
    assert first.began.wait(PATIENCE_S)
    waits = Semaphore(0)
    last = Job(isolation, alone=True, heed=waits.release)
    assert waits.acquire(timeout=PATIENCE_S)
    assert not last.began.is_set()
    assert not isolation.is_open(0)
    assert Job(isolation).end() == "Occupied"
    assert first.end() == "done"
    assert last.began.wait(PATIENCE_S)
    assert Job(isolation).end() == "Occupied"
    assert last.end() == "done"
    assert isolation.is_open(PATIENCE_S)
    assert Job(isolation).end() == "done"


def test_of_two_last_attempts_one_goes_back_to_the_queue(isolation):
    one = Job(isolation, alone=True)
    assert one.began.wait(PATIENCE_S)
    assert Job(isolation, alone=True).end() == "Occupied"
    assert one.end() == "done"


def test_a_long_job_does_not_keep_all_slots_idle_for_a_last_attempt():
    isolation = Isolation(patience_s=0.0)
    long = Job(isolation)
    assert long.began.wait(PATIENCE_S)
    waits = Semaphore(0)
    last = Job(isolation, alone=True, heed=waits.release)
    assert all(waits.acquire(timeout=PATIENCE_S) for _ in range(2))  # once with the others held up, once without
    passing = Job(isolation)
    assert passing.began.wait(PATIENCE_S)
    assert not last.began.is_set()
    assert passing.end() == "done"
    assert long.end() == "done"
    assert last.began.wait(PATIENCE_S)
    assert last.end() == "done"


def test_a_wait_that_is_given_up_leaves_the_others_as_they_were(isolation):
    def stop() -> None:
        raise InterruptedError

    first = Job(isolation)
    assert first.began.wait(PATIENCE_S)
    assert Job(isolation, alone=True, heed=stop).end() == "InterruptedError"
    assert isolation.is_open(0)
    assert [Job(isolation).end(), first.end()] == ["done", "done"]


def test_a_job_that_fails_makes_room_for_the_next(isolation):
    with pytest.raises(ZeroDivisionError), isolation.entered(alone=True, heed=lambda: None):
        1 / 0  # noqa: B018 - the failure is the point
    assert Job(isolation, alone=True).end() == "done"
